// A JavaScript peer: an app behind the official x402 middleware, which serves one priced GET.
//
//   node peer.mjs {"framework", "checks", "port", "path", "network", "asset", "payTo", "body", "facilitator"}
//
// `framework` is express or hono. `checks` says who verifies and settles a payment: `process` (the SDK's own
// facilitator in this process, signatures really recovered, a chain that answers at once), `http` (the facilitator at
// the URL `facilitator`) or `none` (a facilitator in this process that says yes to everything).

import { readFileSync } from "node:fs";
import { webcrypto } from "node:crypto";
import { serve } from "@hono/node-server";
import { x402Facilitator } from "@x402/core/facilitator";
import { HTTPFacilitatorClient } from "@x402/core/server";
import { registerExactEvmScheme } from "@x402/evm/exact/facilitator";
import { ExactEvmScheme } from "@x402/evm/exact/server";
import * as forExpress from "@x402/express";
import * as forHono from "@x402/hono";
import express from "express";
import { Hono } from "hono";

globalThis.crypto ??= webcrypto; // Node 18 has no global one

const options = JSON.parse(process.argv[2]);
const body = readFileSync(options.body, "utf8");

let transactions = 0;
const nextTransaction = () => `0x${(++transactions).toString(16).padStart(64, "0")}`;

// Payers are ordinary accounts, the asset is a contract, every transfer succeeds.
const healthyChain = {
  getAddresses: () => [`0x${"11".repeat(20)}`],
  getCode: async ({ address }) => (address.toLowerCase() === options.asset.toLowerCase() ? "0x60" : undefined),
  readContract: async () => undefined,
  writeContract: async () => nextTransaction(),
  waitForTransactionReceipt: async () => ({ status: "success" }),
  sendTransaction: async () => { throw new Error("only wallets that are contracts need it"); },
  verifyTypedData: async () => { throw new Error("the exact scheme recovers the signature by itself"); },
};

function inProcess() {
  const facilitator = new x402Facilitator();
  registerExactEvmScheme(facilitator, { signer: healthyChain, networks: options.network });
  return {
    verify: (payload, requirements) => facilitator.verify(payload, requirements),
    settle: (payload, requirements) => facilitator.settle(payload, requirements),
    getSupported: async () => facilitator.getSupported(),
  };
}

const sayYes = {
  verify: async (payload) => ({ isValid: true, payer: payload.payload.authorization.from }),
  settle: async (payload) => ({
    success: true,
    transaction: nextTransaction(),
    network: options.network,
    payer: payload.payload.authorization.from,
  }),
  getSupported: async () => ({
    kinds: [{ x402Version: 2, scheme: "exact", network: options.network }],
    extensions: [],
    signers: {},
  }),
};

const facilitators = {
  process: inProcess,
  http: () => new HTTPFacilitatorClient({ url: options.facilitator }),
  none: () => sayYes,
};

function middleware({ paymentMiddleware, x402ResourceServer }) {
  const server = new x402ResourceServer(facilitators[options.checks]());
  server.register(options.network, new ExactEvmScheme());
  const accepts = { scheme: "exact", price: "$0.001", network: options.network, payTo: options.payTo };
  return paymentMiddleware({ [`GET ${options.path}`]: { accepts, description: "List your servers" } }, server);
}

const frameworks = {
  express() {
    const app = express();
    app.use(middleware(forExpress));
    app.get(options.path, (_, response) => response.type("application/json").send(body));
    app.listen(options.port, "127.0.0.1");
  },
  hono() {
    const app = new Hono();
    app.use(middleware(forHono));
    app.get(options.path, (context) => context.body(body, 200, { "content-type": "application/json" }));
    serve({ fetch: app.fetch, port: options.port, hostname: "127.0.0.1" });
  },
};

frameworks[options.framework]();
