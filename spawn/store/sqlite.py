"""The embedded engine: one thread writes (`sqlite_writer`), a few connections read.

Invariants: only the writer's connection writes or checkpoints; readers see every write that was answered.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final, Self, TypeVar, cast

import aiosqlite
from spawn_ledger.tx import Params, Row, Tx

from spawn.store.database import NO_PARAMS, DatabaseFailed, StoreError
from spawn.store.owner import Owner
from spawn.store.sqlite_writer import QUEUE_LIMIT, Writer, failed

T = TypeVar("T")

BUSY_TIMEOUT_MS: Final = 5_000
CACHE_KIB: Final = 65_536
"""Pages that the writer keeps: a page that it has to fetch again costs more than what it does with it."""
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
    # A checkpoint copies each page once, however often it was written since the last.
    "PRAGMA wal_autocheckpoint = 32000",
    f"PRAGMA cache_size = -{CACHE_KIB}",
    "PRAGMA journal_mode = WAL",
)
_READER_PRAGMAS: Final = (
    *_PRAGMAS,
    "PRAGMA query_only = ON",
    "PRAGMA wal_autocheckpoint = 0",
    # The first of them to read the file: what is no database is refused at once.
    "PRAGMA schema_version",
)


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

    def __init__(self, readers: _Readers, owner: Owner | None, writer: Writer | None) -> None:
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
        writer: Writer | None = None
        try:
            writer = Writer(connect_writer(path), queue_limit, on_fatal)
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
