"""How it is found out what became of a COMMIT that got no answer: by a number that the transaction itself wrote.

The server's own id of a transaction would not do. After a crash it gives ids again that it gave to transactions of
which nothing had reached its disk yet, and `pg_xact_status` then answers for a stranger: a write is taken for kept that
is gone. A row is there or it is not, on a server that crashed and on a standby that took over alike.
Invariant: a slot belongs to one thread at a time, and its number is that of its last transaction that came to be.
"""

import itertools
import secrets
import threading
from contextlib import closing
from typing import Final

import msgspec
import psycopg
from psycopg import errors

from spawn.store.database import StoreError
from spawn.store.postgres_session import Connection, connect, first_line, place_name

# Outside the books: no migration, backup or copy of them is about it. The lock is held until the two are made.
_CREATE: Final = """
SELECT pg_advisory_xact_lock(402);
CREATE SCHEMA IF NOT EXISTS spawn_engine;
CREATE TABLE IF NOT EXISTS spawn_engine.mark (
    slot TEXT PRIMARY KEY, number BIGINT NOT NULL, at TIMESTAMPTZ NOT NULL
) WITH (fillfactor = 50)
"""
_IS_THERE: Final = "SELECT to_regclass('spawn_engine.mark') AS oid"
_FORGET: Final = "DELETE FROM spawn_engine.mark WHERE at < now() - INTERVAL '1 day'"
# It reads nothing that serializable transactions watch: those of different slots never collide because of it.
_WRITE: Final = """
INSERT INTO spawn_engine.mark AS mark (slot, number, at) VALUES ({slot}, {number}, now())
ON CONFLICT (slot) DO UPDATE SET number = EXCLUDED.number, at = EXCLUDED.at
"""
# Waits for a transaction that has written the mark and is not over. Where there was none, there never will be.
_LOOK: Final = """
INSERT INTO spawn_engine.mark AS mark (slot, number, at) VALUES (%(slot)s, -1, now())
ON CONFLICT (slot) DO UPDATE SET at = EXCLUDED.at RETURNING number
"""
_WAIT_NO_LONGER: Final = "SET LOCAL lock_timeout = '500ms'"


class Mark(msgspec.Struct, frozen=True):
    """What a transaction writes besides its changes. `slot` is ours: hex digits, and a number."""

    slot: str
    number: int

    @property
    def statement(self) -> str:
        return _WRITE.format(slot=f"'{self.slot}'", number=self.number)


class Marks:
    """The marks of a process, which any of its threads may ask for."""

    def __init__(self) -> None:
        self._process = secrets.token_hex(8)
        self._slots = itertools.count(1)
        self._numbers = itertools.count(1)
        self._mine = threading.local()

    def next(self) -> Mark:
        """The mark of this thread's next transaction."""
        slot: str | None = getattr(self._mine, "slot", None)
        if slot is None:
            slot = self._mine.slot = f"{self._process}-{next(self._slots)}"
        return Mark(slot, next(self._numbers))

    def leave(self) -> None:
        """The thread's next transaction has another slot, so that it waits for nothing that this one still holds."""
        self._mine.slot = None


def prepare(url: str) -> None:
    """Make the table of marks where there is none, and forget those of processes that are long gone.

    Raises StoreError when the server cannot be reached, or refuses.
    """
    with closing(connect(url)) as connection:
        try:
            found = connection.execute(_IS_THERE).fetchone()
            if found is None or found["oid"] is None:
                connection.execute(_CREATE)
            connection.execute(_FORGET)
        except psycopg.Error as error:
            raise StoreError(f"cannot use {place_name(url)}: {first_line(error)}") from error


def was_committed(connection: Connection, mark: Mark) -> bool | None:
    """Whether the transaction with this mark came to be; None while the server has not decided.

    After an answer it stays as it is: a COMMIT that is still on its way finds nothing to commit.
    """
    try:
        with connection.transaction():
            connection.execute(_WAIT_NO_LONGER)
            row = connection.execute(_LOOK, {"slot": mark.slot}).fetchone()
    except errors.LockNotAvailable:
        return None
    return row is not None and row["number"] == mark.number
