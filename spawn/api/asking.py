"""What a caller is told who has to pay, or to say who it is: the 402 and its words.

Invariant: whoever is asked for money is told exactly how much, in the words of every x402 version we speak; and
whoever has shown that it can sign is never asked for money where a signature will do.
"""

from typing import Any, Final, cast

import msgspec
from spawn_schemas import refusals
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.ids import Entropy
from spawn_schemas.money import Usdc, format_usdc
from spawn_schemas.sign_in import SIGN_IN_WITH_X

from spawn.api.arrivals import Arrival
from spawn.api.discovery import bazaar, output_schema
from spawn.api.replies import JSON, Reply
from spawn.api.routing import Route
from spawn.clock import Clock
from spawn.domain.charges import NO_MINIMUM, Kind, Price
from spawn.payments import sign_in, version1
from spawn.payments.challenge import Challenges, Prepared, challenge_json
from spawn.payments.exact import PaymentInvalid, Terms
from spawn.payments.sign_in import RelyingParty, SignInChallenges

_PAY: Final = "Pay with any x402 client (PAYMENT-SIGNATURE, or X-PAYMENT in version 1)"
_SIGN: Final = "sign the request with your wallet (RFC 9421, ERC-8128)"
_SIGN_IN: Final = "sign in with it (SIGN-IN-WITH-X)"
_ASKED: Final = {
    Kind.IDENTIFIED: (
        "Say which wallet asks; the answer itself is free.",
        f"Either {_SIGN}, or {_SIGN_IN}; or pay with any x402 client: all of that payment becomes balance.",
    ),
    Kind.DEPOSIT: (
        "Pay in by x402: all of the payment becomes balance.",
        f"{_PAY}; a signature moves no money on chain.",
    ),
}
"""Message and next step of a 402 to a caller who proved nothing, where they are not those of a priced call."""
_ASKED_PRICED: Final = ("This call costs money.", f"{_PAY}, or {_SIGN} to pay from your balance.")
_RAISED: Final = (
    "This call costs {fee} USDC, and the smallest payment is {least} USDC: the rest becomes balance."
)
_READ_CHEAPLY: Final = (
    f"{_PAY}; or pay from your balance: {_SIGN}, {_SIGN_IN}, or show a session (POST /v1/sessions)."
)
_READ_ONLY: Final = "A session or a sign-in is good for reading only: it says who you are, not what you want."
_BROKE: Final = f"{_PAY}, or pay into your balance first: POST /v1/balance/deposit."

_encoder: Final = msgspec.json.Encoder()


class _Offer:
    """What one route asks for. Everything that depends on the route alone is prepared at start."""

    def __init__(self, route: Route, challenges: Challenges, minimum_usdc: Usdc) -> None:
        metadata = bazaar(route.handler, route.template)
        self.description = _described(route, minimum_usdc)
        # Encoded once; the struct says what it is, and the encoder copies it.
        self.output_schema = cast("dict[str, Any]", msgspec.Raw(_encoder.encode(output_schema(metadata))))
        extensions = {"bazaar": metadata}
        signs_in = route.takes_sign_in
        self.to_anybody = challenges.prepare(self.description, extensions, signs_in=signs_in)
        self.to_signers = (
            challenges.prepare(route.summary, extensions, pays=False, signs_in=True)
            if route.is_free and signs_in
            else None
        )


def _described(route: Route, minimum_usdc: Usdc) -> str:
    """What is bought, and what of the payment is its price where that is not all of it."""
    if not 0 < route.charge.fee_usdc < minimum_usdc:
        return route.summary
    return f"{route.summary} (${format_usdc(route.charge.fee_usdc)}; the rest of the payment becomes balance)"


class Asking:
    """Answers 402."""

    def __init__(
        self,
        challenges: Challenges,
        terms: Terms,
        party: RelyingParty,
        routes: list[Route],
        clock: Clock,
        entropy: Entropy,
        *,
        minimum_usdc: Usdc = NO_MINIMUM,
    ) -> None:
        self._terms = terms
        self._base_url = party.origin
        self._sign_ins = SignInChallenges(party)
        self._clock = clock
        self._entropy = entropy
        self._offers = {route: _Offer(route, challenges, minimum_usdc) for route in routes}

    def price(self, arrival: Arrival, price: Price) -> Reply:
        """To a caller who proved nothing, or not enough."""
        message, next_step = _ASKED.get(arrival.route.charge.kind, _ASKED_PRICED)
        if next_step == _ASKED_PRICED[1]:
            if price.is_raised:
                costs, least = format_usdc(price.fee_usdc), format_usdc(price.payment_usdc)
                message = _RAISED.format(fee=costs, least=least)
            next_step = _READ_CHEAPLY if arrival.route.takes_sign_in else next_step
        if arrival.identity is not None:
            message = _READ_ONLY
        return self._reply(arrival, price, Code.PAYMENT_REQUIRED.value, message, next_step)

    def mend(self, arrival: Arrival, price: Price, invalid: PaymentInvalid) -> Reply:
        """To a caller whose payment does not pay for this."""
        return self._reply(arrival, price, invalid.reason.value, invalid.message, f"Mend that. {_PAY}.")

    def more(self, arrival: Arrival, price: Price, error: SpawnError) -> Reply:
        """To a caller whose balance is short of the fee."""
        return self._reply(arrival, price, Code.PAYMENT_REQUIRED.value, error.message, error.next or _BROKE)

    def _reply(self, arrival: Arrival, price: Price, error: str, message: str, next_step: str) -> Reply:
        """402: version 2 in the `PAYMENT-REQUIRED` header, version 1 in a body that people can read as well."""
        offer = self._offers[arrival.route]
        prepared: Prepared | None = offer.to_signers if SIGN_IN_WITH_X in arrival.headers else None
        resource = self._base_url + arrival.path
        accepts = self._accepts_v1(offer, price, resource) if prepared is None else ()
        header = (prepared or offer.to_anybody).header(
            price.payment_usdc, resource, error, self._with_nonce(arrival.route)
        )
        body = refusals.PaymentRequiredBody(
            x402Version=1,
            accepts=accepts,
            error=version1.body_error(error),
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

    def _accepts_v1(self, offer: _Offer, price: Price, resource: str) -> tuple[Any, ...]:
        accepted = version1.requirements(
            self._terms, price.payment_usdc, resource, offer.description, offer.output_schema
        )
        return () if accepted is None else (accepted,)

    def _with_nonce(self, route: Route) -> bytes:
        entropy = self._entropy.bytes(sign_in.NONCE_BYTES)
        if not route.takes_sign_in:
            return challenge_json(entropy)
        return self._sign_ins.json(entropy=entropy, now=self._clock.now_s())
