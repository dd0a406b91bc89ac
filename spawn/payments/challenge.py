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

CHALLENGE: Final = "challenge"
"""An extension of ours: its nonce comes back in the payment, and so tells its sender from whoever reads the chain."""
_CHALLENGE_SCHEMA: Final = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {"nonce": {"type": "string"}},
    "required": ["nonce"],
}
_SLOTS: Final = ("\ue000error", "\ue000url", "\ue000amount", "\ue000nonce")
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
        with_nonce = {SIGN_IN_WITH_X if signs_in else CHALLENGE: _SLOTS[3]}
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
                extensions=PAYMENT_IDENTIFIER | extensions | with_nonce,
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
        self._before_error, self._before_url, self._before_amount, self._before_nonce = pieces
        self._rest = text
        self._pays = bool(required.accepts)

    def header(self, amount_usdc: Usdc, resource_url: str, error: str, with_nonce: bytes) -> bytes:
        """The value of `PAYMENT-REQUIRED`. `with_nonce` is the value, in JSON, of the extension that has a nonce: the
        offer's sign-in, or else its challenge (`challenge_json`).
        """
        return b2a_base64(
            b"".join(
                (
                    self._before_error,
                    _encoder.encode(error),
                    self._before_url,
                    _encoder.encode(resource_url),
                    self._before_amount,
                    b'"%d"' % amount_usdc if self._pays else b"",
                    self._before_nonce,
                    with_nonce,
                    self._rest,
                )
            ),
            newline=False,
        )


_AROUND_NONCE: Final = _encoder.encode({"info": {"nonce": "\ue000"}, "schema": _CHALLENGE_SCHEMA}).split(
    "\ue000".encode()
)


def challenge_json(entropy: bytes) -> bytes:
    """The value of `extensions["challenge"]`; `entropy` is NONCE_BYTES that nobody can guess."""
    return entropy.hex().encode().join(_AROUND_NONCE)


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
