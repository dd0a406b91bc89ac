"""What attackers have: keys, money, what can be seen of others, and a way to say which answers are right.

Invariant: an attack draws from a stream of its own, so that it goes on in the same way whatever else happens; and
every answer that it gets is one that it named, or one that weather and crashes make of anything.
"""

import asyncio
import json
from base64 import b64decode
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from functools import cache
from random import Random
from typing import TYPE_CHECKING, Any, Final, NoReturn

from tests.sim import attacker_proofs as proofs
from tests.sim.attacker_proofs import Called, Key, Payload
from tests.sim.client_types import Answer, ConnectionLost, Request
from tests.sim.moves import Kind
from tests.sim.oracle.access import Access
from tests.sim.oracle.callers import proof_of

if TYPE_CHECKING:
    from tests.sim.world import World

THIEVES: Final = 2
READ: Final = 1_000
CREATE: Final = 10_000
"""Prices as the catalog shows them, in micro-USDC."""
ANY_TIME: Final = frozenset(
    {
        "429 rate_limited",
        "503 overloaded",
        "503 in_progress",
        "503 settlement_pending",
        "503 hetzner_unavailable",
    }
)
"""What any call may be told that is not refused by arithmetic alone."""
WRONG_TIME: Final = frozenset(
    {
        "401 expired",
        "401 not_yet_valid",
        "401 session_expired",
        "402 invalid_exact_evm_payload_authorization_valid_before",
        "402 invalid_exact_evm_payload_authorization_valid_after",
    }
)
"""What is right as well where the service's clock was set while the call was on its way."""
STALE_SIGN_IN: Final = "402 payment_required"
"""What a sign-in out of its time is answered: the text of a fresh one."""
_FRESH_S: Final = 40
"""So long after a proof was made its time is no reason to refuse it."""
_LATELY: Final = 4
_NO_BODY: Final = object()


def word(answer: Answer) -> str:
    """An answer in a word: its status, and the finest reason that it gives; a good one says if it is a stored one."""
    if answer.status < 300:
        return f"{answer.status}{' replayed' if answer.headers.get('idempotent-replayed') == 'true' else ''}"
    if "payment-required" in answer.headers:
        return f"402 {json.loads(b64decode(answer.headers['payment-required']))['error']}"
    error = answer.json()["error"]
    if answer.status == 401:
        return f"401 {(error['details'] or {}).get('reason')}"
    return f"{answer.status} {error['code']}"


@cache
def key_of(number: int) -> Key:
    """The first few are thieves for life."""
    return Key.from_number(number)


