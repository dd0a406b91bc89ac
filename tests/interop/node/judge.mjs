// Judges sign-ins as the stock @x402/extensions would on a server:  node judge.mjs ORIGIN
//
// {"header"} is parsed, validated and verified; {"info", "address"} is laid out as the text to sign.
import {
  createSIWxMessage,
  declareSIWxExtension,
  parseSIWxHeader,
  validateSIWxMessage,
  verifySIWxSignature,
} from "@x402/extensions/sign-in-with-x";
import { serve } from "./lines.mjs";

const origin = new URL(process.argv[2]);

async function judge(header) {
  const payload = parseSIWxHeader(header);
  const valid = await validateSIWxMessage(payload, origin);
  return valid.isValid ? verifySIWxSignature(payload) : valid;
}

await serve(async ({ header, info, address, network }) => {
  if (network !== undefined) return declareSIWxExtension({ network });
  if (info !== undefined) return { text: createSIWxMessage(info, address) };
  return judge(header).catch((error) => ({ isValid: false, invalidMessage: String(error) }));
});
