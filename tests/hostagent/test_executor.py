"""Commands are carried out once each, in order for each rental, and told."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from spawn_hostagent.config import Limits
from spawn_hostagent.keeping.leases import Clear, Halt, Wake
from spawn_hostagent.machines import ExecResult
from spawn_schemas.orders import (
    Drain,
    Logs,
    Order,
    Prepull,
    Problem,
    ResumeInstance,
    RotateKey,
    StopInstance,
    Undrain,
)

from tests.hostagent.clocks import START_S, VirtualClock, settle
from tests.hostagent.desk import Desk, FailingDisk
from tests.hostagent.fake_machines import FakeMachines
from tests.hostagent.orders import HOUR, IMAGE, A, B, command, destroy, execute, start, stop

pytest_plugins = "tests.hostagent.fixtures"


@pytest.fixture
def machines(clock: VirtualClock) -> FakeMachines:
    return FakeMachines(clock.true_s)


@pytest.fixture
async def desk(tmp_path: Path, machines: FakeMachines, clock: VirtualClock) -> AsyncIterator[Desk]:
    FailingDisk.plan(None)
    desk = Desk(tmp_path, machines, clock)
    yield desk
    await desk.die()
    assert machines.overlaps == []
    assert machines.doubles == []


def codes(acks: list[Any]) -> list[str]:
    return [ack.problem.code if ack.problem else "ok" for ack in acks]


async def test_a_start_is_told_step_by_step(desk: Desk, machines: FakeMachines) -> None:
    order = command(start())
    [ack] = await desk.do(order)
    assert desk.states(order) == ["received", "accepted", "progress", "succeeded"]
    assert ack.result == {
        "state": "running",
        "since": START_S,
        "image_digest": IMAGE.partition("@")[2],
        "gpus": None,
    }
    assert machines.running() == {(A, 1)}


async def test_progress_is_told_once_a_second(
    desk: Desk, machines: FakeMachines, clock: VirtualClock
) -> None:
    machines.steps = tuple((f"layer {n}", n) for n in range(100))  # type: ignore[assignment]
    order = command(start())
    await desk.do(order)
    assert desk.states(order).count("progress") == 1


async def test_a_life_from_start_to_destroy(desk: Desk, machines: FakeMachines) -> None:
    again = ResumeInstance(rental_id=A, generation=1, lease_expires_at=START_S + 2 * HOUR)
    orders: list[Order] = [
        start(),
        execute("id"),
        stop(),
        execute("id"),
        again,
        Logs(rental_id=A, generation=1, lines=2),
        destroy(),
    ]
    results = [(await desk.do(command(order)))[0] for order in orders]
    assert codes(results) == ["ok", "ok", "ok", "not_running", "ok", "ok", "ok"]
    assert results[1].result == {"exit_code": 0, "stdout": "id", "stderr": ""}
    assert results[5].result == {"text": "a line\na line\n"}
    assert machines.boxes == {}


async def test_a_repeated_command_is_answered_and_not_repeated(desk: Desk, machines: FakeMachines) -> None:
    await desk.do(command(start()))
    order = command(execute("date"))
    first = await desk.do(order)
    assert await desk.do(order, order) == [first[0], first[0]]
    assert machines.ran == [("date",)]


async def test_one_that_is_under_way_is_answered_with_how_far_it_is(
    desk: Desk, machines: FakeMachines
) -> None:
    machines.gates["start"] = asyncio.Event()
    order = command(start())
    desk.executor.submit(order)
    await settle()
    desk.executor.submit(order)
    assert desk.states(order)[-1] == "accepted"
    machines.gates["start"].set()
    await desk.executor.idle()
    assert machines.made == {(A, 1): 1}


async def test_what_expired_does_not_begin(desk: Desk, machines: FakeMachines, clock: VirtualClock) -> None:
    order = command(start(), expires_at=START_S + 10)
    await clock.advance(10)
    assert codes(await desk.do(order)) == ["expired"]
    assert machines.entered["start"] == 0


async def test_a_start_after_its_lease_does_not_begin(desk: Desk, machines: FakeMachines) -> None:
    assert codes(await desk.do(command(start(lease=START_S)))) == ["expired"]
    assert machines.made == {}


async def test_a_machine_whose_clock_is_off_judges_by_the_services(
    tmp_path: Path, machines: FakeMachines
) -> None:
    FailingDisk.plan(None)
    for off_s in (HOUR, -HOUR):
        clock = VirtualClock(wall_off_s=off_s)
        (tmp_path / str(off_s)).mkdir()
        desk = Desk(tmp_path / str(off_s), machines, clock)
        desk.service_clock.hear(clock.true_ms(), 0.0)
        assert codes(await desk.do(command(execute("x"), expires_at=START_S), command(start()))) == [
            "expired",
            "ok",
        ]
        await desk.die()
        # Without a link after a restart, the distance is still known.
        desk = Desk(tmp_path / str(off_s), machines, clock)
        late, timely = command(start(), expires_at=START_S), command(start(), expires_at=START_S + 1)
        assert codes(await desk.do(late, timely)) == ["expired", "ok"]
        await desk.die()


@pytest.mark.parametrize(
    ("before", "late", "code"),
    [
        (destroy(generation=1), start(generation=1), "stale_generation"),
        (destroy(generation=5), start(generation=4), "stale_generation"),
        (start(generation=2), start(generation=1), "stale_generation"),
        (start(generation=2), execute("id", generation=1), "stale_generation"),
        (destroy(generation=1), start(generation=2), "ok"),
    ],
)
async def test_orders_that_were_overtaken_are_refused(desk: Desk, before: Any, late: Any, code: str) -> None:
    results = await desk.do(command(before), command(late))
    assert codes(results) == ["ok", code]


async def test_a_destroy_that_arrives_later_ends_a_start_that_is_fetching(
    desk: Desk, machines: FakeMachines
) -> None:
    gate = asyncio.Event()
    reached = asyncio.Event()
    real = machines.start

    async def slow(order: Any, tell: Any) -> Any:
        async def held(percent: int, what: str) -> None:
            reached.set()
            await gate.wait()
            await tell(percent, what)

        return await real(order, held)

    machines.start = slow  # type: ignore[method-assign]
    begun, end = command(start()), command(destroy())
    desk.executor.submit(begun)
    await reached.wait()
    desk.executor.submit(end)
    gate.set()
    await desk.executor.idle()
    assert codes([desk.result(begun.command_id), desk.result(end.command_id)]) == ["stale_generation", "ok"]
    assert machines.made == {}


async def test_a_new_generation_takes_the_place_of_an_older_one(desk: Desk, machines: FakeMachines) -> None:
    await desk.do(command(start(generation=1)))
    await desk.do(command(start(generation=2)))
    assert machines.running() == {(A, 2)}
    assert set(machines.boxes) == {(A, 1), (A, 2)}, "its disk is kept until a command destroys it"


async def test_one_change_at_a_time_for_a_rental_and_several_rentals_at_once(
    desk: Desk, machines: FakeMachines
) -> None:
    machines.gates["start"] = asyncio.Event()
    first, second, other = command(start()), command(stop()), command(start(B))
    for order in (first, second, other):
        desk.executor.submit(order)
    await settle()
    assert machines.entered["start"] == 2
    assert desk.states(second) == ["received"]
    assert desk.executor.busy() == {A, B}
    machines.gates["start"].set()
    await desk.executor.idle()
    assert desk.executor.busy() == frozenset()
    assert machines.running() == {(B, 1)}


async def test_a_stop_never_waits_for_somebodys_images(desk: Desk, machines: FakeMachines) -> None:
    await desk.do(command(start()))
    machines.gates["start"] = asyncio.Event()
    for number in range(20):
        desk.executor.submit(command(start(f"srv_{number}")))  # type: ignore[arg-type]
    end = command(stop())
    desk.executor.submit(end)
    await settle()
    await settle()
    assert machines.entered["start"] == 1 + 3, "three images are fetched at once"
    assert desk.states(end)[-1] == "succeeded"
    machines.gates["start"].set()
    await desk.executor.idle()


async def test_what_ends_a_rental_waits_for_no_tenants_program(desk: Desk, machines: FakeMachines) -> None:
    names = [f"srv_{number}" for number in range(12)]
    await desk.do(*(command(start(name)) for name in names))  # type: ignore[arg-type]
    machines.gates["exec"] = asyncio.Event()
    for name in names:
        desk.executor.submit(command(execute("sleep", "300", rental_id=name)))  # type: ignore[arg-type]
    await settle()
    assert machines.entered["exec"] == 8
    desk.executor.apply(Halt(name, 1, "lease", "its lease is over") for name in names[:11])  # type: ignore[arg-type]
    end = command(destroy(names[11]))  # type: ignore[arg-type]
    desk.executor.submit(end)
    await settle()
    assert machines.running() == set()
    assert desk.states(end)[-1] == "succeeded"
    machines.gates["exec"].set()
    await desk.executor.idle()


async def test_what_is_left_of_a_rental_is_removed(desk: Desk, machines: FakeMachines) -> None:
    machines.left = {(A, 1), (B, 1)}
    desk.executor.apply([Clear(A, 1)])
    await desk.executor.idle()
    assert machines.left == {(B, 1)}


async def test_reading_does_not_wait_for_a_change(desk: Desk, machines: FakeMachines) -> None:
    await desk.do(command(start()))
    machines.gates["stop"] = asyncio.Event()
    desk.executor.submit(command(stop()))
    look = command(Logs(rental_id=A, generation=1))
    desk.executor.submit(look)
    await settle()
    assert desk.states(look)[-1] == "succeeded"
    machines.gates["stop"].set()
    await desk.executor.idle()


async def test_failures_are_told_as_the_machine_said_them(desk: Desk, machines: FakeMachines) -> None:
    machines.failures["start"] = Problem(code="no_room", message="8 GiB are asked, 3 are free.")
    order = command(start())
    [ack] = await desk.do(order)
    assert ack.problem == Problem(code="no_room", message="8 GiB are asked, 3 are free.")
    assert await desk.do(order) == [ack]


async def test_an_unforeseen_failure_ends_its_command_and_no_other(
    desk: Desk, machines: FakeMachines, caplog: pytest.LogCaptureFixture
) -> None:
    machines.breaks["start"] = RuntimeError("a bug")
    broken, other = command(start()), command(start(B))
    assert codes(await desk.do(broken, other)) == ["internal", "ok"]
    assert "RuntimeError: a bug" in caplog.text


async def test_a_tenants_bytes_that_are_no_text_do_not_end_the_daemon(
    desk: Desk, machines: FakeMachines, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def say(*_: Any) -> ExecResult:
        return ExecResult(exit_code=0, stdout="\udce9" * 100_000, stderr="")

    monkeypatch.setattr(machines, "exec", say)
    [ack] = await desk.do(command(execute("cat")))
    assert ack.result is not None
    assert ack.result["stdout"] == "?" * 64 * 1024
    machines.failures["logs"] = Problem(code="docker_failed", message="\udce9" * 5000)
    [failed] = await desk.do(command(Logs(rental_id=A, generation=1)))
    assert failed.problem is not None
    assert failed.problem.message == "?" * 2000


async def test_the_service_may_not_ask_for_a_stop_that_takes_for_ever(
    desk: Desk, machines: FakeMachines
) -> None:
    graces: list[int] = []
    real = machines.stop

    async def stop_in(rental_id: Any, generation: int, grace_s: int, ended_by: str) -> Any:
        graces.append(grace_s)
        return await real(rental_id, generation, grace_s, ended_by)

    machines.stop = stop_in  # type: ignore[method-assign]
    await desk.do(command(start()))
    for grace_s in (-5, 10, 10**9):
        await desk.do(command(StopInstance(rental_id=A, generation=1, grace_s=grace_s)))
    assert graces == [0, 10, 300]


async def test_draining_outlives_a_restart_and_each_side_lifts_its_own(
    desk: Desk, tmp_path: Path, machines: FakeMachines, clock: VirtualClock
) -> None:
    await desk.do(command(start()), command(Drain()))
    desk.rules.drain("owner")
    assert codes(await desk.do(command(start(B)))) == ["draining"]
    await desk.do(command(Undrain()))
    assert desk.rules.drained_by() == ("owner",)
    later = Desk(tmp_path, machines, clock)
    assert codes(await later.do(command(start(B)))) == ["draining"]
    resume = ResumeInstance(rental_id=A, generation=1, lease_expires_at=START_S + HOUR)
    assert codes(await later.do(command(stop()), command(resume))) == ["ok", "ok"], "what is here goes on"
    later.rules.drain("owner", is_drained=False)
    assert codes(await later.do(command(start(B)))) == ["ok"]
    await later.die()


async def test_outside_the_owners_hours_nothing_starts(
    tmp_path: Path, machines: FakeMachines, clock: VirtualClock
) -> None:
    FailingDisk.plan(None)
    desk = Desk(tmp_path, machines, clock, limits=Limits(hours=("22:00-06:00",), strict_hours=True))
    clock.hour = 12
    assert codes(await desk.do(command(start()))) == ["outside_hours"]
    assert desk.rules.is_closed()
    clock.hour = 23
    assert codes(await desk.do(command(start()))) == ["ok"]
    assert not desk.rules.is_closed()
    await desk.die()


@pytest.mark.parametrize(("is_strict", "code"), [(True, "outside_hours"), (False, "ok")])
async def test_what_may_run_at_night_may_be_started_again_at_night(
    tmp_path: Path, machines: FakeMachines, clock: VirtualClock, is_strict: bool, code: str
) -> None:
    """A reboot is a stop and a start: refusing the second would leave its tenant paying for what is off."""
    FailingDisk.plan(None)
    desk = Desk(tmp_path, machines, clock, limits=Limits(hours=("22:00-06:00",), strict_hours=is_strict))
    clock.hour = 23
    assert codes(await desk.do(command(start()))) == ["ok"]
    clock.hour = 12
    resume = ResumeInstance(rental_id=A, generation=1, lease_expires_at=START_S + HOUR)
    assert codes(await desk.do(command(stop()), command(resume))) == ["ok", code]
    await desk.die()


@pytest.mark.parametrize(("known_only", "code"), [(True, "below_floor"), (False, "ok")])
async def test_below_the_floor_unknown_tenants_are_refused(
    tmp_path: Path, machines: FakeMachines, clock: VirtualClock, known_only: bool, code: str
) -> None:
    FailingDisk.plan(None)
    machines.tier = "none"
    desk = Desk(tmp_path, machines, clock, known_only=known_only)
    assert codes(await desk.do(command(start()))) == [code]
    await desk.die()


async def test_prepull_and_key_rotation(desk: Desk, machines: FakeMachines) -> None:
    assert codes(await desk.do(command(Prepull(image=IMAGE)), command(RotateKey()))) == ["ok", "ok"]
    assert (machines.entered["prepull"], desk.rotations) == (1, 1)


async def test_what_was_decided_waits_for_no_command_and_disturbs_none(
    desk: Desk, machines: FakeMachines
) -> None:
    await desk.do(command(start()), command(start(B)))
    machines.gates["stop"] = asyncio.Event()
    begun = command(stop(B))
    desk.executor.submit(begun)
    desk.executor.apply([Halt(A, 1, "lease", "its lease is over"), Halt(B, 1, "lease", "its lease is over")])
    desk.executor.apply([Halt(A, 1, "lease", "its lease is over")])
    await settle()
    assert machines.entered["stop"] == 2
    machines.gates["stop"].set()
    await desk.executor.idle()
    assert machines.entered["stop"] == 2, "a rental that a command is about to change is left to it"
    assert machines.boxes[A, 1].ended_by == "lease"
    assert machines.boxes[B, 1].ended_by == "command"
    desk.executor.apply([Wake(A, 1, START_S + HOUR)])
    await desk.executor.idle()
    assert machines.running() == {(A, 1)}


async def test_a_decision_that_fails_is_logged_and_ends(
    desk: Desk, machines: FakeMachines, caplog: pytest.LogCaptureFixture
) -> None:
    desk.executor.apply([Halt(A, 1, "lease", "its lease is over")])
    await desk.executor.idle()
    assert "No such rental is here." in caplog.text


async def test_a_journal_that_cannot_be_written_ends_the_daemon(desk: Desk, machines: FakeMachines) -> None:
    await desk.do(command(start()))
    FailingDisk.plan(2)
    order = command(execute("x"))
    desk.executor.submit(order)
    await desk.executor.idle()
    assert "disk" in str(await desk.executor.broken)
    assert desk.states(order) == ["received"], "nothing is told that was not kept"
