"""The whole daemon on fakes: cut links, leases that end, restarts, hours, and what other commands ask of it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from spawn_hostagent.config import Limits

from tests.hostagent.clocks import START_S, VirtualClock, until
from tests.hostagent.fake_host import HOST, FakeHost, fake_host
from tests.hostagent.fake_service import FakeService
from tests.hostagent.orders import HOUR, A, B, command, start, stop
from tests.hostagent.renting import lose_link, rent, wanted

pytest_plugins = "tests.hostagent.fixtures"

MINUTE = 60


# --- a link that is cut ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [5, 10 * MINUTE, HOUR - 60])
async def test_a_tenant_does_not_notice_a_cut_shorter_than_its_lease(
    host: FakeHost, service: FakeService, seconds: int
) -> None:
    await rent(host, service)
    lose_link(service)
    await host.pass_time(seconds, step=5)
    assert host.machines.running() == {(A, 1)}
    service.refuses_sockets = False
    await host.connected()
    assert host.machines.entered["stop"] == host.machines.entered["resume"] == 0


async def test_past_the_lease_it_is_stopped_and_kept_and_runs_again_with_another(
    host: FakeHost, service: FakeService
) -> None:
    await rent(host, service)
    lose_link(service)
    await host.pass_time(HOUR - 5, step=5)
    assert host.machines.running() == {(A, 1)}
    await host.pass_time(7)
    assert host.machines.running() == set(), "to the second, not to the minute"
    assert host.machines.boxes[A, 1].ended_by == "lease"
    await host.pass_time(2 * HOUR, step=600)
    assert set(host.machines.boxes) == {(A, 1)}, "nothing is deleted without an order"
    service.refuses_sockets = False
    service.desired[A] = wanted(host.clock.true_s() + HOUR)
    await host.connected()
    await host.pass_time(3)
    assert host.machines.running() == {(A, 1)}
    assert host.machines.boxes[A, 1].lease == service.desired[A].lease_expires_at


async def test_a_lease_that_is_extended_is_kept_by_the_container_too(
    host: FakeHost, service: FakeService
) -> None:
    await rent(host, service)
    await service.want(wanted(START_S + 5 * HOUR))
    await host.pass_time(3)
    assert host.machines.boxes[A, 1].lease == START_S + 5 * HOUR
    lose_link(service)
    await host.pass_time(4 * HOUR, step=200)
    assert host.machines.running() == {(A, 1)}


async def test_restarted_without_a_link_it_knows_every_lease(host: FakeHost, service: FakeService) -> None:
    await rent(host, service)
    lose_link(service)
    await host.kill()
    host.clock.jump(HOUR - 30)
    _ = await host.begin()
    await host.pass_time(20)
    assert host.machines.running() == {(A, 1)}
    await host.pass_time(12)
    assert host.machines.boxes[A, 1].ended_by == "lease"


async def test_with_its_clock_an_hour_off_a_lease_is_as_long(folder: Path, service: FakeService) -> None:
    for off_s in (-HOUR, HOUR):
        clock = service.clock = VirtualClock(wall_off_s=off_s)
        state = folder / str(off_s)
        state.mkdir()
        async with fake_host(state, service, clock) as host:
            await host.connected()
            await rent(host, service)
            lose_link(service)
            await host.kill()
            _ = await host.begin()
            await host.pass_time(HOUR - 20, step=10)
            assert host.machines.running() == {(A, 1)}
            await host.pass_time(30)
            assert host.machines.running() == set()
        service.refuses_sockets = False


async def test_a_clock_that_is_set_while_it_runs_changes_no_lease(
    host: FakeHost, service: FakeService
) -> None:
    await rent(host, service)
    lose_link(service)
    host.clock.wall_off_s = 2 * HOUR
    await host.pass_time(2 * MINUTE)
    assert host.machines.running() == {(A, 1)}
    await host.kill()
    _ = await host.begin()
    await host.pass_time(2 * MINUTE)
    assert host.machines.running() == {(A, 1)}


# --- plain HTTP ---------------------------------------------------------------------------------------------------


async def test_without_a_socket_it_calls_each_minute_and_obeys(host: FakeHost, service: FakeService) -> None:
    lose_link(service, http=True)
    order = command(start(), expires_at=START_S + HOUR)
    service.queue[order.command_id] = order
    service.desired[A] = wanted()
    await host.pass_time(5 * MINUTE)
    assert 4 <= len(service.posts) <= 5
    assert (await service.ended(order)).state == "succeeded"
    assert service.posts[0].inventory is not None
    assert service.posts[-1].rentals[0].state == "running"
    assert host.machines.made == {(A, 1): 1}
    assert len(service.results(order)) == 1, "what was told is not told again"
    service.refuses_sockets = False
    await host.connected()
    posts = len(service.posts)
    await host.pass_time(5 * MINUTE)
    assert len(service.posts) == posts


async def test_a_command_under_way_is_acknowledged_over_http(host: FakeHost, service: FakeService) -> None:
    lose_link(service, http=True)
    host.machines.gates["start"] = asyncio.Event()
    order = command(start(), expires_at=START_S + HOUR)
    service.queue[order.command_id] = order
    await host.pass_time(150)
    assert service.state_of(order) == "accepted"
    host.machines.gates["start"].set()
    await host.pass_time(MINUTE)
    assert service.state_of(order) == "succeeded"


async def test_a_call_of_a_clock_that_is_off_is_signed_again(folder: Path, service: FakeService) -> None:
    clock = service.clock = VirtualClock(wall_off_s=HOUR)
    service.refuses_sockets = True
    async with fake_host(folder, service, clock) as host:
        await host.pass_time(MINUTE + 10)
        await until(lambda: service.posts, "a heartbeat at the first minute, not at the second")
        assert host.clock.elapsed_s() < 2 * MINUTE
        assert host.daemon.fallback.last_error is None


async def test_a_command_of_a_later_version_does_not_hide_the_others(
    host: FakeHost, service: FakeService
) -> None:
    lose_link(service, http=True)
    order = command(start(), expires_at=START_S + HOUR)
    service.queue[order.command_id] = order
    service.raw_commands = ({"command_id": "cmd_new", "expires_at": 1, "order": {"type": "teleport"}},)
    await host.pass_time(3 * MINUTE)
    assert (await service.ended(order)).state == "succeeded"
    refused = [ack.problem.code for ack in service.acks if ack.command_id == "cmd_new" and ack.problem]
    assert refused == ["invalid", "invalid"][: len(refused)] != []


async def test_sensors_that_fail_cost_no_tenant_anything(host: FakeHost, service: FakeService) -> None:
    await rent(host, service)

    def broken() -> Any:
        raise OSError("the driver is gone")

    host.hardware._metrics = broken  # type: ignore[method-assign]
    beats = len(service.beats)
    await host.pass_time(20)
    assert len(service.beats) > beats
    assert service.beats[-1].metrics.cpu_percent == 12.5
    assert host.machines.running() == {(A, 1)}


async def test_a_stream_that_fails_says_so_and_the_link_goes_on(
    host: FakeHost, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = service.live[HOST]
    await service.dial(A, 22, "s1")
    await until(lambda: service.failed_dials)
    assert service.failed_dials[0].message == "No such rental is here."

    async def broken(_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(host.daemon.tunnels, "dial", broken)
    await service.dial(A, 22, "s2")
    await until(lambda: len(service.failed_dials) == 2)
    assert service.failed_dials[1].stream_id == "s2"
    assert service.live[HOST] is session


async def test_a_tenant_is_reached_through_the_link(host: FakeHost, service: FakeService) -> None:
    await rent(host, service)

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-tenant")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    host.machines.listeners[A, 22] = server.sockets[0].getsockname()[:2]
    stream_id = await service.dial(A, 22)
    socket = await asyncio.wait_for(service.streams[stream_id], 10)
    assert await asyncio.wait_for(socket.recv(), 10) == b"SSH-2.0-tenant"
    service.live[HOST].socket.transport.abort()
    await until(lambda: not host.daemon.link.state.connected)
    await socket.send(b"x")
    assert host.daemon.tunnels.usage()[A].streams == 1
    server.close()


async def test_a_service_that_is_down_is_said_and_asked_again(host: FakeHost, service: FakeService) -> None:
    lose_link(service)
    await host.pass_time(3 * MINUTE)
    assert "no route to host" in str(host.daemon.fallback.last_error)
    service.http_works = True
    await host.pass_time(MINUTE + 5)
    assert host.daemon.fallback.last_error is None
    assert service.posts


# --- what runs and may not ----------------------------------------------------------------------------------------


async def test_a_labelled_container_that_nobody_knows_is_stopped_after_its_grace(
    host: FakeHost, service: FakeService
) -> None:
    host.machines.put(start(B, lease=START_S + 10 * HOUR))
    await host.pass_time(5 * MINUTE - 5)
    assert host.machines.running() == {(B, 1)}
    await host.pass_time(90)
    assert host.machines.running() == set()
    assert set(host.machines.boxes) == {(B, 1)}


async def test_a_rebooted_hosts_rentals_run_again(host: FakeHost, service: FakeService) -> None:
    await rent(host, service)
    lose_link(service)
    await host.kill()
    host.machines.exit(A, 1, None)
    _ = await host.begin()
    await host.pass_time(2)
    assert host.machines.running() == {(A, 1)}


async def test_what_the_service_stopped_stays_stopped_whatever_it_said_before(
    host: FakeHost, service: FakeService
) -> None:
    await rent(host, service)
    await service.order(order := command(stop()))
    await service.ended(order)
    await host.pass_time(5 * MINUTE)
    assert host.machines.running() == set(), "an older word said that it runs"


async def test_strict_hours_end_and_begin_with_the_owners_day(
    folder: Path, service: FakeService, clock: VirtualClock
) -> None:
    async with fake_host(folder, service, clock, Limits(hours=("09:00-17:00",), strict_hours=True)) as host:
        await host.connected()
        await rent(host, service, START_S + 50 * HOUR)
        clock.hour = 18
        await host.pass_time(MINUTE + 2)
        assert host.machines.boxes[A, 1].ended_by == "owner"
        clock.hour = 10
        await host.pass_time(MINUTE + 2)
        assert host.machines.running() == {(A, 1)}


async def test_what_was_destroyed_is_said_once_and_what_never_was_each_time(
    host: FakeHost, service: FakeService
) -> None:
    await rent(host, service)
    await host.pass_time(61)
    del host.machines.boxes[A, 1]
    service.desired = {B: wanted(rental_id=B)}
    await host.pass_time(5 * MINUTE)
    told = [(entry.rental_id, entry.state) for sync in service.syncs for entry in sync.rentals]
    assert told.count((A, "gone")) == 1
    assert told.count((B, "gone")) >= 2
