"""The x402 messages of protocol version 1: the same signed authorizations as version 2 in an older envelope.

Invariant: every message we write validates against the schemas of the version 1 SDKs, which know `null` for no
field: what is absent is left out.
"""

from typing import Any

import msgspec

from spawn_schemas.x402 import ExactEvmPayload

X402_VERSION_1 = 1


class PaymentRequirementsV1(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One way to pay, in the `accepts` of a 402 body. `max_amount_required` is in the token's smallest unit.

    `resource` is an absolute URL, `network` a name such as `base`; `output_schema` describes the call for
    catalogues; `extra` holds the `name` and `version` of the token's EIP-712 domain.
    """

    scheme: str
    network: str
    max_amount_required: str
    resource: str
    description: str
    mime_type: str
    output_schema: dict[str, Any] | None = None
    pay_to: str
    max_timeout_seconds: int
    asset: str
    extra: dict[str, Any] | None = None


class PaymentPayloadV1(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The `X-PAYMENT` header. Unknown fields are read over, as in version 2."""

    x402_version: int
    scheme: str
    network: str
    payload: ExactEvmPayload


class SettleResponseV1(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The `X-PAYMENT-RESPONSE` header. `transaction` is empty when there is none; `payer` is always named."""

    success: bool
    error_reason: str | None = None
    transaction: str
    network: str
    payer: str
