"""A PostgreSQL database while it is filled with the books of another place.

Invariants: until all of them are there and proven, a table of its own says so, and `PostgresServer.version` refuses the
database to whoever would serve from it; what a page brings and how far it reaches are committed together, and only if
nobody else, such as a process that is dead but for its last statement, went further meanwhile.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from graphlib import TopologicalSorter
from typing import Any, Final

import msgspec
import psycopg
from psycopg import errors, sql
from psycopg.rows import tuple_row

from spawn.store.database import StoreError
from spawn.store.postgres_session import (
    Connection,
    PostgresTx,
    begin_snapshot,
    connect,
    first_line,
    place_name,
)

MARK: Final = "unfinished_copy"
_APART: Final = (MARK, "alembic_version")
"""What is no part of the books."""

_HAS_MARK: Final = "SELECT to_regclass('unfinished_copy') AS oid"
_SELECT_MARK: Final = "SELECT source, state, reached FROM unfinished_copy"
_MAKE_MARK: Final = (
    "CREATE TABLE unfinished_copy (source TEXT NOT NULL, state TEXT NOT NULL, reached TEXT NOT NULL)"
)
_INSERT_MARK: Final = "INSERT INTO unfinished_copy (source, state, reached) VALUES (%s, %s, '{}')"
_REMEMBER: Final = "UPDATE unfinished_copy SET reached = %s WHERE reached = %s"
_DROP_MARK: Final = "DROP TABLE unfinished_copy"
# A copy of a hundred million rows is one long statement after the other, and nobody waits for its locks.
_SETTINGS: Final = (
    "SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0; SET lock_timeout = '15s'"
)

_TABLES: Final = """
SELECT c.relname AS name, array_agg(a.attname::text ORDER BY a.attnum) AS columns,
    array_agg(a.atttypid ORDER BY a.attnum) AS types
FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND a.attnum > 0
    AND NOT a.attisdropped AND c.relname::text <> ALL (%s)
GROUP BY c.relname ORDER BY c.relname
"""
_REFERENCES: Final = """
SELECT DISTINCT child.relname AS child, parent.relname AS parent
FROM pg_constraint AS k
JOIN pg_class AS child ON child.oid = k.conrelid JOIN pg_class AS parent ON parent.oid = k.confrelid
WHERE k.contype = 'f' AND k.connamespace = current_schema()::regnamespace
"""
_SERIES: Final = """
SELECT c.relname AS table, a.attname AS column, pg_get_serial_sequence(quote_ident(c.relname), a.attname) AS series
FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
    AND pg_get_serial_sequence(quote_ident(c.relname), a.attname) IS NOT NULL
