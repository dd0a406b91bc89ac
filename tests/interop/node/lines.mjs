// One JSON request a line on stdin, one JSON answer a line on stdout, until stdin ends.
//
// The driver needs earlier answers to build later requests (a server's id), so the clients stay up for a story.
import { createInterface } from "node:readline";
import { webcrypto } from "node:crypto";

// Node 18 has no global `crypto`; the clients expect one, as every browser has it.
globalThis.crypto ??= webcrypto;

// A failure of the client itself is an answer too: {"error": text}.
export async function serve(answer) {
  for await (const line of createInterface({ input: process.stdin })) {
    const reply = await answer(JSON.parse(line)).catch((error) => ({ error: String(error.message ?? error) }));
    process.stdout.write(`${JSON.stringify(reply)}\n`);
  }
}

// The `init` of a fetch; a request without a body sends none.
export function init({ method, body, headers }) {
  if (body === null) return { method, headers };
  return { method, headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(body) };
}

export async function plain(response) {
  return { status: response.status, headers: Object.fromEntries(response.headers), body: await response.json() };
}
