"""An agent's HTTP client, with the habits that agents have: it retries, repeats, hangs up, and gives up.

Invariant: it is honest. It signs anew only where its first proof can have no second effect: with the same idempotency
key, for a read, or where the service has said that the first one is void. Everything that it sent and was told is
kept, for whoever judges the answers.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from random import Random
from typing import TYPE_CHECKING, Any, Final, assert_never

import msgspec

from tests.sim.client_types import Answer, ConnectionLost, Request
from tests.sim.wallets import Kind, Proof, Wallet

if TYPE_CHECKING:
    from tests.sim.world import World

_JSON: Final = {"Content-Type": "application/json"}
_PROOFS: Final = ("PAYMENT-SIGNATURE", "X-PAYMENT", "Signature", "Authorization", "SIGN-IN-WITH-X")
_BINDING: Final = frozenset({Kind.PAYMENT, Kind.SIGNED})
_NOT_YET: Final = frozenset({429, 503})
_KEY_OLD_S: Final = 12 * 3_600
"""A key may be forgotten after a day of the service's clock, which may be set ahead by some hours, and back."""


class Way(StrEnum):
    """How a customer shows who it is."""

    PAY = "pay"
    PAY_V1 = "pay_v1"
    SIGN = "sign"
    SIGN_IN = "sign_in"
    SESSION = "session"
    NOTHING = "nothing"


PAYING: Final = frozenset({Way.PAY, Way.PAY_V1})


@dataclass(kw_only=True)
class Intent:
    """One thing that somebody wants: what is asked, what was sent for it, and what was answered to that.

    `key` is its idempotency key. `proofs` are all that were signed for it; `answers` the answers in their order, each
    with the proof that it answers. `is_read`: nothing can happen twice. `is_over`: its client has stopped trying.
    """

    number: int
    what: str
    wallet: Wallet
    way: Way
    method: str
    path: str
    query: str = ""
    body: bytes = b""
    key: str | None = None
    is_read: bool = False
    proofs: list[Proof] = field(default_factory=list)
    answers: list[tuple[Proof | None, Answer]] = field(default_factory=list)
    lost: int = 0
    hung_up: int = 0
    is_over: bool = False

    @property
    def answer(self) -> Answer | None:
        """The last one."""
        return self.answers[-1][1] if self.answers else None

    @property
    def succeeded(self) -> Answer | None:
        """The first good one."""
        return next((answer for _, answer in self.answers if answer.status < 300), None)

    @property
    def asks(self) -> tuple[str, str, str, bytes]:
        """What makes two requests the same request."""
        return self.method, self.path, self.query, self.body


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How one client goes about one thing. `again_after_s`: when it repeats what has long been answered."""

    patience: int
    resigns: bool
    keeps_payment_identifier: bool
    hangs_up_after_s: float | None
    leaves_then: bool
    is_hasty: bool
    sends_twice: bool
    again_after_s: tuple[float, ...]
    address: str
    waits_s: tuple[float, ...]

    @classmethod
    def drawn(cls, random: Random) -> "Manner":
        return cls(
            patience=random.choice((1, 2, 4, 8, 8)),
            resigns=random.random() < 0.4,
            keeps_payment_identifier=random.random() < 0.3,
            hangs_up_after_s=_short(random) if random.random() < 0.12 else None,
            leaves_then=random.random() < 0.5,
            is_hasty=random.random() < 0.3,
            sends_twice=random.random() < 0.06,
            again_after_s=_repeats(random),
            address=f"198.51.100.{random.randrange(1, 255)}",
            waits_s=tuple(2 ** random.uniform(-2, 4) for _ in range(4)),
        )


def _short(random: Random) -> float:
    return float(10 ** random.uniform(-3, 1))


def _repeats(random: Random) -> tuple[float, ...]:
    if random.random() >= 0.12:
        return ()
    return tuple(float(10 ** random.uniform(0, 5)) for _ in range(random.choice((1, 1, 3))))


class Calls:
    """All that customers wanted, and whose proof is whose."""

    def __init__(self) -> None:
        self.intents: list[Intent] = []
        self.by_proof: dict[str, tuple[Intent, Proof]] = {}
        """By the header that carries the proof."""
        self.by_name: dict[str, tuple[Intent, Proof]] = {}
        """By what the books call the proof's nonce."""

    def add(self, intent: Intent) -> None:
        self.intents.append(intent)

    def sign(self, intent: Intent, proof: Proof) -> Proof:
        """Note a new proof, before it is sent."""
        intent.proofs.append(proof)
        self.by_proof[proof.text] = intent, proof
        if proof.name:
            self.by_name[proof.name] = intent, proof
        return proof

    def whose(self, request: Request) -> tuple[Intent, Proof] | None:
        """Which customer's proof this request carries, if any; a session's is that of the latest who showed it."""
        for name in _PROOFS:
            found = self.by_proof.get(request.headers.get(name, ""))
            if found is not None:
                return found
        return None


