"""The simulated cloud behaves like a real one: its states take time, and it says no."""

import contextlib
import sqlite3
from collections.abc import AsyncIterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from spawn_providers.base import Change, InstanceStatus, Op, OpStatus, Provider, RefusedCode, Verb
from spawn_providers.catalog import DEFAULT_CATALOG
from spawn_providers.simulated import SimulatedProvider
from spawn_schemas.ids import ServerId

from tests.integration.simulated_cloud import (
    KEY,
    LONG_S,
    SPEC,
    Clock,
    Cloud,
    off,
    refused,
    running,
    spec,
    state,
    the,
)

WATCHED_S = 90


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Cloud]:
    cloud = Cloud(tmp_path / "cloud.db")
    yield cloud
    await cloud.aclose()


async def watched(cloud: Cloud, provider: Provider, op: Op) -> tuple[list[InstanceStatus], int]:
    """The states a machine passes through, and the second in which its op ended."""
    seen: list[InstanceStatus] = []
    ended_s = WATCHED_S
    for second in range(WATCHED_S):
        status = (await the(provider, op.ref)).status
        if seen[-1:] != [status]:
            seen.append(status)
        if (await state(provider, op)).status is not OpStatus.RUNNING:
            ended_s = min(ended_s, second)
        cloud.clock.advance(1)
    return seen, ended_s


async def test_a_machine_comes_up_over_time_and_has_no_address_before(cloud: Cloud) -> None:
    provider = cloud.open()
    op = await provider.create(KEY, SPEC)
    seen = []
    while (machine := await the(provider, op.ref)).status is not InstanceStatus.RUNNING:
        assert (machine.ipv4, machine.ipv6) == (None, None)
        assert (await state(provider, op)).status is OpStatus.RUNNING
        seen.append(machine.status)
        cloud.clock.advance(1)
    assert sorted(set(seen), key=seen.index) == [InstanceStatus.INITIALIZING, InstanceStatus.STARTING]
    assert 20 <= len(seen) <= 40
    assert IPv4Address(machine.ipv4 or "") in IPv4Network("198.18.0.0/15")
    assert IPv6Address(machine.ipv6 or "") in IPv6Network("2001:db8::/32")
    assert (await state(provider, op)).status is OpStatus.SUCCESS
    assert (machine.cores, machine.memory_gb, machine.disk_gb) == (2, 4, 40)


async def test_speed_divides_every_duration(cloud: Cloud) -> None:
    provider = cloud.open(speed=20)
    op = await provider.create(KEY, SPEC)
    assert (await state(provider, op)).status is OpStatus.RUNNING
    cloud.clock.advance(2)
    assert (await the(provider, op.ref)).status is InstanceStatus.RUNNING


def test_a_speed_that_is_no_speed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="above zero"):
        SimulatedProvider(tmp_path / "cloud.db", now_ms=Clock(), seed=1, speed=0)


async def test_the_seed_decides_how_long_things_take(tmp_path: Path) -> None:
    async def lifetime(name: str, seed: int) -> list[int]:
        cloud = Cloud(tmp_path / name)
        provider = cloud.open(seed=seed)
        ops = [await provider.create(ServerId(f"srv_{n}"), SPEC) for n in range(3)]
        ended_ms = [0, 0, 0]
        for _ in range(410):
            for i, op in enumerate(await provider.poll([op.handle for op in ops])):
                if op.status is OpStatus.RUNNING:
                    ended_ms[i] = cloud.clock.ms
            cloud.clock.ms += 100
        await cloud.aclose()
        return ended_ms

    first = await lifetime("a", 1)
    assert first == await lifetime("b", 1)
    assert first != await lifetime("c", 2)
    assert len(set(first)) == 3


async def test_addresses_are_never_shared_and_never_change(cloud: Cloud) -> None:
    provider = cloud.open()
    refs = [(await provider.create(ServerId(f"srv_{n}"), SPEC)).ref for n in range(20)]
    cloud.clock.advance(LONG_S)
    before = [await the(provider, ref) for ref in refs]
    assert len({m.ipv4 for m in before}) == len({m.ipv6 for m in before}) == 20
    await provider.act(refs[0], Verb.REBUILD, Change(image="debian-12"))
    cloud.clock.advance(LONG_S)
    assert (await the(provider, refs[0])).ipv4 == before[0].ipv4


async def test_ipv6_only_has_no_ipv4(cloud: Cloud) -> None:
    provider = cloud.open()
    machine = await the(provider, await running(cloud, provider, ipv6_only=True))
    assert machine.ipv4 is None
    assert machine.ipv6 is not None


async def test_shutdown_is_only_a_request_that_the_guest_obeys_later(cloud: Cloud) -> None:
    provider = cloud.open()
    ref = await running(cloud, provider)
    op = await provider.act(ref, Verb.SHUTDOWN, Change())
    assert (await state(provider, op)).status is OpStatus.SUCCESS
    seen, _ = await watched(cloud, provider, op)
    assert seen == [InstanceStatus.STOPPING, InstanceStatus.OFF]


