"""`make soak`: a million mixed calls to a real `spawn serve`; its memory must stay flat, and its books be right.

It fails when a call is answered otherwise than it should be, when memory grows by more than `GROWTH_MAX_MIB` after the
warm-up, or when `spawn ledger verify` finds a fault. Times are only told.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import linear_regression, median
from threading import Event
from typing import Final

from spawn.store.migrate import migrate
from tests.bench import load, tenants
from tests.bench.processes import Process, cores, inherited, running
from tests.bench.soak_mix import Batch, Mix
from tests.ports import free_port

GROWTH_MAX_MIB: Final = 16.0
"""A leak of 25 bytes a call would exceed it in a million."""
WARM_UP_CALLS: Final = 200_000
"""Until then the database may fill its cache (`CACHE_KIB` of the store): a call leaves about a kilobyte."""
_MIB: Final = 1024 * 1024

Sample = tuple[int, float]
"""Calls so far, and the memory then in MiB."""


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000, help="[%(default)s]")
    parser.add_argument(
        "--round", type=int, default=4000, help="requests made and sent together [%(default)s]"
    )
    parser.add_argument("--connections", type=int, default=8, help="for each kind of request [%(default)s]")
    parser.add_argument(
        "--folder", type=Path, help="where the databases go: about 2 GB a million [temporary files]"
    )
    options = parser.parse_args(arguments)
    server_core, load_core = cores()
    os.sched_setaffinity(0, {load_core})
    with tempfile.TemporaryDirectory(prefix="spawn-soak-", dir=options.folder) as name:
        folder, port = Path(name), free_port()
        environ = tenants.settings(folder, port)
        migrate(environ["SPAWN_DATABASE_URL"])
        tenants.mint(environ)
        command, log = (sys.executable, "-m", "spawn", "serve"), folder / "log"
        asked = time.perf_counter()
        with running(command, port, ready="/health", core=server_core, log=log, environ=environ) as server:
            print(f"up after {time.perf_counter() - asked:.1f} s (the goal is 1.5)", flush=True)
            tenants.move_in(server)
            samples = soak(server, options)
            _verify(environ)
        told = log.read_text()
    if "Traceback" in told or " ERROR " in told:
        sys.exit(f"the service's log has errors:\n{told[-5000:]}")
    judge(samples)


def soak(server: Process, options: argparse.Namespace) -> list[Sample]:
    """Send the rounds, while somebody rents servers, and look at the memory after each. Raises UnexpectedAnswer."""
    mix, sent, samples, done = Mix(server), 0, list[Sample](), Event()
    start, tell_at = time.perf_counter(), 0
    with ThreadPoolExecutor(1) as pool:
        renting = pool.submit(mix.rent_until, done)
        try:
            while sent < options.requests and not renting.done():
                sent += _send(server, mix.round(options.round), options.connections)
                samples.append((sent, server.resident_mib()))
                if sent >= tell_at:
                    rate = sent / (time.perf_counter() - start)
                    print(f"{sent:>9,} calls, {rate:,.0f}/s, {samples[-1][1]:.1f} MiB", flush=True)
                    tell_at += options.requests // 20
        finally:
            done.set()
    print(f"and {renting.result():,} calls that rented and destroyed servers", flush=True)
    return samples


def _send(server: Process, batches: list[Batch], connections: int) -> int:
    """Every kind at the same time, but the last, which repeats what was sent before."""

    def send(batch: Batch) -> int:
        load.run([server.port], batch.requests, connections=connections, status=batch.status)
        return len(batch.requests)

    *together, last = batches
    with ThreadPoolExecutor(len(together)) as pool:
        return sum(pool.map(send, together)) + send(last)


def _verify(environ: dict[str, str]) -> None:
    """Exits when the books are wrong, with what is."""
    command = (sys.executable, "-m", "spawn", "ledger", "verify")
    done = subprocess.run(command, env=inherited() | environ, capture_output=True, text=True, check=False)
    print(done.stdout.strip(), flush=True)
    if done.returncode != 0:
        sys.exit(f"the books are wrong:\n{done.stdout}{done.stderr}")


def growth_mib(samples: Sequence[Sample]) -> tuple[float, float]:
    """How much memory grew after the warm-up, and by how many bytes a call, by the line through all samples."""
    warm = [(calls, mib) for calls, mib in samples if calls > WARM_UP_CALLS]
    edge = max(1, len(warm) // 10)
    grown = median(mib for _, mib in warm[-edge:]) - median(mib for _, mib in warm[:edge])
    slope, _ = linear_regression([calls for calls, _ in warm], [mib for _, mib in warm])
    return grown, slope * _MIB


def judge(samples: Sequence[Sample]) -> None:
    """Tell what became of the memory; exits when it grew too much."""
    (_, first), (calls, last) = samples[0], samples[-1]
    print(f"memory: {first:.1f} MiB after the first round, {last:.1f} at the end")
    if calls < 2 * WARM_UP_CALLS:
        print(f"not judged: until {WARM_UP_CALLS:,} calls the database's cache is still filling")
        return
    grown, slope = growth_mib(samples)
    print(f"after the warm-up {grown:+.1f} MiB, {slope:+.1f} bytes a call")
    if grown > GROWTH_MAX_MIB:
        sys.exit(f"memory grew by {grown:.1f} MiB after the warm-up, more than {GROWTH_MAX_MIB:.0f}")


if __name__ == "__main__":
    main(sys.argv[1:])
