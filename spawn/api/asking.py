"""What a caller is told who has to pay: the 402 and its words.

Invariant: whoever is asked for money is told exactly how much, in the words of every x402 version we speak.
"""

from typing import Any, Final

import msgspec
from spawn_schemas import api
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.money import format_usdc

from spawn.api.arrivals import Arrival
from spawn.api.replies import JSON, Reply
from spawn.api.routing import Route
from spawn.domain.charges import Kind, Price
from spawn.payments.challenge import Challenges, Prepared
from spawn.payments.exact import PaymentInvalid

_PAY: Final = "Pay with any x402 client (PAYMENT-SIGNATURE)"
_SIGN: Final = "sign the request with your wallet (RFC 9421, ERC-8128)"
_ASKED: Final = {
    Kind.IDENTIFIED: (
        "Say which wallet asks; the answer itself is free.",
        f"Either {_SIGN}, or pay with any x402 client: all of that payment becomes balance.",
    ),
    Kind.DEPOSIT: (
        "Pay in by x402: all of the payment becomes balance.",
        f"{_PAY}; a signature moves no money on chain.",
    ),
}
"""Message and next step of a 402 to a caller who proved nothing, where they are not those of a priced call."""
_ASKED_PRICED: Final = ("This call costs money.", f"{_PAY}, or {_SIGN} to pay from your balance.")
_BROKE: Final = f"{_PAY}, or pay into your balance first: POST /v1/balance/deposit."

_encoder: Final = msgspec.json.Encoder()


class Asking:
    """Answers 402. What depends on the route alone is prepared at start."""

    def __init__(
        self, challenges: Challenges, public_url: str, extensions: dict[Route, dict[str, Any]]
    ) -> None:
        self._base_url = public_url.rstrip("/")
        self._prepared: dict[Route, Prepared] = {
            route: challenges.prepare(route.summary, extra) for route, extra in extensions.items()
        }

    def price(self, arrival: Arrival, price: Price) -> Reply:
        """To a caller who proved nothing."""
        message, next_step = _ASKED.get(arrival.route.charge.kind, _ASKED_PRICED)
        return self._reply(arrival, price, Code.PAYMENT_REQUIRED.value, message, next_step)

    def mend(self, arrival: Arrival, price: Price, invalid: PaymentInvalid) -> Reply:
        """To a caller whose payment does not pay for this."""
        return self._reply(arrival, price, invalid.reason.value, invalid.message, f"Mend that. {_PAY}.")

    def more(self, arrival: Arrival, price: Price, error: SpawnError) -> Reply:
        """To a caller whose balance is short of the fee."""
        return self._reply(arrival, price, Code.PAYMENT_REQUIRED.value, error.message, error.next or _BROKE)

    def _reply(self, arrival: Arrival, price: Price, error: str, message: str, next_step: str) -> Reply:
        """402: the price in the `PAYMENT-REQUIRED` header, and a body that people and older clients can read."""
        resource = self._base_url + arrival.path
        header = self._prepared[arrival.route].header(price.payment_usdc, resource, error)
        body = api.PaymentRequiredBody(
            x402Version=1,
            accepts=(),
            error=error,
            code=Code.PAYMENT_REQUIRED.value,
            message=message,
            status=402,
            price=format_usdc(price.payment_usdc),
            next=next_step,
            request_id=arrival.request_id,
        )
        headers = [
            JSON,
            (b"cache-control", b"no-store"),
            (b"x-request-id", arrival.request_id.encode()),
            (b"payment-required", header),
        ]
        return Reply(402, _encoder.encode(body), headers)
