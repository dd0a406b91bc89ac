// Pays with the stock @x402/fetch, and names what it buys:  node name.mjs URL PRIVATE_KEY [IDENTIFIER]
//
// Every purchase has the one name, or without one a name of its own.
import { ExactEvmScheme } from "@x402/evm";
import {
  appendPaymentIdentifierToExtensions,
  validatePaymentIdentifier,
} from "@x402/extensions/payment-identifier";
import { wrapFetchWithPayment, x402Client } from "@x402/fetch";
import { privateKeyToAccount } from "viem/accounts";
import { init, plain, serve } from "./lines.mjs";

const [url, key, identifier] = process.argv.slice(2);
const client = x402Client.fromConfig({
  schemes: [{ network: "eip155:*", client: new ExactEvmScheme(privateKeyToAccount(key)) }],
});
client.onBeforePaymentCreation(async ({ paymentRequired }) => {
  appendPaymentIdentifierToExtensions(paymentRequired.extensions, identifier);
  const { valid, errors } = validatePaymentIdentifier(paymentRequired.extensions["payment-identifier"]);
  if (!valid) throw new Error(errors.join("; "));
});
const pay = wrapFetchWithPayment(fetch, client);

await serve(async (request) => plain(await pay(`${url}${request.path}`, init(request))));
