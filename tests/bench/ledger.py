"""Durable transfers through the writer thread, beside plain `sqlite3` running the very same statements.

Grouping is what makes a durable transfer cheap: a commit each and a commit for 64 are the two ends it lies between.
Run as `python -m tests.bench.ledger FOLDER TRANSFERS ROUNDS`, so that it has a core and an environment of its own.
"""

import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Final

import msgspec
from spawn_ledger.accounts import EXT_USDC, REV_OPFEE, wallet_account
from spawn_ledger.transfers import Code, Transfer, TransferId, post
from spawn_ledger.tx import Params, Row, Tx
from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc

from spawn.store.database import NO_PARAMS, Database
from spawn.store.migrate import migrate
from spawn.store.sqlite import SqliteDatabase, connect_writer
from tests.bench.processes import inherited, pinned
from tests.bench.report import table
from tests.engines import ROOT

CALLERS: Final = 64
_TIMEOUT_S: Final = 300
_ACCOUNTS: Final = tuple(wallet_account(Address(f"0x{number:040x}")) for number in range(1, CALLERS + 1))

Statement = tuple[str, Params]
Work = list[list[Statement]]
"""The statements of each transfer."""


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """One way to write transfers: medians over the rounds, with the CPU time of the whole process."""

    name: str
    per_s: float
    cpu_us: float


class _Recorder:
    """A transaction that also writes down what is run in it."""

    def __init__(self, tx: Tx) -> None:
        self.statements: list[Statement] = []
        self._tx = tx

    def execute(self, sql: str, params: Params = NO_PARAMS, /) -> int:
        self.statements.append((sql, params))
        return self._tx.execute(sql, params)

    def one(self, sql: str, params: Params = NO_PARAMS, /) -> Row | None:
        self.statements.append((sql, params))
        return self._tx.one(sql, params)

    def all(self, sql: str, params: Params = NO_PARAMS, /) -> list[Row]:
        self.statements.append((sql, params))
        return self._tx.all(sql, params)


def measure_apart(
    folder: Path, *, transfers: int, rounds: int, core: int, environ: Mapping[str, str]
) -> list[Way]:
    """`measure` in a process of its own, on this core, with `environ` added to what it inherits."""
    folder.mkdir()
    with pinned(core):
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.ledger", str(folder), str(transfers), str(rounds)],
            cwd=ROOT,
            env=inherited() | dict(environ),
            stdout=subprocess.PIPE,
            timeout=_TIMEOUT_S,
            check=True,
        )
    return msgspec.json.decode(done.stdout, type=list[Way])


def measure(folder: Path, *, transfers: int, rounds: int) -> list[Way]:
    """Write this many fees in each way and round, every time into a fresh copy of one database. Ours comes first."""
    template = folder / "template.db"
    work = asyncio.run(prepare(template, folder / "recorded.db", transfers))
    ways: dict[str, Callable[[Path], None]] = {
        f"spawn: {CALLERS} callers": lambda path: asyncio.run(_through_the_writer(path, transfers)),
        "sqlite3: a commit each": lambda path: _plain(path, work, per_commit=1),
        f"sqlite3: {CALLERS} a commit": lambda path: _plain(path, work, per_commit=CALLERS),
    }
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, write in ways.items():
            path = folder / f"ledger-{number}-{len(seen[name])}-{list(ways).index(name)}.db"
            shutil.copy(template, path)
            wall, cpu = time.perf_counter(), time.process_time()
            write(path)
            seen[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return [
        Way(
            name=name,
            per_s=transfers / median(wall for wall, _ in times),
            cpu_us=median(cpu for _, cpu in times) / transfers * 1e6,
        )
        for name, times in seen.items()
    ]


def ways_table(title: str, ways: list[Way]) -> str:
    """Each way, and how its rate and its CPU time compare with ours, which is the first."""
    ours = ways[0]
    rows = [
        (
            way.name,
            f"{way.cpu_us:,.0f}",
            f"{way.per_s:,.0f}",
            f"{ours.per_s / way.per_s:.2f}x",
            f"{way.cpu_us / ours.cpu_us:.2f}x",
        )
        for way in ways
    ]
    return table((title, "CPU us", "per s", "our rate / its", "its CPU / ours"), rows)


def fee(number: int) -> Transfer:
    """The transfer of this number."""
    return _transfer(f"fee|{number}", _ACCOUNTS[number % CALLERS], REV_OPFEE, 1_000, Code.FEE)


def _transfer(name: str, debit: str, credit: str, amount: int, code: Code) -> Transfer:
    return Transfer(
        id=TransferId(name),
        debit=debit,  # type: ignore[arg-type]  # an AccountId, made above
        credit=credit,  # type: ignore[arg-type]  # an AccountId, made above
        amount=Usdc(amount),
        code=code,
        reference=name,
        at=1,
    )


async def fill(db: Database) -> None:
    """Give each wallet more than it will spend."""
    for account in _ACCOUNTS:
        topup = _transfer(f"topup|{account}", EXT_USDC, account, 10**12, Code.TOPUP)
        await db.write(lambda tx, topup=topup: post(tx, topup))  # type: ignore[misc]  # bound now, not later


async def prepare(template: Path, scratch: Path, transfers: int) -> Work:
    """Fill the wallets of a new database, and record in a copy what each fee runs."""
    migrate(f"sqlite:///{template}")
    db = await SqliteDatabase.open(template)
    await fill(db)
    await db.close()
    shutil.copy(template, scratch)
    db = await SqliteDatabase.open(scratch)

    def record(tx: Tx, number: int) -> list[Statement]:
        recorder = _Recorder(tx)
        post(recorder, fee(number))
        return recorder.statements

    work = await db.write(lambda tx: [record(tx, number) for number in range(transfers)])
    await db.close()
    return work


async def _through_the_writer(path: Path, transfers: int) -> None:
    db = await SqliteDatabase.open(path)
    numbers = iter(range(transfers))

    async def caller() -> None:
        for number in numbers:
            due = fee(number)
            await db.write(lambda tx, due=due: post(tx, due))  # type: ignore[misc]  # bound now, not later

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    await db.close()


def _plain(path: Path, work: Work, *, per_commit: int) -> None:
    with closing(connect_writer(path)) as connection:
        for start in range(0, len(work), per_commit):
            connection.execute("BEGIN IMMEDIATE")
            for statements in work[start : start + per_commit]:
                for sql, params in statements:
                    connection.execute(sql, params).fetchall()
            connection.execute("COMMIT")


if __name__ == "__main__":
    print(
        msgspec.json.encode(
            measure(Path(sys.argv[1]), transfers=int(sys.argv[2]), rounds=int(sys.argv[3]))
        ).decode()
    )
