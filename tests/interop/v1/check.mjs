// Holds messages against the stock x402 schemas:  node check.mjs
//
// A line {"schema": name, "message": any} is answered with what the schema makes of it, or with what it objects to.
import { PaymentRequirementsSchema, SettleResponseSchema, x402ResponseSchema } from "x402/types";
import { serve } from "../node/lines.mjs";

const schemas = { PaymentRequirementsSchema, SettleResponseSchema, x402ResponseSchema };

await serve(async ({ schema, message }) => ({ read: schemas[schema].parse(message) }));
