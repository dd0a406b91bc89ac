"""`make bench-hosts`: what idle hosts cost the service, and what its relay costs a tenant, beside named peers.

Idle hosts are light clients with real sockets and real logins, beside a bare `websockets` server. The relay is service
and agent as they run, beside no relay at all and asyncssh's remote port forwarding. Every round takes all in turn. It
measures; it never passes or fails on a time. It fails when a host is not answered or a stream is cut.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Final, TypeVar

import msgspec

from tests.bench import hosts_idle, hosts_ways
from tests.bench.goals import verdicts_table
from tests.bench.hosts_idle import IDLE_BEAT_S, Idle
from tests.bench.hosts_report import Relayed, idle_goals, idle_table, relay_goals, relay_table
from tests.bench.hosts_tenant import NoSshd, Sshd, pouring, sshd
from tests.bench.hosts_ways import Way
from tests.bench.processes import cores, priority
from tests.bench.result import Machine, machine

_OUTPUT: Final = Path("bench-hosts-result.json")
_PARTS: Final = ("idle", "relay")
T = TypeVar("T")


class Result(msgspec.Struct, kw_only=True):
    """One run."""

    machine: Machine
    idle: list[Idle] = []
    relay: list[Relayed] = []
    left_out: list[str] = []


def main(arguments: Sequence[str]) -> None:
    options = _options(arguments)
    if not sys.platform.startswith("linux"):
        sys.exit("The benchmark pins processes to cores and reads their CPU clocks, which only Linux offers.")
    server_core, load_core = cores()
    result = Result(machine=machine(server_core, load_core))
    with (
        priority(options.nice),
        tempfile.TemporaryDirectory(prefix="spawn-hosts-", dir=options.folder) as name,
    ):
        folder = Path(name)
        if "idle" in options.only:
            _say(f"{options.sockets:,} idle hosts")
            result.idle = hosts_idle.measure(
                folder,
                sockets=options.sockets,
                rounds=options.rounds,
                seconds=options.seconds,
                cores=(server_core, load_core),
            )
        if "relay" in options.only:
            _relay(folder, options, result)
    print(_text(options, result))
    if options.output is not None:
        options.output.write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
        print(f"written to {options.output}")


def _relay(folder: Path, options: argparse.Namespace, result: Result) -> None:
    with ExitStack() as stack:
        try:
            tenant = stack.enter_context(sshd(folder / "ssh"))
        except NoSshd as reason:
            result.left_out.append(f"the relay: {reason}")
            return
        bulk = stack.enter_context(pouring(folder / "pour.log"))
        ways = stack.enter_context(hosts_ways.all_ways(folder, tenant, bulk))
        result.relay = _measure(ways, tenant, options)


def _measure(ways: Sequence[Way], tenant: Sshd, options: argparse.Namespace) -> list[Relayed]:
    """Logins, bulk and streams of all ways, in turn within each round; one login of each does not count."""
    for way in ways:
        hosts_ways.login_s(way, tenant)
    logins = _rounds(
        "login", ways, options.rounds * options.logins, lambda way: hosts_ways.login_s(way, tenant)
    )
    down = _rounds(
        "SSH down", ways, options.rounds, lambda way: hosts_ways.ssh_bulk(way, tenant, options.mib)
    )
    up = _rounds("SSH up", ways, options.rounds, lambda way: hosts_ways.ssh_upload(way, tenant, options.mib))
    raw = _rounds("bare bytes", ways, options.rounds, lambda way: hosts_ways.raw_bulk(way, options.mib))
    streams = _rounds(
        f"{options.streams} streams",
        ways,
        options.rounds,
        lambda way: hosts_ways.shared(
            way, streams=options.streams, stalled=options.stalled, seconds=options.stream_seconds
        ),
    )
    return [
        Relayed(
            name=way.name,
            login_s=median(logins[way.name]),
            logins_s=tuple(logins[way.name]),
            down=_middle(down[way.name]),
            up=_middle(up[way.name]),
            raw=_middle(raw[way.name]),
            shared_mib_per_s=median(one.mib_per_s for one in streams[way.name]),
            worst_share=min(one.worst_share for one in streams[way.name]),
            grown_mib=max(one.grown_mib for one in streams[way.name]),
        )
        for way in ways
    ]


def _rounds(what: str, ways: Sequence[Way], count: int, measure: Callable[[Way], T]) -> dict[str, list[T]]:
    _say(f"{what}: {count} rounds of {', '.join(way.name for way in ways)}")
    seen: dict[str, list[T]] = {way.name: [] for way in ways}
    for _ in range(count):
        for way in ways:
            seen[way.name].append(measure(way))
    return seen


def _middle(seen: Sequence[hosts_ways.Carried]) -> hosts_ways.Carried:
    return hosts_ways.Carried(
        mib_per_s=median(one.mib_per_s for one in seen),
        cpu_ms_per_mib=median(one.cpu_ms_per_mib for one in seen),
    )


def _text(options: argparse.Namespace, result: Result) -> str:
    parts = []
    if result.idle:
        parts.append(idle_table(result.idle))
        parts += [
            f"As the service tells them, a heartbeat each {IDLE_BEAT_S:g} s and a state sync each 60 s of "
            f"{one.sockets:,} hosts take {one.lived.cpu_s / one.lived.wall_s:.1%} of a core."
            for one in result.idle
            if one.lived is not None
        ]
    if result.relay:
        parts.append(relay_table(result.relay))
    goals = [*idle_goals(result.idle), *relay_goals(result.relay)]
    if goals:
        parts.append(verdicts_table(goals))
    parts += [f"left out: {what}" for what in result.left_out]
    parts.append(
        f"Medians of {options.rounds} rounds (logins: of {options.rounds * options.logins}); the worst share and the "
        f"memory are the worst of all. {options.mib} MiB a transfer, {options.streams} streams beside "
        f"{options.stalled} that nobody reads.\nThe service is behind no TLS; asyncssh encrypts what it forwards."
    )
    return "\n" + "\n\n".join(parts)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.hosts", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=_PARTS, default=list(_PARTS), help="[all]")
    parser.add_argument("--rounds", type=int, default=3, help="[%(default)s]")
    parser.add_argument("--sockets", type=int, default=2_000, help="idle hosts [%(default)s]")
    parser.add_argument(
        "--seconds", type=float, default=15.0, help="of silence and of heartbeats in a round [%(default)s]"
    )
    parser.add_argument("--logins", type=int, default=7, help="in a round [%(default)s]")
    parser.add_argument("--mib", type=int, default=256, help="of a transfer [%(default)s]")
    parser.add_argument("--streams", type=int, default=200, help="at once [%(default)s]")
    parser.add_argument("--stalled", type=int, default=10, help="streams that nobody reads [%(default)s]")
    parser.add_argument("--stream-seconds", type=float, default=5.0, help="[%(default)s]")
    parser.add_argument("--nice", type=int, default=0, help="the niceness of everything [%(default)s]")
    parser.add_argument("--folder", type=Path, help="for the databases [temporary files]")
    parser.add_argument("--output", type=Path, help=f"the result as JSON [{_OUTPUT}, or with --only nowhere]")
    options = parser.parse_args(arguments)
    if options.output is None and len(options.only) == len(_PARTS):
        options.output = _OUTPUT
    if options.sockets % hosts_idle.FLEETS:
        parser.error(f"--sockets are shared by {hosts_idle.FLEETS} processes: take a multiple of that")
    return options


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
