"""One round of one subject: fresh requests, a warm-up, then as many answers as fit into the time of a round."""

import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from tests.bench import load, profiling
from tests.bench.processes import Process
from tests.bench.report import Sample, sample
from tests.bench.subjects import Subject, look, requests

_SPARE: Final = 1.5
"""How many more requests are made than the warm-up says will be sent: it ran on a colder server."""

_PROFILE_TIMEOUT_S: Final = 20


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How long a round is: `seconds`, or `requests` where they come to their end first."""

    connections: int
    warmup: int
    requests: int
    seconds: float


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """What a round saw; `threads_us` is CPU time a request by the name of the server's thread.

    `answered` counts everything that was sent, the warm-up included.
    """

    sample: Sample
    answered: int
    threads_us: dict[str, float]


def run(subject: Subject, server: Process, limits: Limits, *, ours: bool, rate: float = 0) -> Round:
    """Measure once. `rate` is what earlier rounds saw. Raises UnexpectedAnswer."""
    make = requests(subject.kind, server)
    look(subject, server, make(1)[0])
    warm = _send(
        subject, server, make(limits.warmup), msgspec.structs.replace(limits, seconds=limits.seconds / 4)
    )
    rate = max(rate, len(warm.latencies_s) / warm.wall_s)
    ready = make(min(limits.requests, int(rate * limits.seconds * _SPARE) + limits.connections))
    if ours:
        server.signal(signal.SIGURG)  # its threads show their names
    threads, cpu_s = server.threads_cpu_s(), server.cpu_s()
    seen = _send(subject, server, ready, limits)
    cpu_s, after = server.cpu_s() - cpu_s, server.threads_cpu_s()
    count = len(seen.latencies_s)
    return Round(
        sample=sample(cpu_s=cpu_s, wall_s=seen.wall_s, latencies_s=seen.latencies_s, load_cpu_s=seen.cpu_s),
        answered=1 + len(warm.latencies_s) + count,
        threads_us=_per_request(threads, after, count),
    )


def profiled(
    subject: Subject, server: Process, limits: Limits, *, folder: Path
) -> dict[str, profiling.Profile]:
    """One more round of ours while it profiles itself into `folder`, by thread. Raises UnexpectedAnswer."""
    paths = [folder / f"{thread}.profile" for thread in ("event-loop", "writer")]
    for path in paths:
        path.unlink(missing_ok=True)
    ready = requests(subject.kind, server)(limits.warmup * 10)
    server.signal(signal.SIGUSR1)
    seen = _send(subject, server, ready, limits)
    server.signal(signal.SIGUSR2)
    end = time.monotonic() + _PROFILE_TIMEOUT_S
    while not all(path.exists() for path in paths):
        if time.monotonic() > end:
            raise TimeoutError(f"{subject.server} wrote no profile within {_PROFILE_TIMEOUT_S} seconds")
        time.sleep(0.05)
    return {path.stem: profiling.read(path, len(seen.latencies_s)) for path in paths}


def _per_request(before: Mapping[str, float], after: Mapping[str, float], count: int) -> dict[str, float]:
    return {name: (after[name] - before.get(name, 0)) / count * 1e6 for name in after}


def _send(subject: Subject, server: Process, ready: list[bytes], limits: Limits) -> load.Load:
    return load.run(
        [server.port],
        ready,
        connections=limits.connections,
        status=subject.status,
        seconds=limits.seconds,
    )
