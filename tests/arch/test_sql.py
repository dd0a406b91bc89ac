"""Every query is a constant in the common dialect, and both engines accept it against the real schema."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from io import StringIO
from pathlib import Path
from typing import Final

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory

from tests.arch.sql import Query, dialect_faults, for_postgres, loose_sql, queries
from tests.arch.tree import PACKAGES, Module, modules_under, read_module
from tests.engines import ROOT, Postgres, postgres

REFUSED_BY_BOTH: Final = Query(
    name="planted:COLUMN", sql="SELECT nothing_like_it FROM account WHERE id = :id"
)


def our_modules() -> Iterator[Module]:
    for package in ("spawn", "spawn_ledger"):
        yield from modules_under(PACKAGES[package])


def our_queries() -> list[Query]:
    found = [query for module in our_modules() for query in queries(module)]
    assert len(found) > 20, "the search has gone blind"
    return found


def schema(dialect: str) -> str:
    """What the migrations would do to an empty database of this engine, as a script."""
    script = StringIO()
    context = MigrationContext.configure(dialect_name=dialect, opts={"as_sql": True, "output_buffer": script})
    revisions = reversed(list(ScriptDirectory(str(ROOT / "migrations")).walk_revisions()))
    with Operations.context(context):
        for revision in revisions:
            revision.module.upgrade()
    return script.getvalue()


def refused_by_sqlite(database: sqlite3.Connection, query: Query) -> str | None:
    try:
        database.execute(f"EXPLAIN {query.sql}", dict.fromkeys(query.parameters))
    except sqlite3.Error as error:
        return f"{query.name}: {error}"
    return None


def refused_by_postgres(server: Postgres, wanted: list[Query]) -> list[str]:
    """Prepare every query in one session; return the server's complaint about each that it refused."""
    lines = []
    for number, query in enumerate(wanted):
        lines += [f"\\warn @{query.name}", f"PREPARE query_{number} AS", f"{for_postgres(query)};"]
    answers = server.psql("\n".join(lines), stop_at_error=False).split("@")[1:]
    assert len(answers) == len(wanted)
    return [answer.strip() for answer in answers if "\n" in answer.strip()]


def test_no_sql_outside_constants() -> None:
    assert [place for module in our_modules() for place in loose_sql(module)] == []


def test_queries_keep_to_the_common_dialect() -> None:
    assert [fault for query in our_queries() for fault in dialect_faults(query)] == []


@pytest.fixture
def sqlite() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:")) as database:
        database.executescript(schema("sqlite"))
        yield database


def test_sqlite_accepts_every_query(sqlite: sqlite3.Connection) -> None:
    assert [refused for query in our_queries() if (refused := refused_by_sqlite(sqlite, query))] == []
    assert refused_by_sqlite(sqlite, REFUSED_BY_BOTH) is not None


def test_postgres_accepts_every_query() -> None:
    with postgres() as server:
        server.psql(schema("postgresql"))
        assert refused_by_postgres(server, our_queries()) == []
        planted = Query(name="planted:TYPE", sql="SELECT id FROM account WHERE balance = :a || 'x'")
        good = Query(name="planted:GOOD", sql="SELECT id FROM account WHERE id = ':b' || :a OR id = :a")
        refused = refused_by_postgres(server, [REFUSED_BY_BOTH, good, planted])
        assert [answer.partition("\n")[0] for answer in refused] == ["planted:COLUMN", "planted:TYPE"]


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT OR IGNORE INTO account (id) VALUES (:id)",
        "SELECT id FROM account WHERE id = ?",
        "SELECT id FROM account WHERE id = %s",
        "SELECT id FROM account WHERE id = $1",
        "SELECT rowid FROM account",
        "SELECT id FROM transfer WHERE at < datetime('now')",
        "SELECT strftime('%Y', at) FROM transfer",
        "SELECT ifnull(held, 0) FROM account",
        "SELECT json_extract(plan, '$.a') FROM operation",
        "SELECT id FROM account WHERE id GLOB :pattern",
        'SELECT id FROM account WHERE id = "x"',
        "SELECT id FROM account LIMIT -1",
        "SELECT `id` FROM account",
        "SELECT id FROM account FOR UPDATE",
        "SELECT id::text FROM account",
        "SELECT id FROM account WHERE (id = :id",
        "SELECT id FROM account; DELETE FROM account",
    ],
)
def test_a_planted_dialect_is_seen(sql: str) -> None:
    assert list(dialect_faults(Query(name="planted", sql=sql))) != []


def test_what_stands_in_quotes_is_no_dialect() -> None:
    query = Query(name="fine", sql="SELECT id FROM account WHERE id = 'rowid? :x' AND balance > :least")
    assert list(dialect_faults(query)) == []
    assert query.parameters == ("least",)


@pytest.mark.parametrize(
    "text",
    [
        "def f(tx):\n    tx.execute('UPDATE account SET held = 0')",
        "def f(tx, table):\n    tx.all(f'SELECT id FROM {table}')",
        "A = 'SELECT id FROM account'\ndef f(tx):\n    tx.all(A + ' LIMIT 1')",
        "def f():\n    sql = 'DELETE FROM account'\n    return sql",
        "import os\nA = f'SELECT id FROM {os.name}'",
    ],
)
def test_planted_loose_sql_is_seen(tmp_path: Path, text: str) -> None:
    path = tmp_path / "planted.py"
    path.write_text(text)
    assert len(list(loose_sql(read_module(path, tmp_path)))) == 1


def test_queries_are_found_in_tables_and_compositions(tmp_path: Path) -> None:
    path = tmp_path / "composed.py"
    path.write_text(
        "C = 'id, held'\n"
        "A: Final = f'SELECT {C} FROM account'\n"
        "B = A + ' WHERE id = :id'\n"
        "RULES = (Rule(sql='SELECT id FROM hold'), {'x': 'DELETE FROM hold'})\n"
    )
    module = read_module(path, tmp_path)
    assert list(loose_sql(module)) == []
    assert [query.sql for query in queries(module)] == [
        "SELECT id, held FROM account",
        "SELECT id, held FROM account WHERE id = :id",
        "SELECT id FROM hold",
        "DELETE FROM hold",
    ]
