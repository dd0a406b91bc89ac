"""Deaths, doubled commands, copied identities and wrong clocks, at a real agent with real containers."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, get_args

import msgspec
import pytest
from spawn_schemas.ids import RentalId
from spawn_schemas.link import CommandFrame
from spawn_schemas.orders import Ack, Command

from tests.e2e.lending_bent import Bent, Death, plan
from tests.e2e.lending_chaos import HOST, HOUR, Machine, destroy, machine, resume, run, stop
from tests.hostagent.docker_engine import Engine, engine
from tests.hostagent.namespaces import inside

PRUNED: Final = "DELETE FROM command"
"""What an agent writes whenever it begins."""
When = Literal["before", "after"]


@pytest.fixture(scope="module")
def docker() -> Iterator[Engine]:
    with engine(with_gpus=False) as running:
        yield running


@pytest.fixture
def here(docker: Engine) -> Iterator[Engine]:
    with inside(docker.network):
        yield docker


class Deadly:
    """The files by which an agent hears when it is to die, and says what it wrote."""

    def __init__(self, folder: Path) -> None:
        self._deaths, self._writes = folder / "deaths.json", folder / "writes"
        self.bent = Bent(deaths=str(self._deaths), writes=str(self._writes))

    def plan(self, *deaths: Death) -> None:
        self._writes.write_text("")
        plan(self._deaths, list(deaths))

    def to_come(self) -> list[Death]:
        return msgspec.json.decode(self._deaths.read_bytes(), type=list[Death])

    def written(self) -> list[str]:
        """What was written since the plan, each label once."""
        return list(dict.fromkeys(self._writes.read_text().splitlines()))


def life_of(lent: Machine, name: str) -> list[Command]:
    """What is ordered of a rental from beginning to end."""
    rental = lent.rental(name)
    a = rental.rental_id
    return [lent.command(order) for order in (rental, run(a, "date"), stop(a), resume(a), destroy(a))]


async def live(lent: Machine, name: str, commands: list[Command]) -> None:
    """A rental's whole life, which must go as if nobody had died."""
    acks = [await lent.carry(command) for command in commands]
    ran = acks.pop(1)
    # What it did before the end is not known, and it must not be done twice.
    assert ran.problem is None or "Look first" in ran.problem.message
    assert [ack.problem for ack in acks] == [None] * 4, lent.agent.said()
    await lent.until(lent.has_told, "a journal that has told all")
    happened = lent.happened(name)
    assert happened.count("start") == happened.count("die") == 2, happened
    assert happened.count("create") == happened.count("destroy") == 1, happened
    assert happened.count("exec_start") <= 1
    assert happened.count("exec_start") == 1 or ran.problem is not None
    assert lent.left(name) == []


def plans(labels: list[str]) -> list[tuple[Death, ...]]:
    """Two deaths a life, half a life apart; over all of them one before and one after each write."""
    half, count = len(labels) // 2, len(labels)
    pairs = [
        (Death(label, "before"), Death(labels[(at + half) % count], "after"))
        for at, label in enumerate(labels)
    ]
    begins = [(Death(labels[0], when), Death(PRUNED, when)) for when in get_args(When)]
    return [*pairs, *begins]


async def test_killed_at_every_write_of_its_journal(here: Engine, tmp_path: Path) -> None:
    deadly = Deadly(tmp_path)
    deadly.plan()
    async with machine(here, deadly.bent) as lent:
        await lent.start()
        deadly.plan()
        commands = life_of(lent, "srv_usual")
        await live(lent, "srv_usual", commands)
        labels = [label for label in deadly.written() if label != PRUNED]
        of_a_command = [label for label in labels if label.endswith(tuple(c.command_id for c in commands))]
        assert len(of_a_command) == 4 * 5, "received, begun, ended and told"
        assert set(labels) - set(of_a_command) == {"DELETE FROM desired"}
        for number, deaths in enumerate(plans(labels)):
            lent.starts, name = 0, f"srv_{number}"
            other = life_of(lent, name)
            deadly.plan(*(translated(death, commands, other) for death in deaths))
            await live(lent, name, other)
            await died(lent, deadly, len(deaths))
        await lent.end()


async def died(lent: Machine, deadly: Deadly, often: int) -> None:
    """All deaths came to pass, each once; the last thing that it wrote may have been the last that it did."""
    await lent.until(lambda: lent.has_told() and deadly.to_come() == [], "the deaths that were planned")
    await lent.until(lambda: not lent.revive() and lent.starts == often, f"{often} deaths")


def translated(death: Death, before: list[Command], now: list[Command]) -> Death:
    """The same death in the life of other commands."""
    for old, new in zip(before, now, strict=True):
        if death.label.endswith(f" {old.command_id}"):
            return Death(death.label.replace(old.command_id, new.command_id), death.when)
    return death


async def test_what_is_doubled_or_out_of_order_runs_once(here: Engine) -> None:
    async with machine(here) as lent:
        await lent.start()
        rental = lent.rental("srv_a")
        session = lent.service.live[HOST]
        lent.want(rental)
        first = lent.command(rental)
        # In frames of their own, and as copies of a frame.
        for _ in range(3):
            await lent.service.order(first)
            await lent.service.repeat(session, -1)
        assert (await lent.ended(first)).problem is None
        twice = lent.command(run(rental.rental_id, "sh", "-c", "echo once >> /root/ran; cat /root/ran"))
        for _ in range(3):
            await lent.service.order(twice)
        result = (await lent.ended(twice)).result
        assert result is not None
        assert result["stdout"] == "once\n"
        # A later frame before an earlier one, and copies of both after them.
        halt, again = lent.command(stop(rental.rental_id)), lent.command(resume(rental.rental_id))
        for seq, command in ((2, halt), (1, again), (2, halt), (1, again)):
            await lent.service._put(session, CommandFrame, seq=session.seq + seq, command=command)
        session.seq += 2
        assert (await lent.ended(again)).problem is (await lent.ended(halt)).problem is None
        happened = lent.happened("srv_a")
        assert [happened.count(what) for what in ("create", "exec_start", "start", "die")] == [1, 1, 2, 1]
        assert lent.running() == ["spawn-srv_a-1"]
        await lent.end()


