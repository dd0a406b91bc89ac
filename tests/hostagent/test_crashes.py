"""The daemon dies at every write of its journal, before and after; the next one ends what it began, once each."""

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from spawn_hostagent.commands.journal_file import JournalError
from spawn_schemas.ids import CommandId, RentalId
from spawn_schemas.orders import Ack, Command, Drain, Order, ResumeInstance

from tests.hostagent.clocks import START_S, VirtualClock
from tests.hostagent.desk import ENDED, Desk, FailingDisk
from tests.hostagent.fake_machines import FakeMachines
from tests.hostagent.orders import HOUR, A, B, command, destroy, execute, start, stop

LIVES_MAX = 60


def story() -> list[list[Order]]:
    """What a service asks for, group after group; those of a group at once."""
    return [
        [start(), start(B)],
        [execute("date"), stop(B)],
        [ResumeInstance(rental_id=B, generation=1, lease_expires_at=START_S + 2 * HOUR), start(generation=2)],
        [destroy(generation=1), Drain()],
        [destroy(B)],
    ]


class Play:
    """Plays a story to a daemon that dies, and is started again, until every command has its answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = VirtualClock()
        self.machines = FakeMachines(self.clock.true_s)
        self.told: list[Ack] = []
        self.lives = 0

    async def run(self, groups: list[list[Order]]) -> dict[CommandId, Ack]:
        desk = self._begin()
        for number, group in enumerate(groups):
            commands = [command(order, name=f"c{number}.{at}") for at, order in enumerate(group)]
            while not all(self._answer(each) for each in commands):
                try:
                    # As a service does that may have lost every answer: all of it again, and in its order.
                    for each in commands:
                        desk.executor.submit(each)
                    await desk.executor.idle()
                except JournalError:
                    pass
                if desk.executor.broken.done() or FailingDisk.commits == FailingDisk.fails_at:
                    FailingDisk.plan(None)
                    await desk.die()
                    desk = self._begin()
                    await desk.executor.idle()
        results = {ack.command_id: ack for ack in self.told if ack.state in ENDED}
        for command_id, ack in results.items():
            again = [other for other in self.told if other.command_id == command_id and other.state in ENDED]
            assert all(other == ack for other in again), "a result is told as it was stored"
        await desk.die()
        return results

    def _begin(self) -> Desk:
        self.lives += 1
        assert self.lives < LIVES_MAX
        desk = Desk(self.folder, self.machines, self.clock, self.told)
        desk.executor.recover()
        for ack in desk.journal.untold():
            self.told.append(ack)
        return desk

    def _answer(self, wanted: Command) -> Ack | None:
        return next((a for a in self.told if a.command_id == wanted.command_id and a.state in ENDED), None)


async def count_writes(folder: Path) -> int:
    FailingDisk.plan(None)
    await Play(folder).run(story())
    return FailingDisk.commits


@pytest.mark.parametrize("when", ["before", "after"])
async def test_killed_at_every_write_it_ends_as_if_it_had_not_been(tmp_path: Path, when: str) -> None:
    (tmp_path / "count").mkdir()
    writes = await count_writes(tmp_path / "count")
    assert writes >= 27, "three for each of nine commands"
    for number in range(1, writes + 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        FailingDisk.plan(number, when)
        play = Play(folder)
        results = await play.run(story())
        assert play.lives == 2, f"write {number} did not kill it"
        failed = {name for name, ack in results.items() if ack.state == "failed"}
        # What exec did before the end is not known, and it must not be done twice.
        assert failed <= {"c1.0"}
        assert len(results) == 9
        assert set(play.machines.boxes) == {(A, 2)}
        assert play.machines.running() == {(A, 2)}
        assert play.machines.made == {(A, 1): 1, (A, 2): 1, (B, 1): 1}
        assert len(play.machines.ran) <= 1
        assert len(play.machines.ran) == 1 or failed
        assert play.machines.doubles == []


@settings(max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
class CrashingHost(RuleBasedStateMachine):
    """Commands in any order, some of them again, late or stale, to a daemon that dies at any write."""

    @initialize(folder=st.just(None))
    def begin(self, folder: None) -> None:
        FailingDisk.plan(None)
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = VirtualClock()
        self.machines = FakeMachines(self.clock.true_s)
        self.told: list[Ack] = []
        self.sent: list[Command] = []
        self.desk = self._open()

    def _open(self) -> Desk:
        async def make() -> Desk:
            desk = Desk(Path(self.folder.name), self.machines, self.clock, self.told)
            desk.executor.recover()
            await desk.executor.idle()
            self.told.extend(desk.journal.untold())
            return desk

        return self.loop.run_until_complete(make())

    def _submit(self, *commands: Command) -> None:
        async def work() -> None:
            try:
                for each in commands:
                    self.desk.executor.submit(each)
            except JournalError:
                return
            await self.desk.executor.idle()

        self.loop.run_until_complete(work())
        if FailingDisk.fails_at is not None and FailingDisk.commits >= FailingDisk.fails_at:
            self.crash()

    @rule(
        order=st.sampled_from(["start", "stop", "resume", "destroy", "exec"]),
        rental=st.sampled_from([A, B]),
        generation=st.integers(1, 3),
        life_s=st.sampled_from([0, 5, 600]),
    )
    def ask(self, order: str, rental: RentalId, generation: int, life_s: int) -> None:
        made: dict[str, Order] = {
            "start": start(rental, generation),
            "stop": stop(rental, generation),
            "destroy": destroy(rental, generation),
            "exec": execute("id", str(len(self.sent)), rental_id=rental, generation=generation),
            "resume": ResumeInstance(
                rental_id=rental, generation=generation, lease_expires_at=START_S + HOUR
            ),
        }
        fresh = command(made[order], expires_at=self.clock.true_s() + life_s)
        self.sent.append(fresh)
        self._submit(fresh)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def ask_again(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, min(4, len(self.sent))))
        self._submit(*[data.draw(st.sampled_from(self.sent)) for _ in range(count)])

    @rule(at=st.integers(1, 4), when=st.sampled_from(["before", "after"]))
    def arm(self, at: int, when: str) -> None:
        FailingDisk.plan(at, when)

    @rule()
    def crash(self) -> None:
        FailingDisk.plan(None)
        self.loop.run_until_complete(self.desk.die())
        self.desk = self._open()

    @rule(seconds=st.sampled_from([1, 10, 700]))
    def wait(self, seconds: int) -> None:
        self.clock.jump(seconds)

    @invariant()
    def nothing_twice(self) -> None:
        assert all(count == 1 for count in self.machines.made.values())
        assert len(self.machines.ran) == len(set(self.machines.ran))
        assert self.machines.doubles == []
        assert self.machines.overlaps == []

    @invariant()
    def nothing_after_its_destruction(self) -> None:
        for rental_id, generation in self.machines.boxes:
            assert self.desk.journal.generations(rental_id, self.clock.true_s()).destroyed < generation

    @invariant()
    def one_answer_each(self) -> None:
        answers: dict[CommandId, Ack] = {}
        for ack in self.told:
            if ack.state in ENDED:
                assert answers.setdefault(ack.command_id, ack) == ack

    def teardown(self) -> None:
        FailingDisk.plan(None)
        if hasattr(self, "desk"):
            self.crash()
            self._submit(*self.sent)
            missing = {each.command_id for each in self.sent} - {
                a.command_id for a in self.told if a.state in ENDED
            }
            assert missing == set(), "nothing is lost"
            self.loop.run_until_complete(self.desk.die())
            self.loop.close()
            self.folder.cleanup()


TestCrashingHost = CrashingHost.TestCase
