"""What goes wrong in the simulated cloud is what goes wrong in real ones, and none of it breaks the world."""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spawn_providers.base import (
    Change,
    InstanceStatus,
    OpStatus,
    OutcomeUnknown,
    Refused,
    RefusedCode,
    Unavailable,
    Verb,
)
from spawn_providers.simulated_faults import (
    Breakdown,
    DeafGuest,
    Delay,
    Fault,
    Faults,
    LostAnswer,
    LostRequest,
    Method,
    Outage,
    Rates,
    Refusal,
)
from spawn_providers.simulated_world import World
from spawn_schemas.ids import ServerId

from tests.integration.simulated_cloud import (
    KEY,
    LONG_S,
    SPEC,
    START_MS,
    Clock,
    Cloud,
    off,
    running,
    spec,
    state,
    the,
)


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Cloud]:
    cloud = Cloud(tmp_path / "cloud.db")
    yield cloud
    await cloud.aclose()


async def test_a_lost_answer_is_found_again_without_its_password(cloud: Cloud) -> None:
    provider = cloud.open()
    cloud.faults.plan("create", LostAnswer())
    with pytest.raises(OutcomeUnknown):
        await provider.create(KEY, spec(public_keys=()))
    machine = await provider.find(KEY)
    assert machine is not None
    op = await provider.create(KEY, spec(public_keys=()))
    assert (op.ref, op.root_password) == (machine.ref, None)
    cloud.clock.advance(LONG_S)
    assert (await state(provider, op)).status is OpStatus.SUCCESS


async def test_a_lost_refusal_is_unknown_too(cloud: Cloud) -> None:
    provider = cloud.open()
    cloud.faults.plan("create", LostAnswer())
    with pytest.raises(OutcomeUnknown):
        await provider.create(KEY, spec(image="windows"))
    assert await provider.find(KEY) is None


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (LostRequest(), OutcomeUnknown),
        (Outage(retry_after_s=9), Unavailable),
        (Refusal(code=RefusedCode.OUT_OF_CAPACITY), Refused),
    ],
    ids=lambda value: getattr(value, "__name__", None) or type(value).__name__,
)
async def test_a_fault_before_the_effect_leaves_nothing(
    cloud: Cloud, fault: Fault, error: type[Exception]
) -> None:
    provider = cloud.open()
    cloud.faults.plan("create", fault)
    with pytest.raises(error):
        await provider.create(KEY, SPEC)
    assert await provider.find(KEY) is None
    await provider.create(KEY, SPEC)


async def test_a_planned_pass_lets_a_call_through(cloud: Cloud) -> None:
    provider = cloud.open()
    cloud.faults.plan("find", None, Outage(retry_after_s=9))
    assert await provider.find(KEY) is None
    with pytest.raises(Unavailable) as down:
        await provider.find(KEY)
    assert down.value.retry_after_s == 9
    assert await provider.find(KEY) is None


async def test_a_slow_call_has_its_effect_when_the_gate_opens(cloud: Cloud) -> None:
    provider = cloud.open()
    gate = asyncio.Event()
    cloud.faults.plan("create", Delay(gate=gate))
    slow = asyncio.create_task(provider.create(KEY, SPEC))
    for _ in range(5):
        assert await provider.find(KEY) is None
    assert not slow.done()
    gate.set()
    op = await slow
    machine = await provider.find(KEY)
    assert machine is not None
    assert machine.ref == op.ref


async def test_a_create_that_breaks_down_leaves_a_dead_machine_to_delete(cloud: Cloud) -> None:
    provider = cloud.open()
    cloud.faults.plan("create", Breakdown(code=RefusedCode.OUT_OF_CAPACITY))
    op = await provider.create(KEY, SPEC)
    assert (await state(provider, op)).status is OpStatus.RUNNING
    cloud.clock.advance(LONG_S)
    failed = await state(provider, op)
    assert (failed.status, failed.error_code) == (OpStatus.ERROR, "out_of_capacity")
    machine = await the(provider, op.ref)
    assert (machine.status, machine.ipv6) == (InstanceStatus.INITIALIZING, None)
    await provider.delete(op.ref)
    cloud.clock.advance(LONG_S)
    assert await provider.get(op.ref) is None


