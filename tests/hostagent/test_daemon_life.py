"""The whole daemon on fakes: Docker that is down, crashes, its ends, and what others on the machine see of it."""

import asyncio
import json
import os
import signal
import socket
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from spawn_hostagent import daemon
from spawn_hostagent.control.instance import PID_FILE, CannotStart, alone, alone_with
from spawn_hostagent.control.server import SOCKET_FILE, STATUS_FILE
from spawn_schemas.inventory import Isolation
from spawn_schemas.orders import Problem, RentalReport

from tests.hostagent.clocks import VirtualClock, until
from tests.hostagent.desk import FailingDisk
from tests.hostagent.fake_host import HOST, FakeHost, fake_host
from tests.hostagent.fake_service import FakeService
from tests.hostagent.orders import A, B, command, execute, start, stop
from tests.hostagent.renting import ask, lose_link, rent

pytest_plugins = "tests.hostagent.fixtures"

MINUTE = 60


# --- Docker, crashes and endings ----------------------------------------------------------------------------------


async def test_a_docker_that_does_not_answer_is_said_and_nothing_is_gone(
    host: FakeHost, service: FakeService
) -> None:
    await rent(host, service)
    await host.pass_time(5)
    host.machines.is_down = True
    await host.pass_time(3 * MINUTE)
    assert service.syncs[-1].rentals[0].state == "running"
    assert host.daemon.control.status()["last_error"] == "Docker does not answer."
    host.machines.is_down = False
    await host.pass_time(61)
    assert host.daemon.control.status()["last_error"] is None


async def test_it_begins_while_docker_is_down(
    folder: Path, service: FakeService, clock: VirtualClock
) -> None:
    async with fake_host(folder, service, clock) as host:
        host.machines.is_down = True
        await host.connected()
        order = command(start())
        await service.order(order)
        ack = await service.ended(order)
        assert ack.problem == Problem(code="docker_failed", message="Docker does not answer.")


async def test_killed_in_the_middle_of_a_start_it_ends_it_once(host: FakeHost, service: FakeService) -> None:
    host.machines.gates["start"] = asyncio.Event()
    order = command(start())
    await service.order(order)
    await until(lambda: host.machines.entered["start"])
    await host.kill()
    host.machines.gates["start"].set()
    _ = await host.begin()
    await host.connected()
    assert (await service.ended(order)).state == "succeeded"
    assert host.machines.made == {(A, 1): 1}


async def test_a_disk_that_fails_ends_the_daemon_and_the_next_one_goes_on(
    host: FakeHost, service: FakeService
) -> None:
    await rent(host, service)
    for at in (1, 2, 3):
        FailingDisk.plan(at)
        order = command(execute("date", str(at)))
        await service.order(order)
        assert await asyncio.wait_for(host.task, 30) == daemon.EXIT_BROKEN
        host.journal.close()
        FailingDisk.plan(None)
        _ = await host.begin()
        await host.connected()
        await service.ended(order)
    assert len(host.machines.ran) == len(set(host.machines.ran)) == 3
    assert host.machines.running() == {(A, 1)}


async def test_a_broken_journal_does_not_end_a_tenant(host: FakeHost, service: FakeService) -> None:
    await rent(host, service)
    await host.kill()
    for tail in ("", "-wal", "-shm"):
        (host.folder / (daemon.JOURNAL_FILE + tail)).write_bytes(b"garbage" * 1000)
    _ = await host.begin()
    assert host.journal.set_aside is not None
    await host.connected()
    await host.pass_time(10 * MINUTE, step=5)
    assert host.machines.running() == {(A, 1)}
    assert host.machines.entered["stop"] == 0


async def test_a_graceful_end_waits_for_what_is_begun_and_leaves_tenants_alone(
    host: FakeHost, service: FakeService
) -> None:
    await rent(host, service)
    host.machines.gates["stop"] = asyncio.Event()
    order = command(stop())
    await service.order(order)
    await until(lambda: host.machines.entered["stop"])
    host.stop.set()
    await until(lambda: not host.daemon.link.state.connected)
    assert not host.task.done()
    host.machines.gates["stop"].set()
    assert await asyncio.wait_for(host.task, 20) == daemon.EXIT_STOPPED
    assert [ack.state for ack in host.journal.untold()] == ["succeeded"]
    host.journal.close()


# --- what others on the machine see -------------------------------------------------------------------------------


