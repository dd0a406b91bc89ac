"""Several replicas on one PostgreSQL: processes that die and stand still under load, and workers of one command."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from spawn.store.migrate import migrate
from tests import databases
from tests.chaos.run import fleet_of_three, live
from tests.e2e.test_cli import refused, spawn
from tests.interop.service import environment
from tests.ports import free_address

SECONDS = 25.0
KEY = "5a" * 32


@pytest.mark.usefixtures("postgres_server")
def test_nothing_is_lost_or_doubled_while_replicas_die_and_stand_still(tmp_path: Path) -> None:
    """`make chaos` does the same for two minutes."""
    with fleet_of_three(tmp_path) as fleet:
        told = asyncio.run(live(fleet, seconds=SECONDS, seed=7))
        log = fleet.log.read_text()
        assert "CRITICAL" not in log, log
    print("\n".join(told))


# --- spawn serve --workers ----------------------------------------------------------------------------------------


class Workers:
    """A running `spawn serve --workers`, known by its processes."""

    def __init__(self, process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
        self.process = process
        self.url = url
        self.log = log

    def pids(self) -> set[int]:
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return {int(pid) for pid in listed.split()}

    def answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/health", timeout=5, trust_env=False).is_success
        return False

    def await_(self, what: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not what():
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)


@contextlib.contextmanager
def working(folder: Path, count: int) -> Iterator[Workers]:
    url = (
        databases.database_url(folder)
        if databases.engine() == "postgresql"
        else databases.server_url("workers")
    )
    databases.make(url)
    address, log = free_address(), folder / "log"
    settings = {"SPAWN_DATABASE_URL": url, "SPAWN_SECRET_KEY": KEY, "SPAWN_LEASE_S": "5"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "spawn", "serve", "--listen", address, "--workers", str(count)],
            cwd=folder,
            env=environment(settings),
            stdout=output,
            stderr=output,
        )
    try:
        workers = Workers(process, f"http://{address}", log)
        workers.await_(lambda: served(log) == count)
        yield workers
    finally:
        process.kill()
        process.wait()


def served(log: Path) -> int:
    """How many workers have come up so far."""
    return log.read_text().count("Application startup complete")


@pytest.mark.usefixtures("postgres_server")
def test_workers_share_a_socket_and_one_that_dies_is_replaced(tmp_path: Path) -> None:
    with working(tmp_path, 3) as workers:
        before = workers.pids()
        assert len(before) == 3
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        assert workers.answers(), "the others go on"
        workers.await_(lambda: served(workers.log) == 4)
        assert len(workers.pids()) == 3
        assert workers.pids() - before
        assert f"worker {victim} ended (-9)" in workers.log.read_text()
        workers.process.terminate()
        assert workers.process.wait(30) == 0
        assert not workers.answers()
        assert not workers_left(before)


def workers_left(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists()}


@pytest.mark.usefixtures("postgres_server")
def test_workers_end_with_their_supervisor_however_it_ends(tmp_path: Path) -> None:
    with working(tmp_path, 2) as workers:
        left = workers.pids()
        workers.process.kill()
        workers.process.wait()
        workers.await_(lambda: not workers_left(left))
        assert not workers.answers()


@pytest.mark.usefixtures("postgres_server")
def test_a_refusal_is_said_once_and_ends_the_command(tmp_path: Path) -> None:
    url = databases.server_url("not_migrated")
    databases.make_empty(url)
    done = spawn(tmp_path, "serve", "--workers", "3", database_url=url, secret_key=KEY)
    refused(done, "spawn migrate")
    migrate(url)
    without_key = spawn(tmp_path, "serve", "--workers", "3", database_url=url, secret_key="")
    refused(without_key, "SPAWN_SECRET_KEY")
