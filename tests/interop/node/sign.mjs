// Signs requests with the stock @slicekit/erc8128 client:  node sign.mjs URL PRIVATE_KEY CHAIN_ID
//
// A request with "send": false is only signed; the answer is then what would have been sent.
import { createSignerClient } from "@slicekit/erc8128";
import { privateKeyToAccount } from "viem/accounts";
import { init, plain, serve } from "./lines.mjs";

const [url, key, chainId] = process.argv.slice(2);
const account = privateKeyToAccount(key);
const client = createSignerClient({
  chainId: Number(chainId),
  address: account.address,
  signMessage: (message) => account.signMessage({ message: { raw: message } }),
});

await serve(async (request) => {
  const target = `${url}${request.path}`;
  if (request.send) return plain(await client.fetch(target, init(request)));
  const signed = await client.signRequest(target, init(request));
  return { headers: Object.fromEntries(signed.headers), text: await signed.text() };
});
