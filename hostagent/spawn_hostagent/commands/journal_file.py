"""The file of the journal: made, opened, and set aside where it is broken.

Invariant: only its owner reads it, since orders carry keys. A file that cannot be read is kept under another name and
said to be; it is never overwritten.
"""

import contextlib
import logging
import os
import sqlite3
from pathlib import Path
from typing import Final

SCHEMA_VERSION: Final = 2

_SCHEMA: Final = """
CREATE TABLE command (
    number INTEGER PRIMARY KEY,
    command_id TEXT NOT NULL UNIQUE,
    expires_at INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('received', 'running', 'ended')),
    body BLOB,
    ack BLOB,
    told INTEGER NOT NULL DEFAULT 0,
    changed_at INTEGER NOT NULL,
    is_asked INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE rental (
    rental_id TEXT PRIMARY KEY,
    seen INTEGER NOT NULL,
    destroyed INTEGER NOT NULL,
    changed_at INTEGER NOT NULL
);
CREATE TABLE lease (
    rental_id TEXT NOT NULL,
    generation INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    up_mbit INTEGER,
    PRIMARY KEY (rental_id, generation)
);
CREATE TABLE desired (
    rental_id TEXT PRIMARY KEY,
    generation INTEGER NOT NULL,
    state TEXT NOT NULL,
    lease_expires_at INTEGER NOT NULL
);
CREATE TABLE fact (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""

_UPGRADES: Final = {1: "ALTER TABLE command ADD COLUMN is_asked INTEGER NOT NULL DEFAULT 0;"}
"""What makes a journal of this version one of the next."""

_log: Final = logging.getLogger(__name__)


class JournalError(Exception):
    """The journal cannot be used; the message says what to do."""


def open_file(path: Path, factory: type[sqlite3.Connection]) -> tuple[sqlite3.Connection, Path | None]:
    """A connection to the journal in this file, and where a broken one before it went.

    Raises JournalError where a newer daemon wrote it, or the folder takes no file.
    """
    try:
        return _connect(path, factory), None
    except (sqlite3.OperationalError, OSError) as error:
        raise JournalError(
            f"{path} cannot be opened: {error}. Is the folder writable, the disk full?"
        ) from error
    except sqlite3.DatabaseError as error:
        aside = _set_aside(path)
        _log.error(
            "%s was broken (%s). It is kept as %s and a new one begins: rentals run on as Docker shows them, but what "
            "earlier commands came to is forgotten.",
            path,
            error,
            aside,
        )
        return _connect(path, factory), aside


def _connect(path: Path, factory: type[sqlite3.Connection]) -> sqlite3.Connection:
    # Orders carry host keys: nobody but us reads the file, nor the two that SQLite puts beside it.
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    connection = sqlite3.connect(path, isolation_level=None, factory=factory)
    try:
        _prepare(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise JournalError(f"{path} is of a newer spawn-host (version {version}). Install that one again.")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA secure_delete = ON")
    if version < SCHEMA_VERSION:
        steps = (
            _SCHEMA if version == 0 else "".join(_UPGRADES[step] for step in range(version, SCHEMA_VERSION))
        )
        connection.executescript(f"BEGIN; {steps} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(found)


def _set_aside(path: Path) -> Path:
    number = next(n for n in range(1, 10_000) if not path.with_name(f"{path.name}.broken-{n}").exists())
    aside = path.with_name(f"{path.name}.broken-{number}")
    for tail in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + tail).rename(aside.with_name(aside.name + tail))
    return aside
