"""What only a PostgreSQL server shows: answers that are lost, a server that dies, and transactions side by side.

A COMMIT is lost by a proxy on the way to the server, or the server is stopped as a crash would stop it: in both cases a
caller is told the truth or that nobody knows, and what it wrote is there once or not at all.
"""

import asyncio
import hashlib
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg import sql
from spawn_ledger.tx import Tx
from spawn_schemas.errors import Code, SpawnError

from spawn.store import postgres, postgres_session
from spawn.store.database import DatabaseFailed, StoreError
from spawn.store.migrate import require_current
from spawn.store.places import place_of
from spawn.store.postgres import PostgresDatabase
from spawn.store.postgres_marks import Marks, prepare, was_committed
from spawn.store.postgres_session import collisions, connect
from tests.engines import Postgres
from tests.engines import postgres as running_postgres
from tests.integration.losing_proxy import LosingProxy, Loss

CREATE: Final = "CREATE TABLE note (id BIGINT NOT NULL, body TEXT NOT NULL)"
INSERT: Final = "INSERT INTO note (id, body) VALUES (:id, :body)"
SELECT: Final = "SELECT id, body FROM note ORDER BY id"
ADD_ONE: Final = "UPDATE note SET body = CAST(CAST(body AS BIGINT) + 1 AS TEXT) WHERE id = 1"
PATIENCE_S: Final = 1.0
TRIES: Final = 20
SLACK_S: Final = 20.0
"""What a step may take besides on a busy machine; whatever takes this long hangs."""


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server of this module's own, which it may stop."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def url(server: Postgres, request: pytest.FixtureRequest) -> Iterator[str]:
    """A database with one empty table."""
    name = f"t_{hashlib.sha256(request.node.name.encode()).hexdigest()[:16]}"
    operator = server.url("postgres")
    with psycopg.connect(operator, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
    with psycopg.connect(server.url(name)) as connection:
        connection.execute(CREATE)
    yield server.url(name)
    with psycopg.connect(operator, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@asynccontextmanager
async def opened(url: str, **how: Any) -> AsyncIterator[PostgresDatabase]:
    db = await PostgresDatabase.open(url, **({"writers": 4, "readers": 2} | how))
    try:
        yield db
    finally:
        await db.close()


@pytest.fixture
async def db(url: str) -> AsyncIterator[PostgresDatabase]:
    async with opened(url) as db:
        yield db


def insert(note_id: int, body: str = "text") -> Callable[[Tx], int]:
    return lambda tx: tx.execute(INSERT, {"id": note_id, "body": body})


async def until(true: Callable[[], bool]) -> None:
    """Wait for what threads and other processes do."""
    async with asyncio.timeout(2 * SLACK_S):
        while not true():  # noqa: ASYNC110 - nobody else would tell
            await asyncio.sleep(0.001)


def notes(url: str) -> list[tuple[int, str]]:
    """What is there, seen by a plain connection."""
    with psycopg.connect(url) as connection:
        return connection.execute(SELECT).fetchall()


# --- a COMMIT without an answer -----------------------------------------------------------------------------------


@pytest.fixture
def proxy(server: Postgres) -> Iterator[LosingProxy]:
    # Not pytest's folder: a socket's path may have about 100 bytes.
    with tempfile.TemporaryDirectory(prefix="spawn-px-") as folder:
        proxy = LosingProxy(Path(folder), server.folder)
        yield proxy
        proxy.close()


@pytest.fixture
def by_proxy(url: str, server: Postgres, proxy: LosingProxy) -> str:
    return url.replace(str(server.folder), str(proxy.folder))


class Losing:
    """A write whose COMMIT meets this loss, the first time."""

    def __init__(self, proxy: LosingProxy, loss: Loss) -> None:
        self.runs = 0
        self._proxy = proxy
        self._loss = loss

    def __call__(self, tx: Tx) -> int:
        self.runs += 1
        tx.execute(INSERT, {"id": 1, "body": "text"})
        if self.runs == 1:
            self._proxy.lose(self._loss)
        return self.runs


@pytest.mark.parametrize(("loss", "runs"), [(Loss.ANSWER, 1), (Loss.MESSAGE, 2)])
async def test_what_became_of_a_commit_is_looked_up(
    url: str, by_proxy: str, proxy: LosingProxy, loss: Loss, runs: int
) -> None:
    """Kept: its own result is answered, and it is not run again. Not kept: it is run again."""
    async with opened(by_proxy) as db:
        fn = Losing(proxy, loss)
        assert await db.write(fn) == fn.runs == runs
        assert notes(url) == [(1, "text")]
        assert await db.write(insert(2)) == 1, "and everything goes on"


async def test_a_commit_that_is_still_on_its_way_is_waited_for(
    url: str, by_proxy: str, proxy: LosingProxy
) -> None:
    async with opened(by_proxy) as db:
        fn = Losing(proxy, Loss.HELD)
        writing = asyncio.create_task(db.write(fn))
        await asyncio.to_thread(proxy.held.wait, SLACK_S)
        seen = proxy.messages
        await until(lambda: proxy.messages >= seen + 20)
        assert not writing.done(), "the server has not decided"
        assert notes(url) == []
        proxy.deliver()
        assert await writing == fn.runs == 1
    assert notes(url) == [(1, "text")]


async def test_when_nobody_can_tell_everything_stops(
    url: str, by_proxy: str, proxy: LosingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "PATIENCE_S", PATIENCE_S)
    fatal: list[DatabaseFailed] = []
    async with opened(by_proxy, on_fatal=fatal.append) as db:
        with pytest.raises(DatabaseFailed, match="Restart the service"):
            await db.write(Losing(proxy, Loss.EVERYTHING))
        await asyncio.sleep(0)
        assert len(fatal) == 1
        for call in (db.write(insert(2)), db.read(SELECT)):
            with pytest.raises(DatabaseFailed):
                await call
        assert len(fatal) == 1
    assert notes(url) == [(1, "text")], "it was kept, and a restart finds it"


async def test_a_connection_that_is_cut_inside_a_transaction_costs_a_repetition(
    url: str, db: PostgresDatabase
) -> None:
    runs = 0

    def fn(tx: Tx) -> int:
        nonlocal runs
        runs += 1
        tx.execute(INSERT, {"id": 1, "body": "text"})
        row = tx.one("SELECT pg_backend_pid() AS pid")
        assert row is not None
        if runs == 1:
            with psycopg.connect(url) as operator:
                operator.execute("SELECT pg_terminate_backend(%s, 10000)", (row["pid"],))
        return tx.execute(INSERT, {"id": 2, "body": "text"})

    assert await db.write(fn) == 1
    assert runs == 2
    assert notes(url) == [(1, "text"), (2, "text")]


# --- a server that dies -------------------------------------------------------------------------------------------


async def test_a_server_that_dies_under_load_loses_and_doubles_nothing(server: Postgres, url: str) -> None:
    """Whoever was answered finds its note once, whoever was refused finds none, and nobody waits beyond patience."""
    answered: list[int] = []
    refused: dict[int, Code] = {}
    longest_s = 0.0
    restarted = 0

    async def caller(db: PostgresDatabase, first: int) -> None:
        nonlocal longest_s
        note_id, done = first, 0
        while done < 30 or restarted < 3:
            began = time.monotonic()
            try:
                await db.write(insert(note_id))
                answered.append(note_id)
            except SpawnError as error:
                refused[note_id] = error.code
            longest_s = max(longest_s, time.monotonic() - began)
            note_id, done = note_id + 100, done + 1

    async def restart() -> None:
        nonlocal restarted
        for wanted in (50, 150, 250):
            await until(lambda: len(answered) >= wanted)  # noqa: B023 - asked before the next round
            await asyncio.to_thread(server.restart)
            restarted += 1

    async with opened(url) as db:
        await asyncio.gather(restart(), *(caller(db, number) for number in range(12)))
    found = Counter(note_id for note_id, _ in notes(url))
    assert set(found.values()) == {1}
    assert set(found) == set(answered), "of what was refused nothing is there"
    assert set(refused.values()) <= {Code.OVERLOADED}
    assert longest_s < 2 * postgres.PATIENCE_S + SLACK_S


def test_a_transaction_is_known_by_its_mark_because_its_id_is_given_again(server: Postgres, url: str) -> None:
    """After a crash the server says of a transaction that is gone that it was committed, and means another one."""
    prepare(url)
    marks = Marks()
    for _ in range(TRIES):
        mark = marks.next()
        with closing(connect(url)) as lost:
            lost.execute(f"BEGIN ISOLATION LEVEL SERIALIZABLE; {mark.statement}".encode())
            row = lost.execute("SELECT CAST(pg_current_xact_id() AS TEXT) AS id").fetchone()
            assert row is not None
            server.restart()
        with closing(connect(url)) as connection:
            for number in range(3):
                connection.execute("INSERT INTO note VALUES (%s, 'another')", (number,))
            asked = {"id": row["id"]}
            status = connection.execute("SELECT pg_xact_status(CAST(%(id)s AS xid8)) AS is", asked).fetchone()
            assert was_committed(connection, mark) is False
        if status == {"is": "committed"}:
            return
    pytest.fail("the server gave no id twice")


async def test_a_server_that_stays_away_is_an_answer_that_says_when_to_come_back(
    by_proxy: str, proxy: LosingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And once it is there again it is used again, although it was looked for in vain for a long time."""
    monkeypatch.setattr(postgres, "PATIENCE_S", PATIENCE_S / 2)
    fatal: list[DatabaseFailed] = []
    async with opened(by_proxy, on_fatal=fatal.append) as db:
        proxy.cut()
        began = time.monotonic()
        while time.monotonic() - began < 4 * PATIENCE_S:
            for call in (db.write(insert(1)), db.read(SELECT)):
                with pytest.raises(SpawnError, match="cannot reach its database") as refused:
                    await call
                assert refused.value.code is Code.OVERLOADED
        assert fatal == [], "nothing was lost: the process lives on"
        proxy.mend()
        assert await db.write(insert(1)) == 1


# --- side by side -------------------------------------------------------------------------------------------------


async def test_two_processes_that_count_lose_nothing(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("INSERT INTO note VALUES (1, '0')")

    def count(tx: Tx) -> None:
        """It reads and then writes, as careless code would."""
        row = tx.one("SELECT body FROM note WHERE id = 1")
        assert row is not None
        tx.execute("UPDATE note SET body = :body WHERE id = 1", {"body": str(int(row["body"]) + 1)})

    async with opened(url) as first, opened(url) as second:
        await asyncio.gather(*(db.write(count) for db in (first, second) for _ in range(60)))
        assert first.collisions + second.collisions > 0, "they did meet"
    assert notes(url) == [(1, "120")]


OTHERS: Final = "SELECT COUNT(*) AS n FROM note WHERE body = 'on call' AND id <> :id"
LEAVE: Final = "UPDATE note SET body = 'away' WHERE id = :id"


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ"])
def test_weaker_isolation_would_break_a_rule_about_two_rows(url: str, level: str) -> None:
    """Why every write is serializable: here each of two looks at the other's row and changes its own, and both may."""
    on_call(url)
    with psycopg.connect(url, autocommit=True) as first, psycopg.connect(url, autocommit=True) as second:
        pair = ((1, first), (2, second))
        for me, connection in pair:
            connection.execute(f"BEGIN ISOLATION LEVEL {level}".encode())
            row = connection.execute(postgres_session.named(OTHERS), {"id": me}).fetchone()
            assert row == (1,)
        for me, connection in pair:
            connection.execute(postgres_session.named(LEAVE), {"id": me})
            connection.execute("COMMIT")
    assert notes(url) == [(1, "away"), (2, "away")]


async def test_a_rule_about_two_rows_holds_whoever_writes_at_once(url: str, db: PostgresDatabase) -> None:
    on_call(url)
    both_looked = threading.Barrier(2)
    runs = Counter[int]()

    def leave(me: int) -> Callable[[Tx], bool]:
        def fn(tx: Tx) -> bool:
            runs[me] += 1
            row = tx.one(OTHERS, {"id": me})
            assert row is not None
            if runs[me] == 1:
                both_looked.wait(SLACK_S)
            return bool(row["n"]) and tx.execute(LEAVE, {"id": me}) == 1

        return fn

    left = await asyncio.gather(db.write(leave(1)), db.write(leave(2)))
    assert sorted(left) == [False, True]
    assert sum(runs.values()) == 3, "one of them had to look again"
    assert sorted(body for _, body in notes(url)) == ["away", "on call"]


def on_call(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("INSERT INTO note VALUES (1, 'on call'), (2, 'on call')")


async def test_a_process_frozen_inside_a_transaction_holds_nobody_up_for_long(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tuple(one.replace("'5s'", "'300ms'") for one in postgres_session._SETTINGS)
    assert settings != postgres_session._SETTINGS
    monkeypatch.setattr(postgres_session, "_SETTINGS", settings)
    with psycopg.connect(url) as connection:
        connection.execute("INSERT INTO note VALUES (1, '0')")
    locked, thawed = threading.Event(), threading.Event()
    runs = 0

    def freeze(tx: Tx) -> None:
        nonlocal runs
        runs += 1
        tx.execute(ADD_ONE)
        if runs == 1:
            locked.set()
            assert thawed.wait(SLACK_S)

    async with opened(url) as frozen, opened(url) as other:
        freezing = asyncio.create_task(frozen.write(freeze))
        await asyncio.to_thread(locked.wait, SLACK_S)
        async with asyncio.timeout(SLACK_S):
            await other.write(lambda tx: tx.execute(ADD_ONE))
        assert notes(url) == [(1, "1")]
        thawed.set()
        await freezing
    assert runs == 2, "what it had done was undone, and is done again"
    assert notes(url) == [(1, "2")]


async def test_collisions_without_end_are_an_answer(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "PATIENCE_S", 0.2)
    monkeypatch.setattr(postgres, "FATED", 1_000_000)
    async with opened(url, fate=collisions(1.0)) as db:
        with pytest.raises(SpawnError) as refused:
            await db.write(insert(1))
        assert refused.value.code is Code.OVERLOADED
        assert db.collisions > 2
    assert notes(url) == []


async def test_more_than_may_wait_are_refused_at_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "QUEUE_LIMIT", 3)
    opening = threading.Event()

    def held(tx: Tx) -> int:
        assert opening.wait(SLACK_S)
        return insert(1)(tx)

    async with opened(url, writers=1) as db:
        waiting = [
            asyncio.create_task(db.write(held)),
            *(asyncio.create_task(db.write(insert(n))) for n in (2, 3)),
        ]
        await asyncio.sleep(0)
        with pytest.raises(SpawnError) as refused:
            await db.write(insert(4))
        assert refused.value.code is Code.OVERLOADED
        opening.set()
        assert await asyncio.gather(*waiting) == [1, 1, 1]
        assert await db.write(insert(5)) == 1
    assert [note_id for note_id, _ in notes(url)] == [1, 2, 3, 5]


async def test_a_reader_writes_nothing(url: str) -> None:
    reader = await PostgresDatabase.open_reader(url)
    try:
        with pytest.raises(DatabaseFailed, match="reading only"):
            await reader.write(insert(1))
        assert await reader.read(SELECT) == []
    finally:
        await reader.close()


# --- what cannot be used ------------------------------------------------------------------------------------------


def said(url: str) -> str:
    """The one sentence with which this place is refused, whichever way it is come by."""
    place = place_of(url)
    told = set()
    for come in (place.version, lambda: require_current(url), lambda: asyncio.run(_open(url))):
        with pytest.raises(StoreError) as refused:
            come()
        told.add(str(refused.value))
    (sentence,) = told
    assert "\n" not in sentence
    assert "hunter2" not in sentence
    assert sentence.endswith(".")
    return sentence


async def _open(url: str) -> None:
    await place_of(url).open()


def test_a_server_that_is_too_old_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_session, "OLDEST", 99)
    assert "spawn needs 99 or newer" in said(url)


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_cannot_hold_every_text_is_named(server: Postgres, encoding: str) -> None:
    with psycopg.connect(server.url("postgres"), autocommit=True) as operator:
        create = "CREATE DATABASE {} ENCODING {} TEMPLATE template0"
        operator.execute(sql.SQL(create).format(sql.Identifier(encoding), sql.Literal(encoding)))
    sentence = said(server.url(encoding))
    assert f"has the encoding {encoding}" in sentence
    assert "ENCODING 'UTF8'" in sentence


def test_a_wrong_password_is_said_and_not_repeated(server: Postgres) -> None:
    with psycopg.connect(server.url("postgres"), autocommit=True) as operator:
        operator.execute("CREATE DATABASE guarded TEMPLATE template0")
        operator.execute("CREATE ROLE guard LOGIN PASSWORD 'the right one'")
    server.demand_password("guarded")
    sentence = said(f"postgresql://guard:hunter2@/guarded?host={server.folder}")
    assert "password authentication failed" in sentence


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    for host in ("127.0.0.1:9", str(tmp_path)):
        address = f"@{host}/books" if ":" in host else f"@/books?host={host}"
        assert host in said(f"postgresql://me:hunter2{address}")


def test_a_database_that_is_not_there_is_named(server: Postgres) -> None:
    assert "nowhere" in said(server.url("nowhere"))
