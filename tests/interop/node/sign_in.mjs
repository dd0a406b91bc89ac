// Signs in with the stock @x402/extensions, and pays where that is not enough, naming each payment:
//   node sign_in.mjs URL PRIVATE_KEY hook|wrapper|broke
//
// `hook` is the client extension of @x402/fetch, `wrapper` the package's own wrapFetchWithSIWx, which never pays, and
// `broke` the hook in a client that has no scheme to pay with.
import { ExactEvmScheme } from "@x402/evm";
import { appendPaymentIdentifierToExtensions } from "@x402/extensions/payment-identifier";
import { createSIWxClientExtension, wrapFetchWithSIWx } from "@x402/extensions/sign-in-with-x";
import { decodePaymentResponseHeader, wrapFetchWithPayment, x402Client } from "@x402/fetch";
import { privateKeyToAccount } from "viem/accounts";
import { init, plain, serve } from "./lines.mjs";

const [url, key, how] = process.argv.slice(2);
const account = privateKeyToAccount(key);

function hooked({ pays }) {
  const client = new x402Client();
  if (pays) client.register("eip155:*", new ExactEvmScheme(account));
  client.onBeforePaymentCreation(async ({ paymentRequired }) => {
    appendPaymentIdentifierToExtensions(paymentRequired.extensions);
  });
  client.registerExtension(createSIWxClientExtension({ signers: [account] }));
  return wrapFetchWithPayment(fetch, client);
}

const ways = {
  hook: () => hooked({ pays: true }),
  broke: () => hooked({ pays: false }),
  wrapper: () => wrapFetchWithSIWx(fetch, account),
};
const send = ways[how]();

await serve(async (request) => {
  const response = await send(`${url}${request.path}`, init(request));
  const header = response.headers.get("PAYMENT-RESPONSE");
  const receipt = header === null ? null : decodePaymentResponseHeader(header);
  return { ...(await plain(response)), receipt };
});
