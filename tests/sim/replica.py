"""The database of one process on a server: the product's own engine, whose threads take turns and whose server errs.

Real are the server, its serializable transactions, and all of `spawn.store.postgres`: the retries, the look-up after a
COMMIT without an answer, the patience. Transactions of one process and of its twin rest between two statements while
others go on, so that they collide in earnest. A statement that would wait for another's lock is refused at once, as it
would be in the end if that one commits: nobody could go on while it waits.

Invariant: what a commit changed is shown to the oracle before anybody hears of it, though its answer may be lost.
"""

import asyncio
import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import psycopg
from psycopg import errors
from psycopg.rows import dict_row
from psycopg_pool import PoolTimeout
from spawn_ledger.tx import Params, Row, Tx

from spawn.store.database import NO_PARAMS, overloaded
from spawn.store.postgres import PATIENCE_S, Pace, Pool, PostgresDatabase
from spawn.store.postgres_session import for_reading, for_writing
from tests.sim.disk import JOB, Killed
from tests.sim.oracle.part import Changes
from tests.sim.turns import in_turns, on_loop, wait_for

if TYPE_CHECKING:
    from tests.sim.process import Process
    from tests.sim.server import ServerBooks

T = TypeVar("T")

AT_ONCE: Final = 4
"""Transactions of one process under way."""
IDLE_S: Final = 5.0
"""After which the server ends a transaction that rests (spawn.store.postgres_session)."""
_LIMITS: Final = (
    # Real time is not the world's, and a statement that waits would wait for ever.
    "SET idle_in_transaction_session_timeout = 0; SET statement_timeout = 0; SET lock_timeout = '5ms'"
)
_TOUCHED: Final = "SELECT current_setting('sim.touched', true) AS touched"
_NOTHING_TOUCHED: Final = "SELECT set_config('sim.touched', '', false)"
_IN_JOB: Final[ContextVar[str | None]] = ContextVar("in_job", default=None)
"""The job whose write is under way."""


