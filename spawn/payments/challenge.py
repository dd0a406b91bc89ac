"""Our half of the x402 conversation: the offer in a 402 and the receipt of a settlement, as header values.

Invariant: every address we offer is spelled in one way, the EIP-55 checksum, because clients compare what we
offered with what they echo letter by letter.
"""

from binascii import b2a_base64
from typing import Any, Final

import msgspec
from spawn_schemas.money import Usdc
from spawn_schemas.x402 import (
    SCHEME_EXACT,
    X402_VERSION,
    PaymentRequired,
    PaymentRequirements,
    Reason,
    Resource,
    SettleResponse,
)

from spawn.payments.curve import checksummed
from spawn.payments.exact import Terms

PAYMENT_IDENTIFIER: Final[dict[str, Any]] = {
    "payment-identifier": {
        "info": {"required": False},
        "schema": {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": {
                "required": {"type": "boolean"},
                "id": {"type": "string", "minLength": 16, "maxLength": 128, "pattern": "^[a-zA-Z0-9_-]+$"},
            },
            "required": ["required"],
        },
    }
}
"""Tells clients that they may name a purchase, so that a second attempt finds the first (x402 extension)."""

_encoder: Final = msgspec.json.Encoder()


class Challenges:
    """Writes offers on fixed terms. What depends on the terms alone is worked out once."""

    def __init__(self, terms: Terms, *, extensions: dict[str, Any] | None = None) -> None:
        self._offer = PaymentRequirements(
            scheme=SCHEME_EXACT,
            network=terms.network,
            amount="0",
            asset=checksummed(terms.asset),
            pay_to=checksummed(terms.pay_to),
            max_timeout_seconds=terms.max_timeout_s,
            # `upfront`: the money moves before the work is done, and stays as credit if the work fails.
            extra={"name": terms.asset_name, "version": terms.asset_version, "paymentFlow": "upfront"},
        )
        self._extensions = PAYMENT_IDENTIFIER if extensions is None else extensions

    def requirements(self, amount_usdc: Usdc) -> PaymentRequirements:
        """The one way to pay `amount_usdc`."""
        return msgspec.structs.replace(self._offer, amount=str(amount_usdc))

    def header(
        self, amount_usdc: Usdc, resource_url: str, description: str, error: str | None = None
    ) -> bytes:
        """The value of `PAYMENT-REQUIRED`: a pure function, so a fixed price needs it only once."""
        return _base64(
            PaymentRequired(
                x402_version=X402_VERSION,
                error=error,
                resource=Resource(url=resource_url, description=description, mime_type="application/json"),
                accepts=(self.requirements(amount_usdc),),
                extensions=self._extensions,
            )
        )


def settle_response(
    *,
    success: bool,
    network: str,
    transaction: str = "",
    payer: str | None = None,
    error_reason: Reason | str | None = None,
    amount: str | None = None,
) -> bytes:
    """The value of `PAYMENT-RESPONSE`; `transaction` is empty when no transaction is known."""
    return _base64(
        SettleResponse(
            success=success,
            transaction=transaction,
            network=network,
            payer=payer,
            error_reason=error_reason,
            amount=amount,
        )
    )


def _base64(message: PaymentRequired | SettleResponse) -> bytes:
    return b2a_base64(_encoder.encode(message), newline=False)
