"""What the services rely on, whichever engine keeps their data. A new engine is one more line in `ENGINES`."""

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar

import pytest
from spawn_ledger.tx import Row, Tx

from spawn.services.leader import Fenced, Leader
from spawn.store.database import Database, DatabaseFailed
from spawn.store.postgres import PostgresDatabase
from spawn.store.postgres_session import Fate, collisions, no_fate
from spawn.store.sqlite import SqliteDatabase
from tests import databases
from tests.harness import VirtualClock

T = TypeVar("T")

CREATE: Final = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT NOT NULL CHECK (body <> ''))"
INSERT: Final = "INSERT INTO note (id, body) VALUES (:id, :body)"
READS_UNTIL_THERE: Final = 1_000
"""What nobody waits for any more is written soon, but maybe after its neighbour."""
SELECT: Final = "SELECT id, body FROM note ORDER BY id"


async def open_sqlite(folder: Path) -> Database:
    return await SqliteDatabase.open(folder / "contract.db")


class InATick(Fenced):
    """What a job has: the fence, inside a tick under this token."""

    def __init__(self, db: Database, leader: Leader, token: int) -> None:
        super().__init__(db, leader)
        self._term = leader, token

    async def write(self, fn: Callable[[Tx], T]) -> T:
        leader, token = self._term
        with leader.term(token):
            return await super().write(fn)


async def open_postgres(folder: Path, fate: Fate = no_fate) -> Database:
    url = databases.server_url(f"contract_{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}")
    databases.make_empty(url)
    return await PostgresDatabase.open(url, writers=4, readers=2, fate=fate)


async def open_with_collisions(folder: Path) -> Database:
    return await open_postgres(folder, collisions(0.2))


async def open_fenced(folder: Path) -> Database:
    databases.make(f"sqlite:///{folder / 'contract.db'}")
    db = await open_sqlite(folder)
    leader = Leader(db, VirtualClock(), "contract")
    token = await leader.token()
    assert token is not None
    return InATick(db, leader, token)


ENGINES: Final[dict[str, Callable[[Path], Awaitable[Database]]]] = {
    "sqlite": open_sqlite,
    "fenced": open_fenced,
    "postgresql": open_postgres,
    "postgresql, with collisions": open_with_collisions,
}


