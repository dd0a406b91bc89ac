"""The embedded engine: one thread writes, a few connections read.

A commit costs an fsync however much it holds, so the writer takes every write that waits, commits them together,
and only then answers. Invariants: a caller is answered after the commit that holds its write; only the writer's
connection writes or checkpoints; after a failed commit nothing more is tried, since a repeated fsync may succeed
although pages are lost (PostgreSQL stops here as well, since 2018).
"""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, Self, TypeVar, cast

import aiosqlite
from spawn_ledger.tx import Params, Row, Tx

from spawn.store.database import NO_PARAMS, DatabaseFailed, StoreError, overloaded
from spawn.store.owner import Owner

T = TypeVar("T")

BATCH_MAX: Final = 1_000
"""Writes in one commit: bounds how long the first of them waits for the last."""
QUEUE_LIMIT: Final = 5_000
"""Writes that may wait: a fraction of a second of work. More are refused, so that waiting stays short."""
BUSY_TIMEOUT_MS: Final = 5_000
CACHED_STATEMENTS: Final = 512
"""Prepared statements kept by a connection: more than there are queries."""
ROWS_AT_ONCE: Final = 64
"""What aiosqlite would fetch at a time from a cursor; we always fetch all."""

_PRAGMAS: Final = (
    "PRAGMA foreign_keys = ON",
    # Without it INSERT OR REPLACE deletes rows past the triggers that keep transfers immutable.
    "PRAGMA recursive_triggers = ON",
    "PRAGMA trusted_schema = OFF",
    f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}",
)
_WRITER_PRAGMAS: Final = (
    *_PRAGMAS,
    # NORMAL may lose commits that were answered when the power fails.
    "PRAGMA synchronous = FULL",
    "PRAGMA wal_autocheckpoint = 1000",
    "PRAGMA journal_mode = WAL",
)
_READER_PRAGMAS: Final = (
    *_PRAGMAS,
    "PRAGMA query_only = ON",
    "PRAGMA wal_autocheckpoint = 0",
    # The first of them to read the file: what is no database is refused at once.
    "PRAGMA schema_version",
)

_DISK_ERRORS: Final = frozenset(
    {
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_READONLY,
    }
)
"""Primary result codes that say something about the disk or the process, not about one statement."""


def connect_writer(path: Path) -> sqlite3.Connection:
    """Open `path`, created when missing, as the connection that writes. The caller owns the file.

    Raises StoreError when the file is no SQLite database, or lies where WAL cannot be used.
    """
    # Payments and answers are in it; SQLite gives the files beside it the same rights.
    path.touch(mode=0o600, exist_ok=True)
    connection = _connect(path, f"{path.resolve().as_uri()}?mode=rwc", _WRITER_PRAGMAS)
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    if mode != "wal":
        connection.close()
        raise StoreError(f"{path} cannot use write-ahead logging (journal mode {mode}): use a local disk.")
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open `path` for reading only. Raises StoreError when it is missing, or no SQLite database."""
    connection = _connect(path, read_only_uri(path), _READER_PRAGMAS)
    connection.row_factory = sqlite3.Row
    return connection


def read_only_uri(path: Path) -> str:
    """The URI by which SQLite opens `path` without ever changing or creating it."""
    return f"{path.resolve().as_uri()}?mode=ro"


def _connect(path: Path, uri: str, pragmas: tuple[str, ...]) -> sqlite3.Connection:
    # A connection is opened on the caller's thread and used on one other, which is its own from then on.
    try:
        with contextlib.ExitStack() as undo:
            connection = sqlite3.connect(
                uri,
                uri=True,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=CACHED_STATEMENTS,
            )
            undo.callback(connection.close)
            for pragma in pragmas:
                connection.execute(pragma)
            undo.pop_all()
    except sqlite3.DatabaseError as error:
        raise StoreError(f"cannot use {path} as a SQLite database: {error}.") from error
    return connection


class SqliteTx:
    """`Tx` over the writer's connection. `execute` counts only for a statement that begins with its verb."""

    __slots__ = ("_columns", "_connection")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._columns: dict[str, tuple[str, ...]] = {}

    def _run(self, sql: str, params: Params) -> sqlite3.Cursor:
        # SQLite rolls all back by itself after some errors; each later statement would then commit alone.
        if not self._connection.in_transaction:
            raise DatabaseFailed("the transaction was lost to an earlier error")
        return self._connection.execute(sql, params)

    def execute(self, sql: str, params: Params = NO_PARAMS, /) -> int:
        return self._run(sql, params).rowcount

    def one(self, sql: str, params: Params = NO_PARAMS, /) -> Row | None:
        # All rows, so that a statement with RETURNING runs to its end.
        rows = self.all(sql, params)
        return rows[0] if rows else None

    def all(self, sql: str, params: Params = NO_PARAMS, /) -> list[Row]:
        cursor = self._run(sql, params)
        rows = cursor.fetchall()
        if not rows:
            return []
        columns = self._columns.get(sql)
        if columns is None:
            columns = self._columns[sql] = tuple(column[0] for column in cursor.description)
        # The driver's own rows look a column up by comparing names one after the other.
        return [dict(zip(columns, row, strict=True)) for row in rows]


