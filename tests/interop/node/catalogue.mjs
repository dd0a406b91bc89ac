// Reads routes as a facilitator does, with the stock @x402/extensions:  node catalogue.mjs URL PRIVATE_KEY
//
// The stock client makes the payment, which is never sent: what a facilitator learns of a route is in there.
import { ExactEvmScheme } from "@x402/evm";
import {
  extractDiscoveryInfo,
  validateDiscoveryExtension,
  validateDiscoveryExtensionSpec,
} from "@x402/extensions/bazaar";
import { x402Client, x402HTTPClient } from "@x402/fetch";
import { privateKeyToAccount } from "viem/accounts";
import { init, serve } from "./lines.mjs";

const [url, key] = process.argv.slice(2);
const client = x402Client.fromConfig({
  schemes: [{ network: "eip155:*", client: new ExactEvmScheme(privateKeyToAccount(key)) }],
  spendControls: { maxAmountPerPayment: "$100" },
});
const http = new x402HTTPClient(client);

await serve(async (request) => {
  const answer = await fetch(`${url}${request.path}`, init(request));
  const payment = await client.createPaymentPayload(
    http.getPaymentRequiredResponse((name) => answer.headers.get(name)),
  );
  const { bazaar } = payment.extensions;
  const checks = [validateDiscoveryExtension(bazaar), validateDiscoveryExtensionSpec(bazaar)];
  const found = extractDiscoveryInfo(payment, payment.accepted);
  const [header] = Object.values(http.encodePaymentSignatureHeader(payment));
  return {
    errors: checks.flatMap((check) => check.errors ?? []),
    method: found.method,
    resource_url: found.resourceUrl,
    description: found.description,
    service_name: found.serviceName,
    tags: found.tags,
    call: found.discoveryInfo.input,
    amount: Number(payment.accepted.amount),
    header_chars: header.length,
  };
});
