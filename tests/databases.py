"""Where a test keeps its books: in a file of its folder, or in a PostgreSQL database that is named for it.

`SPAWN_TEST_ENGINE=postgresql` runs the same tests on a server that the test run starts; `SPAWN_TEST_RETRIES=0.05` lets
that share of statements fail with 40001 besides. Invariant: the same folder is the same database, so that opening it
again is a restart; and what a module made is dropped when the module is over.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import sql

from spawn.store.database import Database
from spawn.store.migrate import migrate
from spawn.store.places import Options, place_of

ENGINE_VARIABLE: Final = "SPAWN_TEST_ENGINE"
RETRIES_VARIABLE: Final = "SPAWN_TEST_RETRIES"
SERVER_VARIABLE: Final = "SPAWN_TEST_SERVER"
"""Set by the test run itself: how its server is reached, for its workers and their children."""
TEMPLATE: Final = "template_of_spawn"

_made: list[str] = []


def engine() -> str:
    """`sqlite` or `postgresql`. Raises ValueError for what is neither."""
    name = os.environ.get(ENGINE_VARIABLE, "sqlite")
    if name not in {"sqlite", "postgresql"}:
        raise ValueError(f"{ENGINE_VARIABLE} is {name}; engines are sqlite and postgresql")
    return name


def retries() -> float:
    return float(os.environ.get(RETRIES_VARIABLE, "0"))


def database_url(folder: Path, name: str = "spawn") -> str:
    """The database of this name in a test's folder; it need not exist."""
    if engine() == "sqlite":
        return f"sqlite:///{folder / name}.db"
    digest = hashlib.sha256(str(folder.resolve() / name).encode()).hexdigest()[:24]
    return server_url(f"t_{digest}")


def server_url(database: str) -> str:
    return os.environ[SERVER_VARIABLE].format(database=database)


def make(url: str) -> None:
    """Create the database after every migration, unless it is there."""
    if url.startswith("sqlite:"):
        make_file(place_of(url).file("it is one"))
        return
    _make(url, TEMPLATE)


def make_file(path: Path) -> None:
    """Create an embedded database after every migration, unless it is there."""
    if not path.exists():
        path.write_bytes(_migrated_file())


def _make(url: str, template: str) -> None:
    name = str(psycopg.conninfo.conninfo_to_dict(url)["dbname"])
    with _operator() as connection:
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone() is not None:
            return
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(
                sql.Identifier(name), sql.Identifier(template)
            )
        )
        _made.append(name)


def drop_made() -> None:
    """Drop what this process made, whoever is still connected."""
    if not _made:
        return
    with _operator() as connection:
        while _made:
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(_made.pop()))
            )


def make_template() -> None:
    """Migrate once what every test's database is a copy of."""
    url = server_url(TEMPLATE)
    make_empty(url)
    _made.remove(TEMPLATE)
    migrate(url)


async def open_database(url: str) -> Database:
    """As the service opens it, with fewer connections."""
    return await place_of(url).open(Options(connections=4, retries=retries()))


def make_empty(url: str) -> None:
    """Create a database without tables, unless it is there."""
    _make(url, "template0")


@contextmanager
def _operator() -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(server_url("postgres"), autocommit=True) as connection:
        yield connection


@cache
def _migrated_file() -> bytes:
    """An empty file after every migration, made once for all tests."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "template.db"
        migrate(f"sqlite:///{path}")
        return path.read_bytes()
