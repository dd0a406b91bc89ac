"""`make bench`: our paid read beside the official middleware, and the ledger beside plain SQLite, in one run.

What counts is CPU time per request and its ratio to the peer's. It measures; it never passes or fails on a time. It
fails when a server answers a single request otherwise than it should.
"""

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from tests.bench import ledger, load
from tests.bench.processes import Process, cores, free_port, running
from tests.bench.report import Line, Sample, lines_table, medians, ratios, sample
from tests.bench.subjects import Subject, environ, mint, move_in, subjects

_PACKAGES = ("coincurve", "fastapi", "litestar", "uvicorn", "uvloop", "x402")


def main(arguments: Sequence[str]) -> None:
    options = _options(arguments)
    if not sys.platform.startswith("linux"):
        sys.exit("The benchmark pins processes to cores and reads their CPU clocks, which only Linux offers.")
    server_core, load_core = cores()
    os.sched_setaffinity(0, {load_core})
    with tempfile.TemporaryDirectory(prefix="spawn-bench-", dir=options.folder) as name:
        lines = _measure_http(options, Path(name), server_core)
        _say("ledger")
        ways = ledger.measure(Path(name), transfers=options.transfers, rounds=options.rounds)
    print(f"\n{lines_table(lines)}\n\n{ledger.ways_table(ways)}\n")
    print(
        f"Medians of {options.rounds} rounds of {options.requests} requests over {options.connections} "
        f"connections, servers on core {server_core}, load on core {load_core}.\n"
        "The peer verifies signatures in process and its chain answers at once; it books nothing. "
        "Ours commits nonce, fee\nand answer to disk before it answers."
    )
    result = _result(options, lines, ways, one_core=server_core == load_core)
    options.output.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    print(f"written to {options.output}")


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--requests", type=int, default=1500, help="per subject and round [%(default)s]")
    parser.add_argument("--warmup", type=int, default=200, help="requests before each round [%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="[%(default)s]")
    parser.add_argument("--connections", type=int, default=16, help="[%(default)s]")
    parser.add_argument("--transfers", type=int, default=6400, help="in the ledger, per round [%(default)s]")
    parser.add_argument(
        "--folder", type=Path, help="where the databases go, on a local disk [temporary files]"
    )
    parser.add_argument("--output", type=Path, default=Path("bench-result.json"), help="[%(default)s]")
    return parser.parse_args(arguments)


def _measure_http(options: argparse.Namespace, folder: Path, core: int) -> list[Line]:
    with ExitStack() as stack:

        def start(arguments: list[str], port: int, ready: str, settings: dict[str, str]) -> Process:
            log = folder / f"{port}.log"
            return stack.enter_context(
                running(arguments, port, ready=ready, core=core, log=log, environ=settings)
            )

        port, peer_port = free_port(), free_port()
        settings = environ(folder, port)
        wallets = mint(settings)
        spawn = start(["spawn", "dev"], port, "/health", settings)
        body = folder / "body.json"
        body.write_bytes(move_in(spawn, wallets))
        peer = start(["tests.bench.peer", str(peer_port), str(body)], peer_port, "/", {})
        everything = subjects(spawn, peer, wallets)
        rounds: dict[str, list[Sample]] = {subject.name: [] for subject in everything}
        for number in range(options.rounds):
            for subject in everything:
                _say(f"round {number + 1} of {options.rounds}: {subject.name}")
                rounds[subject.name].append(_round(subject, options))
    return [Line(subject=s.name, rounds=tuple(rounds[s.name]), peer=s.peer) for s in everything]


def _round(subject: Subject, options: argparse.Namespace) -> Sample:
    requests = subject.requests(options.warmup + options.requests)

    async def work() -> Sample:
        async def send(part: list[bytes]) -> load.Load:
            return await load.run(
                subject.server.port, part, connections=options.connections, status=subject.status
            )

        await send(requests[: options.warmup])
        before = subject.server.cpu_s()
        seen = await send(requests[options.warmup :])
        cpu_s = subject.server.cpu_s() - before
        return sample(cpu_s=cpu_s, wall_s=seen.wall_s, latencies_s=seen.latencies_s)

    return uvloop.run(work())


def _result(
    options: argparse.Namespace, lines: list[Line], ways: list[ledger.Way], *, one_core: bool
) -> dict[str, Any]:
    return {
        "machine": {
            "cores": os.cpu_count(),
            "server_and_load_share_a_core": one_core,
            "python": platform.python_version(),
        },
        "versions": {package: version(package) for package in _PACKAGES},
        "options": {name: getattr(options, name) for name in ("requests", "warmup", "rounds", "connections")},
        "http": [
            {"subject": line.subject, "median": medians(line.rounds), "rounds": line.rounds} for line in lines
        ],
        "peer_cpu_to_ours": ratios(lines),
        "ledger": ways,
    }


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
