"""Where the books are kept, read from `SPAWN_DATABASE_URL`: a file of SQLite's, or a PostgreSQL database.

Invariant: what depends on the engine is asked of its place, and nothing outside this room knows which it is. The name
of a place is for people, and never holds a password.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
from spawn_ledger.tx import Tx

from spawn.store.database import Database, DatabaseFailed, StoreError
from spawn.store.owner import Owner
from spawn.store.snapshot import snapshot
from spawn.store.sqlite import SqliteDatabase, connect_reader, connect_writer

if TYPE_CHECKING:
    from sqlalchemy import Connection

OnFatal = Callable[[DatabaseFailed], None] | None


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What only a server's connections are opened with.

    `connections` is how many transactions a process has under way at most. `retries`, for tests, is the share of
    statements that fail as they do where another transaction came first (SQLSTATE 40001).
    """

    connections: int = 8
    retries: float = 0.0


ALONE: Final = Options()
"""Those of a command."""

_HAS_VERSION: Final = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'"
_SELECT_VERSION: Final = "SELECT version_num FROM alembic_version"


class Moved(StoreError):
    """The books are kept elsewhere by now: whoever wrote them here would write a second truth."""


class NoFile(StoreError):
    """What was asked for is done with the file of an embedded database, and the books are elsewhere."""


class Place(Protocol):
    """A place for the books. Everything raises StoreError where it cannot be used."""

    @property
    def name(self) -> str:
        """What an operator knows it by."""
        ...

    @property
    def is_shared(self) -> bool:
        """Whether several processes may write it."""
        ...

    def file(self, or_else: str) -> Path:
        """The file that it is; raises NoFile, which says `or_else`, where it is none."""
        ...

    def version(self) -> str | None:
        """The version of its schema; None when it has none, or is not there. Changes nothing.

        Raises UnfinishedCopy where the books are still on their way here.
        """
        ...

    def migrating(self) -> AbstractContextManager["Connection"]:
        """SQLAlchemy's connection for migrations, while nobody else may migrate. Creates a file that is missing."""
        ...

    async def open(self, options: Options = ALONE, on_fatal: OnFatal = None) -> Database:
        """Open what exists, for a process that writes."""
        ...

    async def open_reader(self) -> Database:
        """Open what exists, for a process that only looks, beside those that write."""
        ...

    def snapshot(self) -> AbstractContextManager[Tx]:
        """One consistent view, beside whoever writes. It refuses to write; and it blocks: it is for commands."""
        ...


def place_of(url: str) -> Place:
    """The place that a database URL names; nothing is opened. Raises ValueError for what is none.

    The message never repeats the URL, which may hold a password.
    """
    scheme, separator, _ = url.partition("://")
    if separator and scheme in ("postgresql", "postgres"):
        # Serving from a file does without the driver, which takes a tenth of a second to import.
        from spawn.store.postgres_place import PostgresServer  # noqa: PLC0415 - see above

        return PostgresServer(url)
    return SqliteFile(_path(url))


def _path(url: str) -> Path:
    scheme, separator, rest = url.partition("://")
    if scheme != "sqlite" or not separator:
        raise ValueError(
            "a database URL is sqlite:///relative/path.db, sqlite:////absolute/path.db, or "
            "postgresql://user:password@host:5432/database"
        )
    if not rest.startswith("/"):
        raise ValueError("a SQLite URL names no host: write sqlite:/// and then the path")
    path = rest[1:]
    if path in ("", ":memory:") or path.endswith("/") or "?" in path or "#" in path:
        raise ValueError("a SQLite URL ends with the path of a file and has no options: sqlite:///spawn.db")
    return Path(path)


def file_of(url: str) -> Path:
    """The file of an embedded database. Raises ValueError for what is no URL, and NoFile for another engine's."""
    return place_of(url).file("this is done with the file of an embedded database, sqlite:///….")


def moved_note(path: Path) -> Path:
    """What lies beside an embedded database whose books were moved, and says to where."""
    return path.with_name(path.name + ".moved")


def refuse_moved(path: Path) -> None:
    """Raise Moved where the books of this file were moved."""
    note = moved_note(path)
    if note.exists():
        raise Moved(
            f"the books of {path} were moved to {note.read_text().strip()}: set SPAWN_DATABASE_URL to it. If that "
            f"database never took a call, and is given up, delete {note} to go on with this file."
        )


class SqliteFile:
    """A file on a local disk, which one process writes."""

    is_shared = False

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def name(self) -> str:
        return str(self._path)

    def file(self, or_else: str) -> Path:
        return self._path

    def version(self) -> str | None:
        if not self._path.exists():
            return None
        with contextlib.closing(connect_reader(self._path)) as connection:
            if connection.execute(_HAS_VERSION).fetchone() is None:
                return None
            row = connection.execute(_SELECT_VERSION).fetchone()
        return None if row is None else str(row[0])

    @contextmanager
    def migrating(self) -> Iterator["Connection"]:
        # SQLAlchemy takes a noticeable part of a second to import, and serving does not need it.
        from sqlalchemy import create_engine, event  # noqa: PLC0415 - see above
        from sqlalchemy.pool import NullPool  # noqa: PLC0415 - see above

        owner = Owner.claim(self._path)
        try:
            engine = create_engine(
                "sqlite://", creator=lambda: connect_writer(self._path), poolclass=NullPool
            )
            # The driver would begin a transaction only before the first change of data, not of schema.
            event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
            with engine.connect() as connection:
                yield connection
        finally:
            owner.release()

    async def open(self, options: Options = ALONE, on_fatal: OnFatal = None) -> Database:
        refuse_moved(self._path)
        return await SqliteDatabase.open(self._path, on_fatal=on_fatal)

    async def open_reader(self) -> Database:
        return await SqliteDatabase.open_reader(self._path)

    def snapshot(self) -> AbstractContextManager[Tx]:
        return snapshot(self._path)
