"""The whole daemon on fakes: what it does each minute, and what must not wait for that."""

import asyncio
from pathlib import Path

from spawn_hostagent.config import MIB_PER_GB, Images
from spawn_hostagent.keeping.leases import LEFT_GRACE_S
from spawn_schemas.orders import Problem

from tests.hostagent.clocks import VirtualClock
from tests.hostagent.fake_host import FakeHost, fake_host
from tests.hostagent.fake_service import FakeService
from tests.hostagent.orders import HOUR, IMAGE, A, B
from tests.hostagent.renting import lose_link, rent

pytest_plugins = "tests.hostagent.fixtures"

MINUTE = 60
OTHER_IMAGE = "images.test/other@sha256:" + "b" * 64


async def test_a_lease_ends_to_the_second_while_housekeeping_hangs(
    host: FakeHost, service: FakeService
) -> None:
    await rent(host, service)
    lose_link(service)
    await host.pass_time(HOUR - 3 * MINUTE, step=10)
    host.machines.gates["sweep"] = asyncio.Event()
    await host.pass_time(2 * MINUTE, step=5)
    sweeps = host.machines.sweeps
    await host.pass_time(MINUTE + 5)
    assert host.machines.boxes[A, 1].ended_by == "lease"
    assert host.machines.sweeps == sweeps, "it hangs"
    host.machines.gates["sweep"].set()


async def test_housekeeping_that_fails_is_said_until_it_works_again(
    host: FakeHost, service: FakeService
) -> None:
    del service
    host.machines.failures["sweep"] = Problem(code="docker_failed", message="The walls do not stand.")
    await host.pass_time(MINUTE + 5)
    assert host.daemon.control.status()["last_error"] == "The walls do not stand."
    await host.pass_time(MINUTE + 5)
    assert host.daemon.control.status()["last_error"] is None


async def test_a_card_that_is_lost_is_not_lent_and_one_that_comes_late_is(
    host: FakeHost, service: FakeService
) -> None:
    await host.pass_time(2)
    assert host.machines.lent is not None
    assert host.machines.lent.lent_gpus == ("GPU-1",)
    for lent in ((), ("GPU-1",)):
        inventories = sum(sync.inventory is not None for sync in service.syncs)
        host.hardware.lent_gpus = lent
        await host.pass_time(MINUTE + 5)
        assert host.machines.lent.lent_gpus == lent
        told = [sync.inventory for sync in service.syncs if sync.inventory is not None]
        assert len(told) == inventories + 1, "the service hears of it, once"
        assert told[-1].lent_gpus == lent


async def test_what_is_taken_is_what_the_service_was_told_though_the_owner_fills_the_disk(
    host: FakeHost, service: FakeService
) -> None:
    def told() -> list[int]:
        return [sync.inventory.disk_mib for sync in service.syncs if sync.inventory is not None]

    await host.pass_time(2)
    for lent_mib, is_told in ((50_000 - MIB_PER_GB, True), (49_000, False), (90_000, False)):
        before = told()
        host.hardware.lent_disk_mib = lent_mib
        await host.pass_time(MINUTE + 5)
        assert host.machines.lent is not None
        assert host.machines.lent.disk_mib == lent_mib
        assert (host.machines.lent.cpus, host.machines.lent.memory_mib) == (4, 8000)
        assert told() == before + ([lent_mib] if is_told else []), "soon, if it is less than was told"
    await host.pass_time(10 * MINUTE, step=5)
    assert told()[-1] == 90_000, "more can wait"


async def test_the_service_is_told_which_docker_runs_here(host: FakeHost, service: FakeService) -> None:
    await host.pass_time(2)
    [inventory] = [sync.inventory for sync in service.syncs if sync.inventory is not None]
    assert inventory.docker_version == "28.3.0"


async def test_what_is_left_of_a_rental_that_the_service_forgot_is_removed_in_time(
    host: FakeHost, service: FakeService
) -> None:
    await rent(host, service)
    # Its owner removed the container by hand; the disk is still there.
    del host.machines.boxes[A, 1]
    host.machines.left = {(A, 1), (B, 1)}
    await host.pass_time(LEFT_GRACE_S - MINUTE, step=20)
    assert host.machines.left == {(A, 1), (B, 1)}
    await host.pass_time(4 * MINUTE, step=20)
    assert host.machines.left == {(A, 1)}, "the one that the service wants is its to end"
    service.desired = {}
    await host.pass_time(LEFT_GRACE_S + 5 * MINUTE, step=20)
    assert host.machines.left == set()


async def test_a_silent_service_loses_no_tenants_disk(host: FakeHost, service: FakeService) -> None:
    host.machines.left = {(A, 1)}
    await host.pass_time(MINUTE)
    lose_link(service)
    await host.pass_time(3 * LEFT_GRACE_S, step=60)
    assert host.machines.left == {(A, 1)}


async def test_a_word_that_moves_the_clock_by_hours_ends_no_grace(folder: Path, service: FakeService) -> None:
    """The machine booted with a wrong clock, and nobody told it for a while."""
    clock = service.clock = VirtualClock(wall_off_s=-2 * LEFT_GRACE_S)
    service.refuses_sockets, service.http_works = True, False
    async with fake_host(folder, service, clock) as host:
        host.machines.left = {(A, 1)}
        await host.pass_time(3 * MINUTE, step=5)
        service.refuses_sockets = False
        await host.connected()
        await host.pass_time(3 * MINUTE, step=5)
        assert host.daemon.keeper._heard_at is not None
        assert host.machines.left == {(A, 1)}


async def test_what_goes_down_again_and_again_does_not_keep_its_host_busy(
    host: FakeHost, service: FakeService
) -> None:
    await rent(host, service)
    for _ in range(5 * MINUTE // 5):
        if host.machines.running():
            host.machines.exit(A, 1, None)
        await host.pass_time(5)
    assert 3 <= host.machines.entered["resume"] <= 6


async def test_a_start_that_failed_is_tried_again_soon(host: FakeHost, service: FakeService) -> None:
    await rent(host, service)
    host.machines.failures["resume"] = Problem(code="docker_failed", message="Docker is not ready.")
    host.machines.exit(A, 1, None)
    await host.pass_time(5)
    assert host.machines.running() == set()
    await host.pass_time(8)
    assert host.machines.running() == {(A, 1)}


async def test_images_of_the_owners_list_are_fetched_ahead_and_tried_again(
    folder: Path, service: FakeService, clock: VirtualClock
) -> None:
    images = Images(prepull=(IMAGE, OTHER_IMAGE))
    async with fake_host(folder, service, clock, images=images) as host:
        host.machines.failures["prepull"] = Problem(code="image_unavailable", message="No such image.")
        await host.connected()
        await host.pass_time(5)

        def shown() -> list[tuple[str, str | None]]:
            return [(each.state, each.problem) for each in host.daemon.control.status()["prepulls"]]

        assert shown() == [("failed", "No such image."), ("here", None)]
        assert host.machines.entered["prepull"] == 2
        await host.pass_time(MINUTE)
        assert shown() == [("here", None), ("here", None)]
        assert host.machines.entered["prepull"] == 4
        await host.pass_time(HOUR, step=60)
        assert host.machines.entered["prepull"] == 4
        await host.pass_time(6 * HOUR, step=1200)
        assert host.machines.entered["prepull"] == 6, "the owner may have removed one"
