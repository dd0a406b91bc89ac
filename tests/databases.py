"""Where a test keeps its books: in a file of its folder, or in a PostgreSQL database that is named for it.

`SPAWN_TEST_ENGINE=postgresql` runs the same tests on a server that the test run starts; `SPAWN_TEST_RETRIES=0.05` lets
that share of statements fail with 40001 besides. Invariant: the same folder is the same database, so that opening it
again is a restart; and what a module made is dropped when the module is over.
"""

import hashlib
import os
import shutil
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
from spawn.store.place import Options
from spawn.store.places import place_of
from spawn.store.postgres_session import Connection, connect

ENGINE_VARIABLE: Final = "SPAWN_TEST_ENGINE"
RETRIES_VARIABLE: Final = "SPAWN_TEST_RETRIES"
SERVER_VARIABLE: Final = "SPAWN_TEST_SERVER"
"""Set by the test run itself: how its server is reached, for its workers and their children."""
TEMPLATE: Final = "template_of_spawn"
TABLES: Final = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name",
    "postgresql": "SELECT table_name AS name FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1",
}
"""By engine, the query for the names of all tables."""

ALONE: Final = os.environ.get(ENGINE_VARIABLE, "sqlite") == "sqlite"
"""Whether a process knows that it is the only one, and takes what a dead one had claimed without waiting."""

_made: list[str] = []
_connected: dict[str, Connection] = {}


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


def variables(folder: Path) -> dict[str, str]:
    """The settings of a process whose books are a test folder's. On a server the database is there, and empty."""
    url = database_url(folder)
    if engine() == "sqlite":
        return {"SPAWN_DATABASE_URL": url}
    make_empty(url)
    return {
        "SPAWN_DATABASE_URL": url,
        "SPAWN_DATABASE_RETRIES": str(retries()),
        # There is no file beside which a key could be made.
        "SPAWN_SECRET_KEY": "5a" * 32,
    }


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


def _name(url: str) -> str:
    return str(psycopg.conninfo.conninfo_to_dict(url)["dbname"])


def _make(url: str, template: str) -> None:
    name = _name(url)
    with _operator() as connection:
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone() is not None:
            return
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(
                sql.Identifier(name), sql.Identifier(template)
            )
        )
        _made.append(name)


def copy(source: Path, folder: Path) -> None:
    """A new folder with all that is in another, and with the database that is named for it, which nobody has open."""
    shutil.copytree(source, folder)
    if engine() == "postgresql":
        _make(database_url(folder), _name(database_url(source)))


def connection(url: str) -> Connection:
    """A connection for a test alone, ended when its module is over, or when the same database is asked for again."""
    name = _name(url)
    if name in _connected:
        _connected[name].close()
    _connected[name] = connect(url)
    return _connected[name]


def files(folder: Path) -> list[Path]:
    """The files that a disk holds of a test's database; whoever owns the disk can read them."""
    if engine() == "sqlite":
        return sorted(folder.glob("spawn.db*"))
    with psycopg.connect(database_url(folder), autocommit=True) as connection:
        connection.execute("CHECKPOINT")
        row = connection.execute(
            "SELECT current_setting('data_directory'), oid FROM pg_database WHERE datname = current_database()"
        ).fetchone()
    assert row is not None
    return sorted((Path(row[0]) / "base" / str(row[1])).iterdir())


def keep_made() -> None:
    """What was made so far stays until the server of this run ends: several modules share it."""
    _made.clear()


def drop_made() -> None:
    """Drop what this process made, whoever is still connected."""
    while _connected:
        _connected.popitem()[1].close()
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
