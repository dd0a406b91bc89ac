"""What is told of rentals while Docker answers slowly, badly, or not of all of them: no paid rental is called gone."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import requests
from spawn_hostagent.docker.engine import TIMEOUT_S
from spawn_hostagent.docker.rentals import Remembered
from spawn_hostagent.docker_manager import DockerManager
from spawn_hostagent.machines import MachineError
from spawn_schemas.ids import RentalId
from spawn_schemas.inventory import Isolation
from spawn_schemas.orders import RentalReport, StartInstance

from tests.hostagent.clocks import until
from tests.hostagent.fake_docker import FakeDocker, broken, facts, manager_of
from tests.hostagent.fake_host import FakeHost
from tests.hostagent.fake_service import FakeService
from tests.hostagent.orders import A, start
from tests.hostagent.renting import rent
from tests.isolation.arena import ignore

pytest_plugins = "tests.hostagent.fixtures"

OLD = "spawn-srv_old-1"


async def told(manager: DockerManager) -> dict[str, str]:
    return {report.rental_id: report.state for report in await manager.list_rentals()}


def slow_start(manager: DockerManager, docker: FakeDocker, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Starts of this manager wait for their image until this is set."""
    come = asyncio.Event()

    async def above() -> Isolation:
        return Isolation(tier="runc", disk_limit="poll")

    async def bring(image: str, tell: Any) -> dict[str, Any]:
        await come.wait()
        return {"Config": {}}

    def make(client: Any, order: StartInstance, *_: Any) -> RentalReport:
        docker.put(order.rental_id)
        return manager._found_report(client, order.rental_id, order.generation)

    monkeypatch.setattr(manager, "_above_floor", above)
    monkeypatch.setattr(manager._pulls, "bring", bring)
    monkeypatch.setattr(manager, "_make", make)
    return come


async def test_what_begins_while_docker_is_asked_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker, loop = FakeDocker(), asyncio.get_running_loop()
    docker.put("srv_old")
    with manager_of(docker, tmp_path, monkeypatch) as manager:
        come = slow_start(manager, docker, monkeypatch)
        starting = asyncio.create_task(manager.start(start(), ignore))
        await until(lambda: manager._room.starting)

        async def finish() -> None:
            come.set()
            await starting

        def slowly(name: str) -> None:
            # Docker has listed what was there; until it describes it all, another one has begun.
            if name == OLD and not starting.done():
                docker.on_inspect = lambda _: None
                asyncio.run_coroutine_threadsafe(finish(), loop).result(30)

        assert await told(manager) == {"srv_old": "running", A: "pulling"}
        docker.on_inspect = slowly
        assert await told(manager) == {"srv_old": "running", A: "running"}


async def test_what_one_look_misses_is_not_called_gone(host: FakeHost, service: FakeService) -> None:
    await rent(host, service)
    await host.pass_time(61)
    keeper, box = host.daemon.keeper, host.machines.boxes.pop((A, 1))
    missed = await keeper.picture(whole=False)
    host.machines.boxes[A, 1] = box
    back = await keeper.picture(whole=False)
    assert [report.state for report in (*missed.rentals, *back.rentals)] == ["running"]
    del host.machines.boxes[A, 1]
    states = [[report.state for report in (await keeper.picture(whole=False)).rentals] for _ in range(3)]
    assert states == [[], ["gone"], []]


async def test_what_is_gone_is_told_within_seconds(host: FakeHost, service: FakeService) -> None:
    await rent(host, service)
    await host.pass_time(61)
    service.desired = {}
    del host.machines.boxes[A, 1]
    host.machines._say()
    await host.pass_time(5)
    assert "gone" in {entry.state for sync in service.syncs for entry in sync.rentals}


@pytest.mark.parametrize(
    "error", [broken(), requests.exceptions.ReadTimeout("no answer")], ids=["500", "hangs"]
)
async def test_one_that_docker_cannot_describe_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    docker = FakeDocker()
    docker.put("srv_old")
    docker.put("srv_lost")
    docker.put("srv_ended", status="exited")
    for name in ("srv_lost", "srv_ended"):
        docker.errors[f"spawn-{name}-1"] = error
    with manager_of(docker, tmp_path, monkeypatch) as manager:
        manager._memory.change("spawn-srv_lost-1", lambda _: Remembered(lease_expires_at=7, began=True))
        seen = {report.rental_id: report for report in await manager.list_rentals()}
        # It runs, and its lease is known: it ends like any other. Why the other one ended nobody knows.
        assert {name: report.state for name, report in seen.items()} == {
            "srv_old": "running",
            "srv_lost": "running",
            "srv_ended": "failed",
        }
        assert seen[RentalId("srv_lost")].lease_expires_at == 7
        assert "cannot describe spawn-srv_lost-1" in caplog.text
        assert docker.timeout == TIMEOUT_S, "what is asked next has all of its time"
        assert await manager.leftovers() == (), "nor is its disk thrown away"
        assert (await manager.stop(RentalId("srv_lost"), 1, 0, "lease")).state == "failed"
        assert docker.stopped == ["spawn-srv_lost-1"]
        del docker.errors["spawn-srv_lost-1"]
        after = {report.rental_id: report for report in await manager.list_rentals()}
        assert (after[RentalId("srv_lost")].state, after[RentalId("srv_lost")].ended_by) == (
            "stopped",
            "lease",
        )


async def test_a_stranger_that_docker_cannot_describe_is_none_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = FakeDocker()
    docker.put("srv_old")
    docker.here["owner"] = facts("srv_owner"), "running"
    docker.errors["owner"] = broken()
    with manager_of(docker, tmp_path, monkeypatch) as manager:
        assert await told(manager) == {"srv_old": "running"}


async def test_a_docker_that_goes_away_in_the_middle_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = FakeDocker()
    docker.put("srv_old")
    docker.errors[OLD] = requests.exceptions.ConnectionError("gone")
    with (
        manager_of(docker, tmp_path, monkeypatch) as manager,
        pytest.raises(MachineError, match="does not answer"),
    ):
        await manager.list_rentals()
