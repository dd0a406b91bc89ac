"""The service's database on a disk that can be full, fail to flush, or be cut off in the middle of a statement.

Real are the file, the connections with their settings, the statements, and the writer's batches; only the writer's
thread is not there. Invariant: what a commit changed is shown to the oracle before anybody hears of it.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from spawn_ledger.tx import Params, Row, Tx

from spawn.store.database import NO_PARAMS, overloaded
from spawn.store.snapshot import snapshot
from spawn.store.sqlite import connect_reader, connect_writer
from spawn.store.sqlite_writer import SqliteTx, Write, commit
from tests import databases
from tests.sim.oracle.part import Changes

if TYPE_CHECKING:
    from tests.sim.process import Process
    from tests.sim.world import World

T = TypeVar("T")

WATCHED: Final[Mapping[str, tuple[str, ...]]] = {
    "server": ("id",),
    "account": ("id",),
    "hold": ("id",),
    "operation": ("id",),
    "reservation": ("id",),
    "idempotency": ("wallet", "key"),
    "settlement": ("id",),
    "relay": ("hash",),
    "arrival": ("id",),
    "webhook": ("id",),
    "delivery": ("webhook_id", "seq"),
    "ssh_key": ("id",),
    "secret": ("owner", "kind"),
    "boot": ("server_id",),
    "stray": ("provider", "ref"),
    "traffic": ("server_id",),
    "price_change": ("id",),
    "lease": ("name",),
}
"""Tables whose changed rows the oracle is shown, and their keys; `transfer` and `event` only grow."""


TABLES: Final = "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"
JOB: Final = "job "
"""What the names of those tasks begin with in which jobs tick."""


class FileBooks:
    """See `Books`."""

    has_replicas = False

    def __init__(self, folder: Path) -> None:
        self._path = folder / "spawn.db"
        self.url = f"sqlite:///{self._path}"
        databases.make_file(self._path)
        self._reader = connect_reader(self._path)

    def open(self, world: "World") -> None:
        self._world = world

    def of_process(self, process: "Process") -> "SimDatabase":
        return SimDatabase(self._world, process, self._path, exclusive=not self._world.climate.twin)

    def rows(self, sql: str, params: dict[str, Any]) -> list[dict[str, Any]]:
        return dicts(self._reader.execute(sql, params))

    def tables(self) -> list[str]:
        return [row["name"] for row in self.rows(TABLES, {})]

    def snapshot(self) -> AbstractContextManager[Tx]:
        return snapshot(self._path)

    def restored(self) -> None:
        self._reader.close()
        self._reader = connect_reader(self._path)

    def calm(self) -> None:
        """The disk's faults ask the world."""

    def close(self) -> None:
        self._reader.close()


class Killed(BaseException):
    """The process is gone: not a statement more."""


class _Cable:
    """The writer's connection, at each of whose statements something may go wrong."""

    def __init__(self, connection: sqlite3.Connection, process: "Process") -> None:
        self._connection = connection
        self._process = process
        self.kill_at = 0
        """Die before the statement that many from now; 0 means not."""
        self.fail_at = 0
        """Find the disk full at it."""
        self.commit_fault: str | None = None
        """The flush of the next commit fails, "kept" or "lost"."""

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def cursor(self) -> "_Cable":
        """Whatever is run with it comes by here as well."""
        return self

    def execute(self, sql: str, params: Sequence[Any] = ()) -> sqlite3.Cursor:
        if self._process.is_dead:
            raise Killed
        if self.kill_at:
            self.kill_at -= 1
            if not self.kill_at:
                self._process.world.kill(self._process, f"at a statement: {' '.join(sql.split())[:60]}")
                raise Killed
        if self.fail_at:
            self.fail_at -= 1
            if not self.fail_at:
                raise _error("database or disk is full", sqlite3.SQLITE_FULL)
        if sql == "COMMIT" and self.commit_fault is not None:
            if self.commit_fault == "kept":
                self._connection.execute(sql)
            self.commit_fault = None
            raise _error("disk I/O error", sqlite3.SQLITE_IOERR_FSYNC)
        return self._connection.execute(sql, params)


