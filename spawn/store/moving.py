"""Moves the books of an embedded database to a PostgreSQL database.

Invariants: the file is only read, while nobody else may write it; a move that was interrupted anywhere goes on where it
stopped, and no row comes twice; nobody serves from the target before both sides were read once more and found equal,
and nobody from the file after that, so that there is never a second truth.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import msgspec
from spawn_ledger.tx import Tx
from spawn_ledger.verify import verify
from spawn_schemas.money import Usdc

from spawn.store.database import DatabaseBusy, StoreError
from spawn.store.migrate import head_version, upgrade
from spawn.store.owner import Owner
from spawn.store.places import place_of
from spawn.store.postgres_copy import Mark, Table, Target, target
from spawn.store.sqlite import connect_reader
from spawn.store.sqlite_place import SqliteFile, moved_note
from spawn.store.whole_files import whole

PAGE_ROWS: Final = 5_000
"""Rows that are committed at once: a commit costs little beside them, and what is lost with a process is little."""
PROBLEMS_SHOWN: Final = 3
_LIMIT: Final = 1 << 128

SELECT_HELD_FOR_CUSTOMERS: Final = """
SELECT CAST(COALESCE(SUM(balance), 0) AS BIGINT) AS balance, CAST(COALESCE(SUM(held), 0) AS BIGINT) AS held
FROM account
"""

Tell = Callable[[str, str, int, int], None]
"""Told what is done, to which table, with how many rows so far, and of how many."""


class CopyDiffers(StoreError):
    """What is in the target is not what is in the source."""


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """What was done. `rows` are those of all tables, `copied` those that this run copied; None: it was done before."""

    source: Path
    target: str
    tables: int = 0
    rows: int = 0
    copied: int | None = None
    balance_usdc: Usdc = Usdc(0)


class Checksum(msgspec.Struct, frozen=True):
    """What rows come to, in whichever order they are read: how many, and the sum of their digests."""

    rows: int
    total: int


def checksum(rows: Iterator[tuple[Any, ...]], tell: Callable[[int], None]) -> Checksum:
    """Whole numbers, texts, bytes and nothing are encoded alike, whichever engine they came from."""
    encode, count, total = msgspec.msgpack.Encoder().encode, 0, 0
    for row in rows:
        count += 1
        total += int.from_bytes(blake2b(encode(row), digest_size=16).digest())
        if count % PAGE_ROWS == 0:
            tell(count)
    return Checksum(rows=count, total=total % _LIMIT)


class Source:
    """The file, read through one transaction; every table of ours has row ids, which are in the order of the file."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def columns(self) -> dict[str, frozenset[str]]:
        """Those of each table of the books."""
        found: dict[str, set[str]] = {}
        for table, column in self._rows(
            "SELECT m.name, c.name FROM sqlite_schema AS m JOIN pragma_table_info(m.name) AS c "
            "WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite~_%' ESCAPE '~' AND m.name <> 'alembic_version'"
        ):
            found.setdefault(table, set()).add(column)
        return {table: frozenset(columns) for table, columns in found.items()}

    def count(self, table: Table, after: int = 0) -> int:
        ((count,),) = self._rows(f"SELECT COUNT(*) FROM {_behind(table, after)}")  # noqa: S608 - see _quoted
        return int(count)

    def used(self) -> dict[str, int]:
        """The highest number ever given out, of tables that never give one out again."""
        return {table: int(seq) for table, seq in self._rows("SELECT name, seq FROM sqlite_sequence")}

    def pages(self, table: Table, after: int, size: int) -> Iterator[tuple[int, list[tuple[Any, ...]]]]:
        """Each page with the row id that it reaches."""
        query = f"SELECT {_columns(table)}, rowid FROM {_behind(table, after)} ORDER BY rowid"  # noqa: S608 - as above
        cursor = self._rows(query)
        while page := cursor.fetchmany(size):
            yield page[-1][-1], [row[:-1] for row in page]

    def rows(self, table: Table) -> Iterator[tuple[Any, ...]]:
        return self._rows(f"SELECT {_columns(table)} FROM {_quoted(table.name)}")  # noqa: S608 - see _quoted

    def held_for_customers(self) -> tuple[int, int]:
        ((balance, held),) = self._rows(SELECT_HELD_FOR_CUSTOMERS)
        return balance, held

    def _rows(self, query: str) -> sqlite3.Cursor:
        cursor = self._connection.cursor()
        cursor.row_factory = None
        return cursor.execute(query)