async def test_poweroff_cuts_a_shutdown_short(cloud: Cloud) -> None:
    provider = cloud.open()
    ref = await running(cloud, provider)
    await provider.act(ref, Verb.SHUTDOWN, Change())
    await provider.act(ref, Verb.POWEROFF, Change())
    cloud.clock.advance(3)
    assert (await the(provider, ref)).status is InstanceStatus.OFF


async def test_reboot_stops_and_starts(cloud: Cloud) -> None:
    provider = cloud.open()
    ref = await running(cloud, provider)
    op = await provider.act(ref, Verb.REBOOT, Change())
    seen, ended_s = await watched(cloud, provider, op)
    assert seen == [InstanceStatus.STOPPING, InstanceStatus.STARTING, InstanceStatus.RUNNING]
    assert ended_s == 0


async def test_rebuild_passes_the_specified_states(cloud: Cloud) -> None:
    provider = cloud.open()
    ref = await running(cloud, provider)
    op = await provider.act(ref, Verb.REBUILD, Change(image="debian-12", public_keys=SPEC.public_keys))
    assert op.root_password is None
    seen, ended_s = await watched(cloud, provider, op)
    assert seen == [InstanceStatus.REBUILDING, InstanceStatus.INITIALIZING, InstanceStatus.RUNNING]
    assert ended_s > 10
    assert (await the(provider, ref)).image == "debian-12"


async def test_resize_wants_it_off_and_starts_it_again(cloud: Cloud) -> None:
    provider = cloud.open()
    ref = await running(cloud, provider)
    larger = Change(provider_type="cx33")
    assert await refused(provider.act(ref, Verb.RESIZE, larger)) is RefusedCode.CONFLICT
    await provider.act(ref, Verb.POWEROFF, Change())
    cloud.clock.advance(LONG_S)
    op = await provider.act(ref, Verb.RESIZE, larger)
    while (moving := await the(provider, ref)).status is InstanceStatus.MIGRATING:
        assert moving.provider_type == "cx23"
        cloud.clock.advance(1)
    assert (moving.status, moving.provider_type) == (InstanceStatus.STARTING, "cx33")
    seen, _ = await watched(cloud, provider, op)
    assert seen == [InstanceStatus.STARTING, InstanceStatus.RUNNING]
    machine = await the(provider, ref)
    assert (machine.provider_type, machine.cores, machine.memory_gb) == ("cx33", 4, 8)
    assert machine.disk_gb == 40


@pytest.mark.parametrize(
    ("provider_type", "verb", "change", "code"),
    [
        ("cx23", Verb.RESIZE, Change(provider_type="cax11"), RefusedCode.CONFLICT),
        ("cx33", Verb.RESIZE, Change(provider_type="cx33"), RefusedCode.CONFLICT),
        ("cx33", Verb.RESIZE, Change(provider_type="cx23"), RefusedCode.CONFLICT),
        ("cx33", Verb.RESIZE, Change(provider_type="cpx41"), RefusedCode.INVALID),
        ("cx33", Verb.RESIZE, Change(), RefusedCode.INVALID),
        ("cx33", Verb.REBUILD, Change(image="windows"), RefusedCode.INVALID),
        ("cx33", Verb.REBUILD, Change(), RefusedCode.INVALID),
        ("cx33", Verb.REBOOT, Change(), RefusedCode.CONFLICT),
    ],
    ids=lambda value: str(value.value) if isinstance(value, Verb | RefusedCode) else None,
)
async def test_what_an_off_machine_refuses(
    cloud: Cloud, provider_type: str, verb: Verb, change: Change, code: RefusedCode
) -> None:
    provider = cloud.open()
    ref = await off(cloud, provider, provider_type=provider_type)
    before = await the(provider, ref)
    assert await refused(provider.act(ref, verb, change)) is code
    cloud.clock.advance(LONG_S)
    assert await the(provider, ref) == before


async def test_a_smaller_type_is_refused_once_the_disk_has_grown(cloud: Cloud) -> None:
    provider = cloud.open()
    ref = await off(cloud, provider)
    await provider.act(ref, Verb.RESIZE, Change(provider_type="cx33", upgrade_disk=True))
    cloud.clock.advance(LONG_S)
    assert (await the(provider, ref)).disk_gb == 80
    await provider.act(ref, Verb.POWEROFF, Change())
    cloud.clock.advance(LONG_S)
    smaller = provider.act(ref, Verb.RESIZE, Change(provider_type="cx23"))
    assert await refused(smaller) is RefusedCode.CONFLICT


@pytest.mark.parametrize("verb", [Verb.START, Verb.SHUTDOWN, Verb.POWEROFF, Verb.REBOOT])
async def test_one_op_at_a_time(cloud: Cloud, verb: Verb) -> None:
    provider = cloud.open()
    op = await provider.create(KEY, SPEC)
    assert await refused(provider.act(op.ref, verb, Change())) is RefusedCode.CONFLICT
    assert await refused(provider.delete(op.ref)) is RefusedCode.CONFLICT
    cloud.clock.advance(LONG_S)
    await provider.delete(op.ref)


