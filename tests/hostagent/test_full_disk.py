"""A disk that takes no more: whoever filled it is stopped all the same, and the next daemon begins."""

import errno
import logging
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from spawn_hostagent import daemon
from spawn_hostagent.ballast import ROOM_MIB, SIZE_MIB, Ballast
from spawn_hostagent.commands import journal_file
from spawn_hostagent.control.instance import CannotStart, alone
from spawn_hostagent.docker import containers, rentals
from spawn_hostagent.docker.rentals import Remembered
from spawn_hostagent.machines import MachineError
from spawn_schemas.ids import RentalId

from tests.hostagent.fake_docker import FakeDocker, manager_of
from tests.hostagent.fake_host import FakeHost
from tests.hostagent.fake_service import FakeService

pytest_plugins = "tests.hostagent.fixtures"

MIB = 1024 * 1024
RENTAL = RentalId("srv_bomb")
Usage = namedtuple("Usage", "total used free")


class Disk:
    """A disk of the agent's that may be full, but for its ballast: that is all that anybody may write into."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ballast, self.is_full = Ballast(folder), False
        write = rentals.Memory._write

        def written(memory: rentals.Memory, name: str, what: Remembered) -> None:
            self.check()
            write(memory, name, what)

        monkeypatch.setattr(rentals.Memory, "_write", written)
        monkeypatch.setattr(
            shutil, "disk_usage", lambda _: Usage(0, 0, (0 if self.is_full else ROOM_MIB) * MIB)
        )

    def check(self) -> None:
        if self.is_full and self.ballast.file.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(tmp_path, monkeypatch)


async def test_who_fills_the_disk_is_stopped_and_why_is_kept(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    docker = FakeDocker()
    for name in (RENTAL, "srv_other"):
        docker.put(name)
    with manager_of(docker, tmp_path, monkeypatch) as manager:
        await manager._guard_disks()
        assert disk.ballast.file.stat().st_size == SIZE_MIB * MIB
        disk.is_full, docker.size_bytes = True, 65 * MIB
        held: list[bool] = []
        docker.on_stop = lambda: held.append(disk.ballast.file.exists())
        assert {report.state for report in await manager.list_rentals()} == {"running"}
        await manager._guard_disks()
        assert len(docker.stopped) == 2
        assert held[0], "while somebody writes, it would be his"
        ends = {(report.state, report.ended_by) for report in await manager.list_rentals()}
        assert ends == {("stopped", "disk_full")}
    assert "cannot be written down" in caplog.text


async def test_one_that_cannot_be_stopped_keeps_no_other_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = FakeDocker()
    for name in (RENTAL, "srv_other"):
        docker.put(name)
    docker.size_bytes = 65 * MIB
    stop = docker.stop

    def fail_once(name: str, timeout: int) -> None:
        monkeypatch.setattr(docker, "stop", stop)
        raise OSError("Docker broke off")

    monkeypatch.setattr(docker, "stop", fail_once)
    with manager_of(docker, tmp_path, monkeypatch) as manager, pytest.raises(MachineError, match="broke off"):
        await manager._guard_disks()
    assert len(docker.stopped) == 1


async def test_a_count_of_kills_that_cannot_be_kept_hides_nobody(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = FakeDocker()
    docker.put(RENTAL)
    disk.ballast.make()
    disk.is_full = True
    monkeypatch.setattr(containers, "with_kills", lambda *_: Remembered(out_of_memory_kills=3))
    with manager_of(docker, tmp_path, monkeypatch) as manager:
        assert [report.state for report in await manager.list_rentals()] == ["running"]
        with pytest.raises(MachineError, match="disk of this machine is full") as caught:
            await manager.remember_lease(RENTAL, 1, 7)
        assert caught.value.problem.code == "no_room", "Docker is not to blame"


async def test_the_daemon_begins_on_a_full_disk(
    host: FakeHost, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await host.finish()
    disk = Disk(host.folder, monkeypatch)
    disk.ballast.make()
    disk.is_full = True
    connect = journal_file._connect
    swept: list[tuple[int, bool]] = []

    def connected(*args: object) -> object:
        swept.append((host.machines.sweeps, disk.ballast.file.exists()))
        disk.check()
        return connect(*args)  # type: ignore[arg-type]  # passed on as it came

    monkeypatch.setattr(journal_file, "_connect", connected)
    before = host.machines.sweeps
    host.stop.clear()
    journal = await daemon._open_journal(host.config, host.machines)
    journal.close()
    assert swept == [(before, True), (before + 1, False)], "first who fills it is stopped"
    disk.ballast.file.touch()
    disk.is_full = False
    monkeypatch.setattr(journal_file, "_connect", lambda *_: (_ for _ in ()).throw(OSError("broken")))
    with pytest.raises(CannotStart, match="broken"):
        await daemon._open_journal(host.config, host.machines)
    assert disk.ballast.file.exists(), "a disk with room needs none of it"


def test_a_full_disk_takes_no_pid_and_hinders_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("spawn_hostagent.control.instance.write_atomically", full)
    with alone(tmp_path):
        assert "spawn-host.pid cannot be written" in caplog.text


def test_the_ballast_is_laid_down_where_there_is_room_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept, free_mib = Ballast(tmp_path), ROOM_MIB - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, free_mib * MIB))
    kept.make()
    assert not kept.file.exists()
    free_mib = ROOM_MIB
    for _ in range(2):
        kept.make()
        assert kept.file.stat().st_blocks * 512 >= SIZE_MIB * MIB
        with caplog.at_level(logging.WARNING):
            kept.give_up()
            kept.give_up()
        assert not kept.file.exists()
    assert caplog.text.count("is given up") == 2
    free_mib = SIZE_MIB - 1
    assert kept.is_wanted()


def test_a_disk_that_fills_while_the_ballast_is_written_keeps_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, ROOM_MIB * MIB))
    monkeypatch.setattr(os, "fsync", full)
    Ballast(tmp_path).make()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("mib", "is_stopped"), [(3, False), (6, True)])
async def test_what_a_tenant_adds_to_his_list_of_hosts_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mib: int, is_stopped: bool
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_bytes(os.urandom(mib * MIB))
    docker = FakeDocker()
    docker.put(RENTAL, disk_limit="quota")
    docker.paths["HostsPath"] = str(hosts)
    with manager_of(docker, tmp_path / "state", monkeypatch) as manager:
        await manager._guard_disks()
        (report,) = await manager.list_rentals()
    assert (report.ended_by == "disk_full") is is_stopped
    assert report.disk_used_mib == mib