class Link(psycopg.Connection[dict[str, Any]]):
    """A connection, at each of whose statements something may go wrong."""

    def serve(self, books: "ServerBooks", process: "Process") -> Self:
        self.books, self.process = books, process
        self.cursor_factory = _Statement
        self.is_cut = False
        """The server has ended the session; whoever uses it is told so."""
        self.is_open = False
        """In a transaction."""
        self.job: str | None = None
        """Whose write it commits."""
        self.began = 0
        """How many commits there were when it began to look."""
        books.links[self] = None
        return self

    def let_go(self) -> None:
        """What an end of the process, or of the world, does. The server is done with it when this returns."""
        self.books.links.pop(self, None)
        if not self.closed:
            self.cut()
            self.close()

    def cut(self) -> None:
        """From the server's side; a COMMIT that is on its way is not undone by it."""
        self.is_cut = True
        if self.is_open and not self.closed:
            self.raw("ROLLBACK")
        self.is_open = False

    def raw(self, query: str) -> list[dict[str, Any]]:
        """Past all weather."""
        cursor = psycopg.Cursor(self, row_factory=dict_row)
        cursor.execute(query.encode())
        return cursor.fetchall() if cursor.description is not None else []

    # --- on the way ---------------------------------------------------------------------------------------------------

    def before(self, sql: str) -> None:
        """Before a statement: others go on, and something befalls us."""
        if sql == "ROLLBACK":
            self._refuse_the_cut()
            return
        world, climate = self.process.world, self.books.climate
        if self.process.is_dead:
            raise Killed
        if self.is_open and world.random.random() < climate.pause:
            self._rest(_pause_s(self.process))
        if not world.calm:
            self._befall(sql)
        self._refuse_the_cut()

    def _rest(self, seconds: float) -> None:
        wait_for(asyncio.sleep(seconds))
        frozen_s = self.process.frozen_until - self.process.world.loop.time()
        if frozen_s > 0 and not self.process.is_dead:
            wait_for(asyncio.sleep(min(frozen_s, IDLE_S)))
            if frozen_s > IDLE_S and self.is_open:
                self.process.world.count("database: rested too long")
                self.cut()
                wait_for(self.process.thawed())
        if self.process.is_dead:
            raise Killed

    def _befall(self, sql: str) -> None:
        world, climate, process = self.process.world, self.books.climate, self.process
        if self.is_open and world.random.random() < world.climate.crash_at_statement / 5:
            on_loop(lambda: world.kill(process, f"at a statement: {' '.join(sql.split())[:60]}"))
            raise Killed
        if world.random.random() < climate.away:
            on_loop(lambda: self.books.go_away(2 ** world.random.uniform(-4, 6)))
        if self.is_open and not self.is_cut and world.random.random() < climate.collide:
            world.count("database: drawn collision")
            if sql == "COMMIT":
                self.raw("ROLLBACK")
                self.is_open = False
            kinds = (errors.SerializationFailure, errors.SerializationFailure, errors.DeadlockDetected)
            raise world.random.choice(kinds)("drawn")

    def _refuse_the_cut(self) -> None:
        if self.is_cut:
            raise psycopg.OperationalError("server closed the connection unexpectedly")

    # --- COMMIT -------------------------------------------------------------------------------------------------------

    def commit_with(self, execute: Callable[[], None]) -> None:
        """Commit; perhaps nobody hears of it, or it comes late."""
        world, climate = self.process.world, self.books.climate
        is_unclear = not world.calm and world.random.random() < climate.unclear
        fate = world.random.choice(("lost", "kept", "late")) if is_unclear else None
        self.job = _IN_JOB.get()
        if fate is not None:
            world.count(f"database: {fate} COMMIT")
        if fate == "lost":
            self.cut()
        elif fate == "late":
            self._commit_late()
        else:
            try:
                execute()
            finally:
                self.is_open = False
            on_loop(self.show)
        if fate is not None:
            self.is_cut = True
            self._refuse_the_cut()
        if not world.calm and world.random.random() < world.climate.crash_at_statement:
            on_loop(lambda: world.kill(self.process, "after a commit, before anybody heard of it"))
            raise Killed

    def _commit_late(self) -> None:
        """It is at the server, which takes its time: our end does not undo it."""
        world, books = self.process.world, self.books
        self.is_open = False
        # From here on it is the server's alone: neither a death nor a cut touches it.
        books.links.pop(self, None)
        books.late[self] = None

        def arrive() -> None:
            if self not in books.late:
                return
            del books.late[self]
            try:
                self.raw("COMMIT")
            except psycopg.Error:
                world.count("database: late and refused")
            else:
                self.show()
            self.close()

        late_s = world.random.uniform(0.0, 3.0) if world.random.random() < 0.9 else 2 * PATIENCE_S
        world.loop.call_later(late_s, arrive)

    def show(self) -> None:
        """Whatever became durable, to the oracle."""
        (row,) = self.raw(_TOUCHED)
        if not row["touched"]:
            return
        self.raw(_NOTHING_TOUCHED)
        touched = [tuple(json.loads(line)) for line in row["touched"].splitlines()]
        jobs = () if self.job is None else (self.job,)
        changes = Changes(process=self.process.number, jobs=jobs, began=self.began)
        self.books.show(self.process, touched, changes)


class _Statement(psycopg.Cursor[Any]):
    """A cursor of such a connection."""

    def execute(self, query: Any, params: Any = None, **how: Any) -> Self:
        link = self.connection
        assert isinstance(link, Link)
        sql = query.decode() if isinstance(query, bytes) else query
        if sql.startswith("SET LOCAL lock_timeout"):
            return self  # ours is shorter
        link.before(sql)
        if sql == "COMMIT":
            link.commit_with(lambda: self._execute(sql, None))
            return self
        self._execute(query, params, **how)
        if sql.startswith("BEGIN"):
            link.is_open, link.began = True, link.books.commits
        elif sql == "ROLLBACK":
            link.is_open = False
        return self

    def _execute(self, query: Any, params: Any, **how: Any) -> None:
        world = self.connection.process.world  # type: ignore[attr-defined]  # see above
        try:
            _ = super().execute(query, params, **how)
        except errors.LockNotAvailable as waited:
            world.count("database: lock")
            if not self.connection.is_open:  # type: ignore[attr-defined]  # see above
                raise
            raise errors.SerializationFailure("another transaction has this row") from waited
        except errors.SerializationFailure:
            world.count("database: collision")
            raise


def _pause_s(process: "Process") -> float:
    random = process.world.random
    return (
        random.uniform(0.0, 0.01) if process.world.calm or random.random() < 0.97 else random.uniform(0, 4.0)
    )