@pytest.fixture(params=list(ENGINES))
async def db(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """An engine with one empty table."""
    if request.param.startswith("postgresql"):
        request.getfixturevalue("postgres_server")
    database = await ENGINES[request.param](tmp_path)
    await database.write(lambda tx: tx.execute(CREATE))
    yield database
    await database.close()


def insert(note_id: int, body: str = "text") -> Callable[[Tx], int]:
    return lambda tx: tx.execute(INSERT, {"id": note_id, "body": body})


async def notes(db: Database) -> list[tuple[int, str]]:
    return [(row["id"], row["body"]) for row in await db.read(SELECT)]


class Refused(Exception):
    """What a service raises when it decides against a write."""


def insert_and_raise(note_id: int, error: BaseException) -> Callable[[Tx], int]:
    def fn(tx: Tx) -> int:
        tx.execute(INSERT, {"id": note_id, "body": "text"})
        raise error

    return fn


class Gate:
    """Holds a write open, half done, for as long as the test wants."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._opened = threading.Event()

    def open(self) -> None:
        self._opened.set()

    def after(self, fn: Callable[[Tx], T]) -> Callable[[Tx], T]:
        def held(tx: Tx) -> T:
            result = fn(tx)
            self._loop.call_soon_threadsafe(self.reached.set)
            assert self._opened.wait(timeout=10)
            return result

        return held


async def test_a_read_sees_every_answered_write(db: Database) -> None:
    for note_id in range(20):
        assert await db.write(insert(note_id)) == 1
        assert len(await db.read(SELECT)) == note_id + 1


async def test_a_read_sees_nothing_uncommitted(db: Database) -> None:
    gate = Gate()
    writing = asyncio.create_task(db.write(gate.after(insert(1))))
    await gate.reached.wait()
    assert await notes(db) == []
    gate.open()
    await writing
    assert await notes(db) == [(1, "text")]


async def test_a_write_sees_its_own_changes(db: Database) -> None:
    def fn(tx: Tx) -> list[Row]:
        tx.execute(INSERT, {"id": 1, "body": "first"})
        tx.execute("UPDATE note SET body = :body WHERE id = :id", {"id": 1, "body": "second"})
        return tx.all(SELECT)

    assert [row["body"] for row in await db.write(fn)] == ["second"]


async def test_what_a_transaction_answers(db: Database) -> None:
    def fn(tx: Tx) -> None:
        assert tx.one(SELECT) is None
        assert tx.all(SELECT) == []
        assert tx.execute(INSERT, {"id": 1, "body": "a"}) == 1
        assert tx.execute(INSERT + " ON CONFLICT (id) DO NOTHING", {"id": 1, "body": "b"}) == 0
        inserted = tx.one(INSERT + " RETURNING id, body", {"id": 2, "body": "b"})
        assert inserted is not None
        assert (inserted["id"], inserted["body"]) == (2, "b")
        updated = tx.all("UPDATE note SET body = 'c' RETURNING id")
        assert sorted(row["id"] for row in updated) == [1, 2]
        assert tx.execute("DELETE FROM note WHERE body = :body", {"body": "c"}) == 2

    await db.write(fn)
    assert await notes(db) == []


async def test_a_write_that_raises_changes_nothing(db: Database) -> None:
    error = Refused("no")
    with pytest.raises(Refused) as caught:
        await db.write(insert_and_raise(1, error))
    assert caught.value is error
    assert await notes(db) == []
    await db.write(insert(1))


async def test_a_failing_statement_undoes_those_before_it(db: Database) -> None:
    def inner(tx: Tx) -> None:
        tx.execute(INSERT, {"id": 2, "body": "text"})
        tx.execute(INSERT, {"id": 3, "body": ""})

    def outer(tx: Tx) -> None:
        tx.execute(INSERT, {"id": 1, "body": "text"})
        inner(tx)

    with pytest.raises(Exception, match="constraint"):
        await db.write(outer)
    assert await notes(db) == []
    await db.write(insert(1))


async def test_neighbours_of_a_failure_commit(db: Database) -> None:
    gate = Gate()
    first = asyncio.create_task(db.write(gate.after(insert(0))))
    await gate.reached.wait()
    # An engine that groups commits takes all of these at once.
    tasks = [
        asyncio.create_task(db.write(insert_and_raise(n, Refused(str(n))) if n % 3 == 0 else insert(n)))
        for n in range(1, 31)
    ]
    await asyncio.sleep(0)
    gate.open()
    await first
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for n, result in enumerate(results, start=1):
        if n % 3 == 0:
            assert isinstance(result, Refused)
            assert str(result) == str(n)
        else:
            assert result == 1
    assert [note_id for note_id, _ in await notes(db)] == [0, *(n for n in range(1, 31) if n % 3)]


@pytest.mark.parametrize("error", [StopIteration(), KeyboardInterrupt(), asyncio.CancelledError()])
async def test_even_a_strange_error_reaches_its_caller_only(db: Database, error: BaseException) -> None:
    async def outcome() -> BaseException | None:
        try:
            await db.write(insert_and_raise(1, error))
        except BaseException as raised:  # noqa: BLE001 - the very point of the test
            return raised
        return None

    seen, good = await asyncio.gather(outcome(), db.write(insert(2)))
    assert seen is not None
    assert error in (seen, seen.__cause__)
    assert good == 1
    assert await notes(db) == [(2, "text")]


async def test_two_hundred_writers(db: Database) -> None:
    await db.write(insert(0, "0"))

    def increment(tx: Tx) -> int:
        row = tx.one("SELECT body FROM note WHERE id = 0")
        assert row is not None
        count = int(row["body"]) + 1
        tx.execute("UPDATE note SET body = :body WHERE id = 0", {"body": str(count)})
        return count

    counts = await asyncio.gather(*(db.write(increment) for _ in range(200)))
    assert sorted(counts) == list(range(1, 201))
    assert await notes(db) == [(0, "200")]


async def test_writes_of_one_caller_stay_in_order(db: Database) -> None:
    def append(letter: str) -> Callable[[Tx], int]:
        return lambda tx: tx.execute(
            "UPDATE note SET body = body || :letter WHERE id = 1", {"letter": letter}
        )

    await db.write(insert(1, "-"))
    for letter in "abcdefgh":
        await db.write(append(letter))
    assert await notes(db) == [(1, "-abcdefgh")]


async def test_reads_run_beside_a_long_write(db: Database) -> None:
    await db.write(insert(1))
    gate = Gate()
    writing = asyncio.create_task(db.write(gate.after(insert(2))))
    await gate.reached.wait()
    reads = await asyncio.gather(*(notes(db) for _ in range(20)))
    assert reads == [[(1, "text")]] * 20
    gate.open()
    await writing


async def test_a_read_cannot_write(db: Database) -> None:
    with pytest.raises(Exception, match=r"read-?only"):
        await db.read("INSERT INTO note (id, body) VALUES (1, 'a')")
    assert await notes(db) == []


async def test_a_cancelled_caller_does_not_stop_its_write(db: Database) -> None:
    gate = Gate()
    running = asyncio.create_task(db.write(gate.after(insert(1))))
    await gate.reached.wait()
    waiting, neighbour = (asyncio.create_task(db.write(insert(n))) for n in (2, 3))
    await asyncio.sleep(0)
    for task in (running, waiting):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    gate.open()
    assert await neighbour == 1
    for _ in range(READS_UNTIL_THERE):
        if len(await notes(db)) == 3:
            break
    assert [note_id for note_id, _ in await notes(db)] == [1, 2, 3]


async def test_closing_finishes_what_waits_and_refuses_the_rest(db: Database) -> None:
    gate = Gate()
    first = asyncio.create_task(db.write(gate.after(insert(0))))
    await gate.reached.wait()
    writes = [asyncio.create_task(db.write(insert(n))) for n in range(1, 50)]
    reads = [asyncio.create_task(db.read(SELECT)) for _ in range(20)]
    await asyncio.sleep(0)
    closing = [asyncio.create_task(db.close()) for _ in range(2)]
    await asyncio.sleep(0)
    gate.open()
    await asyncio.gather(*closing)
    await db.close()
    assert await asyncio.gather(first, *writes) == [1] * 50
    assert len(await asyncio.gather(*reads)) == 20
    with pytest.raises(DatabaseFailed, match="closed"):
        await db.write(insert(99))
    with pytest.raises(DatabaseFailed, match="closed"):
        await db.read(SELECT)
