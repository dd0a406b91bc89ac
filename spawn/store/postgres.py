"""The engine for several replicas: each write is a serializable transaction, repeated until it fits among the others.

Serializable isolation makes all that commits equal to one after the other, as the embedded engine runs it: so what is
right there is right here, with no locks of our own; and CockroachDB and YugabyteDB ask for the same repetition.
Invariants: a write that was answered is on the server's disk; one whose COMMIT got no answer is looked up by its mark
(`postgres_marks`) before anybody is told anything; a server that is away for a while costs answers, and nothing else.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, LiteralString, Protocol, Self, TypeVar, cast

import psycopg
from psycopg import errors
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool, PoolTimeout
from spawn_ledger.tx import Params, Row, Tx
from spawn_schemas.errors import Code, SpawnError

from spawn.store.database import NO_PARAMS, DatabaseFailed, overloaded
from spawn.store.postgres_marks import Mark, Marks, prepare, was_committed
from spawn.store.postgres_session import (
    CommitUnclear,
    Connection,
    Fate,
    connect,
    for_reading,
    for_writing,
    named,
    no_fate,
    transact,
)

T = TypeVar("T")

WRITERS: Final = 8
"""Transactions of one process at a time; each waits for the server most of the while."""
READERS: Final = 4
QUEUE_LIMIT: Final = 5_000
"""Calls that may wait of either kind. More are refused, so that waiting stays short."""
PATIENCE_S: Final = 10.0
"""How long a write is repeated, and a server waited for that does not answer, before the caller is told."""
DOUBLES_MAX: Final = 5
"""Attempts that find a row there which they have looked for and not seen: after that, nobody looks."""
FATED: Final = 3
"""Attempts at one write that tests may let fail; a write of hundreds of statements would never be done otherwise."""
PAUSE_MAX_S: Final = 0.1
"""Between two attempts. The first ones follow each other within milliseconds."""

_COLLISIONS: Final = (errors.SerializationFailure, errors.DeadlockDetected)
_AWAY: Final = (
    psycopg.InterfaceError,
    errors.AdminShutdown,
    errors.CrashShutdown,
    errors.CannotConnectNow,
    errors.TooManyConnections,
    errors.IdleInTransactionSessionTimeout,
    PoolTimeout,
)


@dataclass(frozen=True)
class Pace:
    """By what attempts follow each other: seconds that pass, and a number between two."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    between: Callable[[float, float], float] = random.uniform


SYSTEM_PACE: Final = Pace()


class Connections(Protocol):
    """What lends a connection; raises PoolTimeout when there is none for too long."""

    def connection(self) -> AbstractContextManager[Connection]:
        """One, until the context ends; one that broke in it is not lent again."""
        ...

    def close(self) -> None:
        """End those that nobody has."""
        ...


class Threads(Protocol):
    """What runs a function beside the event loop."""

    def submit(self, fn: Callable[..., T], /, *args: Any) -> Future[T]:
        """Run it as soon as a thread is free."""
        ...

    def shutdown(self) -> None:
        """Finish all that was submitted."""
        ...


class Pool:
    """Threads, and a connection for each."""

    def __init__(self, connections: Connections, threads: Threads) -> None:
        self.connections = connections
        self.threads = threads
        self.waiting = 0

    def one_is_done(self, _: asyncio.Future[Any]) -> None:
        self.waiting -= 1

    def close(self) -> None:
        """Finish what waits, then let go."""
        self.threads.shutdown()
        self.connections.close()


