"""Death at every write, question and order of a paid call that settles on a real chain, in every weather.

The chain is anvil. Whatever happens, afterwards it shows one transfer for each authorization that was not cancelled,
the books one credit for each transfer, no nonce of the relayer's is missing, and the client's header gets its answer.
"""

import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from signing import SignedRequestAuth
from spawn_schemas.x402 import Reason

from spawn.payments import exact
from spawn.payments.exact import ExactPayment
from spawn.rails import x402_terms
from tests.anvil import Chain
from tests.e2e.anvil_books import check_at_rest, receipt_of
from tests.e2e.anvil_crashing import EVERY, PAY_TO, TURN_S, Call, Died, Trial, Weather
from tests.e2e.anvil_weather import (
    Delaying,
    Dropping,
    Meddling,
    Reordering,
    Reorganising,
    Rewriting,
    Slow,
    cancel,
    new_chain,
    submit,
)
from tests.harness import CHAIN_ID, ORDER, START_S, VirtualClock
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
    with new_chain() as chain:
        yield chain


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
            await trial.outlive(lambda: trial.turn(max(waits)))  # noqa: B023 - awaited in this round
        raise AssertionError("no final answer")

    async def settle_down(self) -> None:
        """Until nothing is under way, and whatever arrived was read."""
        trial = self.trial
        for _ in range(TURNS_MAX):
            if not trial.is_busy():
                break
            await trial.outlive(trial.turn)
        for seconds in (TURN_S, TURN_S, LONG_TURN_S):
            await trial.outlive(lambda: trial.turn(seconds))  # noqa: B023 - awaited in this round
        trial.spare()

    async def check_paid(self, answers: list[httpx.Response]) -> None:
        """Each call was paid for once and is answered for good."""
        await self.settle_down()
        receipts = [receipt_of(answer) for answer in answers]
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

    async def come_back(self) -> bool:
        """Be away until the payment has surely expired, then call again; answers whether it was taken."""
        trial = self.trial
        await trial.restart()
        for _ in range(EXPIRY_TURNS):
            await trial.outlive(lambda: trial.turn(LONG_TURN_S))
        moved = [one.transaction for one in trial.chain.transfers(PAY_TO)]
        check_at_rest(trial.settings, trial.chain, moved=moved)
        answers = await self.insist()
        if moved:
            await self.check_paid(answers)
        else:
            assert [answer.status_code for answer in answers] == [402]
            check_at_rest(trial.settings, trial.chain, moved=[])
        return bool(moved)

    async def check_cancelled(self, answers: list[httpx.Response]) -> None:
        """The call was refused because its payment was taken back, and nothing moved."""
        await self.settle_down()
        for answer in answers:
            assert answer.status_code == 402, answer.text
            assert answer.json()["error"]["details"]["reason"] == Reason.NONCE_USED.value
            assert receipt_of(answer)["success"] is False
        check_at_rest(self.trial.settings, self.trial.chain, moved=[])


def _open(answer: httpx.Response) -> dict[str, Any]:
    """An answer without what is told once only."""
    body: dict[str, Any] = answer.json()
    return body | ({"root_password": None} if "root_password" in body else {})


@asynccontextmanager
async def trial_of(
    chain: Chain,
    weather: Weather,
    folder: Path,
    call: Call,
    *deaths: int,
    only: re.Pattern[str] = EVERY,
) -> AsyncIterator[Clients]:
    """A new world on the same chain, which is afterwards as it was; of the points, those named by `only` count."""
    with contextlib.ExitStack() as stack:
        if weather.settings.get("confirmations", 1) > 1:
            # A chain that was put back once forgets contracts when it is reorganised (anvil 1.7): it gets its own.
            chain = stack.enter_context(new_chain())
        else:
            stack.callback(_put_back, chain, chain.snapshot())
        async with _on(
            chain, Trial(chain, weather, folder, VirtualClock(START_S), deaths, only), call
        ) as made:
            yield made


def _put_back(chain: Chain, mark: str) -> None:
    chain.drop_all()
    chain.set_automine(True)
    chain.revert(mark)


@asynccontextmanager
async def _on(chain: Chain, trial: Trial, call: Call) -> AsyncIterator[Clients]:
    weather = trial.weather
    try:
        await trial.start()
        calls = [await _paid(trial, call, Wallet.numbered(1))]
        our_terms = x402_terms(trial.settings)
        payments = [exact.identify(exact.decode_payment(one.payment or ""), our_terms) for one in calls]
        weather.begin(chain, payments)
        trial.arm()
        yield Clients(trial, calls, payments)
    except Exception as error:
        error.add_note(f"{type(weather).__name__}, deaths planned at {trial.deaths}, died {trial.killed}")
        raise
    finally:
        await trial.close()


async def _paid(trial: Trial, call: Call, wallet: Wallet) -> Call:
    """The call with a payment for it."""
    (challenge,) = await trial.ask(call)
    assert challenge.status_code == 402, challenge.text
    payment = wallet.payment(challenge.headers["PAYMENT-REQUIRED"], now=trial.clock.now_s())
    return replace(call, payment=payment)


WEATHERS: Final = (Slow, Dropping, Delaying, Reorganising, Rewriting, Reordering)
DECISIVE: Final = re.compile("write of|node.send|provider.(create|poll)")
"""Points at which something is written down or done; a death between two questions finds the world as it was."""


async def each_point(
    run: Callable[[int], Awaitable[list[str]]], capsys: pytest.CaptureFixture[str], what: str
) -> list[str]:
    """Die at the first point, the second, and so on, until there is none left to die at; answers where."""
    killed: list[str] = []
    for point in range(1, POINTS_MAX):
        died = await run(point)
        if not died:
            with capsys.disabled():
                print(f"\n  {what}: {len(killed)} died", end=" ")
            assert {"before node.send", "after node.send"} <= set(killed)
            return killed
        killed += died
    raise AssertionError("it never ends")