@pytest.mark.parametrize(
    ("verb", "change"),
    [
        (Verb.START, Change()),
        (Verb.RESIZE, Change(provider_type="cx33", upgrade_disk=True)),
        (Verb.REBUILD, Change(image="debian-12")),
    ],
)
async def test_a_verb_that_breaks_down_changes_nothing(cloud: Cloud, verb: Verb, change: Change) -> None:
    provider = cloud.open()
    ref = await off(cloud, provider)
    before = await the(provider, ref)
    cloud.faults.plan("act", Breakdown())
    op = await provider.act(ref, verb, change)
    assert (await the(provider, ref)).status is not InstanceStatus.OFF
    cloud.clock.advance(LONG_S)
    assert (await state(provider, op)).status is OpStatus.ERROR
    assert await the(provider, ref) == before


async def test_a_delete_that_breaks_down_can_be_repeated(cloud: Cloud) -> None:
    provider = cloud.open()
    ref = await running(cloud, provider)
    cloud.faults.plan("delete", Breakdown())
    op = await provider.delete(ref)
    cloud.clock.advance(LONG_S)
    assert (await state(provider, op)).status is OpStatus.ERROR
    assert (await the(provider, ref)).status is InstanceStatus.RUNNING
    await provider.delete(ref)
    cloud.clock.advance(LONG_S)
    assert await provider.get(ref) is None


async def test_a_deaf_guest_stays_up_until_the_power_is_cut(cloud: Cloud) -> None:
    provider = cloud.open()
    ref = await running(cloud, provider)
    cloud.faults.plan("act", DeafGuest())
    op = await provider.act(ref, Verb.SHUTDOWN, Change())
    cloud.clock.advance(LONG_S)
    assert (await state(provider, op)).status is OpStatus.SUCCESS
    assert (await the(provider, ref)).status is InstanceStatus.RUNNING
    await provider.act(ref, Verb.POWEROFF, Change())
    cloud.clock.advance(LONG_S)
    assert (await the(provider, ref)).status is InstanceStatus.OFF


async def test_a_machine_that_vanishes_takes_its_op_with_it(cloud: Cloud) -> None:
    provider = cloud.open()
    op = await provider.create(KEY, SPEC)
    cloud.clock.advance(1)
    await provider.vanish(op.ref)
    assert await provider.get(op.ref) is None
    assert await provider.find(KEY) is None
    assert (await state(provider, op)).error_code == "not_found"
    cloud.clock.advance(LONG_S)
    assert [m async for m in provider.list_owned()] == []


async def test_a_forgotten_op_takes_effect_all_the_same(cloud: Cloud) -> None:
    provider = cloud.open()
    op = await provider.create(KEY, SPEC)
    await provider.forget(op.handle)
    forgotten = await state(provider, op)
    assert (forgotten.status, forgotten.error_code) == (OpStatus.ERROR, "not_found")
    cloud.clock.advance(LONG_S)
    assert (await the(provider, op.ref)).status is InstanceStatus.RUNNING


@pytest.mark.parametrize(
    ("method", "fault"), [("find", Breakdown()), ("create", DeafGuest()), ("poll", DeafGuest())]
)
def test_a_fault_that_a_method_cannot_show_is_not_planned(method: Method, fault: Fault) -> None:
    with pytest.raises(ValueError, match=method):
        Faults().plan(method, fault)


def test_chance_is_repeatable_and_its_subjects_do_not_disturb_each_other() -> None:
    rates = Rates(outage=200, refusal=200, lost_request=200, lost_answer=200, breakdown=100)

    def story(faults: Faults, others: int) -> list[Fault | None]:
        told = []
        for _ in range(50):
            told.append(faults.draw("create", KEY))
            for n in range(others):
                faults.draw("create", f"srv_{n}")
        return told

    alone = story(Faults(seed=3, rates=rates), 0)
    assert alone == story(Faults(seed=3, rates=rates), 2)
    assert alone != story(Faults(seed=4, rates=rates), 0)
    assert {type(fault) for fault in alone} >= {Outage, Refusal, LostRequest, LostAnswer, type(None)}
    reads = Faults(seed=3, rates=rates)
    assert {type(reads.draw("find", str(n))) for n in range(100)} == {Outage, type(None)}
    assert Faults(seed=3, rates=Rates()).draw("create", KEY) is None


async def test_two_services_share_one_cloud(cloud: Cloud) -> None:
    one, two = cloud.open(), cloud.open()
    keys = [ServerId(f"srv_{n}") for n in range(40)]
    ops = await asyncio.gather(*(service.create(key, SPEC) for key in keys for service in (one, two)))
    assert len({op.handle for op in ops}) == len(keys)
    cloud.clock.advance(LONG_S)
    for key in keys:
        assert await one.find(key) == await two.find(key)


