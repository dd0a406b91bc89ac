"""`make bench`: our paid read beside the official middlewares, and the ledger beside plain SQLite, in one run.

It measures; it never passes or fails on a time. It fails when a server answers a single request otherwise than it
should. Wall figures of a shared machine are noise; trust CPU time per request, and ratios within one run.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec

from tests.bench import ledger, profiling, rounds, slow_disk, tenants
from tests.bench.goals import verdicts, verdicts_table
from tests.bench.processes import cores, priority
from tests.bench.report import lines_table, threads_table
from tests.bench.result import Result, encode, line, machine, versions
from tests.bench.servers import OURS, Servers
from tests.bench.subjects import SUBJECTS, Subject

_NODE_SERVERS: Final = ("express-", "hono-")
_LEDGER: Final = "ledger"
_SLOW_LEDGER: Final = "delayed-ledger"
_OUTPUT: Final = Path("bench-result.json")
_V8_WARM_UP: Final = 2
_WARM_UP: Final = 0.25
"""How many rounds a warm-up lasts."""
_SLOW_SHARE: Final = 8
"""How many times fewer transfers are written while every sync takes a millisecond longer."""

_CONDITIONS: Final = """\
Ours commits nonce, fee and answer to disk before it answers; no peer books anything. Its limits on calls a minute are
off. The peers' chains, and ours unless it says devnet, answer at once; where a peer asks a facilitator over HTTP, ours
still asks nobody, because its verification is its own. Under load a server that is not near 100 % busy
shared its core with other programs, or waited for its disk; a load near 100 % busy is what was measured: see CPU."""


def main(arguments: Sequence[str]) -> None:
    options = _options(arguments)
    if not sys.platform.startswith("linux"):
        sys.exit("The benchmark pins processes to cores and reads their CPU clocks, which only Linux offers.")
    server_core, load_core = cores()
    os.sched_setaffinity(0, {load_core})
    result = Result(machine=machine(server_core, load_core), versions=versions())
    with (
        priority(options.nice),
        tempfile.TemporaryDirectory(prefix="spawn-bench-", dir=options.folder) as name,
    ):
        folder = Path(name)
        chosen, slow = _choose(options, folder, result)
        with ExitStack() as stack:
            servers = Servers(
                stack, folder, core=server_core, load_core=load_core, delay=slow, profile=options.profile
            )
            _measure(options, chosen, servers, result)
        for part, environ in ((_LEDGER, {}), (_SLOW_LEDGER, slow)):
            if _wanted(options, part) and (slow or part == _LEDGER):
                _say(part)
                result.ledger[part] = ledger.measure_apart(
                    folder / part,
                    transfers=options.transfers // (_SLOW_SHARE if environ else 1),
                    rounds=options.rounds,
                    core=server_core,
                    environ=environ,
                )
    print(_text(options, result))
    if options.output is not None:
        options.output.write_bytes(encode(result))
        print(f"written to {options.output}")


def _wanted(options: argparse.Namespace, name: str) -> bool:
    return not options.only or name.startswith(tuple(options.only))


def _choose(
    options: argparse.Namespace, folder: Path, result: Result
) -> tuple[list[Subject], dict[str, str]]:
    """What can be measured here of what was asked for, and the environment of a slow disk; says what is left out."""
    chosen = [subject for subject in SUBJECTS if _wanted(options, subject.name)]
    slow: dict[str, str] = {}
    if any(_wanted(options, name) for name in ("delayed-signed", "delayed-x402", _SLOW_LEDGER)):
        try:
            slow = slow_disk.environ(folder)
        except slow_disk.NoSlowDisk as reason:
            result.left_out.append(f"everything with a slow disk: {reason}")
            chosen = [subject for subject in chosen if subject.server != "delayed"]
    if shutil.which("npm") is None and any(s.server.startswith(_NODE_SERVERS) for s in chosen):
        result.left_out.append("express and hono: Node.js with npm is not installed")
        chosen = [subject for subject in chosen if not subject.server.startswith(_NODE_SERVERS)]
    return chosen, slow


def _measure(options: argparse.Namespace, chosen: list[Subject], servers: Servers, result: Result) -> None:
    limits = rounds.Limits(
        connections=options.connections,
        warmup=options.warmup,
        requests=options.requests,
        seconds=options.seconds,
    )
    for name in dict.fromkeys(subject.server for subject in chosen):
        _say(f"starting {name}")
        servers.get(name)
    fees = {name: tenants.fees_usdc(servers.folder(name)) for name in servers.started(OURS)}
    seen = {subject.name: [_warm_up(subject, servers, limits)] for subject in chosen}
    for number in range(1, options.rounds + 1):
        for subject in chosen:
            earlier = seen[subject.name]
            rate = max(one.sample.per_s for one in earlier)
            earlier.append(_round(f"round {number} of {options.rounds}", subject, servers, limits, rate))
    for name, before in fees.items():
        paid = [s.name for s in chosen if s.server == name and s.status == 200]
        answered = sum(one.answered for subject in paid for one in seen[subject])
        _require_fees(name, tenants.fees_usdc(servers.folder(name)) - before, answered)
    for subject in chosen:
        result.http.append(line(subject, seen[subject.name][1:]))
        if subject.server in OURS:
            result.threads_us[subject.name] = seen[subject.name][-1].threads_us
    if options.profile:
        _profile(chosen, servers, limits, result)


def _require_fees(name: str, earned_usdc: int, answered: int) -> None:
    """A read that was answered and not paid for in the books was fast for nothing."""
    if earned_usdc != answered * tenants.FEE_USDC:
        sys.exit(
            f"{name} answered {answered} paid reads, and its books show fees of {earned_usdc} micro-USDC"
        )


def _profile(chosen: list[Subject], servers: Servers, limits: rounds.Limits, result: Result) -> None:
    for subject in chosen:
        if subject.server in OURS:
            _say(f"profile: {subject.name}")
            folder = servers.folder(subject.server)
            found = rounds.profiled(subject, servers.get(subject.server), limits, folder=folder)
            result.profiles |= {f"{subject.name}, {thread}": one for thread, one in found.items()}


def _warm_up(subject: Subject, servers: Servers, limits: rounds.Limits) -> rounds.Round:
    """A round that does not count. V8 takes thousands of requests to see what is worth compiling."""
    times = _V8_WARM_UP if subject.server.startswith(_NODE_SERVERS) else _WARM_UP
    warm_up = msgspec.structs.replace(limits, seconds=limits.seconds * times)
    return _round("warm-up", subject, servers, warm_up, 0)


def _round(
    title: str, subject: Subject, servers: Servers, limits: rounds.Limits, rate: float
) -> rounds.Round:
    ours = subject.server in OURS
    one = rounds.run(subject, servers.get(subject.server), limits, ours=ours, rate=rate)
    _say(f"{title}: {subject.name:16} {one.sample.per_s:8,.0f}/s {one.sample.cpu_us:8,.0f} us")
    return one


def _text(options: argparse.Namespace, result: Result) -> str:
    """The whole run for people."""
    parts = [profiling.profile_table(name, profile) for name, profile in result.profiles.items()]
    parts += [threads_table(name, threads) for name, threads in result.threads_us.items()]
    if result.http:
        parts.append(lines_table(result.http))
    titles = {_LEDGER: "durable ledger transfers", _SLOW_LEDGER: "the same, +1 ms a sync"}
    parts += [ledger.ways_table(titles[part], ways) for part, ways in result.ledger.items()]
    if found := verdicts(result.http):
        parts.append(verdicts_table(found))
    parts += [f"left out: {what}" for what in result.left_out]
    parts.append(
        f"Medians of {options.rounds} rounds of {options.seconds:g} s over {options.connections} connections and "
        f"{tenants.WALLETS} wallets; servers on core {result.machine.server_core}, load on core "
        f"{result.machine.load_core}.\n{_CONDITIONS}"
    )
    return "\n" + "\n\n".join(parts)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="what begins so, of "
        + ", ".join([*(subject.name for subject in SUBJECTS), _LEDGER, _SLOW_LEDGER])
        + " [all]",
    )
    parser.add_argument("--profile", action="store_true", help="show where the time of ours goes, too")
    parser.add_argument("--rounds", type=int, default=3, help="[%(default)s]")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each round [%(default)s]")
    parser.add_argument("--requests", type=int, default=100_000, help="in a round at most [%(default)s]")
    parser.add_argument("--warmup", type=int, default=300, help="requests before each round [%(default)s]")
    parser.add_argument("--connections", type=int, default=32, help="[%(default)s]")
    parser.add_argument("--transfers", type=int, default=6400, help="in the ledger, per round [%(default)s]")
    parser.add_argument(
        "--nice",
        type=int,
        default=0,
        help="priority of servers and load on a busy machine, as nice(1) has it [0]",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="for the databases: a local disk, or memory (/dev/shm) to see what the disk costs [temporary files]",
    )
    parser.add_argument("--output", type=Path, help=f"the result as JSON [{_OUTPUT}, or with --only nowhere]")
    options = parser.parse_args(arguments)
    if options.output is None and not options.only:
        options.output = _OUTPUT
    return options


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