class _Line:
    """`Connections` of one process and one kind."""

    def __init__(self, books: "ServerBooks", process: "Process", configure: Callable[[Link], None]) -> None:
        self._books, self._process, self._configure = books, process, configure
        self._free: list[Link] = []

    @contextmanager
    def connection(self) -> Iterator[Link]:
        """One that the server has not ended; raises PoolTimeout when it is away for too long."""
        wait_for(self._reach())
        link = self._free.pop() if self._free else self._connect()
        try:
            yield link
        finally:
            if link.is_cut or link.closed:
                if link not in self._books.late:
                    link.let_go()
            else:
                self._free.append(link)

    async def _reach(self) -> None:
        world = self._process.world
        await self._process.thawed()
        await asyncio.sleep(world.random.uniform(0.0, 0.002))
        left_s = self._books.away_until - world.loop.time()
        await asyncio.sleep(min(max(0.0, left_s), PATIENCE_S))
        if left_s > PATIENCE_S and self._books.away_until > world.loop.time():
            raise PoolTimeout("no connection came")
        if self._process.is_dead:
            raise Killed
        self._free = [link for link in self._free if not self._is_useless(link)]

    def _is_useless(self, link: Link) -> bool:
        if link.is_cut:
            link.let_go()
        return link.is_cut

    def _connect(self) -> Link:
        link = Link.connect(self._books.url, autocommit=True, row_factory=dict_row)
        self._configure(link)
        link.execute(_LIMITS)
        return link.serve(self._books, self._process)

    def close(self) -> None:
        """They end with their process."""


class _Hands:
    """`Threads` that take turns: so many functions of a process are under way."""

    def __init__(self, process: "Process", count: int) -> None:
        self._process, self._free = process, count
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()

    def submit(self, fn: Callable[..., T], /, *args: Any) -> Future[T]:
        future: Future[T] = Future()
        self._waiting.append((future, partial(fn, *args)))
        if self._free:
            self._free -= 1
            _ = self._process.spawn(self._work(), name="transactions")
        return future

    async def _work(self) -> None:
        while self._waiting and not self._process.is_dead:
            future, work = self._waiting.popleft()
            future.set_result(await in_turns(work))
        self._free += 1

    def shutdown(self) -> None:
        """They end with their process."""


class Replica:
    """`spawn.store.database.Database` of one process on the server."""

    exclusive = False

    def __init__(self, books: "ServerBooks", process: "Process") -> None:
        self._books, self._process = books, process
        world = process.world
        pace = Pace(
            now=world.loop.time,
            sleep=lambda seconds: wait_for(asyncio.sleep(seconds)),
            between=self._between,
        )
        readers = Pool(_Line(books, process, for_reading), _Hands(process, AT_ONCE))
        writers = Pool(_Line(books, process, for_writing), _Hands(process, AT_ONCE))
        with world.loop.inside():
            self._real = PostgresDatabase(readers, writers, on_fatal=self._die, pace=pace)

    async def read(self, sql: str, params: Params = NO_PARAMS) -> list[Row]:
        self._refuse_the_dead()
        return await self._real.read(sql, params)

    async def write(self, fn: Callable[[Tx], T]) -> T:
        self._refuse_the_dead()
        await self._process.thawed()
        self._refuse_the_dead()
        world = self._process.world
        is_crowded = self._process.is_ready and not world.calm
        if is_crowded and world.random.random() < world.climate.overloaded:
            world.count("overloaded")
            raise overloaded()
        task = asyncio.current_task()
        name = "" if task is None else task.get_name()
        job = name.removeprefix(JOB) if name.startswith(JOB) else None

        def noted(tx: Tx) -> T:
            _IN_JOB.set(job)
            return fn(tx)

        return await self._real.write(noted)

    async def close(self) -> None:
        self.drop()

    def drop(self) -> None:
        for link in list(self._books.links):
            if link.process is self._process:
                link.let_go()

    def _between(self, least: float, most: float) -> float:
        # Each move has a `random` of its own.
        return self._process.world.random.uniform(least, most)

    def _die(self, error: BaseException) -> None:
        self._process.world.count("database: fatal")
        self._process.world.kill(self._process, f"the database failed: {error}")

    def _refuse_the_dead(self) -> None:
        if self._process.is_dead:
            raise asyncio.CancelledError