def _error(message: str, code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(message)
    error.sqlite_errorcode = code
    return error


class SimDatabase:
    """`spawn.store.database.Database` of one process."""

    def __init__(self, world: "World", process: "Process", path: Path, *, exclusive: bool) -> None:
        self._world = world
        self._process = process
        self._writing = connect_writer(path)
        self._reading = connect_reader(path)
        _watch(self._writing)
        self._cable = _Cable(self._writing, process)
        self._tx = SqliteTx(cast("sqlite3.Connection", self._cable))
        self._gathered: list[Write] = []
        self._jobs: dict[str, None] = {}
        """Those who changed something in this batch."""
        self._exclusive = exclusive
        self._is_busy = False
        """In the middle of a batch: it has to end before the file can be let go."""

    @property
    def exclusive(self) -> bool:
        return self._exclusive

    async def read(self, sql: str, params: Params = NO_PARAMS) -> list[Row]:
        self._refuse_the_dead()
        await self._process.thawed()
        await asyncio.sleep(self._world.random.uniform(0.0, 0.002))
        self._refuse_the_dead()
        return cast("list[Row]", self._reading.execute(sql, params).fetchall())

    async def write(self, fn: Callable[[Tx], T]) -> T:
        self._refuse_the_dead()
        await self._process.thawed()
        self._refuse_the_dead()
        # A process that starts has nobody's writes before its own.
        is_crowded = self._process.is_ready and not self._world.calm
        if is_crowded and self._world.random.random() < self._world.climate.overloaded:
            self._world.count("overloaded")
            raise overloaded()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if not self._gathered:
            loop.call_later(self._world.random.uniform(0.0, 0.004), self._flush)
        task = asyncio.current_task()
        if task is not None and task.get_name().startswith(JOB):
            fn = self._noting(fn, task.get_name().removeprefix(JOB))
        self._gathered.append(Write(fn, future))
        return cast("T", await future)

    def _noting(self, fn: Callable[[Tx], T], job: str) -> Callable[[Tx], T]:
        """The same write, noted as this job's if it changes anything."""

        def noted(tx: Tx) -> T:
            before = self._writing.total_changes
            result = fn(tx)
            if self._writing.total_changes > before:
                self._jobs[job] = None
            return result

        return noted

    async def close(self) -> None:
        self.drop()

    def drop(self) -> None:
        """Let go of the file as the end of a process does; what was not committed is gone."""
        if not self._is_busy:
            self._writing.close()
            self._reading.close()

    def _refuse_the_dead(self) -> None:
        if self._process.is_dead:
            raise asyncio.CancelledError

    def _flush(self) -> None:
        """What the writer's thread does with one batch."""
        batch, self._gathered = self._gathered, []
        if self._process.is_dead:
            return
        world = self._world
        self._jobs = {}
        self._plan_faults()
        self._is_busy = True
        try:
            commit(cast("sqlite3.Connection", self._cable), self._tx, batch)
        except Killed:
            pass  # the end of the process: nobody is left to be told
        except sqlite3.Error as error:
            # Fatal, as in the writer: the process ends without an answer to anybody.
            world.count("disk fault")
            world.kill(self._process, f"the disk failed: {error}")
        self._is_busy = False
        self._show()
        if not world.calm and world.random.random() < world.climate.crash_at_statement:
            world.kill(self._process, "after a commit, before anybody heard of it")
        if self._process.is_dead:
            self.drop()
        else:
            asyncio.get_running_loop().call_later(world.random.uniform(0.0, 0.002), self._answer, batch)

    def _answer(self, batch: list[Write]) -> None:
        if not self._process.is_dead:
            for write in batch:
                write.answer()

    def _plan_faults(self) -> None:
        world, cable = self._world, self._cable
        cable.kill_at = cable.fail_at = 0
        cable.commit_fault = None
        if world.calm:
            return
        if world.random.random() < world.climate.crash_at_statement:
            cable.kill_at = world.random.randint(1, 30)
        if world.random.random() < world.climate.disk_fault:
            if world.random.random() < 0.5:
                cable.fail_at = world.random.randint(2, 20)
            else:
                cable.commit_fault = world.random.choice(("kept", "lost"))

    def _show(self) -> None:
        """Whatever became durable, to the oracle."""
        if self._writing.in_transaction:
            self._writing.execute("ROLLBACK")
        changes = read_changes(self._writing, self._world.marks)
        changes.process, changes.jobs = self._process.number, tuple(self._jobs)
        self._world.committed(self._process, changes)


def _watch(connection: sqlite3.Connection) -> None:
    """Let the connection note which rows it touches; what triggers do counts in no row count."""
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute(
        "CREATE TEMP TABLE touched (name TEXT, first, second, PRIMARY KEY (name, first, second))"
    )
    for table, keys in WATCHED.items():
        for event, row in (("INSERT", "NEW"), ("UPDATE", "NEW"), ("DELETE", "OLD")):
            values = ", ".join(f"{row}.{key}" for key in keys) + (", 0" if len(keys) == 1 else "")
            connection.execute(
                f"CREATE TEMP TRIGGER sim_{table}_{event} AFTER {event} ON main.{table} BEGIN "
                f"INSERT INTO touched SELECT '{table}', {values} WHERE NOT EXISTS (SELECT 1 FROM touched "
                f"WHERE (name, first, second) = ('{table}', {values})); END"
            )


def read_changes(connection: sqlite3.Connection, marks: dict[str, int]) -> Changes:
    """What was touched since the last look. `marks` has the last numbers seen of the tables that only grow."""
    changes = Changes(
        transfers=_since(connection, "transfer", marks), events=_since(connection, "event", marks)
    )
    touched = connection.execute("SELECT name, first, second FROM touched").fetchall()
    connection.execute("DELETE FROM touched")
    for name, first, second in touched:
        keys = WATCHED[name]
        key = first if len(keys) == 1 else (first, second)
        where = " AND ".join(f"{column} = ?" for column in keys)
        rows = dicts(connection.execute(f"SELECT * FROM {name} WHERE {where}", (first, second)[: len(keys)]))
        changes.rows.setdefault(name, {})[key] = rows[0] if rows else None
    return changes


def _since(connection: sqlite3.Connection, table: str, marks: dict[str, int]) -> list[dict[str, Any]]:
    rows = dicts(
        connection.execute(
            f"SELECT * FROM {table} WHERE seq > ? ORDER BY seq",
            (marks.get(table, 0),),
        )
    )
    if rows:
        marks[table] = rows[-1]["seq"]
    return rows


def dicts(cursor: sqlite3.Cursor) -> list[dict[str, Any]]:
    """The rows as dictionaries."""
    rows = cursor.fetchall()
    if not rows:
        return []
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in rows]
