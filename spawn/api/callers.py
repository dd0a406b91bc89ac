"""Who calls: the proofs a request may carry, in the order in which they count.

A payment decides over a signature, because it says who pays; a signature over a bearer or a sign-in, because it binds
the request. Invariant: everything is checked here, once, and by arithmetic alone; the chain is asked only about a
payment that its payer's own key did not sign, after everything else about it was found right.
"""

import hashlib
from collections.abc import Awaitable, Callable
from typing import Final

from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.ids import Entropy
from spawn_schemas.sign_in import SIGN_IN_WITH_X
from spawn_schemas.x402_v1 import X402_VERSION_1

from spawn.api.arrivals import Arrival, idempotency_key
from spawn.clock import Clock
from spawn.payments import exact, sign_in, signed, version1
from spawn.payments.contract_wallets import ContractWallets
from spawn.payments.exact import ExactPayment, NotByOwnKey, PaymentInvalid, Terms
from spawn.payments.nonces import nonce_key
from spawn.payments.sessions import Sessions, find_token
from spawn.payments.sign_in import RelyingParty
from spawn.services.calls import Identity, Proof

_V2: Final = "payment-signature"
_V1: Final = "x-payment"
_AUTHORIZATION: Final = "authorization"


class Callers:
    """Reads proofs for one service: its chain, its token, its name, its sessions."""

    def __init__(
        self,
        terms: Terms,
        party: RelyingParty,
        sessions: Sessions,
        clock: Clock,
        entropy: Entropy,
        wallets: ContractWallets | None,
        knows: Callable[[Identity], Awaitable[bool]],
    ) -> None:
        """Without `wallets` there is no chain to ask, and every payer has a key of its own.

        `knows` tells whether a payment was taken before: then its code stood by it, whatever it says by now.
        """
        self._terms = terms
        self._party = party
        self._sessions = sessions
        self._clock = clock
        self._entropy = entropy
        self._wallets = wallets
        self._knows = knows

    def identify(self, arrival: Arrival) -> None:
        """Fill in who calls. Raises SpawnError for a proof that is malformed or false.

        A well-formed payment that does not pay us is noted in `invalid`: what to ask for instead depends on the price.
        """
        headers = arrival.headers
        arrival.idempotency_key = idempotency_key(headers.get("idempotency-key"))
        if _V2 in headers or _V1 in headers:
            self._payment(arrival, headers.get(_V2), headers.get(_V1))
        elif signed.present(headers):
            arrival.identity = self._signature(arrival)
        elif (token := find_token(headers.get(_AUTHORIZATION, ""))) is not None:
            arrival.identity = self._session(token)
        elif SIGN_IN_WITH_X in headers and arrival.route.takes_sign_in:
            arrival.identity = self._signed_in(headers[SIGN_IN_WITH_X])

    def must_ask_chain(self, arrival: Arrival) -> bool:
        """Whether only the chain can say if the payer stands by this payment."""
        return self._wallets is not None and isinstance(arrival.invalid, NotByOwnKey)

    async def ask_chain(self, arrival: Arrival) -> None:
        """Fill in who pays, after `must_ask_chain`. Raises SpawnError(overloaded) where that cannot be found out."""
        if self._wallets is None or not isinstance(arrival.invalid, NotByOwnKey):
            return
        payment = arrival.invalid.payment
        identity = self._paid(payment, arrival)
        if not await self._knows(identity):
            try:
                await self._wallets.verify(payment)
            except PaymentInvalid as invalid:
                arrival.invalid = invalid
                return
        arrival.invalid = None
        arrival.identity = identity

    def _payment(self, arrival: Arrival, v2: str | None, v1: str | None) -> None:
        if v2 is not None and v1 is not None:
            raise SpawnError(
                Code.INVALID_PAYMENT,
                "The request carries two payments, PAYMENT-SIGNATURE and X-PAYMENT.",
                next="Send one of them; nothing was charged.",
            )
        try:
            if v2 is not None:
                payload = exact.decode_payment(v2)
                key = exact.payment_identifier(payload)
                arrival.idempotency_key = _one_key(arrival.idempotency_key, key)
                arrival.identity = self._paid(exact.identify(payload, self._terms), arrival)
            elif v1 is not None:
                arrival.version = X402_VERSION_1
                arrival.identity = self._paid(
                    version1.identify(version1.decode_payment(v1), self._terms), arrival
                )
        except PaymentInvalid as invalid:
            arrival.invalid = invalid

    def _paid(self, payment: ExactPayment, arrival: Arrival) -> Identity:
        return Identity(
            proof=Proof.PAYMENT,
            wallet=payment.payer,
            nonce_key=payment.nonce_key(self._terms.chain_id, self._terms.asset),
            valid_before=payment.valid_before,
            payment=payment,
            seal=_seal(arrival),
        )

    def _signature(self, arrival: Arrival) -> Identity:
        proof = signed.verify(
            method=arrival.method,
            path=arrival.path,
            query=f"?{arrival.query}" if arrival.query else "",
            headers=arrival.headers,
            body=arrival.body,
            authority=self._party.domain,
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

    def _session(self, token: str) -> Identity:
        session = self._sessions.verify(token, now=self._clock.now_s())
        return Identity(
            proof=Proof.SESSION,
            wallet=session.wallet,
            # Each call is a new one: a session has no nonces, and only an idempotency key makes two calls one.
            nonce_key=nonce_key("session", session.id, self._entropy.bytes(16).hex()),
            valid_before=session.expires,
            payment=None,
        )

    def _signed_in(self, header: str) -> Identity | None:
        """Who signed in; None for a text that is too old, whose signer is asked for a new one as anybody is."""
        try:
            proof = sign_in.verify(header, self._party, now=self._clock.now_s())
        except SpawnError as error:
            if (error.details or {}).get("reason") == sign_in.STALE:
                return None
            raise
        return Identity(
            proof=Proof.SIGN_IN,
            wallet=proof.wallet,
            nonce_key=proof.nonce_key,
            valid_before=proof.expires,
            payment=None,
        )


def _seal(arrival: Arrival) -> str:
    """What tells the sender of a payment from whoever read it on chain: our challenge's nonce is echoed in it.

    In version 1 nothing is: there it has to be where it came from.
    """
    v2 = arrival.headers.get(_V2)
    sent = f"{arrival.address} {arrival.headers[_V1]}" if v2 is None else v2
    return hashlib.sha256(sent.encode("latin-1")).hexdigest()[:32]


def _one_key(header: str | None, extension: str | None) -> str | None:
    """The idempotency key, whichever way it came. Raises `invalid_request` where two ways name different ones."""
    if header is not None and extension is not None and header != extension:
        raise SpawnError(
            Code.INVALID_REQUEST,
            "The Idempotency-Key header and the payment's payment-identifier differ.",
            next="Send one of them, or the same in both.",
        )
    return header if header is not None else extension
