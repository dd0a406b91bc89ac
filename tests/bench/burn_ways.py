"""Ways to settle the same due servers, each on a fresh copy of the same books: ours, and what it is to be beside.

The floor is the very same SQL in one transaction, which no call could pass; the ceiling is what plain Python needs that
handles a row at a time. Where a way is slow, some of the servers are settled and the rest is reckoned from them.
"""

import asyncio
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from spawn_ledger.accrual import DAY
from spawn_ledger.tx import Params, Row, Tx
from spawn_schemas.ids import Address

from spawn.clock import SystemEntropy
from spawn.domain.warnings import Policy
from spawn.jobs.burn import Burn
from spawn.services.billing import Billing
from spawn.store.burning import settle_chunk
from spawn.store.database import NO_PARAMS
from spawn.store.sqlite import SqliteDatabase, connect_writer
from spawn.store.sqlite_writer import SqliteTx

T = TypeVar("T")

POLICY: Final = Policy()
HORIZON_S: Final = DAY + POLICY.thresholds_s[0]
_ROWS_A_COMMIT: Final = 1_000


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds for all due servers, of the clock and of this process's CPU; `worst_ms` is its longest transaction."""

    name: str
    settled: int
    wall_s: float
    cpu_s: float
    worst_ms: float


class _Watched:
    """A database that remembers how long its longest write took."""

    def __init__(self, inner: SqliteDatabase) -> None:
        self._inner = inner
        self.exclusive = True
        self.writes = 0
        self.worst_s = 0.0

    async def read(self, sql: str, params: Params = NO_PARAMS) -> list[Row]:
        return await self._inner.read(sql, params)

    async def write(self, fn: Callable[[Tx], T]) -> T:
        start = time.perf_counter()
        try:
            return await self._inner.write(fn)
        finally:
            self.writes += 1
            self.worst_s = max(self.worst_s, time.perf_counter() - start)

    async def close(self) -> None:
        await self._inner.close()


class Idle(msgspec.Struct, frozen=True, kw_only=True):
    """What this many ticks cost in which nothing was due."""

    ticks: int
    wall_s: float
    cpu_s: float


def measure(template: Path, *, now: int, due: int, sample: int, ticks: int) -> tuple[list[Way], Idle]:
    """Every way in turn; `sample` servers for the slow ones. Then ticks with nothing due."""
    with _copy(template) as path:
        ours, idle = asyncio.run(_by_the_job(path, now, due, ticks))
    with _copy(template) as path:
        floor = _in_one_transaction(path, now, due)
    with _copy(template) as path:
        wallets = _wallet_by_wallet(path, now, due, sample)
    with _copy(template) as path:
        rows = _row_by_row(path, now, due, sample)
    return [ours, floor, wallets, rows], idle


@contextmanager
def _copy(template: Path) -> Iterator[Path]:
    path = template.with_name("copy.db")
    shutil.copy(template, path)
    try:
        yield path
    finally:
        for left in path.parent.glob("copy.db*"):
            left.unlink()


