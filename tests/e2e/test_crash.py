"""kill -9 at every database write and every provider and facilitator call of each paid operation.

The points are enumerated: a run without a death counts them, then each is died at, on a copy of the same world, by a
real process that serves real HTTP. Chain and cloud outlive it. Afterwards money is conserved, no server is orphaned
or doubled, no payment lost or taken twice, and the answer that the client finally gets is true: if it comes back at
once, if it comes back when its payment has long expired, and if the service dies again while it recovers.
"""

import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Final, TypeVar

import httpx
import pytest
from spawn_schemas.money import Usdc

from spawn.store.reservations import State
from tests import databases
from tests.e2e.facts import Facts, look
from tests.e2e.lives import Died, House, Nursery, open_house, open_nursery
from tests.e2e.scenarios import (
    SCENARIOS,
    Answered,
    Client,
    Scenario,
    check_machines,
    check_money,
    check_receipt,
)
from tests.e2e.worlds import Base, meet_deaths, payer, prepare_worlds, settle_down, sign_payment

T = TypeVar("T")

LANES: Final = 2
EXPIRY_S: Final = 450
"""When a payment can surely no longer settle: the 300 s it is valid, and then 120 until that is final."""
SECOND_DEATHS: Final = 12
"""The second life dies at its first point, or its second, and so on up to here, turn by turn."""
INHERITANCE_S: Final = 0 if databases.ALONE else 120
"""How long after a death on a server another process has the jobs: a lease, and as long again to see that it rests."""
PAYMENT_NONCE: Final = 77

scenarios = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a scenario passes without a death, in order, and how much of it before its client is answered."""

    points: list[str]
    answered_after: int


@dataclass
class Trial:
    """One scenario in one copy of its world, with the deaths that were planned for it."""

    scenario: Scenario
    before: Facts
    house: House
    client: Client

    def look(self) -> Facts:
        return look(self.house.folder, self.client.wallet.address, self.house.now_s)

    def check_at_rest(self, *, paid: bool, done: bool) -> Facts:
        """What holds whoever came back or did not: all money, all machines, nothing half-done."""
        after = self.look()
        price = self.scenario.price or Usdc(0)
        check_money(
            after,
            self.before,
            paid=price if paid else Usdc(0),
            fee=self.scenario.fee if done else Usdc(0),
            shown=self.client.balance(),
        )
        check_machines(after)
        assert self.scenario.done(after) == done
        assert State.RESERVED not in {r.state for r in after.reservations}
        return after

    def check_answer(self, answer: httpx.Response) -> None:
        """The call was done and paid for once, the answer says what is, and it is given again on request."""
        assert answer.is_success, answer.text
        meet_deaths(self.house)
        after = self.check_at_rest(paid=True, done=True)
        body = answer.json()
        self.scenario.truth(Answered(body=body, before=self.before, after=after))
        check_receipt(answer, self.scenario, after)
        if "action" in body:
            action = self.client.action(body["action"]["id"])
            assert (action["status"], action["server_id"]) == ("success", after.servers[0].id)
        again = self.client.send()
        assert again.headers["Idempotent-Replayed"] == "true"
        assert (again.status_code, again.json()) == (answer.status_code, body | _without_secret(body))
        assert self.check_at_rest(paid=True, done=True).paid_usdc == after.paid_usdc

    def go_away(self) -> None:
        """The client's call dies and it is not seen until its payment can surely no longer settle."""
        with pytest.raises(Died):
            self.client.send()
        self.house.restart()
        settle_down(self.house)
        self.house.pass_time(EXPIRY_S)
        settle_down(self.house)

    def come_back(self) -> bool:
        """The world is whole without the client, and its call is still worth what it paid; answers if it had.

        A call is done in full when it is sent again, by x402 only if the payment was made in time.
        """
        self.house.pass_time(INHERITANCE_S)
        now = self.look()
        paid = now.paid_usdc > self.before.paid_usdc
        self.check_at_rest(paid=paid, done=self.scenario.done(now))
        answer = self.client.insist()
        if self.scenario.price is None or paid:
            self.check_answer(answer)
        else:
            assert answer.status_code == 402, answer.text
            self.check_at_rest(paid=False, done=False)
        return paid


def _without_secret(body: dict[str, object]) -> dict[str, object]:
    return {"root_password": None} if "root_password" in body else {}