class Thief:
    """One attacker about one attack."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.random = Random(world.random.getrandbits(64))
        self.key = key_of(self.random.randrange(THIEVES))
        self.address = f"192.0.2.{self.random.randrange(1, 200)}"
        self._wrong_by_s = world.clock.wrong_by_s
        """By how much the clock was off when the first proof was made; set since, it may be out of its time."""

    # --- what is seen -------------------------------------------------------------------------------------------

    @property
    def now(self) -> int:
        """What the service takes for the time: a thief can ask it."""
        return self.world.clock.now_s()

    def pick(self, sql: str, **params: Any) -> Mapping[str, Any] | None:
        """One of what there is, or None. Ids of others are no secret, but an action's is."""
        found = self.world.rows(sql, **params)
        return self.random.choice(found) if found else None

    def their(self, table: str, where: str = "TRUE") -> Mapping[str, Any] | None:
        """Something of somebody else's."""
        sql = f"SELECT * FROM {table} WHERE wallet <> :wallet AND {where} ORDER BY created_at, id"
        return self.pick(sql, wallet=self.key.address)

    def my_servers(self, where: str = "ended_at IS NULL") -> list[dict[str, Any]]:
        sql = f"SELECT * FROM server WHERE wallet = :wallet AND {where} ORDER BY created_at, id"
        return self.world.rows(sql, wallet=self.key.address)

    def heard(self, *names: str) -> tuple[Request, Answer] | None:
        """Something that was said on the wire with one of these headers, and its good answer."""
        (access,) = (part for part in self.world.parts if isinstance(part, Access))
        found = [heard for heard in access.heard if proof_of(heard[0]) in names]
        if self.random.random() < 0.7:
            # What was said just now is worth more.
            found = found[-_LATELY:]
        return self.random.choice(found) if found else None

    def nonce(self) -> str:
        """One that nobody had before."""
        return f"{self.random.getrandbits(96):024x}"

    # --- how requests are made ----------------------------------------------------------------------------------

    def ask(
        self,
        method: str,
        path: str,
        body: object = _NO_BODY,
        *,
        query: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Request:
        """A call that proves nothing."""
        return Request(
            method=method,
            path=path,
            query=query,
            headers=dict(headers or {}),
            body=_encoded(body),
            address=self.address,
        )

    def sign(
        self, method: str, path: str, body: object = _NO_BODY, *, query: str = "", **options: Any
    ) -> Request:
        """A call that the thief signs; `options` as of `attacker_proofs.signed`."""
        called = Called(method=method, path=path, query=query, body=_encoded(body))
        ours: dict[str, Any] = {"now": self.now, "nonce": self.nonce()}
        headers = proofs.signed(self.key, called, self.world.settings, **(ours | options))
        return self.ask(method, path, body, query=query, headers=headers)

    def payload(self, usdc: int, **changes: str) -> Payload:
        """A payment of what a call costs that costs so much, before it becomes a header."""
        settings = self.world.settings
        offer = proofs.offer_of(settings, max(usdc, settings.minimum_charge_usdc))
        nonce = self.random.getrandbits(256)
        return proofs.payment(self.key, offer, now=self.now, nonce=nonce, **changes)

    def paid(
        self,
        payload: Payload,
        method: str,
        path: str,
        body: object = _NO_BODY,
        *,
        query: str = "",
        version: int = 2,
    ) -> Request:
        """This call with that payment, whatever it was made for."""
        if version == 1:
            headers = {"X-PAYMENT": proofs.encoded(proofs.in_version_1(payload))}
        else:
            headers = {"PAYMENT-SIGNATURE": proofs.encoded(payload)}
        return self.ask(method, path, body, query=query, headers=headers)

    def pay(self, usdc: int, method: str, path: str, body: object = _NO_BODY, *, query: str = "") -> Request:
        """A call that the thief pays for, in either version."""
        version = self.random.choice((1, 2, 2))
        return self.paid(self.payload(usdc), method, path, body, query=query, version=version)

    def prove(
        self, usdc: int, method: str, path: str, body: object = _NO_BODY, *, query: str = ""
    ) -> Request:
        """A call that the thief signs or pays for."""
        if self.random.random() < 0.5:
            return self.pay(usdc, method, path, body, query=query)
        return self.sign(method, path, body, query=query)

    def sign_in(self, **options: Any) -> str:
        """A SIGN-IN-WITH-X header; `options` as of `attacker_proofs.signed_in`."""
        ours: dict[str, Any] = {"now": self.now, "nonce": self.nonce()}
        return proofs.signed_in(self.key, self.world.settings, **(ours | options))

    # --- what comes of them -------------------------------------------------------------------------------------

    async def rest(self, seconds: float) -> None:
        """Wait; an attack that is overtaken by the calm is over."""
        await asyncio.sleep(seconds)
        if self.world.calm:
            raise ConnectionLost

    async def send(self, request: Request) -> Answer | None:
        """The answer; None where the connection was lost, and nobody knows what was done."""
        try:
            return await self.world.http(request)
        except ConnectionLost:
            return None

    async def strike(self, request: Request, *right: str, late: bool = False) -> Answer | None:
        """Send it; a violation unless it gets one of these answers. `late`: its proof is not fresh any more."""
        began = self.world.true_s()
        answer = await self.send(request)
        if answer is None:
            return None
        got = word(answer)
        took_long = (
            late or self.world.true_s() - began > _FRESH_S or self._wrong_by_s != self.world.clock.wrong_by_s
        )
        barred = got == "403 suspended" and self._bars()
        too_late = got in WRONG_TIME or (got == STALE_SIGN_IN and "SIGN-IN-WITH-X" in request.headers)
        # Days later an order is forgotten, and may not be for sale any more at what it says.
        is_old = late and request.path == "/v1/servers" and got == "400 invalid_request"
        if not (is_old or barred or got in right or got in ANY_TIME or (took_long and too_late)):
            self._break(request, answer, got, right)
        return answer

    def _break(self, request: Request, answer: Answer, got: str, right: tuple[str, ...]) -> NoReturn:
        promise = "foreign" if answer.status < 300 else "answers"
        self.world.violation(
            promise, f"{self.name}: {got} instead of {' or '.join(right)} to {request}: {answer.body[:400]!r}"
        )

    async def at_once(self, *requests: Request, right: tuple[str, ...], late: bool = False) -> list[Answer]:
        """Send all of them together; the answers that came."""
        answers = await asyncio.gather(*(self.strike(request, *right, late=late) for request in requests))
        return [answer for answer in answers if answer is not None]

    def _bars(self) -> bool:
        """Whether the operator has barred anybody, ever: it may have changed its mind since the answer was made."""
        return bool(self.world.rows("SELECT seq FROM wallet_note LIMIT 1"))

    # --- what an attack needs beforehand ------------------------------------------------------------------------

    def available_usdc(self) -> int:
        """What the thief could spend."""
        found = self.world.rows(
            "SELECT balance - held AS usdc FROM account WHERE id = :id", id=f"wallet:{self.key.address}"
        )
        return int(found[0]["usdc"]) if found else 0

    async def fund(self, usdc: int) -> bool:
        """Pay in honestly, whatever becomes of it; True when it is there."""
        self.world.chain.fund(self.key.address, usdc)
        await self.strike(
            self.paid(self.payload(usdc), "POST", "/v1/balance/deposit", {"amount": text_of(usdc)}),
            "200",
            "402 settlement_failed",
            "422 deposit_limit",
        )
        return self.available_usdc() >= usdc


def fresh(answers: list[Answer]) -> list[Answer]:
    """Those that something was done for just now."""
    return [answer for answer in answers if word(answer) in {"200", "201"}]


def from_elsewhere(request: Request, address: str) -> Request:
    """The same bytes from another address."""
    return replace(request, address=address)


def with_headers(request: Request, **headers: str) -> Request:
    """These header lines as well; underscores in their names stand for dashes."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return replace(request, headers=dict(request.headers) | named)


def text_of(usdc: int) -> str:
    """Micro-USDC as it is written in a body."""
    return f"{usdc // 1_000_000}.{usdc % 1_000_000:06d}"


def _encoded(body: object) -> bytes:
    if body is _NO_BODY:
        return b""
    return body if isinstance(body, bytes) else json.dumps(body).encode()


Attack = Callable[[Thief], Coroutine[Any, Any, None]]


def attack(name: str, weight: float, carried_out: Attack) -> Kind:
    """The move that starts this attack."""

    def play(world: "World") -> None:
        _ = world.spawn(carried_out(Thief(world, f"attack.{name}")), name=f"attack.{name}")

    return Kind(name=f"attack.{name}", weight=weight, play=play)