def _timed(name: str, work: Callable[[], tuple[int, float]], due: int) -> Way:
    """Run `work`, which answers how many servers it settled and its longest transaction; reckon that up to `due`."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    settled, worst_s = work()
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    return Way(
        name=name,
        settled=settled,
        wall_s=wall_s / settled * due,
        cpu_s=cpu_s / settled * due,
        worst_ms=worst_s * 1e3,
    )


async def _by_the_job(path: Path, now: int, due: int, ticks: int) -> tuple[Way, Idle]:
    db = _Watched(await SqliteDatabase.open(path))
    burn = Burn(db, Billing(SystemEntropy(), POLICY))
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    await burn.tick(now)
    way = Way(
        name="spawn: in chunks",
        settled=due,
        wall_s=time.perf_counter() - wall_s,
        cpu_s=time.process_time() - cpu_s,
        worst_ms=db.worst_s * 1e3,
    )
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    for second in range(ticks):
        await burn.tick(now + second % 3_600)
    idle = Idle(ticks=ticks, wall_s=time.perf_counter() - wall_s, cpu_s=time.process_time() - cpu_s)
    left = await db.read(_COUNT_DUE, {"now": now})
    await db.close()
    if left[0]["n"] != 0:
        raise RuntimeError(f"{left[0]['n']} servers are due after the burn")
    return way, idle


_COUNT_DUE: Final = "SELECT COUNT(*) AS n FROM server WHERE due_at <= :now"


def _in_one_transaction(path: Path, now: int, due: int) -> Way:
    def work() -> tuple[int, float]:
        start = time.perf_counter()
        with closing(connect_writer(path)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            chunk = settle_chunk(SqliteTx(connection), now=now, horizon_s=HORIZON_S, limit=due + 1)
            connection.execute("COMMIT")
        return chunk.settled, time.perf_counter() - start

    return _timed("the same SQL in one transaction", work, due)


def _wallet_by_wallet(path: Path, now: int, due: int, sample: int) -> Way:
    billing = Billing(SystemEntropy(), POLICY)

    def work() -> tuple[int, float]:
        settled, worst_s = 0, 0.0
        with closing(connect_writer(path)) as connection:
            tx = SqliteTx(connection)
            wallets = connection.execute(
                "SELECT wallet, COUNT(*) FROM server WHERE due_at <= ? GROUP BY wallet LIMIT ?", (now, sample)
            )
            for wallet, servers in wallets.fetchall():
                start = time.perf_counter()
                connection.execute("BEGIN IMMEDIATE")
                billing.settle(tx, Address(wallet), now)
                connection.execute("COMMIT")
                worst_s = max(worst_s, time.perf_counter() - start)
                settled += servers
        return settled, worst_s

    return _timed("wallet by wallet, all of its servers", work, due)


def _row_by_row(path: Path, now: int, due: int, sample: int) -> Way:
    """What one would write first: a loop, four statements a server, a commit for a thousand of them."""

    def work() -> tuple[int, float]:
        worst_s = 0.0
        with closing(connect_writer(path)) as connection:
            rows = connection.execute(
                "SELECT id, charged_until, daily_usdc, remainder, cost_daily_usdc, cost_remainder FROM server "
                "WHERE due_at <= ? LIMIT ?",
                (now, sample),
            ).fetchall()
            for first in range(0, len(rows), _ROWS_A_COMMIT):
                start = time.perf_counter()
                connection.execute("BEGIN IMMEDIATE")
                for row in rows[first : first + _ROWS_A_COMMIT]:
                    _settle_row(connection, row, now)
                connection.execute("COMMIT")
                worst_s = max(worst_s, time.perf_counter() - start)
        return len(rows), worst_s

    return _timed("row by row in plain Python", work, due)


def _settle_row(connection: sqlite3.Connection, row: tuple[str, int, int, int, int, int], now: int) -> None:
    server_id, since, daily, remainder, cost_daily, cost_remainder = row
    charge, remainder = divmod(daily * (now - since) + remainder, DAY)
    cost, cost_remainder = divmod(cost_daily * (now - since) + cost_remainder, DAY)
    insert = (
        "INSERT INTO transfer (id, debit, credit, amount, code, reference, at) VALUES (?, ?, ?, ?, ?, ?, ?)"
    )
    connection.execute(
        "UPDATE account SET balance = balance - ? WHERE id = ? AND balance - held >= ?",
        (charge, f"srv:{server_id}", charge),
    )
    name = f"{server_id}|{since}|{now}"
    connection.execute(
        insert,
        (f"burn|{name}|reserve", f"srv:{server_id}", "rev:compute", charge, "burn", server_id, now),
    )
    connection.execute(
        insert, (f"cost|{name}", "cost:provider", "owed:provider", cost, "cost", server_id, now)
    )
    connection.execute(
        "UPDATE server SET charged_until = ?, remainder = ?, charged_usdc = charged_usdc + ?, "
        "month_s = month_s + ?, cost_until = ?, cost_remainder = ?, cost_usdc = cost_usdc + ?, due_at = ? "
        "WHERE id = ? AND charged_until = ?",
        (now, remainder, charge, now - since, now, cost_remainder, cost, now + DAY, server_id, since),
    )
