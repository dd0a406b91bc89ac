// Pays for requests with the stock x402-fetch client:  node buy.mjs URL PRIVATE_KEY [LIMIT]
//
// Without LIMIT (such as "$10") the client's own default holds, ten cents.
import { createSigner, decodeXPaymentResponse, wrapFetchWithPayment } from "x402-fetch";
import { parseUnits } from "viem";
import { init, plain, serve } from "../node/lines.mjs";

const [url, key, limit] = process.argv.slice(2);
const signer = await createSigner("base-sepolia", key);
const pay = wrapFetchWithPayment(fetch, signer, limit === undefined ? undefined : parseUnits(limit.slice(1), 6));

await serve(async (request) => {
  const response = await pay(`${url}${request.path}`, init(request));
  const header = response.headers.get("X-PAYMENT-RESPONSE");
  const receipt = header === null ? null : decodeXPaymentResponse(header);
  return { ...(await plain(response)), receipt };
});
