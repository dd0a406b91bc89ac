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

_SLOTS: Final = ("\ue000error", "\ue000url", "\ue000amount")
"""What stands for the parts that are not known at start, in the order in which they are encoded."""

_encoder: Final = msgspec.json.Encoder()


class Challenges:
    """Writes offers on fixed terms. What depends on the terms alone is worked out once."""

    def __init__(self, terms: Terms) -> None:
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

    def requirements(self, amount_usdc: Usdc) -> PaymentRequirements:
        """The one way to pay `amount_usdc`."""
        return msgspec.structs.replace(self._offer, amount=str(amount_usdc))

    def prepare(self, description: str, extensions: dict[str, Any]) -> "Prepared":
        """The offer of one route, complete but for what differs from call to call."""
        return Prepared(
            PaymentRequired(
                x402_version=X402_VERSION,
                error=_SLOTS[0],
                resource=Resource(url=_SLOTS[1], description=description, mime_type="application/json"),
                accepts=(msgspec.structs.replace(self._offer, amount=_SLOTS[2]),),
                extensions=PAYMENT_IDENTIFIER | extensions,
            )
        )


class Prepared:
    """A challenge in JSON, cut at the places that are filled in for each call."""

    def __init__(self, required: PaymentRequired) -> None:
        text = _encoder.encode(required)
        self._pieces: list[bytes] = []
        for slot in _SLOTS:
            piece, _, text = text.partition(_encoder.encode(slot))
            self._pieces.append(piece)
        self._pieces.append(text)

    def header(self, amount_usdc: Usdc, resource_url: str, error: str) -> bytes:
        """The value of `PAYMENT-REQUIRED`."""
        before_error, before_url, before_amount, rest = self._pieces
        return b2a_base64(
            b"".join(
                (
                    before_error,
                    _encoder.encode(error),
                    before_url,
                    _encoder.encode(resource_url),
                    before_amount,
                    b'"%d"' % amount_usdc,
                    rest,
                )
            ),
            newline=False,
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
