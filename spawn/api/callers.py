"""Who calls: the proofs a request may carry, in the order in which they count.

A payment decides over a signature, because it says who pays; a signature over a bearer or a sign-in, because it binds
the request. Invariant: everything is checked here, once, by arithmetic alone; nothing here asks a database or a chain.
"""

from typing import Final

from spawn_schemas.errors import Code, SpawnError

from spawn.api.arrivals import Arrival, idempotency_key
from spawn.clock import Clock
from spawn.payments import exact, signed
from spawn.payments.exact import ExactPayment, PaymentInvalid, Terms
from spawn.services.calls import Identity, Proof

PAYMENT_V2: Final = "payment-signature"


class Callers:
    """Reads proofs for one service: its chain, its token, its name."""

    def __init__(self, terms: Terms, clock: Clock, *, authority: str) -> None:
        self._terms = terms
        self._clock = clock
        self._authority = authority

    def needs_body(self, headers: dict[str, str]) -> bool:
        """Whether the proof covers the body, so that it must be read first."""
        return PAYMENT_V2 not in headers and signed.present(headers)

    def identify(self, arrival: Arrival) -> None:
        """Fill in who calls. Raises SpawnError for a proof that is malformed or false.

        A well-formed payment that does not pay us is noted in `invalid`: what to ask for instead depends on the price.
        """
        arrival.idempotency_key = idempotency_key(arrival.headers.get("idempotency-key"))
        if PAYMENT_V2 in arrival.headers:
            self._identify_payment(arrival, arrival.headers[PAYMENT_V2])
        elif signed.present(arrival.headers):
            arrival.identity = self._signature(arrival)

    def _identify_payment(self, arrival: Arrival, header: str) -> None:
        payload = exact.decode_payment(header)
        arrival.idempotency_key = _one_key(arrival.idempotency_key, exact.payment_identifier(payload))
        try:
            arrival.identity = self._paid(exact.identify(payload, self._terms))
        except PaymentInvalid as invalid:
            arrival.invalid = invalid

    def _paid(self, payment: ExactPayment) -> Identity:
        return Identity(
            proof=Proof.PAYMENT,
            wallet=payment.payer,
            nonce_key=payment.nonce_key(self._terms.chain_id, self._terms.asset),
            valid_before=payment.valid_before,
            payment=payment,
        )

    def _signature(self, arrival: Arrival) -> Identity:
        proof = signed.verify(
            method=arrival.method,
            path=arrival.path,
            query=f"?{arrival.query}" if arrival.query else "",
            headers=arrival.headers,
            body=arrival.body,
            authority=self._authority,
            chain_id=self._terms.chain_id,
            now=self._clock.now_s(),
        )
        return Identity(
            proof=Proof.SIGNATURE,
            wallet=proof.wallet,
            nonce_key=proof.nonce_key,
            valid_before=proof.expires,
            payment=None,
        )


def _one_key(header: str | None, extension: str | None) -> str | None:
    """The idempotency key, whichever way it came. Raises `invalid_request` where two ways name different ones."""
    if header is not None and extension is not None and header != extension:
        raise SpawnError(
            Code.INVALID_REQUEST,
            "The Idempotency-Key header and the payment's payment-identifier differ.",
            next="Send one of them, or the same in both.",
        )
    return header if header is not None else extension