@pytest.mark.parametrize("call", [DEPOSIT, CREATE], ids=["deposit", "create"])
async def test_a_client_who_repeats_its_header_has_paid_once(
    chain: Chain, tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run(point: int) -> list[str]:
        async with trial_of(chain, Weather(), tmp_path / str(point), call, point) as clients:
            await clients.check_paid(await clients.insist())
            return clients.trial.killed

    killed = await each_point(run, capsys, call.path)
    assert {f"{side} write of Outcomes.mined" for side in ("before", "after")} <= set(killed)


@pytest.mark.parametrize("call", [DEPOSIT, CREATE], ids=["deposit", "create"])
async def test_a_client_who_stays_away_loses_nothing(
    chain: Chain, tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was written down before the death is brought to the chain and credited; what was not, never moves."""
    outcomes: set[bool] = set()

    async def run(point: int) -> list[str]:
        async with trial_of(chain, Weather(), tmp_path / str(point), call, point, only=DECISIVE) as clients:
            with contextlib.suppress(Died):
                await clients.trial.ask(*clients.calls)
                return []
            outcomes.add(await clients.come_back())
            return clients.trial.killed

    await each_point(run, capsys, f"{call.path}, client away")
    assert outcomes == {True, False}


@pytest.mark.parametrize("weather", WEATHERS)
async def test_whatever_the_chain_does_with_our_transactions(
    chain: Chain, tmp_path: Path, weather: type[Weather], capsys: pytest.CaptureFixture[str]
) -> None:
    async def run(point: int) -> list[str]:
        async with trial_of(
            chain, weather(), tmp_path / str(point), DEPOSIT, point, only=DECISIVE
        ) as clients:
            await clients.check_paid(await clients.insist())
            return clients.trial.killed

    await each_point(run, capsys, weather.__name__.lower())


@pytest.mark.parametrize("when", ["before", "between", "same block"])
async def test_a_stranger_who_is_first_changes_nothing_but_the_transaction(
    chain: Chain, tmp_path: Path, when: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run(point: int) -> list[str]:
        weather = Meddling(when, submit)
        async with trial_of(chain, weather, tmp_path / str(point), DEPOSIT, point, only=DECISIVE) as clients:
            answers = await clients.insist()
            await clients.check_paid(answers)
            assert [receipt_of(answer)["transaction"] for answer in answers] == [weather.transaction]
            return clients.trial.killed

    if when == "before":
        assert await run(POINTS_MAX) == []  # nothing of ours is sent
    else:
        await each_point(run, capsys, f"stranger {when}")


@pytest.mark.parametrize("when", ["before", "between", "same block"])
async def test_a_cancelled_authorization_is_told_from_a_used_one(
    chain: Chain, tmp_path: Path, when: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run(point: int) -> list[str]:
        weather = Meddling(when, cancel)
        async with trial_of(chain, weather, tmp_path / str(point), DEPOSIT, point, only=DECISIVE) as clients:
            await clients.check_cancelled(await clients.insist())
            return clients.trial.killed

    if when == "before":
        assert await run(POINTS_MAX) == []  # nothing of ours is sent
    else:
        await each_point(run, capsys, f"cancelled {when}")


async def test_a_service_that_dies_again_while_it_recovers_recovers(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run(point: int) -> list[str]:
        deaths = (point, 1 + point % SECOND_DEATHS)
        async with trial_of(
            chain, Dropping(), tmp_path / str(point), DEPOSIT, *deaths, only=DECISIVE
        ) as clients:
            await clients.check_paid(await clients.insist())
            return clients.trial.killed

    await each_point(run, capsys, "and then another")


async def test_what_strangers_carry_to_the_chain_is_credited_once_too(chain: Chain, tmp_path: Path) -> None:
    """A payment that we refused becomes its payer's balance; one that we never saw waits for its payer."""
    poor, quiet = Wallet.numbered(3), Wallet.numbered(2)
    async with trial_of(chain, Weather(), tmp_path / "world", DEPOSIT) as clients:
        trial = clients.trial
        refused = await _paid(trial, DEPOSIT, poor)
        (answer,) = await trial.ask(refused)
        assert answer.status_code == 402
        assert answer.json()["error"]["details"]["reason"] == Reason.INSUFFICIENT_FUNDS.value
        unseen = await _paid(trial, DEPOSIT, quiet)

        chain.fund(poor.address, 5_000_000)
        carried = [
            chain.submit(exact.identify(exact.decode_payment(call.payment or ""), x402_terms(trial.settings)))
            for call in (refused, unseen)
        ]
        await clients.settle_down()
        check_at_rest(trial.settings, chain, moved=carried)
        assert await _balance(trial, poor) == "5.00"
        assert await _balance(trial, quiet) == "0.00"
        claimed = await _signed(trial, quiet, "POST", "/v1/suspense/claim")
        assert (claimed["claimed"], claimed["balance"]) == ("5.00", "5.00")
        check_at_rest(trial.settings, chain, moved=carried)


async def _balance(trial: Trial, wallet: Wallet) -> str:
    balance: str = (await _signed(trial, wallet, "GET", "/v1/balance"))["balance"]
    return balance


async def _signed(trial: Trial, wallet: Wallet, method: str, path: str) -> dict[str, Any]:
    auth = SignedRequestAuth(wallet.account, CHAIN_ID, clock=trial.clock.now_s)
    answer = await trial.life.http.request(method, path, auth=auth)
    assert answer.is_success, answer.text
    body: dict[str, Any] = answer.json()
    return body
