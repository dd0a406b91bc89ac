"""Copies of a database: taken while a service writes, proven before anybody relies on them, and put in its place.

Invariant: a copy is one moment of the books, in one file without a log beside it. Taking it changes nothing at the
source: it is read like any query, and never checkpointed. Nothing takes a database's place before it is whole, and
what was there before is kept.
"""

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
from spawn_ledger.accounts import EXT_USDC
from spawn_ledger.transfers import balance_of
from spawn_ledger.verify import verify
from spawn_schemas.money import Usdc

from spawn.store.database import StoreError
from spawn.store.migrate import check_version, head_version, migrate
from spawn.store.owner import Owner
from spawn.store.snapshot import snapshot
from spawn.store.sqlite import connect_reader, connect_writer
from spawn.store.sqlite_place import SqliteFile
from spawn.store.whole_files import flush, whole

BESIDE: Final = ("", "-wal", "-shm")
"""The files that a database is made of while it is in use; the first has its name."""
PROBLEMS_SHOWN: Final = 5

SELECT_HELD: Final = "SELECT COUNT(*) AS transfers, MAX(at) AS newest FROM transfer"


class UnsoundBackup(StoreError):
    """The copy is not what a database of ours must be."""


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """What a copy holds. `newest_at` is when its last transfer was made (unix seconds), None where there is none."""

    version: str
    transfers: int
    paid_in_usdc: Usdc
    newest_at: int | None
    size_bytes: int


def back_up(database: Path, copy: Path, *, replace: bool) -> Contents:
    """Copy `database` as it is at this moment, beside whoever writes it, and prove the copy.

    Raises StoreError: the copy exists and may not be replaced, cannot be written, or is unsound (UnsoundBackup); then
    nothing is left of it, and what was there before is there still.
    """
    if _in_use(copy):
        raise StoreError(f"{copy} is a database in use ({copy}-wal is beside it): name another file.")
    with whole(copy, replace=replace) as unfinished:
        _copy(database, unfinished)
        return inspect(unfinished)


def _in_use(path: Path) -> bool:
    return path.with_name(path.name + "-wal").exists()


def _copy(database: Path, copy: Path) -> None:
    try:
        with (
            contextlib.closing(connect_reader(database)) as source,
            contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as target,
        ):
            # In one step: between two, the writer may change pages, and the copy would begin again, perhaps for ever.
            source.backup(target)
            _without_log(target)
    except sqlite3.OperationalError as error:
        raise StoreError(f"cannot copy {database} to {copy}: {error}.") from error


def _without_log(connection: sqlite3.Connection) -> None:
    """Whoever moves one file has moved all of it: what opens it next gives it a log of its own."""
    connection.execute("PRAGMA journal_mode = DELETE")


def inspect(copy: Path) -> Contents:
    """Prove a copy of this version's schema, every rule of the books included. Raises UnsoundBackup, StoreError."""
    _check_pages(copy)
    check_version(str(copy), current=SqliteFile(copy).version(), head=head_version())
    with snapshot(copy) as tx:
        violations = verify(tx)
        (held,) = tx.all(SELECT_HELD, {})
        contents = Contents(
            version=head_version(),
            transfers=held["transfers"],
            paid_in_usdc=balance_of(tx, EXT_USDC).balance,
            newest_at=held["newest"],
            size_bytes=copy.stat().st_size,
        )
    if violations:
        raise _unsound(copy, [f"{violation.rule}: {violation.sentence}" for violation in violations])
    return contents


def _require_books(copy: Path, backup: Path) -> None:
    """An empty file is a database to SQLite, and a migration would fill it: books that remember nobody's spending."""
    try:
        version = SqliteFile(copy).version()
    except (StoreError, sqlite3.DatabaseError) as error:
        raise UnsoundBackup(f"{backup} is not sound: {error.__cause__ or error}.") from error
    if version is None:
        raise UnsoundBackup(f"{backup} has no books of spawn in it: try another backup.")


