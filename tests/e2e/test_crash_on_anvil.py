"""Death at every write, question and order of a paid call that settles on a real chain, in every weather.

The chain is anvil. Whatever happens, afterwards it shows one transfer for each authorization that was not cancelled,
the books one credit for each transfer, no nonce of the relayer's is missing, and the client's header gets its answer.
"""

import itertools
import json
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import httpx
import pytest
from spawn_schemas.x402 import Reason

from spawn.payments import exact
from spawn.payments.exact import ExactPayment
from spawn.rails import x402_terms
from tests.anvil import RELAYER_KEYS, Chain, anvil
from tests.e2e.anvil_crashing import PAY_TO, Call, Died, Trial, Weather, check_at_rest
from tests.harness import ORDER, START_S, VirtualClock
from tests.wallets import Wallet

POINTS_MAX: Final = 400
"""More than any call has; a loop that comes here never ends by itself."""
ATTEMPTS_MAX: Final = 20
TURNS_MAX: Final = 60
LONG_TURN_S: Final = 30
EXPIRY_TURNS: Final = 16
"""Long turns after which a payment has surely expired, and the job has given it up."""
SECOND_DEATHS: Final = 12

DEPOSIT: Final = Call(method="POST", path="/v1/balance/deposit", body={"amount": "5.00"})
CREATE: Final = Call(method="POST", path="/v1/servers", body=ORDER | {"deposit": "0.50", "fund": "0.60"})


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    with anvil(at=START_S) as chain:
        for wallet in map(Wallet.numbered, (1, 2)):
            chain.fund(wallet.address, 100_000_000)
        yield chain


# --- weathers ---------------------------------------------------------------------------------------------------


class Slow(Weather):
    """Transactions wait for the next turn's block."""

    def begin(self, chain: Chain, payments: Sequence[ExactPayment]) -> None:
        chain.set_automine(False)


class Dropping(Slow):
    """The node forgets what it was given, twice."""

    def __init__(self) -> None:
        self.drops = 2

    def turn(self, chain: Chain, now: int) -> None:
        if self.drops and chain.pending():
            self.drops -= 1
            chain.drop_all()
        super().turn(chain, now)


class Delaying(Slow):
    """No block for so long that the relayer offers more, three times."""

    def __init__(self) -> None:
        self.turns = 28

    def turn(self, chain: Chain, now: int) -> None:
        if self.turns and chain.pending():
            self.turns -= 1
        else:
            super().turn(chain, now)


class Reorganising(Weather):
    """What had our transaction is replaced by blocks without it, before it was deep enough."""

    settings = MappingProxyType({"confirmations": 3})

    def __init__(self) -> None:
        self.is_due = True

    def turn(self, chain: Chain, now: int) -> None:
        super().turn(chain, now)
        if self.is_due and chain.transfers(PAY_TO):
            self.is_due = False
            chain.reorg(2)
            assert chain.transfers(PAY_TO) == []


class Rewriting(Slow):
    """We offered more and that was mined; then the chain changes its mind, for our first version."""

    settings = MappingProxyType({"confirmations": 3})

    def __init__(self) -> None:
        self.turns = 10
        self.first = b""

    def turn(self, chain: Chain, now: int) -> None:
        waiting = chain.pending()
        if waiting and not self.first:
            self.first = bytes.fromhex(chain.ask("eth_getRawTransactionByHash", waiting[0])[2:])
        if self.turns and waiting:
            self.turns -= 1
            return
        super().turn(chain, now)
        newer = chain.transfers(PAY_TO)
        if self.turns == 0 and newer:
            self.turns = -1
            chain.reorg(1, self.first)
            (older,) = chain.transfers(PAY_TO)
            assert older.transaction != newer[0].transaction


class Reordering(Slow):
    """Two keys have a payment each; the chain has them one way round, and then the other."""

    settings = MappingProxyType(
        {"confirmations": 3, "relay_alone_from": "0.001", "relayer_keys": ",".join(RELAYER_KEYS[:2])}
    )

    def __init__(self) -> None:
        self.is_due = True

    def turn(self, chain: Chain, now: int) -> None:
        waiting = chain.pending()
        raw = [bytes.fromhex(chain.ask("eth_getRawTransactionByHash", one)[2:]) for one in waiting]
        super().turn(chain, now)
        before = [one.transaction for one in chain.transfers(PAY_TO)]
        if self.is_due and len(before) == len(waiting) == 2:
            self.is_due = False
            order = raw if before[0] == waiting[1] else raw[::-1]
            chain.reorg(1, *order)
            assert [one.transaction for one in chain.transfers(PAY_TO)] == before[::-1]


class Meddling(Weather):
    """Somebody else spends the nonce of our customer's authorization: before we see it, just before our
    transaction is sent, or in the block that has it.
    """

    def __init__(self, when: str, spend: Callable[[Chain, ExactPayment], str]) -> None:
        self.when = when
        self.transaction: str | None = None
        self._spend = spend

    def begin(self, chain: Chain, payments: Sequence[ExactPayment]) -> None:
        (self._payment,) = payments
        if self.when == "before":
            self.transaction = self._spend(chain, self._payment)

    def at_point(self, chain: Chain, label: str) -> None:
        if self.transaction is None and label == "before node.send":
            chain.set_automine(self.when != "same block")
            self.transaction = self._spend(chain, self._payment)

    def turn(self, chain: Chain, now: int) -> None:
        super().turn(chain, now)
        chain.set_automine(True)


