"""Our half of the x402 conversation: the offer in a 402 and the receipt of a settlement, as header values.

Invariant: every address we offer is spelled in one way, the EIP-55 checksum, because clients compare what we
offered with what they echo letter by letter.
"""

from binascii import b2a_base64
from typing import Any, Final

import msgspec
from spawn_schemas.money import Usdc
from spawn_schemas.sign_in import SIGN_IN_WITH_X
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

_SLOTS: Final = ("\ue000error", "\ue000url", "\ue000amount", "\ue000sign-in")
"""What stands for the parts that are not known at start, in the order in which they are encoded."""

_encoder: Final = msgspec.json.Encoder()


class Challenges:
    """Writes offers on fixed terms. What depends on the terms alone is worked out once."""

    def __init__(self, terms: Terms, *, service_name: str | None = None, tags: tuple[str, ...] = ()) -> None:
        self._service_name = service_name
        self._tags = tags
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

    def prepare(
        self, description: str, extensions: dict[str, Any], *, pays: bool = True, signs_in: bool = False
    ) -> "Prepared":
        """The offer of one route, complete but for what differs from call to call.

        It is to pay (`pays`), to sign in (`signs_in`), or either.
        """
        sign_in = {SIGN_IN_WITH_X: _SLOTS[3]} if signs_in else {}
        return Prepared(
            PaymentRequired(
                x402_version=X402_VERSION,
                error=_SLOTS[0],
                resource=Resource(
                    url=_SLOTS[1],
                    description=description,
                    mime_type="application/json",
                    service_name=self._service_name,
                    tags=self._tags,
                ),
                accepts=(msgspec.structs.replace(self._offer, amount=_SLOTS[2]),) if pays else (),
                extensions=PAYMENT_IDENTIFIER | extensions | sign_in,
            )
        )


class Prepared:
    """A challenge in JSON, cut at the places that are filled in for each call."""

    def __init__(self, required: PaymentRequired) -> None:
        text = _encoder.encode(required)
        pieces: list[bytes] = []
        for slot in _SLOTS:
            piece, found, rest = text.partition(_encoder.encode(slot))
            pieces.append(piece if found else b"")
            text = rest if found else text
        self._before_error, self._before_url, self._before_amount, self._before_sign_in = pieces
        self._rest = text
        self._pays = bool(required.accepts)
        self._signs_in = bool(self._before_sign_in)

    def header(self, amount_usdc: Usdc, resource_url: str, error: str, sign_in: bytes = b"") -> bytes:
        """The value of `PAYMENT-REQUIRED`. `sign_in` is that extension's value in JSON, for an offer that has it."""
        return b2a_base64(
            b"".join(
                (
                    self._before_error,
                    _encoder.encode(error),
                    self._before_url,
                    _encoder.encode(resource_url),
                    self._before_amount,
                    b'"%d"' % amount_usdc if self._pays else b"",
                    self._before_sign_in,
                    sign_in if self._signs_in else b"",
                    self._rest,
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