def _quoted(name: str) -> str:
    """A name that the schema itself gave."""
    return f'"{name}"'


def _behind(table: Table, row: int) -> str:
    return f"{_quoted(table.name)} WHERE rowid > {row}"


def _columns(table: Table) -> str:
    return ", ".join(map(_quoted, table.columns))


def move(source_url: str, target_url: str, tell: Tell, *, page_rows: int = PAGE_ROWS) -> Move:
    """Copy, prove, and let the target be served. Raises StoreError with what to do; ValueError for a URL that is none.

    What was done before is not done again: an attempt that ended in whichever way is repeated as it was.
    """
    path = place_of(source_url).file(
        "--from is the file of an embedded database, sqlite:///…: books that several processes write stay where they "
        "are."
    )
    if isinstance(place_of(target_url), SqliteFile):
        raise StoreError(
            "--to is a PostgreSQL database, postgresql://user:password@host:5432/database: to copy a file to another "
            "file, use `spawn backup`."
        )
    if not path.exists():
        raise StoreError(f"there is no database at {path}: name the file that the service wrote with --from.")
    with _only_reading(path, source_url) as source, target(target_url) as there:
        if not _is_begun(path, there):
            return Move(source=path, target=there.name)
        upgrade(place_of(target_url))
        tables = _tables(source, there)
        copied = _copy(source, there, tables, tell, page_rows)
        there.set_series(source.used())
        move = _prove(path, source, there, tables, tell)
        _note(path, there.name)
        there.finish()
        return msgspec.structs.replace(move, copied=copied)


@contextmanager
def _only_reading(path: Path, url: str) -> Iterator[Source]:
    try:
        owner = Owner.claim(path)
    except DatabaseBusy as error:
        raise DatabaseBusy(
            f"{path} is in use: stop the service, and whatever else writes its books, and repeat the command. They "
            "must not change while they are moved."
        ) from error
    try:
        _require_version(path, url)
        with closing(connect_reader(path)) as connection:
            connection.execute("BEGIN")
            yield Source(connection)
    except sqlite3.Error as error:
        raise StoreError(f"{path} cannot be read ({error}): restore it from a backup first.") from error
    finally:
        owner.release()


def _require_version(path: Path, url: str) -> None:
    current, head = SqliteFile(path).version(), head_version()
    if current is None:
        raise StoreError(
            f"{path} has no books of spawn in it: name the file that the service wrote with --from."
        )
    if current > head:
        raise StoreError(f"{path} is at version {current}, which is newer than this spawn: upgrade spawn.")
    if current != head:
        raise StoreError(
            f"{path} is at version {current}, this spawn needs {head}: run `SPAWN_DATABASE_URL={url} spawn migrate` "
            "first, then repeat the command."
        )


def _state(path: Path) -> str:
    """What differs as soon as anybody has written to the file, or it is another one."""
    log = path.with_name(path.name + "-wal")
    parts = [path.stat(), *([log.stat()] if log.exists() and log.stat().st_size else [])]
    return " ".join([head_version(), *(f"{part.st_size} {part.st_mtime_ns}" for part in parts)])


