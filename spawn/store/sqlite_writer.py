"""The thread that writes to SQLite, and group commit.

A commit costs an fsync however much it holds, so the writer takes every write that waits, commits them together,
and only then answers. Invariants: a caller is answered after the commit that holds its write; a write that fails
leaves nothing behind and harms no other; after a failed commit nothing more is tried, since a repeated fsync may
succeed although pages are lost (PostgreSQL stops here as well, since 2018).
"""

import asyncio
import contextlib
import re
import sqlite3
import threading
from collections.abc import Callable, Sequence
from operator import itemgetter
from queue import SimpleQueue
from typing import Any, Final

from spawn_ledger.tx import Params, Row, Tx

from spawn.store.database import NO_PARAMS, DatabaseFailed, overloaded

BATCH_MAX: Final = 1_000
"""Writes after which a commit takes no more: bounds how long the first of them waits for the last."""
_TURNS: Final = 3
"""Turns of the event loop between an answer and the next batch: callers go on, their next call is read, and begun."""
QUEUE_LIMIT: Final = 5_000
"""Writes that may wait: a fraction of a second of work. More are refused, so that waiting stays short."""

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


_PLACEHOLDER: Final = re.compile(r"('[^']*')|:([a-z_][a-z0-9_]*)")
"""A text in quotes, which is none, or a parameter by its name."""


class _Statement:
    """A query whose parameters have numbers: by name the driver looks each up anew, in every call."""

    __slots__ = ("columns", "sql", "values")

    def __init__(self, sql: str) -> None:
        names: list[str] = []

        def number(found: re.Match[str]) -> str:
            if found[1] is not None:
                return found[1]
            if found[2] not in names:
                names.append(found[2])
            return f"?{names.index(found[2]) + 1}"

        self.sql = _PLACEHOLDER.sub(number, sql)
        self.values: Callable[[Params], Sequence[Any]] = _picker(names)
        self.columns: tuple[str, ...] = ()
        """Known after it ran once."""


def _picker(names: list[str]) -> Callable[[Params], Sequence[Any]]:
    """What takes the values of these names out of a mapping, in their order."""
    if len(names) > 1:
        return itemgetter(*names)
    return lambda params: [params[name] for name in names]


class SqliteTx:
    """`Tx` over the writer's connection. `execute` counts only for a statement that begins with its verb."""

    __slots__ = ("_connection", "_cursor", "_statements")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        # One for all: whoever selects takes all rows before anything else is run.
        self._cursor = connection.cursor()
        self._statements: dict[str, _Statement] = {}

    def _run(self, sql: str, params: Params) -> sqlite3.Cursor:
        # SQLite rolls all back by itself after some errors; each later statement would then commit alone.
        if not self._connection.in_transaction:
            raise DatabaseFailed("the transaction was lost to an earlier error")
        statement = self._statements.get(sql)
        if statement is None:
            statement = self._statements[sql] = _Statement(sql)
        return self._cursor.execute(statement.sql, statement.values(params))

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
        statement = self._statements[sql]
        if not statement.columns:
            statement.columns = tuple(column[0] for column in cursor.description)
        # The driver's own rows look a column up by comparing names one after the other.
        return [dict(zip(statement.columns, row, strict=True)) for row in rows]


class Write:
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


def commit(connection: sqlite3.Connection, tx: SqliteTx, batch: Sequence[Write]) -> bool:
    """Run and commit a batch; False when its only write failed, and there was nothing to commit.

    Raises what is fatal; every other error belongs to the write it came from. Nearly every batch has none: it is run
    as a whole, and only after an error again with each write apart.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        for write in batch:
            write.result = write.fn(tx)
    except BaseException as error:
        if _is_disk_error(error):
            raise
        # The error may have taken the whole transaction with it.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        if len(batch) == 1:
            batch[0].error = error
            return False
        connection.execute("BEGIN IMMEDIATE")
        _run_apart(connection, tx, batch)
    connection.execute("COMMIT")
    return True


def _run_apart(connection: sqlite3.Connection, tx: SqliteTx, batch: Sequence[Write]) -> None:
    for write in batch:
        connection.execute("SAVEPOINT one_write")
        try:
            write.result = write.fn(tx)
        except BaseException as error:
            if _is_disk_error(error):
                raise
            write.error = error
            # Fatal in its turn when the error took the whole transaction with it.
            connection.execute("ROLLBACK TO one_write")
        connection.execute("RELEASE one_write")


class Writer:
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
        self._gathered: list[Write] = []
        self._queue: SimpleQueue[list[Write] | None] = SimpleQueue()
        self._is_free = True
        """Whether the thread has nothing to do, and waits for the first write that comes."""
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
        if self._is_free and not self._gathered:
            self._loop.call_soon(self._hand_over)
        self._gathered.append(Write(fn, future))
        return future

    def _hand_over(self) -> None:
        """Wake the thread once for all that was gathered: it would only wait for our lock."""
        batch, self._gathered = self._gathered[:BATCH_MAX], self._gathered[BATCH_MAX:]
        self._is_free = not batch
        if batch:
            self._queue.put(batch)

    def _hand_over_after(self, turns: int) -> None:
        """Let the event loop turn before the next batch: those who were answered have mostly more to write.

        The thread would else begin at once, with half of the callers, while the other half is being answered: twice
        as many commits, each for half as many, and both threads after the interpreter's lock.
        """
        if turns == 0:
            self._hand_over()
        else:
            self._loop.call_soon(self._hand_over_after, turns - 1)

    async def stop(self) -> None:
        while self._gathered:
            self._hand_over()
        self._queue.put(None)
        await asyncio.shield(self._stopped)
        self._thread.join()

    def _run(self) -> None:
        batch: list[Write] | None = []
        try:
            while (batch := self._queue.get()) is not None:
                if commit(self._connection, self._tx, batch):
                    self.commits += 1
                self._loop.call_soon_threadsafe(self._answer, batch)
        except BaseException as error:  # noqa: BLE001 - whatever ends this thread, its callers must hear of it
            self._loop.call_soon_threadsafe(self._fail, batch or [], error)
        finally:
            # Closing rolls back and checkpoints; the next start repeats a checkpoint that failed.
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._loop.call_soon_threadsafe(self._stopped.set_result, None)

    def _answer(self, batch: list[Write]) -> None:
        self._waiting -= len(batch)
        for write in batch:
            write.answer()
        self._hand_over_after(_TURNS)

    def _fail(self, batch: list[Write], cause: BaseException) -> None:
        self.failure = cause
        unanswered = [*batch, *self._gathered]
        self._gathered = []
        while not self._queue.empty():
            unanswered += self._queue.get() or ()
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
