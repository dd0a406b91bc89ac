"""What a form of the agent costs its owner: how soon it starts, and what it holds and burns while nothing is rented.

Invariant: an agent is measured at its real work: registered with a running service, connected, with its engine and its
canaries behind it, and every process of it counted.
"""

import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import psutil

from tests.e2e.lending import Lent, lending
from tests.hostagent.docker_engine import Engine
from tests.hostagent.namespaces import inside

STARTS: Final = 5
CHECKS: Final = 3
SETTLE_S: Final = 15.0
"""What the daemon does once when it starts is over by then."""

Pids = Callable[[Lent], Iterable[int]]


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds on the wall, and of processors, by the program and the programs it called."""

    wall_s: float
    cpu_s: float


class Idle(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of memory: resident, and its fair share of what processes have in common. `cpu_percent` is of a core."""

    resident: int
    fair: int
    cpu_percent: float
    watched_s: float


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    check: Taken
    idle: Idle


def timed(command: Sequence[str], times: int, statuses: tuple[int, ...] = (0,)) -> Taken:
    """The fastest of some runs, and the cheapest. Raises AssertionError where one ends with another status."""
    taken = []
    for _ in range(times):
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180, check=False
        )
        wall_s, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode in statuses, done.stdout + done.stderr
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        taken.append(Taken(wall_s=wall_s, cpu_s=cpu_s))
    return Taken(wall_s=min(one.wall_s for one in taken), cpu_s=min(one.cpu_s for one in taken))


def at_work(docker: Engine, folder: Path, program: Sequence[str], pids: Pids, watch_s: float) -> Measured:
    """Lend this machine with that program in an empty folder, and look at it."""
    with inside(docker.network), lending(docker, folder, program=tuple(program)) as lent:
        lent.agent.wait(lambda: lent.status()["tier"] != "none")
        # Debian's own runc may be older than its fix: then a check ends with 1, and all of it was looked at.
        check = timed([*program, "check", "--config", str(lent.config)], CHECKS, (0, 1))
        time.sleep(SETTLE_S)
        return Measured(check=check, idle=_watch(list(pids(lent)), watch_s))


def own_pids(lent: Lent) -> list[int]:
    """The program's own process and those below it."""
    assert lent.agent.process is not None
    first = psutil.Process(lent.agent.process.pid)
    return [first.pid, *(child.pid for child in first.children(recursive=True))]


def _watch(pids: list[int], watch_s: float) -> Idle:
    assert pids, "the agent has no process"
    processes = [psutil.Process(pid) for pid in pids]
    begun, before = time.monotonic(), _cpu_s(processes)
    time.sleep(watch_s)
    passed_s, burnt_s = time.monotonic() - begun, _cpu_s(processes) - before
    memory = [process.memory_full_info() for process in processes]
    return Idle(
        resident=sum(one.rss for one in memory),
        fair=sum(one.pss for one in memory),
        cpu_percent=100 * burnt_s / passed_s,
        watched_s=passed_s,
    )


def _cpu_s(processes: list[psutil.Process]) -> float:
    """Also of the short programs that it calls, once they have ended."""
    return sum(sum(process.cpu_times()[:4]) for process in processes)


def apart(program: Path) -> tuple[str, ...]:
    """A call of this program that finds nothing of our tree, whatever this process's own Python was told."""
    unset = [word for name in os.environ if name.startswith("PYTHON") for word in ("-u", name)]
    return ("env", *unset, str(program))