class Client:
    """Carries out what customers want. Every method may be cancelled at any await: that is hanging up."""

    def __init__(self, world: "World", calls: Calls) -> None:
        self._world = world
        self._calls = calls
        self.under_way = 0

    async def carry_out(
        self, intent: Intent, manner: Manner, *, session: Proof | None = None
    ) -> Answer | None:
        """Do it, as well as this manner gets it done. The last answer; None where none came."""
        self.under_way += 1
        try:
            proof = await self._prove(intent, manner, session)
            if proof is not None or intent.way is Way.NOTHING:
                await self._persist(intent, manner, proof)
        except ConnectionLost:
            intent.lost += 1
        finally:
            self.under_way -= 1
            intent.is_over = True
        return intent.answer

    async def repeat(self, intent: Intent, manner: Manner) -> None:
        """Ask for what is over once more, some time later."""
        for wait_s in manner.again_after_s:
            await asyncio.sleep(wait_s)
            await self.ask_again(intent, manner)

    async def ask_again(self, intent: Intent, manner: Manner) -> None:
        """Send what was sent before; or a new proof with the same key, where one has to be made, or is liked better."""
        if not intent.proofs:
            return
        if (
            intent.method == "POST"
            and intent.path.endswith(("/v1/webhooks", "/secret"))
            and self._world.true_s() > intent.proofs[0].valid_until + _KEY_OLD_S
        ):
            return  # Its key may be forgotten: there would be another secret, and its owner would not look for it.
        proof = intent.proofs[-1]
        is_over = self._world.true_s() >= proof.valid_until and proof.kind is not Kind.PAYMENT
        if intent.key is not None and (is_over or manner.resigns) and proof.kind in _BINDING:
            try:
                proof = await self._prove(intent, manner, None) or proof
            except ConnectionLost:
                intent.lost += 1
        await self._try_once(intent, manner, proof)

    async def send(self, intent: Intent, proof: Proof | None, address: str) -> Answer:
        """One request. Raises ConnectionLost."""
        headers = dict(_JSON) if intent.body else {}
        if intent.key is not None and not _names_itself(proof, intent.key):
            headers["Idempotency-Key"] = intent.key
        request = Request(
            method=intent.method,
            path=intent.path,
            query=intent.query,
            headers=headers | ({} if proof is None else proof.headers),
            body=intent.body,
            address=address,
        )
        answer = await self._world.http(request)
        intent.answers.append((proof, answer))
        return answer

    async def _prove(self, intent: Intent, manner: Manner, session: Proof | None) -> Proof | None:
        """The first proof; None where a call to be paid is not asked to be paid for. Raises ConnectionLost."""
        wallet, now = intent.wallet, self._world.true_s()
        match intent.way:
            case Way.PAY | Way.PAY_V1:
                return await self._meet(intent, manner)
            case Way.SIGN:
                return self._calls.sign(intent, wallet.sign(*intent.asks, now=now))
            case Way.SIGN_IN:
                return self._calls.sign(intent, wallet.sign_in(now=now))
            case Way.SESSION:
                return None if session is None else self._calls.sign(intent, session)
            case Way.NOTHING:
                return None
            case unreachable:
                assert_never(unreachable)

    async def _meet(self, intent: Intent, manner: Manner) -> Proof | None:
        """Ask, be told the price, sign: what a stock client does."""
        challenge: Answer | None = None
        for wait_s in manner.waits_s:
            challenge = await self.send(intent, None, manner.address)
            if challenge.status not in _NOT_YET:
                break
            await asyncio.sleep(_retry_after(challenge, wait_s))
        return None if challenge is None else self._pay(intent, manner, challenge)

    def _pay(self, intent: Intent, manner: Manner, challenge: Answer) -> Proof | None:
        if challenge.status != 402 or "payment-required" not in challenge.headers:
            return None
        now = self._world.true_s()
        if intent.way is Way.PAY_V1:
            proof = intent.wallet.pay_v1(challenge.body, now=now)
        else:
            named = intent.key if manner.keeps_payment_identifier else None
            proof = intent.wallet.pay(challenge.headers["payment-required"], now=now, key=named)
        return self._calls.sign(intent, proof)

    async def _persist(self, intent: Intent, manner: Manner, proof: Proof | None) -> None:
        """Send it until there is an answer that ends it, or patience ends."""
        for attempt in range(manner.patience):
            if attempt == 0 and manner.sends_twice:
                first, second = (self._try_once(intent, manner, proof) for _ in range(2))
                answer = (await asyncio.gather(first, second))[0]
            else:
                answer = await self._try_once(intent, manner, proof, hangs_up=attempt == 0)
            if answer is None and manner.leaves_then and intent.hung_up:
                return
            if answer is None or answer.status in _NOT_YET:
                pause_s = manner.waits_s[attempt % len(manner.waits_s)]
                told_s = pause_s if answer is None or manner.is_hasty else _retry_after(answer, pause_s)
                await asyncio.sleep(told_s)
                again = await self._proof_again(intent, manner, proof, answer)
            else:
                again = self._proof_mended(intent, manner, proof, answer)
            if isinstance(again, _Stop):
                return
            proof = again

    async def _try_once(
        self, intent: Intent, manner: Manner, proof: Proof | None, *, hangs_up: bool = False
    ) -> Answer | None:
        """One request, which may be hung up on, or lost; None then."""
        limit_s = manner.hangs_up_after_s if hangs_up else None
        try:
            async with asyncio.timeout(limit_s):
                return await self.send(intent, proof, manner.address)
        except ConnectionLost:
            intent.lost += 1
        except TimeoutError:
            intent.hung_up += 1
        return None

    def _proof_mended(
        self, intent: Intent, manner: Manner, proof: Proof | None, answer: Answer
    ) -> "Proof | _Stop":
        """A second payment where the first was told not to pay: its time is over, or the price is another now."""
        if proof is None or intent.way not in PAYING or len(intent.proofs) > 1:
            return _Stop.ENOUGH
        return self._pay(intent, manner, answer) or _Stop.ENOUGH

    async def _proof_again(
        self, intent: Intent, manner: Manner, proof: Proof | None, answer: Answer | None
    ) -> "Proof | _Stop | None":
        """What to send after silence, or after a "not yet"."""
        if proof is None:
            return None
        is_over = self._world.true_s() >= proof.valid_until
        is_pending = answer is not None and code_of(answer) == "settlement_pending"
        may_sign = (intent.is_read or intent.key is not None) and not is_pending
        if proof.kind is Kind.PAYMENT:
            # The same payment finds its outcome for a day.
            if not (may_sign and manner.resigns):
                return proof
            try:
                return await self._meet(intent, manner) or proof
            except ConnectionLost:
                return proof
        if proof.kind is Kind.SIGNED and may_sign and (is_over or manner.resigns):
            return self._calls.sign(intent, intent.wallet.sign(*intent.asks, now=self._world.true_s()))
        return _Stop.ENOUGH if is_over else proof


class _Stop(Enum):
    """There is nothing more to send."""

    ENOUGH = auto()


def code_of(answer: Answer) -> str:
    """The word for what went wrong, in whichever of the two forms it comes; empty for what went well."""
    if answer.status < 400:
        return ""
    told: dict[str, Any] = msgspec.json.decode(answer.body)
    error: Mapping[str, Any] | str = told.get("error", "")
    return str(told.get("code", "")) if isinstance(error, str) else str(error.get("code", ""))


def _names_itself(proof: Proof | None, key: str) -> bool:
    """Whether the payment itself carries the key (x402 extension payment-identifier)."""
    return proof is not None and proof.kind is Kind.PAYMENT and proof.key == key


def _retry_after(answer: Answer, otherwise_s: float) -> float:
    return float(answer.headers.get("retry-after", otherwise_s))