async def test_the_control_socket_answers_the_owner_alone(host: FakeHost, service: FakeService) -> None:
    await rent(host, service)
    await host.pass_time(2)
    assert stat.S_IMODE((host.folder / SOCKET_FILE).stat().st_mode) == 0o600
    answer = await ask(host.folder, '{"do": "status"}')
    assert answer["ok"]
    assert answer["status"]["pid"] == os.getpid()
    assert await ask(host.folder, '{"do":"logs","rental_id":"srv_a","lines":2}') == {
        "ok": True,
        "text": "a line\na line\n",
    }
    isolation = (await ask(host.folder, '{"do":"isolation"}'))["isolation"]
    assert msgspec.convert(isolation, Isolation).tier == "runc"
    for line, words in (
        ("nonsense", "no request"),
        ('{"do":"explode"}', "'explode' is not known"),
        ('{"do":"logs"}', "Say which rental"),
        ('{"do":"logs","rental_id":"srv_x"}', "No such rental"),
        ('{"do":"status","more":1}', "no request"),
    ):
        answer = await ask(host.folder, line)
        assert (answer["ok"], words in answer["message"]) == (False, True), line


async def test_the_owner_drains_over_restarts(host: FakeHost, service: FakeService) -> None:
    await rent(host, service)
    await host.pass_time(2)
    assert (await ask(host.folder, '{"do":"drain"}'))["draining"]
    await host.pass_time(6)
    assert (service.beats[-1].status, service.syncs[-1].draining) == ("draining", True)
    await host.finish()
    _ = await host.begin()
    await host.connected()
    await service.order(order := command(start(B)))
    problem = (await service.ended(order)).problem
    assert problem is not None
    assert (problem.code, host.machines.running()) == ("draining", {(A, 1)})
    await service.order(end := command(stop()))
    await service.ended(end)
    await host.pass_time(6)
    said = [beat.status for beat in service.beats]
    assert said[-1] == "drained"
    assert (await ask(host.folder, '{"do":"undrain"}'))["draining"] is False
    await host.pass_time(6)
    assert service.beats[-1].status == "online"


async def test_status_is_a_file_that_is_always_whole(host: FakeHost, service: FakeService) -> None:
    await rent(host, service)
    await host.pass_time(12)
    path = host.folder / STATUS_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    shown = json.loads(path.read_text())
    assert (shown["pid"], shown["connected"], shown["tier"], shown["draining"]) == (
        os.getpid(),
        True,
        "runc",
        False,
    )
    assert (shown["host_id"], shown["last_error"], shown["metrics"]["cpu_percent"]) == (HOST, None, 12.5)
    [rental] = msgspec.convert(shown["rentals"], list[RentalReport])
    assert (rental.rental_id, rental.state) == (A, "running")
    lose_link(service)
    await host.pass_time(12)
    shown = json.loads(path.read_text())
    assert not shown["connected"]
    assert shown["last_error"]


def test_one_daemon_for_each_folder(folder: Path) -> None:
    with alone(folder):
        assert (folder / PID_FILE).read_text() == f"{os.getpid()}\n"
        with pytest.raises(CannotStart, match=rf"process {os.getpid()}\) already uses"), alone(folder):
            pass
        assert (folder / PID_FILE).exists(), "the second one leaves the first one's file"
    assert not (folder / PID_FILE).exists()
    with alone(folder):
        pass


def test_one_daemon_for_each_docker(folder: Path) -> None:
    docker, other = f"unix://{folder}/docker.sock", f"unix://{folder}/other.sock"
    (folder / "link.sock").symlink_to(folder / "docker.sock")
    with alone_with(docker), alone_with(other):
        for name in (docker, f"unix://{folder}/link.sock"):
            with (
                pytest.raises(CannotStart, match=rf"process {os.getpid()}\) already runs tenants"),
                alone_with(name),
            ):
                pass
    with alone_with(docker):
        pass


async def run_alone(host: FakeHost, **options: Any) -> int:
    return await asyncio.wait_for(
        daemon.run(host.config, host.signer, host.machines, host.hardware, clock=host.clock, **options), 30
    )


async def test_it_runs_by_itself_until_it_is_told_to_stop(
    folder: Path, service: FakeService, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = FakeHost(folder, service, clock)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(folder / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(folder / "notify"))
        running = asyncio.create_task(run_alone(host))
        await until(lambda: HOST in service.live)
        assert systemd.recv(100) == b"READY=1"
        with pytest.raises(CannotStart, match="already uses"):
            await run_alone(host)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await running == daemon.EXIT_STOPPED
        assert systemd.recv(100) == b"STOPPING=1"
    assert not (folder / PID_FILE).exists()


async def test_what_cannot_work_is_said_before_it_begins(
    folder: Path, service: FakeService, clock: VirtualClock
) -> None:
    host = FakeHost(folder, service, clock)
    host.signer.link_url = "ws://spawn.test"
    with pytest.raises(CannotStart, match="wss://"):
        await run_alone(host)
    host.signer.link_url = service.url
    host.config = replace(host.config, state_dir=str(folder / ("x" * 100)))
    with pytest.raises(CannotStart, match="90 characters"):
        await run_alone(host)
    (folder / daemon.JOURNAL_FILE).mkdir()
    host.config = replace(host.config, state_dir=str(folder))
    with pytest.raises(CannotStart, match="cannot be opened"):
        await run_alone(host)
