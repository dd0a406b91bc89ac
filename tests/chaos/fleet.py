"""Several replicas, each a `spawn serve` of its own on loopback, on one PostgreSQL, one chain and one cloud.

Invariant: a replica that is told to stop ends in order; one that dies in any way that nobody planned fails the test.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import httpx

from spawn.setting_reader import read_settings
from spawn.settings import Settings
from spawn.store.places import place_of
from tests import databases
from tests.chaos.chains import ChainOfRun
from tests.interop.service import environment
from tests.ports import free_port

AUTHORITY: Final = "spawn.test"
"""How callers know the service, whichever replica they reach."""
START_S: Final = 90.0
STOP_S: Final = 40.0

SELECT_HOLDERS: Final = "SELECT holder FROM lease WHERE holder <> ''"


@dataclass
class Replica:
    """One process and the place where it answers, from one life to the next."""

    port: int
    folder: Path
    settings: Mapping[str, str]
    process: "subprocess.Popen[bytes] | None" = None
    is_paused: bool = False
    kills: int = 0
    stops: int = 0
    pauses: int = 0

    def start(self, log: IO[bytes]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "spawn", "serve", "--listen", f"127.0.0.1:{self.port}"],
            env=environment(self.settings),
            cwd=self.folder,
            stdout=log,
            stderr=log,
        )

    @property
    def running(self) -> "subprocess.Popen[bytes]":
        assert self.process is not None
        assert self.process.poll() is None, f"the replica on port {self.port} ended by itself"
        return self.process

    def kill(self) -> None:
        """What `kill -9` does."""
        self.running.kill()
        self.running.wait()
        self.kills += 1

    def stop(self) -> None:
        """What whoever replaces it by a new version does."""
        process = self.running
        process.terminate()
        assert process.wait(STOP_S) == 0
        self.stops += 1

    def pause(self) -> None:
        self.running.send_signal(signal.SIGSTOP)
        self.is_paused = True
        self.pauses += 1

    def resume(self) -> None:
        self.running.send_signal(signal.SIGCONT)
        self.is_paused = False

    def answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            url = f"http://127.0.0.1:{self.port}/health"
            return httpx.get(url, timeout=5, trust_env=False).is_success
        return False

    def end(self) -> None:
        """By force, whatever it is doing; for a test that has failed."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


class Fleet:
    """The replicas, and the files that they share."""

    def __init__(self, folder: Path, chain: ChainOfRun, settings: Mapping[str, str], count: int) -> None:
        self.folder = folder
        self.chain = chain
        self.settings: Settings = read_settings(settings)
        self.log = folder / "replicas.log"
        self.replicas = [Replica(free_port(), folder, settings) for _ in range(count)]

    def start(self, *replicas: Replica) -> None:
        with self.log.open("ab") as log:
            for replica in replicas:
                replica.start(log)

    def await_up(self, *replicas: Replica) -> None:
        end = time.monotonic() + START_S
        for replica in replicas:
            while not replica.answers():
                assert replica.running.poll() is None
                assert time.monotonic() < end, self.log.read_text()
                time.sleep(0.1)

    def holders(self) -> list[Replica]:
        """Those that hold a lease."""
        with place_of(self.settings.database_url).snapshot() as tx:
            names = [row["holder"] for row in tx.all(SELECT_HOLDERS, {})]
        pids = {int(name.split(":")[1]) for name in names}
        return [one for one in self.replicas if one.process is not None and one.process.pid in pids]

    def stop(self) -> None:
        """Tell all of them to end, and see that they do."""
        running = [replica.running for replica in self.replicas]
        for process in running:
            process.terminate()
        assert [process.wait(STOP_S) for process in running] == [0] * len(running), self.log.read_text()


@contextlib.contextmanager
def open_fleet(folder: Path, chain: ChainOfRun, *, count: int = 3, **settings: str) -> Iterator[Fleet]:
    """So many replicas on a new database of the server that `databases` knows, all of them up."""
    url = databases.server_url(f"fleet_{os.getpid()}_{time.monotonic_ns()}")
    databases.make(url)
    shared = {
        "SPAWN_DATABASE_URL": url,
        "SPAWN_SECRET_KEY": "5a" * 32,
        "SPAWN_PUBLIC_URL": f"http://{AUTHORITY}",
        "SPAWN_SIMULATED_PATH": str(folder / "cloud.db"),
        **{f"SPAWN_{name.upper()}": value for name, value in {**chain.settings, **settings}.items()},
    }
    fleet = Fleet(folder, chain, shared, count)
    try:
        fleet.start(*fleet.replicas)
        fleet.await_up(*fleet.replicas)
        yield fleet
    finally:
        for replica in fleet.replicas:
            replica.end()