@pytest.mark.parametrize(
    "changes",
    [
        {"provider_type": "cx23", "location": "ash"},
        {"provider_type": "cax11", "location": "hil"},
        {"provider_type": "cpx21", "location": "nbg1"},
        {"provider_type": "small"},
        {"location": "mars"},
        {"image": "windows"},
        {"user_data": "é" * (16 * 1024 + 1)},
    ],
    ids=str,
)
async def test_an_order_that_cannot_be_met_is_invalid(cloud: Cloud, changes: dict[str, Any]) -> None:
    provider = cloud.open()
    assert await refused(provider.create(KEY, spec(**changes))) is RefusedCode.INVALID
    assert await provider.find(KEY) is None


async def test_user_data_of_32_kib_is_taken(cloud: Cloud) -> None:
    await cloud.open().create(KEY, spec(user_data="x" * 32 * 1024))


async def test_a_full_location_recovers(cloud: Cloud) -> None:
    capacity = {"nbg1": 1}
    provider = cloud.open(capacity=capacity)
    ref = await running(cloud, provider)
    second = ServerId("srv_two")
    assert await refused(provider.create(second, SPEC)) is RefusedCode.OUT_OF_CAPACITY
    assert await provider.find(second) is None
    await provider.create(ServerId("srv_elsewhere"), spec(location="fsn1"))
    await provider.delete(ref)
    cloud.clock.advance(LONG_S)
    await provider.create(second, SPEC)
    capacity["nbg1"] = 2
    await provider.create(ServerId("srv_three"), SPEC)


async def test_the_quota_counts_every_machine(cloud: Cloud) -> None:
    provider = cloud.open(quota=2)
    await provider.plant_stray()
    await provider.create(KEY, SPEC)
    code = await refused(provider.create(ServerId("srv_two"), spec(location="hel1")))
    assert code is RefusedCode.QUOTA
    await provider.create(KEY, SPEC)


async def test_a_key_is_never_used_twice(cloud: Cloud) -> None:
    provider = cloud.open()
    ref = await running(cloud, provider)
    await provider.delete(ref)
    cloud.clock.advance(LONG_S)
    assert await provider.find(KEY) is None
    assert await refused(provider.create(KEY, SPEC)) is RefusedCode.CONFLICT


async def test_strays_are_not_ours_and_orphans_are(cloud: Cloud) -> None:
    provider = cloud.open()
    stray = await provider.plant_stray(location="hel1")
    orphan = await provider.plant_orphan(ServerId("srv_orphan"), provider_type="cax11", location="fsn1")
    assert [m.ref async for m in provider.list_owned()] == [orphan]
    machine = await the(provider, stray)
    assert (machine.key, machine.status) == (None, InstanceStatus.RUNNING)
    assert await provider.find(ServerId("srv_orphan")) == await the(provider, orphan)
    again = await provider.create(ServerId("srv_orphan"), SPEC)
    assert again.ref == orphan
    await provider.delete(orphan)
    cloud.clock.advance(LONG_S)
    assert [m async for m in provider.list_owned()] == []


async def test_traffic_grows_while_it_runs_rests_while_it_is_off_and_begins_anew_each_month(
    cloud: Cloud,
) -> None:
    provider = cloud.open()
    ref = await running(cloud, provider)
    before = (await the(provider, ref)).traffic
    cloud.clock.advance(3600)
    hour = (await the(provider, ref)).traffic
    assert before is not None
    assert hour is not None
    assert hour.ingoing_bytes > before.ingoing_bytes
    assert hour.outgoing_bytes > before.outgoing_bytes
    assert hour.included_bytes == 20 * 2**40
    await provider.act(ref, Verb.POWEROFF, Change())
    cloud.clock.advance(LONG_S)
    resting = (await the(provider, ref)).traffic
    cloud.clock.advance(3600)
    assert (await the(provider, ref)).traffic == resting
    cloud.clock.advance(31 * 86_400)
    anew = (await the(provider, ref)).traffic
    assert anew is not None
    assert (anew.ingoing_bytes, anew.outgoing_bytes) == (0, 0)


async def test_the_catalog_is_the_default_one(cloud: Cloud) -> None:
    assert await cloud.open().catalog() == DEFAULT_CATALOG


async def test_a_world_that_an_older_version_made_is_opened(tmp_path: Path) -> None:
    older, newer = Cloud(tmp_path / "cloud.db"), Cloud(tmp_path / "cloud.db")
    provider = older.open()
    before = await the(provider, await running(older, provider))
    await older.aclose()
    with contextlib.closing(sqlite3.connect(tmp_path / "cloud.db")) as world:
        world.execute("ALTER TABLE instance DROP COLUMN hostname")
        world.commit()
    newer.clock.advance(LONG_S)
    try:
        assert await newer.open().find(KEY) == replace(before, hostname=None)
    finally:
        await newer.aclose()