class _Write:
    """A caller's function on its way through the writer, and what became of it."""

    __slots__ = ("error", "fn", "future", "result")

    def __init__(self, fn: Callable[[Tx], Any], future: asyncio.Future[Any]) -> None:
        self.fn = fn
        self.future = future
        self.result: Any = None
        self.error: BaseException | None = None

    def answer(self) -> None:
        if self.future.done():  # its caller was cancelled
            return
        if self.error is None:
            self.future.set_result(self.result)
        elif isinstance(self.error, StopIteration):
            # A future refuses to carry it.
            error = RuntimeError("a write raised StopIteration")
            error.__cause__ = self.error
            self.future.set_exception(error)
        else:
            self.future.set_exception(self.error)


class _Writer:
    """The thread that writes. Everything but `_run` and what it calls happens on the event loop."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        queue_limit: int,
        on_fatal: Callable[[DatabaseFailed], None] | None,
    ) -> None:
        self.commits = 0
        self.failure: BaseException | None = None
        self._connection = connection
        self._tx = SqliteTx(connection)
        self._queue_limit = queue_limit
        self._on_fatal = on_fatal
        self._queue: SimpleQueue[_Write | None] = SimpleQueue()
        self._waiting = 0
        self._loop = asyncio.get_running_loop()
        self._stopped = self._loop.create_future()
        # A daemon, so that a process that must end does not wait for a disk that does not answer.
        self._thread = threading.Thread(target=self._run, name="sqlite-writer", daemon=True)
        self._thread.start()

    def submit(self, fn: Callable[[Tx], Any]) -> asyncio.Future[Any]:
        if self._waiting >= self._queue_limit:
            raise overloaded()
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting += 1
        self._queue.put(_Write(fn, future))
        return future

    async def stop(self) -> None:
        self._queue.put(None)
        await asyncio.shield(self._stopped)
        self._thread.join()

    def _run(self) -> None:
        batch: list[_Write] = []
        try:
            while batch := self._take():
                self._commit(batch)
                self._loop.call_soon_threadsafe(self._answer, batch)
        except BaseException as error:  # noqa: BLE001 - whatever ends this thread, its callers must hear of it
            self._loop.call_soon_threadsafe(self._fail, batch, error)
        finally:
            # Closing rolls back and checkpoints; the next start repeats a checkpoint that failed.
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._loop.call_soon_threadsafe(self._stopped.set_result, None)

    def _take(self) -> list[_Write]:
        """Wait for a write and return all that are there by now; an empty list means to stop."""
        batch: list[_Write] = []
        write = self._queue.get()
        while write is not None:
            batch.append(write)
            if len(batch) == BATCH_MAX or self._queue.empty():
                return batch
            write = self._queue.get()
        if batch:
            self._queue.put(None)
        return batch

    def _commit(self, batch: list[_Write]) -> None:
        """Run and commit a batch. Raises what is fatal; every other error belongs to the write it came from."""
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        for write in batch:
            connection.execute("SAVEPOINT one_write")
            try:
                write.result = write.fn(self._tx)
            except BaseException as error:
                if _is_disk_error(error):
                    raise
                write.error = error
                # Fatal in its turn when the error took the whole transaction with it.
                connection.execute("ROLLBACK TO one_write")
            connection.execute("RELEASE one_write")
        connection.execute("COMMIT")
        self.commits += 1

    def _answer(self, batch: list[_Write]) -> None:
        self._waiting -= len(batch)
        for write in batch:
            write.answer()

    def _fail(self, batch: list[_Write], cause: BaseException) -> None:
        self.failure = cause
        unanswered = list(batch)
        while not self._queue.empty():
            write = self._queue.get()
            if write is not None:
                unanswered.append(write)
        for write in unanswered:
            write.error = failed(cause)
        self._answer(unanswered)
        if self._on_fatal is not None:
            self._on_fatal(failed(cause))


def _is_disk_error(error: BaseException) -> bool:
    """Whether an error that one write met is none of its own."""
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF in _DISK_ERRORS


def failed(cause: BaseException) -> DatabaseFailed:
    """A new error for each caller: one exception raised in many tasks would mix their tracebacks."""
    error = DatabaseFailed(f"the database stopped: {cause}. Restart the service; it repairs itself at start.")
    error.__cause__ = cause
    return error


class _Readers:
    """A few connections that only read; each has a thread, and a read crosses to it once."""

    def __init__(self) -> None:
        self._count = 0
        self._idle: asyncio.Queue[aiosqlite.Connection] = asyncio.Queue()

    async def open(self, path: Path, count: int) -> None:
        for _ in range(count):
            await self._add(connect_reader(path))

    async def _add(self, opened: sqlite3.Connection) -> None:
        # Opened before aiosqlite has it, which does not wait for its thread when opening fails.
        self._idle.put_nowait(await aiosqlite.Connection(lambda: opened, ROWS_AT_ONCE))
        self._count += 1

    @contextlib.asynccontextmanager
    async def borrow(self) -> AsyncIterator[aiosqlite.Connection]:
        connection = await self._idle.get()
        try:
            yield connection
        finally:
            self._idle.put_nowait(connection)

    async def close(self) -> None:
        # A queue serves in order: the reads that wait come first.
        for _ in range(self._count):
            await (await self._idle.get()).close()


class SqliteDatabase:
    """`Database` in one file. Made by `open`, or by `open_reader` for a process that only looks."""

    def __init__(self, readers: _Readers, owner: Owner | None, writer: _Writer | None) -> None:
        self._readers = readers
        self._owner = owner
        self._writer = writer
        self._closing: asyncio.Future[None] | None = None

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        readers: int = 2,
        queue_limit: int = QUEUE_LIMIT,
        on_fatal: Callable[[DatabaseFailed], None] | None = None,
    ) -> Self:
        """Own and open the database at `path`, created when missing, in the running event loop.

        A failed commit is fatal, and so is a disk error, or a foreign process that keeps the file locked beyond
        the busy timeout: every caller gets DatabaseFailed, every later call too, and `on_fatal` is called once, on
        the event loop, to end the process.

        Raises DatabaseBusy, UnsuitableFilesystem, StoreError.
        """
        owner = Owner.claim(path)
        pool = _Readers()
        writer: _Writer | None = None
        try:
            writer = _Writer(connect_writer(path), queue_limit, on_fatal)
            await pool.open(path, readers)
        except BaseException:
            await pool.close()
            if writer is not None:
                await writer.stop()
            owner.release()
            raise
        return cls(pool, owner, writer)

    @classmethod
    async def open_reader(cls, path: Path) -> Self:
        """Open an existing database for reading, beside the process that owns it. It refuses to write.

        Raises StoreError when the file is missing, or no SQLite database.
        """
        pool = _Readers()
        await pool.open(path, 1)
        return cls(pool, None, None)

    @property
    def exclusive(self) -> bool:
        return self._owner is not None

    @property
    def commits(self) -> int:
        """Commits so far. Writes divided by commits is what grouping gains."""
        return 0 if self._writer is None else self._writer.commits

    async def read(self, sql: str, params: Params = NO_PARAMS) -> list[Row]:
        self._refuse_if_stopped()
        async with self._readers.borrow() as connection:
            return cast("list[Row]", await connection.execute_fetchall(sql, params))

    async def write(self, fn: Callable[[Tx], T]) -> T:
        self._refuse_if_stopped()
        if self._writer is None:
            raise DatabaseFailed("this database is open for reading only")
        return cast("T", await self._writer.submit(fn))

    async def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        # The writer goes last: whoever closes last checkpoints.
        await self._readers.close()
        if self._writer is not None:
            await self._writer.stop()
        if self._owner is not None:
            self._owner.release()

    def _refuse_if_stopped(self) -> None:
        if self._closing is not None:
            raise DatabaseFailed("the database is closed")
        if self._writer is not None and self._writer.failure is not None:
            raise failed(self._writer.failure)
