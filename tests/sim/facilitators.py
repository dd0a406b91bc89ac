"""x402 facilitators as they are met outside: honest, late, mistaken, lying, broken, each for a while.

Invariant: one that is honest does what it says; what any of them did to the chain, the chain alone tells.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import httpx
import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from spawn_schemas.ids import Address
from spawn_schemas.x402 import Reason

from spawn.payments.cdp import CDP_HOST
from spawn.payments.exact import ExactPayment
from tests.sim.weather import Fate

if TYPE_CHECKING:
    from tests.sim.world import World

HANG_S: Final = 3_600
NO_HASH: Final = "0x" + "fa" * 32
"""A transaction that nobody ever made."""
_VERIFY_WORDS: Final = (
    "unexpected_verify_error",
    "invalid_exact_evm_payload_signature",
    "invalid_exact_evm_payload_authorization_valid_before",
    "blocked_by_compliance",
    "Not a word!",
)
_SETTLE_WORDS: Final = (
    "unexpected_settle_error",
    "transaction_failed",
    "invalid_transaction_state",
    "insufficient_funds",
    "invalid_exact_evm_nonce_already_used",
    "out_of_gas_money",
)


class Mood(StrEnum):
    """How a facilitator deals with what it is asked."""

    HONEST = "honest"
    BOASTS = "boasts"
    """It says that it did what it did not do."""
    DENIES = "denies"
    """It does it, and says that it did not."""
    DAWDLES = "dawdles"
    """It says that the settlement is pending, and brings it to the chain later."""
    FUSSY = "fussy"
    """It refuses what is good."""
    RAMBLES = "rambles"
    """It answers what nobody can use."""
    ELSEWHERE = "elsewhere"
    """It serves other networks."""


class _Authorization(msgspec.Struct):
    from_: str = msgspec.field(name="from")
    to: str
    value: str
    valid_after: str = msgspec.field(name="validAfter")
    valid_before: str = msgspec.field(name="validBefore")
    nonce: str


class Signed(msgspec.Struct):
    """The `payload` of a payment, in either version of x402."""

    authorization: _Authorization
    signature: str


class _Payload(msgspec.Struct):
    payload: Signed


class _Asked(msgspec.Struct, rename="camel"):
    payment_payload: _Payload


_asked: Final = msgspec.json.Decoder(_Asked)


def signed_payment(signed: Signed) -> ExactPayment:
    """What was signed, in normal form. Raises ValueError for what no token takes."""
    authorization = signed.authorization
    bytes.fromhex(signed.signature[2:])
    numbers = (authorization.value, authorization.valid_after, authorization.valid_before)
    sizes = [
        len(bytes.fromhex(text[2:])) for text in (authorization.from_, authorization.to, authorization.nonce)
    ]
    if sizes != [20, 20, 32] or not all(0 <= int(number) < 2**256 for number in numbers):
        raise ValueError("nothing that a token could be asked")
    return ExactPayment(
        payer=Address(authorization.from_.lower()),
        pay_to=Address(authorization.to.lower()),
        value=int(authorization.value),
        valid_after=int(authorization.valid_after),
        valid_before=int(authorization.valid_before),
        nonce=authorization.nonce.lower(),
        signature=signed.signature.lower(),
    )


class Facilitator:
    """One of them, as it lives through the processes that ask it."""

    def __init__(self, world: "World", host: str) -> None:
        self.host = host
        self._world = world
        self._mood = Mood.HONEST
        self._until = 0
        self._tokens: dict[str, None] = {}

    def turn(self, mood: Mood, *, until: int) -> None:
        """Be like this until then (true seconds)."""
        self._mood, self._until = mood, until

    @property
    def mood(self) -> Mood:
        """Honest again after a while, and in calm."""
        return Mood.HONEST if self._world.calm or self._world.true_s() >= self._until else self._mood

    def answer(self, path: str, headers: httpx.Headers, body: bytes) -> httpx.Response:
        """What it does and says; at once, on the chain as well."""
        if self.host == CDP_HOST and not self._knows(headers.get("Authorization", "")):
            return _said(b"unauthorized", status=401)
        if self.mood is Mood.RAMBLES:
            return self._ramble()
        if path == "supported":
            network = "solana:mainnet" if self.mood is Mood.ELSEWHERE else self._world.chain.terms.network
            kinds = [{"x402Version": 2, "scheme": "exact", "network": network}]
            return _json({"kinds": kinds, "extensions": [], "signers": {}})
        payment = signed_payment(_asked.decode(body).payment_payload.payload)
        self._world.chain.saw(payment)
        return self._verify(payment) if path == "verify" else self._settle(payment)

    def _verify(self, payment: ExactPayment) -> httpx.Response:
        reason = self._objection(payment)
        if self.mood is Mood.FUSSY and self._world.random.random() < 0.5:
            reason = self._world.random.choice(_VERIFY_WORDS)
        return _json({"isValid": reason is None, "invalidReason": reason, "payer": payment.payer})

    def _settle(self, payment: ExactPayment) -> httpx.Response:
        random = self._world.random
        match self.mood:
            case Mood.BOASTS:
                return self._says(payment, transaction=random.choice((NO_HASH, NO_HASH, "", "0xnonsense")))
            case Mood.DENIES:
                hash_ = self._world.chain.bring(payment)
                named = hash_ if random.random() < 0.3 else None
                return self._says(payment, transaction=named or "", reason=random.choice(_SETTLE_WORDS))
            case Mood.DAWDLES:
                later_s = 2 ** random.uniform(0, 8)
                self._world.loop.call_later(later_s, self._world.chain.bring, payment)
                return self._says(payment, transaction=NO_HASH, reason=Reason.SETTLEMENT_PENDING.value)
            case Mood.FUSSY:
                return self._says(payment, reason=random.choice(_SETTLE_WORDS))
            case _:
                return self._settle_it(payment)

    def _settle_it(self, payment: ExactPayment) -> httpx.Response:
        reason = self._objection(payment)
        transaction = None if reason is not None else self._world.chain.bring(payment)
        if transaction is None:
            return self._says(payment, reason=reason or "invalid_transaction_state")
        return self._says(payment, transaction=transaction)

    def _says(
        self, payment: ExactPayment, *, transaction: str = "", reason: str | None = None
    ) -> httpx.Response:
        network = self._world.chain.terms.network
        said: dict[str, Any] = {"success": reason is None, "transaction": transaction, "network": network}
        if reason is not None:
            said["errorReason"] = reason
        if self._world.random.random() < 0.5:
            said["payer"] = payment.payer
        return _json(said, status=200 if reason is None or self._world.random.random() < 0.5 else 400)

    def _objection(self, payment: ExactPayment) -> str | None:
        chain, now = self._world.chain, self._world.true_s()
        if payment.valid_after >= now:
            return Reason.VALID_AFTER.value
        if payment.valid_before <= now:
            return Reason.VALID_BEFORE.value
        if chain.is_spent(payment):
            return Reason.NONCE_USED.value
        if not chain.stands_by(payment):
            return Reason.SIGNATURE.value
        if chain.balance_usdc(payment.payer) < payment.value:
            return Reason.INSUFFICIENT_FUNDS.value
        return None

    def _ramble(self) -> httpx.Response:
        return self._world.random.choice(
            (
                _said(b"<html>welcome</html>"),
                _said(b'{"success":'),
                _said(b"[" * 300_000),
                _said(b"{}", status=500),
            )
        )

    def _knows(self, authorization: str) -> bool:
        """Whether CDP takes this token, once."""
        token = authorization.removeprefix("Bearer ")
        seed = self._world.settings.cdp_key_secret
        key = Ed25519PrivateKey.from_private_bytes(msgspec.json.decode(f'"{seed}"', type=bytes)[:32])
        options = {"verify_exp": False, "verify_nbf": False, "verify_iat": False, "verify_aud": False}
        try:
            claims = jwt.decode(token, key.public_key(), algorithms=["EdDSA"], options=options)  # type: ignore[arg-type]  # a plain dict is one
        except jwt.InvalidTokenError:
            return False
        in_time = claims["nbf"] - 60 <= self._world.true_s() <= claims["exp"]
        is_new = token not in self._tokens
        self._tokens[token] = None
        return in_time and is_new


def refusal(world: "World") -> httpx.Response:
    """How a server says that it did nothing, or does not say what."""
    return world.random.choice(
        (
            _said(b"", status=429, retry_after="20"),
            _said(
                b"",
                status=429,
                date="Sat, 21 Nov 2026 10:00:00 GMT",
                retry_after="Sat, 21 Nov 2026 10:00:30 GMT",
            ),
            _said(b"busy", status=503),
            _said(b"oops", status=500),
            _said(b"bad request", status=400),
            _said(b"", status=404),
            _said(b"", status=307, location="https://elsewhere.test"),
        )
    )


def facilitators_of(world: "World") -> Callable[[httpx.Request], Coroutine[None, None, httpx.Response]]:
    """The way from a process to every facilitator there is."""

    async def ask(request: httpx.Request) -> httpx.Response:
        path = request.url.path.rpartition("/")[2]
        fate = await world.weather.on_the_way("facilitator", path)
        if fate is Fate.DOWN:
            raise httpx.ConnectError("nobody is there", request=request)
        if fate is Fate.LOST_REQUEST:
            raise await _broken_off(world, request)
        office = world.chain.facilitator(request.url.host)
        response = (
            refusal(world)
            if fate is Fate.REFUSED
            else office.answer(path, request.headers, await request.aread())
        )
        world.step(f"facilitator {path}: {office.mood}, {response.status_code}")
        await world.weather.on_the_way_back("facilitator", path)
        if fate is Fate.LOST_ANSWER:
            raise await _broken_off(world, request)
        return response

    return ask


async def _broken_off(world: "World", request: httpx.Request) -> httpx.HTTPError:
    """The connection breaks, or nothing is ever heard."""
    if world.random.random() < 0.5:
        await asyncio.sleep(HANG_S)
    return httpx.ReadError("broken off", request=request)


class _Body(httpx.AsyncByteStream):
    """An answer's body that was not read yet, as it is behind a socket."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._content


def _said(content: bytes, *, status: int = 200, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, headers=named, stream=_Body(content))


def _json(what: object, *, status: int = 200) -> httpx.Response:
    return _said(msgspec.json.encode(what), status=status)