async def test_what_is_replayed_or_expired_is_answered_and_does_not_run(here: Engine) -> None:
    async with machine(here) as lent:
        await lent.start()
        session = lent.service.live[HOST]
        a = RentalId("srv_a")
        told = [lent.command(order) for order in (lent.rental(a), run(a, "date"), stop(a), resume(a))]
        for each in told:
            lent.want(each.order)
            await lent.service.order(each)
            assert (await lent.ended(each)).problem is None
        answers = [lent.service.results(each)[-1] for each in told]

        await lent.end(signal.SIGKILL)
        await lent.start()
        lent.service.acks.clear()
        # From the session that is over it is no frame; in the new one it is the same commands again.
        await lent.service.live[HOST].socket.send(session.sent[-1])
        for each, answer in zip(told, answers, strict=True):
            await lent.service.order(each)
            assert await lent.ended(each) == answer
        assert lent.happened(a).count("start") == 2

        late = lent.command(lent.rental("srv_b"), within_s=-1)
        await lent.service.order(late)
        assert code_of(await lent.ended(late)) == "expired"
        await lent.must(destroy(a))
        assert code_of(await lent.do(lent.rental(a))) == "stale_generation"
        assert lent.happened("srv_b") == []
        happened = lent.happened(a)
        assert [happened.count(what) for what in ("create", "exec_start", "start", "destroy")] == [1, 1, 2, 1]
        assert lent.left(a) == []
        await lent.end()


def code_of(ack: Ack) -> str | None:
    return None if ack.problem is None else ack.problem.code


@pytest.mark.parametrize("skew_s", [HOUR, -HOUR])
async def test_a_wrong_clock_changes_no_lease_and_no_deadline(here: Engine, skew_s: int) -> None:
    """Leases and deadlines are judged by the service's clock, also by an agent that starts again without a link."""
    async with machine(here, Bent(skew_s=skew_s)) as lent:
        await lent.start()
        late = lent.command(lent.rental("srv_late"), within_s=-1)
        await lent.service.order(late)
        assert code_of(await lent.ended(late)) == "expired"
        await lent.must(lent.rental("srv_long"))
        short = lent.rental("srv_short", lease_expires_at=int(time.time()) + 15)
        await lent.must(short)
        assert len(lent.running()) == 2

        lent.service.refuses_sockets = True
        await lent.end(signal.SIGKILL)
        lent.begin()
        await lent.until(lambda: len(lent.running()) == 1, "the lease's end")
        assert time.time() >= short.lease_expires_at
        assert lent.running() == ["spawn-srv_long-1"]
        assert lent.happened("srv_short")[-1] == "stop", "stopped, and not destroyed"

        lent.service.refuses_sockets = False
        await lent.until(lambda: HOST in lent.service.live, "a link")
        await lent.must(resume(short.rental_id))
        assert len(lent.running()) == 2
        await lent.end()


async def test_a_second_daemon_on_one_machine_says_who_is_there(here: Engine, tmp_path: Path) -> None:
    """By the same files, or by a copy of them: either would stop and start what the first one runs."""
    async with machine(here) as lent:
        await lent.start()
        await lent.must(lent.rental("srv_a"))
        copied = Machine(here, tmp_path, lent.service, Bent())
        copied.become(lent)
        same = Machine(here, lent.folder, lent.service, Bent())
        assert lent.agent.process is not None
        pid = lent.agent.process.pid
        for second in (same, copied):
            second.begin()
            assert await second.ends() == 1, second.agent.said()
            assert f"Another spawn-host (process {pid})" in second.agent.said()
        assert lent.service.logins == 1
        assert lent.running() == ["spawn-srv_a-1"]
        await lent.end()


async def test_of_two_machines_with_one_identity_the_newer_serves(here: Engine) -> None:
    """The other says why it does not, guards what it runs until the leases end, makes nothing, and ends."""
    with engine(with_gpus=False) as elsewhere:
        async with machine(here) as lent, machine(elsewhere) as copied:
            await lent.start()
            rental = lent.rental("srv_a", lease_expires_at=int(time.time()) + 25)
            await lent.must(rental)
            copied.become(lent)
            with inside(elsewhere.network):
                await lent.service.also_listen()
                await copied.start()
            await lent.until(lambda: "Another agent with this host's identity" in lent.agent.said(), "why")
            fresh = copied.rental("srv_b")
            await copied.must(fresh)
            assert copied.running() == ["spawn-srv_b-1"]
            assert lent.happened("srv_b") == []
            assert await lent.ends() == 78, lent.agent.said()
            assert time.time() >= rental.lease_expires_at
            assert (lent.running(), copied.running()) == ([], ["spawn-srv_b-1"])
            assert copied.happened("srv_a") == []
            assert lent.happened("srv_a").count("destroy") == 0
            assert lent.service.logins == 2
            await copied.end()
