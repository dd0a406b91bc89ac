"""Durable transfers through our PostgreSQL engine, beside plain psycopg running the very same statements.

Both run a serializable transaction for each transfer on as many connections, prepared alike, and repeat it on 40001.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, Final

import psycopg
from psycopg import errors
from psycopg.rows import dict_row
from spawn_ledger.transfers import post

from spawn.store.migrate import migrate
from spawn.store.postgres import WRITERS, PostgresDatabase
from spawn.store.postgres_session import Connection, for_writing, named
from tests.bench.ledger import CALLERS, Way, Work, fee, fill, prepare
from tests.engines import Postgres

_TEMPLATE: Final = "ledger_template"


def measure(server: Postgres, folder: Path, *, transfers: int, rounds: int) -> list[Way]:
    """Write this many fees in each way and round, every time into a fresh copy of one database. Ours comes first."""
    work = asyncio.run(prepare(folder / "template.db", folder / "recorded.db", transfers))
    server.psql(f"CREATE DATABASE {_TEMPLATE} TEMPLATE template0")
    migrate(server.url(_TEMPLATE))
    asyncio.run(_fill(server.url(_TEMPLATE)))
    ways: dict[str, Callable[[str], None]] = {
        f"spawn: {CALLERS} callers": lambda url: asyncio.run(_through_the_engine(url, transfers)),
        f"psycopg: {WRITERS} connections": lambda url: _plain(url, work, WRITERS),
        "psycopg: one connection": lambda url: _plain(url, work, 1),
    }
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(rounds):
        for place, (name, write) in enumerate(ways.items()):
            database = f"ledger_{number}_{place}"
            server.psql(f"CREATE DATABASE {database} TEMPLATE {_TEMPLATE}")
            wall, cpu = time.perf_counter(), time.process_time()
            write(server.url(database))
            seen[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return [
        Way(
            name=name,
            per_s=transfers / median(wall for wall, _ in times),
            cpu_us=median(cpu for _, cpu in times) / transfers * 1e6,
        )
        for name, times in seen.items()
    ]


async def _fill(url: str) -> None:
    db = await PostgresDatabase.open(url)
    await fill(db)
    await db.close()


async def _through_the_engine(url: str, transfers: int) -> None:
    db = await PostgresDatabase.open(url)
    numbers = iter(range(transfers))

    async def caller() -> None:
        for number in numbers:
            due = fee(number)
            await db.write(lambda tx, due=due: post(tx, due))  # type: ignore[misc]  # bound now, not later

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    await db.close()


def _plain(url: str, work: Work, connections: int) -> None:
    waiting = iter([[(named(sql), dict(params)) for sql, params in statements] for statements in work])

    def worker() -> None:
        with psycopg.connect(url, autocommit=True, row_factory=dict_row) as connection:
            for_writing(connection)
            for statements in waiting:
                _transaction(connection, statements)

    with ThreadPoolExecutor(connections) as pool:
        for done in [pool.submit(worker) for _ in range(connections)]:
            done.result()


def _transaction(connection: Connection, statements: list[tuple[Any, dict[str, Any]]]) -> None:
    for _ in range(1_000):
        try:
            connection.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
            cursor = connection.cursor()
            for sql, params in statements:
                cursor.execute(sql, params)
                if cursor.description is not None:
                    cursor.fetchall()
            connection.execute("COMMIT")
        except (errors.SerializationFailure, errors.DeadlockDetected):
            connection.execute("ROLLBACK")
        else:
            return
    raise RuntimeError("a transfer never fitted among the others")
