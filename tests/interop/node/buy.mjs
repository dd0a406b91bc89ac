// Pays for requests with the stock @x402/fetch client:  node buy.mjs URL PRIVATE_KEY [LIMIT]
//
// Without LIMIT (such as "$10") the client's own default holds.
import { ExactEvmScheme } from "@x402/evm";
import { decodePaymentResponseHeader, wrapFetchWithPaymentFromConfig } from "@x402/fetch";
import { privateKeyToAccount } from "viem/accounts";
import { init, plain, serve } from "./lines.mjs";

const [url, key, limit] = process.argv.slice(2);
const pay = wrapFetchWithPaymentFromConfig(fetch, {
  schemes: [{ network: "eip155:*", client: new ExactEvmScheme(privateKeyToAccount(key)) }],
  ...(limit === undefined ? {} : { spendControls: { maxAmountPerPayment: limit } }),
});

await serve(async (request) => {
  const response = await pay(`${url}${request.path}`, init(request));
  const header = response.headers.get("PAYMENT-RESPONSE");
  const receipt = header === null ? null : decodePaymentResponseHeader(header);
  return { ...(await plain(response)), receipt };
});