ORDER BY c.relname
"""
_ANY: Final = sql.SQL("SELECT 1 AS one FROM {table} LIMIT 1")
_COPY_IN: Final = sql.SQL("COPY {table} ({columns}) FROM STDIN (FORMAT BINARY)")
_SELECT_ALL: Final = sql.SQL("SELECT {columns} FROM {table}")
_SET_SERIES: Final = sql.SQL(
    "SELECT setval(%s, GREATEST(%s, (SELECT MAX({column}) FROM {table}), 1), "
    "%s > 0 OR EXISTS (SELECT 1 FROM {table}))"
)
_FETCHED: Final = 5_000

Reached = dict[str, int]
"""The last row that was copied of each table that was begun."""


class UnfinishedCopy(StoreError):
    """Not all of the books are in this database yet."""


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """What an unfinished copy is of, as it was then, and how far it has come, as it is written there."""

    source: str
    state: str
    reached: str


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """A table of the books; `types` are the server's own numbers of its columns' types."""

    name: str
    columns: tuple[str, ...]
    types: tuple[int, ...]


def mark_of(connection: Connection) -> Mark | None:
    """What an unfinished copy in this database says of itself, or None."""
    found = connection.execute(_HAS_MARK).fetchone()
    if found is None or found["oid"] is None:
        return None
    row = connection.execute(_SELECT_MARK).fetchone()
    if row is None:
        return None
    return Mark(source=row["source"], state=row["state"], reached=row["reached"])


def require_finished(connection: Connection, name: str) -> None:
    """Raise UnfinishedCopy where a copy has begun and not ended."""
    mark = mark_of(connection)
    if mark is not None:
        raise UnfinishedCopy(
            f"{name} holds an unfinished copy of {mark.source}: go on with `spawn migrate --from "
            f"sqlite:///{mark.source} --to` and its URL, which takes up where it stopped."
        )


class Target:
    """The database, for the only process that copies into it. Made by `target`."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self.name = name

    def mark(self) -> Mark | None:
        return mark_of(self._connection)

    def reached(self) -> Reached:
        """How far earlier attempts have come."""
        mark = self.mark()
        return {} if mark is None else msgspec.json.decode(mark.reached, type=Reached)

    def begin(self, source: str, state: str) -> None:
        """Say, before anything else is in it, what this database will be a copy of."""
        with self._connection.transaction():
            self._connection.execute(_MAKE_MARK)
            self._connection.execute(_INSERT_MARK, (source, state))

    def tables(self) -> list[Table]:
        """All tables of the books, a table that others refer to before those."""
        found = {
            row["name"]: Table(name=row["name"], columns=tuple(row["columns"]), types=tuple(row["types"]))
            for row in self._connection.execute(_TABLES, (list(_APART),)).fetchall()
        }
        order: TopologicalSorter[str] = TopologicalSorter(dict.fromkeys(found, ()))
        for row in self._connection.execute(_REFERENCES).fetchall():
            if row["child"] != row["parent"]:
                order.add(row["child"], row["parent"])
        return [found[name] for name in order.static_order()]

    def filled(self) -> str | None:
        """The name of a table that has rows, or None."""
        for table in self.tables():
            if self._connection.execute(_ANY.format(table=sql.Identifier(table.name))).fetchone() is not None:
                return table.name
        return None

    def take(self, table: Table, rows: Sequence[Sequence[Any]], before: Reached, after: Reached) -> None:
        """Add a page, and remember in the same transaction how far it reaches.

        Raises StoreError, and nothing was done, where somebody else came further than `before`.
        """
        with self._connection.transaction():
            if self._connection.execute(_REMEMBER, (written(after), written(before))).rowcount != 1:
                raise StoreError(_another(self.name))
            self._add(table, rows)

    def _add(self, table: Table, rows: Sequence[Sequence[Any]]) -> None:
        statement = _COPY_IN.format(table=sql.Identifier(table.name), columns=_names(table.columns))
        try:
            with self._connection.cursor().copy(statement) as copy:
                copy.set_types(table.types)
                for row in rows:
                    copy.write_row(row)
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            raise StoreError(
                f"{self.name} does not take a row of {table.name}: {first_line(error)} "
                "Nothing is lost: go on with the database that was to be moved."
            ) from error

    def set_series(self, used: dict[str, int]) -> None:
        """Let every series of numbers go on behind what was copied, and behind what the source had `used`."""
        for row in self._connection.execute(_SERIES).fetchall():
            least = used.get(row["table"], 0)
            statement = _SET_SERIES.format(
                column=sql.Identifier(row["column"]), table=sql.Identifier(row["table"])
            )
            self._connection.execute(statement, (row["series"], least, least))

    def analyze(self) -> None:
        """Let the server count: without that it would plan for empty tables."""
        self._connection.execute("ANALYZE")

    @contextmanager
    def snapshot(self) -> Iterator[PostgresTx]:
        """All that is read within is of one moment."""
        try:
            yield begin_snapshot(self._connection)
        finally:
            self._connection.rollback()

    def rows(self, table: Table) -> Iterator[tuple[Any, ...]]:
        """Every row, within a snapshot, in whichever order."""
        with self._connection.cursor("rows", row_factory=tuple_row) as cursor:
            cursor.itersize = _FETCHED
            statement = _SELECT_ALL.format(columns=_names(table.columns), table=sql.Identifier(table.name))
            yield from cursor.execute(statement, binary=True)

    def finish(self) -> None:
        """From now on this database is served."""
        self._connection.execute(_DROP_MARK)


def written(reached: Reached) -> str:
    """As it is kept: one text for each."""
    return msgspec.json.encode(reached, order="deterministic").decode()


def _names(columns: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, columns))


@contextmanager
def target(url: str) -> Iterator[Target]:
    """Connect, to copy. Whatever the server refuses within is a StoreError's sentence."""
    name = place_name(url)
    try:
        with closing(connect(url)) as connection:
            connection.execute(_SETTINGS)
            yield Target(connection, name)
    except psycopg.Error as error:
        raise StoreError(_sentence(name, error)) from error


def _another(name: str) -> str:
    return f"another process is at work on {name}: let it end, or end it, and then repeat the command."


def _sentence(name: str, error: psycopg.Error) -> str:
    go_on = "then repeat the command: it goes on where it stopped."
    match error:
        case errors.LockNotAvailable():
            return _another(name)
        case errors.DiskFull():
            return f"{name} has no room left on its disk: make some, {go_on}"
        case errors.InsufficientPrivilege():
            return (
                f"{name} does not let this user do that ({first_line(error)}) Give it the database, {go_on}"
            )
        case errors.ReadOnlySqlTransaction():
            return f"{name} is a standby, which takes no writes: name its primary."
        case _ if error.sqlstate is None or isinstance(error, psycopg.OperationalError):
            return f"the connection to {name} was lost ({first_line(error)}) See that it is up, {go_on}"
        case _:
            return f"{name} refused: {first_line(error)} Mend that, {go_on}"
