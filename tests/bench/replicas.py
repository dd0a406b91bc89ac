"""`make bench-replicas`: paid calls a second with one, two and three replicas on PostgreSQL, beside SQLite.

Everything shares the same cores, the server's processes and the load included: so replicas show what sharing costs,
and not what another machine would bring. PostgreSQL flushes each commit to disk, as SQLite does. The paid call is a
signed read: nonce, fee and answer are committed before it is answered. The ledger's transfers are measured beside plain
psycopg that runs the very same statements. It measures; it never passes or fails on a time.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Final

import msgspec

from spawn.store.migrate import migrate
from tests.bench import ledger_postgres, load, tenants
from tests.bench.ledger import ways_table
from tests.bench.peer import PATH
from tests.bench.processes import Process, priority, running
from tests.bench.report import percentile, table
from tests.bench.signatures import signed_get
from tests.engines import Postgres, postgres
from tests.harness import CHAIN_ID
from tests.ports import free_port

REPLICAS: Final = (1, 2, 3)
WARM_UP_S: Final = 1.0
_RATE_MAX: Final = 6_000
"""Calls a second that requests are made for."""
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One round; CPU times are microseconds a call, of all our processes and of all of the server's."""

    per_s: float
    p50_ms: float
    p99_ms: float
    ours_us: float
    database_us: float


class Cluster:
    """Replicas of ours on one database, and what that takes."""

    def __init__(self, replicas: Sequence[Process], server: Postgres | None) -> None:
        self.replicas = replicas
        self._server = server

    def cpu_s(self) -> float:
        return sum(replica.cpu_s() for replica in self.replicas)

    def database_cpu_s(self) -> float:
        """Of the server's processes; SQLite has none."""
        return 0.0 if self._server is None else sum(map(_cpu_s, _family(self._server.pid())))


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.replicas", description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a round [%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="[%(default)s]")
    parser.add_argument("--connections", type=int, default=48, help="in all [%(default)s]")
    parser.add_argument("--transfers", type=int, default=4_000, help="of the ledger [%(default)s]")
    parser.add_argument("--nice", type=int, default=0, help="the niceness of everything [%(default)s]")
    options = parser.parse_args(arguments)
    if not sys.platform.startswith("linux"):
        sys.exit("The benchmark reads CPU clocks of processes, which only Linux offers.")
    with (
        priority(options.nice),
        tempfile.TemporaryDirectory(prefix="spawn-bench-") as name,
        ExitStack() as stack,
    ):
        server = stack.enter_context(postgres(durable=True))
        rows = [_paid_calls("SQLite, one process", 0, server, Path(name), options)]
        rows += [
            _paid_calls(f"PostgreSQL, replicas: {count}", count, server, Path(name), options)
            for count in REPLICAS
        ]
        print(
            table(
                ("paid calls", "per s", "of SQLite's", "p50 ms", "p99 ms", "our CPU us", "its CPU us"),
                _told(rows),
            )
        )
        ways = ledger_postgres.measure(server, Path(name), transfers=options.transfers, rounds=options.rounds)
        print(ways_table("transfers on PostgreSQL", ways))


def _told(rows: Sequence[tuple[str, Sample]]) -> list[tuple[str, ...]]:
    alone = rows[0][1].per_s
    return [
        (
            name,
            f"{seen.per_s:,.0f}",
            f"{seen.per_s / alone:.2f}x",
            f"{seen.p50_ms:.1f}",
            f"{seen.p99_ms:.1f}",
            f"{seen.ours_us:,.0f}",
            f"{seen.database_us:,.0f}",
        )
        for name, seen in rows
    ]


def _paid_calls(
    name: str, replicas: int, server: Postgres, folder: Path, options: argparse.Namespace
) -> tuple[str, Sample]:
    """The median of the rounds; no replicas is SQLite."""
    print(f"{name} …", file=sys.stderr, flush=True)
    home = folder / f"replicas-{replicas}"
    home.mkdir()
    with _cluster(home, replicas, server) as cluster:
        _round(cluster, options.connections, WARM_UP_S)
        seen = [_round(cluster, options.connections, options.seconds) for _ in range(options.rounds)]
    middle = Sample(
        **{field: median(getattr(one, field) for one in seen) for field in Sample.__struct_fields__}
    )
    return name, middle


@contextmanager
def _cluster(folder: Path, replicas: int, server: Postgres) -> Iterator[Cluster]:
    first = free_port()
    environ = tenants.settings(folder, first) | {"SPAWN_PUBLIC_URL": f"http://127.0.0.1:{first}"}
    if replicas:
        database = f"bench_{replicas}"
        server.psql(f"CREATE DATABASE {database} TEMPLATE template0")
        environ["SPAWN_DATABASE_URL"] = server.url(database)
        migrate(environ["SPAWN_DATABASE_URL"])
    with ExitStack() as stack:
        started = [
            stack.enter_context(_replica(folder, environ, first if number == 0 else free_port(), number))
            for number in range(max(1, replicas))
        ]
        tenants.move_in(started[0])
        yield Cluster(started, server if replicas else None)


@contextmanager
def _replica(folder: Path, environ: dict[str, str], port: int, number: int) -> Iterator[Process]:
    command = (sys.executable, "-m", "tests.bench.ours", "instant")
    with running(
        command,
        port,
        ready="/health",
        core=None,
        log=folder / f"{number}.log",
        environ=environ | {"SPAWN_LISTEN": f"127.0.0.1:{port}"},
    ) as process:
        yield process


def _round(cluster: Cluster, connections: int, seconds: float) -> Sample:
    keys = tenants.wallets()
    authority, now = cluster.replicas[0].authority, int(time.time())
    requests = [
        load.get(
            PATH,
            authority,
            signed_get(keys[number % len(keys)], chain_id=CHAIN_ID, authority=authority, path=PATH, now=now),
        )
        for number in range(int(_RATE_MAX * seconds))
    ]
    ports = [replica.port for replica in cluster.replicas]
    ours_s, database_s = cluster.cpu_s(), cluster.database_cpu_s()
    seen = load.run(ports, requests, connections=connections, status=200, seconds=seconds)
    count = len(seen.latencies_s)
    return Sample(
        per_s=count / seen.wall_s,
        p50_ms=percentile(seen.latencies_s, 0.50) * 1e3,
        p99_ms=percentile(seen.latencies_s, 0.99) * 1e3,
        ours_us=(cluster.cpu_s() - ours_s) / count * 1e6,
        database_us=(cluster.database_cpu_s() - database_s) / count * 1e6,
    )


def _family(pid: int) -> list[int]:
    """A process and its children (`proc(5)`)."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return [pid, *map(int, children)]


def _cpu_s(pid: int) -> float:
    """User and system time of a process and of those children of it that ended; 0 for one that is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return 0.0
    fields = text.rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS_PER_S


if __name__ == "__main__":
    main(sys.argv[1:])