def _is_begun(path: Path, there: Target) -> bool:
    """Begin, or go on; False where all is done. Raises StoreError where the target is not for this source."""
    mark, note = there.mark(), moved_note(path)
    moved_to = note.read_text().strip() if note.exists() else None
    if moved_to not in (None, there.name):
        raise StoreError(
            f"the books of {path} were moved to {moved_to} already. If that database never took a call, and is given "
            f"up, delete {note} and repeat the command."
        )
    if mark is not None:
        _require_same(path, there, mark)
        return True
    filled = there.filled()
    if filled is not None:
        if moved_to is not None:
            return False
        raise StoreError(
            f"{there.name} is not empty ({filled} has rows): name an empty database, such as `createdb` makes."
        )
    there.begin(str(path.resolve()), _state(path))
    return True


def _require_same(path: Path, there: Target, mark: Mark) -> None:
    if mark.state != _state(path):
        raise StoreError(
            f"{there.name} holds an unfinished copy of {mark.source} as it was then, and {path} is another database, "
            "or was written to since. Drop that database, create it again, and repeat the command."
        )


def _tables(source: Source, there: Target) -> list[Table]:
    """The target's. Raises StoreError unless the source has the very same, so that none is forgotten."""
    here, tables = source.columns(), there.tables()
    found = {table.name: frozenset(table.columns) for table in tables}
    if here != found:
        names = sorted(name for name in here.keys() | found.keys() if here.get(name) != found.get(name))
        raise StoreError(
            f"{there.name} has other tables than its migrations make ({', '.join(names)}): name an empty database, "
            "such as `createdb` makes."
        )
    return tables


def _copy(source: Source, there: Target, tables: list[Table], tell: Tell, page_rows: int) -> int:
    reached, copied = there.reached(), 0
    for table in tables:
        behind = reached.get(table.name, 0)
        total, done = source.count(table, behind), 0
        for last, page in source.pages(table, behind, page_rows):
            before, reached = reached, reached | {table.name: last}
            there.take(table, page, before, reached)
            done += len(page)
            tell("copied", table.name, done, total)
        copied += done
    return copied


def _prove(path: Path, source: Source, there: Target, tables: list[Table], tell: Tell) -> Move:
    """Read both sides once more. Raises CopyDiffers, and StoreError where the books themselves are wrong."""
    there.analyze()
    rows = 0
    with there.snapshot() as tx:
        for table in tables:
            rows += _compare(source, there, table, tell)
        balance, held = _held_for_customers(tx)
        if (balance, held) != source.held_for_customers():
            raise _differs(there, "the sum of balances", "they are not the same")
        tell("verifying", "the books", 0, rows)
        violations = verify(tx)
    if violations:
        shown = "; ".join(f"{one.rule}: {one.sentence}" for one in violations[:PROBLEMS_SHOWN])
        raise StoreError(
            f"every row of {path} was copied, but its books are wrong ({len(violations)} times: {shown}). `spawn "
            "ledger verify` says the same of the file: nothing serves from the copy while that is so."
        )
    return Move(source=path, target=there.name, tables=len(tables), rows=rows, balance_usdc=Usdc(balance))


def _compare(source: Source, there: Target, table: Table, tell: Tell) -> int:
    total = source.count(table)
    here = checksum(source.rows(table), lambda done: tell("read here", table.name, done, total))
    found = checksum(there.rows(table), lambda done: tell("read there", table.name, done, total))
    if here != found:
        how = f"{here.rows} rows here, {found.rows} there"
        raise _differs(there, table.name, how if here.rows != found.rows else "a row is not what it was")
    return here.rows


def _held_for_customers(tx: Tx) -> tuple[int, int]:
    (row,) = tx.all(SELECT_HELD_FOR_CUSTOMERS, {})
    return row["balance"], row["held"]


def _differs(there: Target, what: str, how: str) -> CopyDiffers:
    return CopyDiffers(
        f"{there.name} is no true copy: {what} differs ({how}), so somebody wrote to it meanwhile. Drop it, create it "
        "again, and repeat the command."
    )


def _note(path: Path, name: str) -> None:
    """Before the target is let go of: a process that dies in between leaves none that serves, rather than two."""
    with whole(moved_note(path), replace=True) as unfinished:
        unfinished.write_text(f"{name}\n", encoding="utf-8")
