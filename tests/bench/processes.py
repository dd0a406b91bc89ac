"""Servers under test as processes of their own, on a core of their own, with their CPU time at hand. Linux only.

Invariant: a server shares no core with the load that is put on it, where the machine has two.
"""

import ctypes
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.engines import ROOT

START_TIMEOUT_S = 60


class Process:
    """A running server and the port it listens on."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.port = port
        self.authority = f"127.0.0.1:{port}"
        self.url = f"http://{self.authority}"
        clock = ctypes.c_int()
        failed = ctypes.CDLL(None).clock_getcpuclockid(process.pid, ctypes.byref(clock))
        if failed:
            raise OSError(failed, os.strerror(failed))
        self._clock = clock.value

    def cpu_s(self) -> float:
        """User and system time of all its threads so far, to the nanosecond (`clock_getcpuclockid(3)`)."""
        return time.clock_gettime_ns(self._clock) / 1e9


def cores() -> tuple[int, int]:
    """The core for servers and the core for everything else; the same one when there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(
    arguments: Sequence[str], port: int, *, ready: str, core: int, log: Path, environ: Mapping[str, str]
) -> Iterator[Process]:
    """Run `python -m <arguments>` on `core` until the block ends; enter it when `ready` answers at all."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SPAWN_")}
    with log.open("wb") as output, _pinned(core):
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env=inherited | dict(environ),
            stdout=output,
            stderr=output,
        )
    try:
        server = Process(process, port)
        _wait_until_up(f"{server.url}{ready}", process, log)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=15)


@contextmanager
def _pinned(core: int) -> Iterator[None]:
    """A child inherits the cores of its parent at the moment it starts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _wait_until_up(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end and process.poll() is None:
        try:
            httpx.get(url, timeout=5)
        except httpx.TransportError:
            # Not listening yet; the loop is bounded by the timeout above.
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"{url} did not come up:\n{log.read_text()}")