def submit(chain: Chain, payment: ExactPayment) -> str:
    """A stranger brings the authorization to the chain."""
    return chain.submit(payment)


def cancel(chain: Chain, payment: ExactPayment) -> str:
    """Its payer takes it back."""
    payer = next(one for one in map(Wallet.numbered, (1, 2)) if one.address == payment.payer)
    return chain.cancel(payer.account, payment.nonce)


# --- trials -----------------------------------------------------------------------------------------------------


@dataclass
class Clients:
    """Who makes the call, each with a payment of its own, and the world that it is made in."""

    trial: Trial
    calls: list[Call]
    payments: list[ExactPayment]

    async def insist(self) -> list[httpx.Response]:
        """Send the very same headers until there are answers that do not ask for patience."""
        trial = self.trial
        for _ in range(ATTEMPTS_MAX):
            answers = await trial.outlive(lambda: trial.ask(*self.calls))
            waits = [int(one.headers["Retry-After"]) for one in answers if one.status_code == 503]
            if not waits:
                return answers
            await trial.outlive(lambda: trial.turn(max(waits)))
        raise AssertionError("no final answer")

    async def settle_down(self) -> None:
        """Until nothing is under way, and whatever arrived was read."""
        trial = self.trial
        for _ in range(TURNS_MAX):
            if not trial.is_busy():
                break
            await trial.outlive(trial.turn)
        for _ in range(3):
            await trial.outlive(lambda: trial.turn(LONG_TURN_S))
        trial.spare()

    async def check_paid(self, answers: list[httpx.Response]) -> None:
        """Each call was paid for once and is answered for good."""
        await self.settle_down()
        receipts = [_receipt(answer) for answer in answers]
        for answer, receipt, payment in zip(answers, receipts, self.payments, strict=True):
            assert answer.is_success, answer.text
            assert (receipt["success"], receipt["amount"]) == (True, str(payment.value))
        moved = {one.sender: one.transaction for one in self.trial.chain.transfers(PAY_TO)}
        assert [moved[one.payer] for one in self.payments] == [one["transaction"] for one in receipts]
        check_at_rest(self.trial.settings, self.trial.chain, moved=moved.values())
        for answer, again in zip(answers, await self.trial.ask(*self.calls), strict=True):
            assert again.headers["Idempotent-Replayed"] == "true"
            assert (again.status_code, _open(again)) == (answer.status_code, _open(answer))
        check_at_rest(self.trial.settings, self.trial.chain, moved=moved.values())

    async def check_cancelled(self, answers: list[httpx.Response]) -> None:
        """The call was refused because its payment was taken back, and nothing moved."""
        await self.settle_down()
        for answer in answers:
            assert answer.status_code == 402, answer.text
            assert answer.json()["error"]["details"]["reason"] == Reason.NONCE_USED.value
            assert _receipt(answer)["success"] is False
        check_at_rest(self.trial.settings, self.trial.chain, moved=[])


def _receipt(answer: httpx.Response) -> dict[str, Any]:
    receipt: dict[str, Any] = json.loads(b64decode(answer.headers["PAYMENT-RESPONSE"]))
    return receipt


def _open(answer: httpx.Response) -> dict[str, Any]:
    """An answer without what is told once only."""
    body: dict[str, Any] = answer.json()
    return body | ({"root_password": None} if "root_password" in body else {})


@asynccontextmanager
async def trial_of(
    chain: Chain, weather: Weather, folder: Path, call: Call, *deaths: int
) -> AsyncIterator[Clients]:
    """A new world on the same chain, which is afterwards as it was."""
    mark = chain.snapshot()
    trial = Trial(chain, weather, folder, VirtualClock(START_S), deaths)
    try:
        await trial.start()
        count = 2 if isinstance(weather, Reordering) else 1
        wallets = [Wallet.numbered(number) for number in range(1, count + 1)]
        calls = [await _paid(trial, call, wallet) for wallet in wallets]
        our_terms = x402_terms(trial.settings)
        payments = [exact.identify(exact.decode_payment(one.payment or ""), our_terms) for one in calls]
        weather.begin(chain, payments)
        trial.arm()
        yield Clients(trial, calls, payments)
    except Exception as error:
        error.add_note(f"{type(weather).__name__}, deaths planned at {deaths}, died {trial.killed}")
        raise
    finally:
        await trial.close()
        chain.drop_all()
        chain.set_automine(True)
        chain.revert(mark)


async def _paid(trial: Trial, call: Call, wallet: Wallet) -> Call:
    """The call with a payment for it."""
    (challenge,) = await trial.ask(call)
    assert challenge.status_code == 402, challenge.text
    payment = wallet.payment(challenge.headers["PAYMENT-REQUIRED"], now=trial.clock.now_s())
    return replace(call, payment=payment)


WEATHERS: Final = (Weather, Slow, Dropping, Delaying, Reorganising, Rewriting, Reordering)


@pytest.mark.parametrize("weather", WEATHERS)
async def test_a_client_who_repeats_its_header_has_paid_once(
    chain: Chain, tmp_path: Path, weather: type[Weather]
) -> None:
    killed: list[str] = []
    for point in range(1, POINTS_MAX):
        async with trial_of(chain, weather(), tmp_path / str(point), DEPOSIT, point) as clients:
            await clients.check_paid(await clients.insist())
            if not clients.trial.killed:
                break
            killed += clients.trial.killed
    print(weather.__name__, len(killed), killed)