class PostgresDatabase:
    """`Database` on a PostgreSQL server. Made by `open`, or by `open_reader` for a process that only looks."""

    exclusive = False

    def __init__(
        self,
        readers: Pool,
        writers: Pool | None,
        *,
        fate: Fate = no_fate,
        on_fatal: Callable[[DatabaseFailed], None] | None = None,
        pace: Pace = SYSTEM_PACE,
    ) -> None:
        self._readers = readers
        self._writers = writers
        self._fate = fate
        self._on_fatal = on_fatal
        self._pace = pace
        self._loop = asyncio.get_running_loop()
        self._closing: asyncio.Future[None] | None = None
        self._failure: BaseException | None = None
        self._marks = Marks()
        self.collisions = 0
        """Attempts that had to be repeated so far."""

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        writers: int = WRITERS,
        readers: int = READERS,
        fate: Fate = no_fate,
        on_fatal: Callable[[DatabaseFailed], None] | None = None,
        pace: Pace = SYSTEM_PACE,
    ) -> Self:
        """Connect to a database that exists, from the running event loop.

        A COMMIT whose outcome cannot be found out is fatal: its caller gets DatabaseFailed, every later call too, and
        `on_fatal` is called once, on the event loop, to end the process.

        Raises StoreError when the server cannot be reached, or cannot be used.
        """
        await asyncio.to_thread(prepare, url)
        reading = await _filled(url, "spawn-reads", readers, for_reading)
        writing = await _filled(url, "spawn-writes", writers, for_writing)
        return cls(reading, writing, fate=fate, on_fatal=on_fatal, pace=pace)

    @classmethod
    async def open_reader(cls, url: str) -> Self:
        """Connect for reading only. Raises StoreError as `open` does."""
        return cls(await _filled(url, "spawn-reads", 1, for_reading), None)

    async def read(self, sql: str, params: Params = NO_PARAMS) -> list[Row]:
        self._refuse_if_stopped()
        query = named(sql)
        return await self._run(self._readers, lambda: self._repeat_read(query, params))

    async def write(self, fn: Callable[[Tx], T]) -> T:
        self._refuse_if_stopped()
        if self._writers is None:
            raise DatabaseFailed("this database is open for reading only")
        connections = self._writers.connections
        return await self._run(self._writers, lambda: self._repeat_write(connections, fn))

    async def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        for pool in (self._writers, self._readers):
            if pool is not None:
                await asyncio.to_thread(pool.close)

    def _refuse_if_stopped(self) -> None:
        if self._closing is not None:
            raise DatabaseFailed("the database is closed")
        if self._failure is not None:
            raise _failed(self._failure)

    # --- from the event loop to a thread and back ---

    async def _run(self, pool: Pool, work: Callable[[], T]) -> T:
        """Do it on one of the pool's threads, whatever becomes of the caller meanwhile."""
        if pool.waiting >= QUEUE_LIMIT:
            raise overloaded()
        pool.waiting += 1
        done = asyncio.wrap_future(pool.threads.submit(_outcome, work))
        done.add_done_callback(pool.one_is_done)
        result, error = await asyncio.shield(done)
        if error is not None:
            raise error
        return cast("T", result)

    # --- on a thread ---

    def _repeat_read(self, query: LiteralString, params: Params) -> list[Row]:
        for is_last in self._attempts():
            try:
                with self._readers.connections.connection() as connection:
                    return cast("list[Row]", connection.execute(query, params).fetchall())
            except (psycopg.Error, PoolTimeout) as error:
                if not _is_away(error):
                    raise
                if is_last:
                    raise _unreachable() from error
        raise RuntimeError("the last attempt neither answered nor refused")

    def _repeat_write(self, connections: Connections, fn: Callable[[Tx], T]) -> T:
        doubles = 0
        for number, is_last in enumerate(self._attempts()):
            mark = self._marks.next()
            fate = self._fate if number < FATED else no_fate
            try:
                with connections.connection() as connection:
                    return transact(connection, fn, mark.statement, fate)
            except _COLLISIONS as error:
                self.collisions += 1
                if is_last:
                    raise overloaded() from error
            except errors.UniqueViolation:
                # Another transaction may have put the row there after this one had looked: the next look finds it.
                self.collisions += 1
                doubles += 1
                if is_last or doubles == DOUBLES_MAX:
                    raise
            except CommitUnclear as unclear:
                self._marks.leave()
                if self._was_committed(connections, mark, unclear):
                    return cast("T", unclear.result)
                if is_last:
                    raise _unreachable() from unclear
            except (psycopg.Error, PoolTimeout) as error:
                self._marks.leave()
                if not _is_away(error) and not isinstance(error, errors.ReadOnlySqlTransaction):
                    raise
                if is_last:
                    raise _unreachable() from error
        raise RuntimeError("the last attempt neither answered nor refused")

    def _was_committed(self, connections: Connections, mark: Mark, unclear: CommitUnclear) -> bool:
        """Ask until the server is back; raises DatabaseFailed, and ends everything, when it stays away."""
        try:
            for is_last in self._attempts():
                try:
                    with connections.connection() as connection:
                        committed = was_committed(connection, mark)
                    if committed is not None:
                        return committed
                except (psycopg.Error, PoolTimeout) as error:
                    if is_last or not _is_away(error):
                        raise
            raise DatabaseFailed("a transaction does not end")
        except (psycopg.Error, PoolTimeout, DatabaseFailed) as error:
            self._loop.call_soon_threadsafe(self._fail, error)
            raise _failed(error) from unclear

    def _attempts(self) -> Iterator[bool]:
        """Until patience is at its end, with growing pauses; says of each whether it is the last."""
        pace = self._pace
        until = pace.now() + PATIENCE_S
        pause_s = 0.001
        while pace.now() < until:
            yield False
            pace.sleep(pace.between(0, pause_s))
            pause_s = min(2 * pause_s, PAUSE_MAX_S)
        yield True

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
            if self._on_fatal is not None:
                self._on_fatal(_failed(error))


def _outcome(work: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """What came of it: a future would not carry every error."""
    try:
        return work(), None
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is its caller's
        return None, error


async def _filled(url: str, name: str, size: int, configure: Callable[[Connection], None]) -> Pool:
    """A pool with its connections open. One is tried first, because a pool would not say why it has none."""
    await asyncio.to_thread(lambda: connect(url).close())
    connections = ConnectionPool[Connection](
        url,
        kwargs={"autocommit": True, "row_factory": dict_row},
        min_size=size,
        timeout=PATIENCE_S,
        # The pool asks a server that is away ever more rarely, and begins anew after this time: within seconds of its
        # return it is in use again, however long it was away.
        reconnect_timeout=PATIENCE_S,
        configure=configure,
        open=False,
        name=name,
    )
    await asyncio.to_thread(connections.open, wait=True, timeout=PATIENCE_S)
    return Pool(connections, ThreadPoolExecutor(size, thread_name_prefix=name))


def _is_away(error: Exception) -> bool:
    """Whether the server, or our connection to it, is gone: what was not committed never will be."""
    return isinstance(error, _AWAY) or (
        isinstance(error, psycopg.OperationalError) and error.sqlstate is None
    )


def _unreachable() -> SpawnError:
    return SpawnError(
        Code.OVERLOADED,
        "The service cannot reach its database.",
        retry_after_s=5,
        next="Nothing was changed: repeat the call in a few seconds.",
    )


def _failed(cause: BaseException) -> DatabaseFailed:
    """A new error for each caller: one exception raised in many tasks would mix their tracebacks."""
    error = DatabaseFailed(f"the database stopped: {cause}. Restart the service; it repairs itself at start.")
    error.__cause__ = cause
    return error
