"""A PostgreSQL database as a place for the books.

Invariant: the database exists, made by whoever runs the server; all in it is made by migrations.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict
from spawn_ledger.tx import Tx

from spawn.store.place import ALONE, NoFile, OnFatal, Options
from spawn.store.postgres import PostgresDatabase
from spawn.store.postgres_copy import require_finished
from spawn.store.postgres_marks import prepare
from spawn.store.postgres_session import begin_snapshot, collisions, connect, no_fate, place_name

if TYPE_CHECKING:
    from sqlalchemy import Connection

_HAS_VERSION: Final = "SELECT to_regclass('alembic_version') AS oid"
_SELECT_VERSION: Final = "SELECT version_num FROM alembic_version"
# Ends with the transaction. The number is ours alone in a database that is ours alone.
_ONE_AT_A_TIME: Final = "SELECT pg_advisory_xact_lock(402)"


class PostgresServer:
    """A database that several processes write. Raises ValueError for a URL that the driver cannot read."""

    is_shared = True

    def __init__(self, url: str) -> None:
        try:
            parts = conninfo_to_dict(url)
        except psycopg.Error:
            parts = {}
        if not parts.get("dbname"):
            raise ValueError("a PostgreSQL URL is postgresql://user:password@host:5432/database")
        self._url = url
        self._name = place_name(url)

    @property
    def name(self) -> str:
        return self._name

    def file(self, or_else: str) -> Path:
        raise NoFile(or_else)

    def version(self) -> str | None:
        with closing(connect(self._url, reads_only=True)) as connection:
            found = connection.execute(_HAS_VERSION).fetchone()
            require_finished(connection, self._name)
            if found is None or found["oid"] is None:
                return None
            row = connection.execute(_SELECT_VERSION).fetchone()
        return None if row is None else str(row["version_num"])

    @contextmanager
    def migrating(self) -> Iterator["Connection"]:
        # SQLAlchemy takes a noticeable part of a second to import, and serving does not need it.
        from sqlalchemy import create_engine, event  # noqa: PLC0415 - see above
        from sqlalchemy.pool import NullPool  # noqa: PLC0415 - see above

        prepare(self._url)  # who cannot be reached says so in a sentence
        engine = create_engine(
            "postgresql+psycopg://", creator=lambda: psycopg.connect(self._url), poolclass=NullPool
        )
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(_ONE_AT_A_TIME))
        with engine.connect() as migration:
            yield migration

    async def open(self, options: Options = ALONE, on_fatal: OnFatal = None) -> PostgresDatabase:
        return await PostgresDatabase.open(
            self._url,
            writers=options.connections,
            fate=collisions(options.retries) if options.retries else no_fate,
            on_fatal=on_fatal,
        )

    async def open_reader(self) -> PostgresDatabase:
        return await PostgresDatabase.open_reader(self._url)

    @contextmanager
    def snapshot(self) -> Iterator[Tx]:
        with closing(connect(self._url, reads_only=True)) as connection:
            yield begin_snapshot(connection)
