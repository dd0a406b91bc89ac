"""Servers under test as processes of their own, on a core of their own, with their CPU time at hand. Linux only.

Invariant: a server shares no core with the load that is put on it, where the machine has two.
"""

import ctypes
import os
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Final

import httpx

from tests.engines import ROOT

START_TIMEOUT_S: Final = 60
_STOP_TIMEOUT_S: Final = 15
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


class Process:
    """A running server and the port it listens on."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.port = port
        self.authority = f"127.0.0.1:{port}"
        self.url = f"http://{self.authority}"
        self._pid = process.pid
        clock = ctypes.c_int()
        failed = ctypes.CDLL(None).clock_getcpuclockid(process.pid, ctypes.byref(clock))
        if failed:
            raise OSError(failed, os.strerror(failed))
        self._clock = clock.value

    def cpu_s(self) -> float:
        """User and system time of all its threads so far, to the nanosecond (`clock_getcpuclockid(3)`)."""
        return time.clock_gettime_ns(self._clock) / 1e9

    def threads_cpu_s(self) -> dict[str, float]:
        """The same by the name of the thread, to a clock tick (`proc(5)`: utime and stime)."""
        seen: defaultdict[str, float] = defaultdict(float)
        for task in Path(f"/proc/{self._pid}/task").iterdir():
            try:
                text = (task / "stat").read_text(encoding="utf-8")
            except FileNotFoundError:
                continue  # it ended just now
            name, _, rest = text.partition("(")[2].rpartition(")")
            fields = rest.split()
            seen[name] += (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
        return seen

    def resident_mib(self) -> float:
        """The memory it holds now (`proc(5)`: VmRSS)."""
        lines = Path(f"/proc/{self._pid}/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))

    def signal(self, number: signal.Signals) -> None:
        os.kill(self._pid, number)


def cores() -> tuple[int, int]:
    """The core for servers and the core for everything else; the same one when there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


@contextmanager
def running(
    command: Sequence[str],
    port: int,
    *,
    ready: str,
    core: int | None,
    log: Path,
    environ: Mapping[str, str],
) -> Iterator[Process]:
    """Run `command` on `core` (None: on any) until the block ends; enter it when `ready` answers at all."""
    with log.open("wb") as output, nullcontext() if core is None else pinned(core):
        process = subprocess.Popen(
            command, cwd=ROOT, env=inherited() | dict(environ), stdout=output, stderr=output
        )
    try:
        server = Process(process, port)
        _wait_until_up(f"{server.url}{ready}", process, log)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=_STOP_TIMEOUT_S)


def inherited() -> dict[str, str]:
    """Our environment without settings of spawn, which would change it, and proxies, which cannot see loopback."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SPAWN_") and not name.lower().endswith("_proxy")
    }


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """A child inherits the cores of its parent at the moment it starts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def priority(nice: int) -> Iterator[None]:
    """This process and its children at this niceness. Raises PermissionError below 0 without CAP_SYS_NICE.

    Linux may group processes by session, and then niceness decides only among the group: it has one of its own
    (sched(7), "The autogroup feature").
    """
    os.nice(nice)
    group = Path("/proc/self/autogroup")
    if nice == 0 or not group.exists():
        yield
        return
    group.write_text(str(nice), encoding="ascii")
    try:
        yield
    finally:
        group.write_text("0", encoding="ascii")  # the shell that called us belongs to it, too


def _wait_until_up(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    with httpx.Client(trust_env=False, timeout=5) as http:
        while time.monotonic() < end and process.poll() is None:
            try:
                http.get(url)
            except httpx.TransportError:
                # Not listening yet; the loop is bounded by the timeout above.
                time.sleep(0.1)
            else:
                return
    raise RuntimeError(f"{url} did not come up:\n{log.read_text()}")
