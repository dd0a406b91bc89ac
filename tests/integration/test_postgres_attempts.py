"""What a write is told at the end of its attempts, on a real server: a refusal that is true, never an error of ours."""

from collections.abc import Iterator
from itertools import chain, repeat
from typing import Final

import psycopg
import pytest
from psycopg import errors, sql
from spawn_ledger.tx import Tx
from spawn_schemas.errors import Code, SpawnError

from spawn.store.postgres import DOUBLES_MAX, Pace, PostgresDatabase
from tests.engines import Postgres
from tests.engines import postgres as running_postgres

NAME: Final = "t_attempts"
CREATE: Final = "CREATE TABLE note (id BIGINT PRIMARY KEY, body TEXT NOT NULL)"
INSERT: Final = "INSERT INTO note (id, body) VALUES (1, :body)"
SELECT: Final = "SELECT body FROM note WHERE id = 1"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture
def url(server: Postgres) -> str:
    """A database with one empty table."""
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        for text in ("DROP DATABASE IF EXISTS {} WITH (FORCE)", "CREATE DATABASE {}"):
            connection.execute(sql.SQL(text).format(sql.Identifier(NAME)))
    with psycopg.connect(server.url(NAME)) as connection:
        connection.execute(CREATE)
    return server.url(NAME)


async def test_a_row_that_another_put_there_after_the_look_is_seen_by_the_next_one(url: str) -> None:
    runs = 0

    def fn(tx: Tx) -> str:
        nonlocal runs
        runs += 1
        found = tx.one(SELECT)
        if found is not None:
            return f"refused: {found['body']}"
        if runs == 1:
            with psycopg.connect(url) as other:
                other.execute("INSERT INTO note VALUES (1, 'the other')")
        tx.execute(INSERT, {"body": "mine"})
        return "mine"

    db = await PostgresDatabase.open(url, writers=1, readers=1)
    assert await db.write(fn) == "refused: the other"
    assert runs == 2
    await db.close()


async def test_who_does_not_look_hears_of_a_row_that_is_there(url: str) -> None:
    runs = 0

    def fn(tx: Tx) -> int:
        nonlocal runs
        runs += 1
        return tx.execute(INSERT, {"body": "mine"})

    db = await PostgresDatabase.open(url, writers=1, readers=1)
    assert await db.write(fn) == 1
    runs = 0
    with pytest.raises(errors.UniqueViolation):
        await db.write(fn)
    assert runs == DOUBLES_MAX
    await db.close()


async def test_a_last_attempt_whose_commit_was_lost_is_a_refusal_that_is_true(url: str) -> None:
    """Found out to be lost when no time is left for another one: nothing was changed, and that is what is said."""
    backend: list[int] = []

    def fn(tx: Tx) -> int:
        changed = tx.execute(INSERT, {"body": "mine"})
        row = tx.one("SELECT pg_backend_pid() AS pid")
        assert row is not None
        backend.append(row["pid"])
        return changed

    def before_commit() -> None:
        if backend:
            with psycopg.connect(url) as operator:
                operator.execute("SELECT pg_terminate_backend(%s, 10000)", (backend.pop(),))

    db = await PostgresDatabase.open(url, writers=2, readers=1, fate=before_commit, pace=_impatient())
    with pytest.raises(SpawnError, match="cannot reach its database") as refused:
        await db.write(fn)
    assert refused.value.code is Code.OVERLOADED
    assert await db.read(SELECT) == []
    await db.close()


def _impatient() -> Pace:
    """By which the first attempt of a write is its last one."""
    seconds = chain((0.0,), repeat(100.0))
    return Pace(now=lambda: next(seconds))
