"""A file of SQLite's as the place of the books.

Invariant: one process writes it, and none where the books were moved from it.
"""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from spawn_ledger.tx import Tx

from spawn.store.database import Database, StoreError
from spawn.store.owner import Owner
from spawn.store.place import ALONE, OnFatal, Options
from spawn.store.snapshot import snapshot
from spawn.store.sqlite import SqliteDatabase, connect_reader, connect_writer

if TYPE_CHECKING:
    from sqlalchemy import Connection

_HAS_VERSION: Final = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'"
_SELECT_VERSION: Final = "SELECT version_num FROM alembic_version"


class Moved(StoreError):
    """The books are kept elsewhere by now: whoever wrote them here would write a second truth."""


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
