"""`make bench-burn`: a million servers of which 100,000 come due at once, settled while the API answers signed reads.

It measures; it never passes or fails on a time. It fails when a call is answered otherwise than it should be, when a
server stays due, or when verifying finds a fault in the books afterwards.
"""

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from spawn_ledger.verify import verify

from spawn.store.snapshot import snapshot
from tests.bench import burn_stage, load, tenants
from tests.bench.burn_ways import Idle, Way, measure
from tests.bench.processes import Process, cores, priority, running
from tests.bench.report import percentile, table
from tests.bench.result import Machine, machine
from tests.bench.subjects import requests
from tests.ports import free_port

_OUTPUT: Final = Path("bench-burn-result.json")
_ROUND_S: Final = 1.0
_POLL_S: Final = 0.02
_BURN_TIMEOUT_S: Final = 300
_WARM_ROUNDS: Final = 2


class Reads(msgspec.Struct, frozen=True, kw_only=True):
    """Signed reads, one latency each."""

    answered: int
    per_s: float
    p50_ms: float
    p99_ms: float
    worst_ms: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One run. `burn_s` is from the second in which the servers came due until none was, with the API under load."""

    machine: Machine
    servers: int
    due: int
    ways: list[Way]
    idle: Idle
    burn_s: float
    before: Reads
    meanwhile: Reads


class _Watch:
    """Looks at the books from outside until nothing is due any more."""

    def __init__(self, path: Path, due_at: int) -> None:
        self.done_at: float | None = None
        self._path = path
        self._due_at = due_at
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        end = self._due_at + _BURN_TIMEOUT_S
        while time.time() < end:
            if time.time() > self._due_at and burn_stage.count_due(self._path, self._due_at) == 0:
                self.done_at = time.time()
                return
            time.sleep(_POLL_S)


def main(arguments: Sequence[str]) -> None:
    options = _options(arguments)
    if not sys.platform.startswith("linux"):
        sys.exit("The benchmark pins processes to cores, which only Linux offers.")
    server_core, load_core = cores()
    os.sched_setaffinity(0, {load_core})
    with (
        priority(options.nice),
        tempfile.TemporaryDirectory(prefix="spawn-burn-", dir=options.folder) as name,
    ):
        folder = Path(name)
        ways, idle = _measure_ways(folder, options)
        burn_s, before, meanwhile = _measure_service(folder, options, server_core)
    result = Result(
        machine=machine(server_core, load_core),
        servers=options.servers,
        due=options.due,
        ways=ways,
        idle=idle,
        burn_s=burn_s,
        before=before,
        meanwhile=meanwhile,
    )
    print(_text(result))
    if options.output is not None:
        options.output.write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
        print(f"written to {options.output}")


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.burn", description=__doc__)
    parser.add_argument("--servers", type=int, default=1_000_000, help="[%(default)s]")
    parser.add_argument("--due", type=int, default=100_000, help="of them, at once [%(default)s]")
    parser.add_argument("--sample", type=int, default=5_000, help="servers for the slow ways [%(default)s]")
    parser.add_argument("--ticks", type=int, default=3_600, help="with nothing due [%(default)s]")
    parser.add_argument("--connections", type=int, default=8, help="[%(default)s]")
    parser.add_argument(
        "--rate", type=int, default=1_000, help="signed reads made for each second [%(default)s]"
    )
    parser.add_argument(
        "--seconds", type=int, default=10, help="of load before the burn, at least [%(default)s]"
    )
    parser.add_argument("--nice", type=int, default=0, help="priority of all processes [%(default)s]")
    parser.add_argument("--folder", type=Path, help="where the databases go [temporary files]")
    parser.add_argument("--output", type=Path, default=_OUTPUT, help="[%(default)s]")
    return parser.parse_args(arguments)


def _measure_ways(folder: Path, options: argparse.Namespace) -> tuple[list[Way], Idle]:
    template, now = folder / "template.db", int(time.time())
    start = time.perf_counter()
    burn_stage.fill(template, servers=options.servers, due=options.due, due_at=now)
    _say(f"{options.servers:,} servers made in {time.perf_counter() - start:.0f} s")
    found = measure(template, now=now, due=options.due, sample=options.sample, ticks=options.ticks)
    template.unlink()
    return found


def _measure_service(folder: Path, options: argparse.Namespace, core: int) -> tuple[float, Reads, Reads]:
    """How long the service takes for all that is due while it answers, and how it answers before and meanwhile."""
    port, path = free_port(), folder / "spawn.db"
    environ = tenants.settings(folder, port) | {
        "SPAWN_BURN_EVERY_S": "1",
        # What is only in the books would be missed in the cloud.
        "SPAWN_RECONCILE_EVERY_S": "86400",
    }
    start = time.time()
    burn_stage.fill(path, servers=options.servers, due=options.due, due_at=int(start))
    due_at = int(time.time() + (time.time() - start) / 4 + 15 + options.seconds)
    burn_stage.move_due(path, to=due_at)
    command, log = (sys.executable, "-m", "tests.bench.ours", "instant"), folder / "log"
    with running(command, port, ready="/health", core=core, log=log, environ=environ) as server:
        tenants.move_in(server)
        if time.time() + options.seconds > due_at:
            sys.exit(
                "The service came up too late: its servers are due already. Try again on a quieter machine."
            )
        _say(f"up; servers come due in {due_at - time.time():.0f} s")
        before, meanwhile, done_at = _load(server, path, due_at, options)
    told = log.read_text()
    if "Traceback" in told or " ERROR " in told:
        sys.exit(f"the service's log has errors:\n{told[-5000:]}")
    with snapshot(path) as tx:
        if faults := verify(tx):
            sys.exit(f"the books are wrong: {faults[:10]}")
    return done_at - due_at, before, meanwhile


def _load(
    server: Process, path: Path, due_at: int, options: argparse.Namespace
) -> tuple[Reads, Reads, float]:
    """Signed reads without a pause: some to warm up, some before the burn, and all through it."""
    make = requests("signed", server)
    for _ in range(_WARM_ROUNDS):
        _round(server, make(options.rate), options)
    before: list[load.Load] = []
    while time.time() + 2 * _ROUND_S < due_at:
        before.append(_round(server, make(options.rate), options))
    time.sleep(max(0.0, due_at - time.time()))
    watch, meanwhile = _Watch(path, due_at), list[load.Load]()
    while watch.done_at is None and time.time() < due_at + _BURN_TIMEOUT_S:
        meanwhile.append(_round(server, make(options.rate), options))
    if watch.done_at is None:
        sys.exit(f"{burn_stage.count_due(path, due_at)} servers are still due after {_BURN_TIMEOUT_S} s")
    return _reads(before), _reads(meanwhile), watch.done_at


def _round(server: Process, ready: list[bytes], options: argparse.Namespace) -> load.Load:
    return load.run([server.port], ready, connections=options.connections, status=200, seconds=_ROUND_S)


def _reads(rounds: list[load.Load]) -> Reads:
    latencies_s = [latency_s for one in rounds for latency_s in one.latencies_s]
    return Reads(
        answered=len(latencies_s),
        per_s=len(latencies_s) / sum(one.wall_s for one in rounds),
        p50_ms=percentile(latencies_s, 0.50) * 1e3,
        p99_ms=percentile(latencies_s, 0.99) * 1e3,
        worst_ms=max(latencies_s) * 1e3,
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _text(result: Result) -> str:
    ways = [
        (way.name, f"{way.wall_s:.2f}", f"{way.cpu_s:.2f}", f"{way.worst_ms:.0f}", f"{way.settled:,}")
        for way in result.ways
    ]
    reads = [
        (name, f"{one.per_s:,.0f}", f"{one.p50_ms:.1f}", f"{one.p99_ms:.1f}", f"{one.worst_ms:.0f}")
        for name, one in (("before the burn", result.before), ("meanwhile", result.meanwhile))
    ]
    head = (f"{result.due:,} due of {result.servers:,}", "s", "CPU s", "worst transaction ms", "settled")
    idle = result.idle
    return "\n\n".join(
        (
            table(head, ways),
            table(("signed reads", "per s", "p50 ms", "p99 ms", "worst ms"), reads),
            f"In the service, answering meanwhile: {result.burn_s:.2f} s from the second in which they came due.\n"
            f"{idle.ticks:,} ticks with nothing due: {idle.wall_s:.2f} s, {idle.cpu_s:.2f} s of CPU.",
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