class Lanes:
    """Runs trials side by side, each lane with an address and a nursery of its own."""

    def __init__(self, nurseries: list[Nursery], worlds: dict[str, Base], folder: Path) -> None:
        self._free: SimpleQueue[Nursery] = SimpleQueue()
        for nursery in nurseries:
            self._free.put(nursery)
        self._worlds = worlds
        self._folder = folder
        self._scores: dict[str, Score] = {}
        self._threads = ThreadPoolExecutor(len(nurseries))
        self._trials = itertools.count()

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    def map(self, work: Callable[[int], T], numbers: Iterable[int]) -> list[T]:
        return list(self._threads.map(work, numbers))

    @contextmanager
    def trial(self, scenario: Scenario, *deaths: int) -> Iterator[Trial]:
        """The scenario, ready to begin, in a fresh copy of its world."""
        base = self._worlds[scenario.world]
        folder = self._folder / f"trial-{next(self._trials)}"
        nursery = self._free.get()
        try:
            with open_house(nursery, folder, base.before.now_s, deaths, like=base.folder) as house:
                client = _client(scenario, base, house)
                house.arm()
                try:
                    yield Trial(scenario, base.before, house, client)
                except Exception as error:
                    error.add_note(f"{scenario.name}, deaths planned at {deaths}, died {house.killed}")
                    raise
        finally:
            shutil.rmtree(folder)
            self._free.put(nursery)

    def score(self, scenario: Scenario) -> Score:
        """Count the points of a life without a death, and see that it is right."""
        if scenario.name not in self._scores:
            with self.trial(scenario) as trial:
                answer = trial.client.send()
                answered_after = len(trial.house.passed())
                settle_down(trial.house)
                points = trial.house.passed()
                trial.check_answer(answer)
            assert points
            self._scores[scenario.name] = Score(points=points, answered_after=answered_after)
        return self._scores[scenario.name]


def _client(scenario: Scenario, base: Base, house: House) -> Client:
    server_id = base.before.servers[0].id if base.before.servers else ""
    path = scenario.path.format(server=server_id)
    payment = None
    if scenario.price is not None:
        payment = sign_payment(house, scenario.method, path, scenario.body, nonce=PAYMENT_NONCE)
    return Client(payer(), scenario, house, path, payment)


@pytest.fixture(scope="module")
def lanes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lanes]:
    folder = tmp_path_factory.mktemp("crash")
    with ExitStack() as stack:
        nurseries = [stack.enter_context(open_nursery()) for _ in range(LANES)]
        lanes = Lanes(nurseries, prepare_worlds(nurseries[0], folder), folder)
        stack.callback(lanes.close)
        yield lanes


def _report(capsys: pytest.CaptureFixture[str], scenario: Scenario, what: str, killed: int) -> None:
    with capsys.disabled():
        print(f"\n  {scenario.name}, {what}: {killed} killed", end=" ")


@scenarios
def test_a_client_who_repeats_its_call_is_served_once(
    lanes: Lanes, scenario: Scenario, capsys: pytest.CaptureFixture[str]
) -> None:
    score = lanes.score(scenario)

    def die_at(point: int) -> str:
        with lanes.trial(scenario, point) as trial:
            trial.check_answer(trial.client.insist())
            (killed,) = trial.house.killed
            return killed

    killed = lanes.map(die_at, range(1, len(score.points) + 1))
    assert killed == score.points
    _report(capsys, scenario, "each point once", len(killed))


@scenarios
def test_a_client_who_stays_away_loses_nothing(
    lanes: Lanes, scenario: Scenario, capsys: pytest.CaptureFixture[str]
) -> None:
    score = lanes.score(scenario)

    def die_at(point: int) -> str:
        with lanes.trial(scenario, point) as trial:
            trial.go_away()
            trial.come_back()
            (killed,) = trial.house.killed
            return killed

    killed = lanes.map(die_at, range(1, score.answered_after + 1))
    assert killed == score.points[: score.answered_after]
    _report(capsys, scenario, "client away", len(killed))


@scenarios
def test_a_service_that_dies_again_while_it_recovers_recovers(
    lanes: Lanes, scenario: Scenario, capsys: pytest.CaptureFixture[str]
) -> None:
    score = lanes.score(scenario)

    def die_at(point: int) -> str:
        with lanes.trial(scenario, point, 1 + point % SECOND_DEATHS) as trial:
            trial.check_answer(trial.client.insist())
            first, _ = trial.house.killed
            return first

    killed = lanes.map(die_at, range(1, len(score.points) + 1))
    assert killed == score.points
    _report(capsys, scenario, "each point and then another", 2 * len(killed))


@pytest.mark.parametrize(
    ("point", "paid"), [("before facilitator.settle", False), ("after facilitator.settle", True)]
)
def test_a_job_that_dies_finds_out_later_what_became_of_a_payment(
    lanes: Lanes, point: str, paid: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    (scenario,) = (s for s in SCENARIOS if s.name == "deposit by x402")
    first = 1 + lanes.score(scenario).points.index(point)
    with lanes.trial(scenario, first) as trial:
        trial.go_away()
        points = trial.house.passed()
        assert trial.come_back() == paid
    assert "after facilitator.find" in points

    def die_at(second: int) -> str:
        with lanes.trial(scenario, first, second) as trial:
            trial.go_away()
            assert trial.come_back() == paid
            _, killed = trial.house.killed
            return killed

    killed = lanes.map(die_at, range(1, len(points) + 1))
    assert killed == points
    _report(capsys, scenario, f"{point} and in the job", 2 * len(killed))