_SERVICE = """
import asyncio, sys
from pathlib import Path
from spawn_providers.base import Spec
from spawn_providers.simulated import SimulatedProvider

async def main():
    provider = SimulatedProvider(Path(sys.argv[1]), now_ms=lambda: int(sys.argv[2]), seed=1)
    owner = "0x" + "11" * 20
    spec = Spec(hostname="n", provider_type="cx23", image="debian-12", location="nbg1", owner=owner)
    op = await provider.create("srv_one", spec)
    print(op.handle, op.ref, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def answer_and_die(path: Path) -> str:
    """What a service process that creates a machine says before it is killed."""
    arguments = ("-c", _SERVICE, str(path), str(START_MS))
    service = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=PIPE)
    assert service.stdout is not None
    answer = await service.stdout.readline()
    service.kill()
    await service.communicate()
    assert service.returncode == -signal.SIGKILL
    return answer.decode()


async def test_the_cloud_outlives_services_killed_in_mid_flight(cloud: Cloud) -> None:
    answers = await asyncio.gather(*(answer_and_die(cloud.path) for _ in range(3)))
    [answer] = set(answers)
    handle, ref = answer.split()
    provider = cloud.open()
    cloud.clock.advance(1)
    assert [s.status for s in await provider.poll([handle])] == [OpStatus.RUNNING]
    cloud.clock.advance(LONG_S)
    assert [s.status for s in await provider.poll([handle])] == [OpStatus.SUCCESS]
    assert [m.ref async for m in provider.list_owned()] == [ref]


KEYS = st.sampled_from([ServerId("srv_a"), ServerId("srv_b"), ServerId("srv_c")])
CHANGES = st.builds(
    Change,
    provider_type=st.sampled_from(["cx23", "cx33", "cx43", "cax11"]),
    upgrade_disk=st.booleans(),
    image=st.sampled_from(["ubuntu-24.04", "debian-12"]),
)
FLAWS = st.sampled_from([None, None, Breakdown()])
CALLS = st.one_of(
    st.tuples(st.just("create"), KEYS, FLAWS),
    st.tuples(st.just("act"), KEYS, st.sampled_from(list(Verb)), CHANGES, FLAWS),
    st.tuples(st.just("delete"), KEYS, FLAWS),
    st.tuples(st.just("vanish"), KEYS),
    st.tuples(st.just("wait"), st.integers(1, 60)),
)


def call(world: World, clock: Clock, request: tuple[Any, ...]) -> None:
    match request:
        case ("wait", seconds):
            clock.advance(seconds)
        case ("create", key, flaw):
            world.create(key, SPEC, flaw)
        case (verb, key, *arguments):
            machine = world.find(key)
            if machine is not None:
                getattr(world, verb)(machine.ref, *arguments)
        case _:
            raise AssertionError(request)


def opened(folder: Path, clock: Clock) -> World:
    return World(folder / "cloud.db", now_ms=clock, seed=1, speed=1.0, capacity={}, quota=None)


@settings(max_examples=60, deadline=None)
@given(requests=st.lists(CALLS, max_size=25))
def test_whatever_is_asked_the_world_stays_whole(requests: list[tuple[Any, ...]]) -> None:
    """Refusals change nothing, every view agrees, every machine comes to rest, a restart shows the same."""
    clock = Clock()
    with TemporaryDirectory() as folder:
        world = opened(Path(folder), clock)
        for request in requests:
            before = world.owned()
            try:
                call(world, clock, request)
            except Refused:
                assert world.owned() == before
            machines = world.owned()
            assert len({m.key for m in machines}) == len(machines)
            for machine in machines:
                assert machine.key is not None
                assert world.find(machine.key) == world.get(machine.ref) == machine
            shown = [a for m in machines for a in (m.ipv4, m.ipv6) if a is not None]
            assert len(shown) == len(set(shown))
        clock.advance(LONG_S)
        restarted = opened(Path(folder), clock)
        assert restarted.owned() == world.owned()
        resting = {InstanceStatus.RUNNING, InstanceStatus.OFF, InstanceStatus.INITIALIZING}
        for machine in world.owned():
            assert machine.status in resting
            world.delete(machine.ref, None)
        clock.advance(LONG_S)
        assert restarted.owned() == []
        world.close()
        restarted.close()