def _check_pages(copy: Path) -> None:
    try:
        with contextlib.closing(connect_reader(copy)) as connection:
            found = [row[0] for row in connection.execute("PRAGMA integrity_check")]
            found += [
                f"a row of {row[0]} refers to none" for row in connection.execute("PRAGMA foreign_key_check")
            ]
    except sqlite3.DatabaseError as error:
        raise _unsound(copy, [str(error)]) from error
    if found != ["ok"]:
        raise _unsound(copy, found)


def _unsound(copy: Path, problems: list[str]) -> UnsoundBackup:
    more = f" (and {len(problems) - PROBLEMS_SHOWN} more)" if len(problems) > PROBLEMS_SHOWN else ""
    return UnsoundBackup(f"{copy} is not sound: {'; '.join(problems[:PROBLEMS_SHOWN])}{more}.")


class Place:
    """A proven copy at `path`, and the right to the name of the database that it is for."""

    def __init__(self, path: Path, database: Path) -> None:
        self.path = path
        self._database = database

    def take(self) -> None:
        """Become the database. Whoever has opened the copy has closed it; what was there before is kept."""
        _put_in_place(self.path, self._database)


@contextlib.contextmanager
def restoring(backup: Path, database: Path, *, replace: bool) -> Iterator[Place]:
    """Give a copy of `backup`, proven and of this version's schema, which may take the place of `database`.

    Until it does, nothing is there that a service could open but what was there before, and no service can start. A
    block that ends without it leaves everything as it was, and can be repeated.
    Raises DatabaseBusy where a service has the database, StoreError where it exists and may not be replaced,
    SchemaMismatch for a backup of a newer version, UnsoundBackup.
    """
    if not backup.is_file():
        raise StoreError(f"there is no backup at {backup}.")
    if _in_use(backup):
        raise StoreError(
            f"{backup} is a database in use ({backup}-wal is beside it): copy it with `spawn backup` first."
        )
    owner = Owner.claim(database)
    try:
        if _files_of(database) and not replace:
            raise StoreError(f"{database} exists already: say --force, and it is kept under another name.")
        unfinished = database.with_name(database.name + ".restoring")
        _discard(unfinished)
        try:
            shutil.copyfile(backup, unfinished)
            unfinished.chmod(0o600)
            _require_books(unfinished, backup)
            _check_pages(unfinished)
            migrate(f"sqlite:///{unfinished}")
            inspect(unfinished)
            yield Place(unfinished, database)
        finally:
            _discard(unfinished)
    finally:
        owner.release()


def kept_as(database: Path) -> Path:
    """Where a database goes that another takes the place of: the first such name that is free."""
    number = 1
    while _files_of(kept := database.with_name(f"{database.name}.replaced-{number}")):
        number += 1
    return kept


def _put_in_place(restored: Path, database: Path) -> None:
    """At every instant there is either all of the old database, or none, or all of the new one.

    A log that outlives its database would be replayed into the next of that name.
    """
    with contextlib.closing(connect_writer(restored)) as connection:
        _without_log(connection)
    flush(restored)
    old = _files_of(database)
    kept = kept_as(database)
    for suffix in old:
        kept.with_name(kept.name + suffix).hardlink_to(database.with_name(database.name + suffix))
    flush(database.parent)
    for suffix in old:
        database.with_name(database.name + suffix).unlink()
    flush(database.parent)
    restored.rename(database)
    flush(database.parent)


def _files_of(database: Path) -> list[str]:
    """Which of the files of this database there are, its own first: without it the others are nothing."""
    return [suffix for suffix in BESIDE if database.with_name(database.name + suffix).exists()]


def _discard(unfinished: Path) -> None:
    for suffix in (*BESIDE, ".lock"):
        unfinished.with_name(unfinished.name + suffix).unlink(missing_ok=True)
