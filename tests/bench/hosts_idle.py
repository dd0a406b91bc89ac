"""What two thousand idle hosts cost one service process: memory of a socket, and CPU of a heartbeat.

Both from `/proc`, of the service's process alone, beside a bare `websockets` server with as many sockets in the same
run. A heartbeat's CPU is what the process took while they came less what it took in silence, by their count; what it
takes in silence is told by itself.
"""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Final

import msgspec
from spawn_schemas import link

from tests.bench import hosts_floor
from tests.bench.hosts_stage import Stage, started
from tests.bench.processes import Process, inherited, pinned
from tests.engines import ROOT
from tests.ports import free_port

FAST_S: Final = 2.0
"""How often each host speaks where a heartbeat is measured: a thousand a second, ours to take at most."""
IDLE_BEAT_S: Final = 30.0
_SETTLE_S: Final = 3.0
FLEETS: Final = 2
"""Processes that hold the hosts' ends."""


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """A window: how many heartbeats came, and what the server's process took."""

    beats: int
    cpu_s: float
    wall_s: float


class Idle(msgspec.Struct, frozen=True, kw_only=True):
    """One server with all its hosts. `silent_us_per_s` is CPU in silence; `lived` is as many as hosts really say."""

    name: str
    sockets: int
    kib_per_socket: float
    login_us: float
    silent_us_per_s: float
    beat_us: float
    lived: Heard | None = None


class Fleet:
    """The processes that hold the hosts' ends, and their log."""

    def __init__(self, processes: Sequence["subprocess.Popen[str]"], log: Path) -> None:
        self._processes = processes
        self._log = log

    def begin(self) -> None:
        """Return when all are connected. Raises RuntimeError."""
        for process in self._processes:
            self._hear(process)

    def beat(self, server: Process, every_s: float, seconds: float, *, whole: bool = False) -> Heard:
        """Let every host speak so often for so long."""
        before_s, begin = server.cpu_s(), time.perf_counter()
        for process in self._processes:
            _tell(process, f"beat {every_s} {seconds}{' whole' if whole else ''}")
        beats = sum(int(self._hear(process)) for process in self._processes)
        return Heard(beats=beats, cpu_s=server.cpu_s() - before_s, wall_s=time.perf_counter() - begin)

    def _hear(self, process: "subprocess.Popen[str]") -> str:
        """Its next line. Raises RuntimeError when it ended; it bounds every wait of its own."""
        if process.stdout is None:
            raise RuntimeError("a fleet has a standard output")
        line = process.stdout.readline().strip()
        if not line:
            status, told = process.wait(timeout=30), self._log.read_text(encoding="utf-8")
            raise RuntimeError(f"a fleet ended with {status}:\n{told[-3000:]}")
        return line


@contextmanager
def _fleet(way: str, url: str, count: int, core: int, log: Path) -> Iterator[Fleet]:
    each = count // FLEETS
    with ExitStack() as stack:
        output = stack.enter_context(log.open("wb"))
        processes = []
        for number in range(FLEETS):
            command = (
                sys.executable,
                "-m",
                "tests.bench.hosts_fleet",
                way,
                url,
                str(number * each),
                str(each),
            )
            with pinned(core):
                process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=inherited(),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=output,
                    text=True,
                )
            stack.callback(_end, process)
            processes.append(process)
        fleet = Fleet(processes, log)
        fleet.begin()
        yield fleet


def _tell(process: "subprocess.Popen[str]", line: str) -> None:
    if process.stdin is None:
        raise RuntimeError("a fleet has a standard input")
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def _end(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    process.communicate(timeout=15)


class _Subject:
    """A server with its hosts connected, and what connecting took."""

    def __init__(
        self, name: str, server: Process, fleet: Fleet, *, sockets: int, kib: float, us: float
    ) -> None:
        self.name = name
        self.server = server
        self.fleet = fleet
        self._sockets = sockets
        self._kib = kib
        self._login_us = us

    def told(self, silent: Sequence[Heard], fast: Sequence[Heard], lived: Heard | None) -> Idle:
        silent_s = median(one.cpu_s / one.wall_s for one in silent)
        return Idle(
            name=self.name,
            sockets=self._sockets,
            kib_per_socket=self._kib / self._sockets,
            login_us=self._login_us / self._sockets,
            silent_us_per_s=silent_s * 1e6,
            beat_us=median((one.cpu_s - silent_s * one.wall_s) / one.beats for one in fast) * 1e6,
            lived=lived,
        )


def measure(folder: Path, *, sockets: int, rounds: int, seconds: float, cores: tuple[int, int]) -> list[Idle]:
    """Ours and the floor; rounds of both take turns."""
    with ExitStack() as stack:
        stage = Stage(folder / "idle", idle=sockets)
        service = stack.enter_context(stage.serving(cores[0]))
        ours = _connect(stack, "ours", stage.link_url + link.LINK_PATH, service, sockets, folder, cores[1])
        port = free_port()
        command = (sys.executable, "-m", hosts_floor.__name__, str(port))
        bare = stack.enter_context(started(command, port, log=folder / "floor.log", core=cores[0]))
        floor = _connect(stack, "floor", f"ws://127.0.0.1:{port}/", bare, sockets, folder, cores[1])
        silent: dict[str, list[Heard]] = {"ours": [], "floor": []}
        fast: dict[str, list[Heard]] = {"ours": [], "floor": []}
        for _ in range(rounds):
            for subject in (ours, floor):
                silent[subject.name].append(_silence(subject.server, seconds))
                fast[subject.name].append(subject.fleet.beat(subject.server, FAST_S, seconds))
        lived = ours.fleet.beat(ours.server, IDLE_BEAT_S, 2 * IDLE_BEAT_S, whole=True)
        return [
            ours.told(silent["ours"], fast["ours"], lived),
            floor.told(silent["floor"], fast["floor"], None),
        ]


def _connect(
    stack: ExitStack, way: str, url: str, server: Process, sockets: int, folder: Path, core: int
) -> _Subject:
    time.sleep(_SETTLE_S)
    mib, cpu_s = server.resident_mib(), server.cpu_s()
    fleet = stack.enter_context(_fleet(way, url, sockets, core, folder / f"fleet-{way}.log"))
    cpu_s = server.cpu_s() - cpu_s
    # One heartbeat of each: what a socket needs to be spoken on is its memory, too.
    fleet.beat(server, FAST_S, FAST_S)
    time.sleep(_SETTLE_S)
    kib = (server.resident_mib() - mib) * 1024
    return _Subject(way, server, fleet, sockets=sockets, kib=kib, us=cpu_s * 1e6)


def _silence(server: Process, seconds: float) -> Heard:
    before_s, begin = server.cpu_s(), time.perf_counter()
    time.sleep(seconds)
    return Heard(beats=0, cpu_s=server.cpu_s() - before_s, wall_s=time.perf_counter() - begin)
