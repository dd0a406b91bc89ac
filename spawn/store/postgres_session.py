"""What one connection to PostgreSQL is for us: how values cross it, what it is set to, and one transaction on it.

Invariant: nothing has to survive in a session: each transaction begins with all that it needs, so that any connection
serves any call.
"""

import random
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, LiteralString, TypeVar, cast

import psycopg
from psycopg import errors
from psycopg.abc import Buffer
from psycopg.adapt import Dumper, Loader
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from psycopg.types.numeric import Int8Dumper
from spawn_ledger.tx import Params, Row, Tx

from spawn.store.database import NO_PARAMS, DatabaseFailed, StoreError

T = TypeVar("T")
Connection = psycopg.Connection[dict[str, Any]]
Fate = Callable[[], None]
"""Asked before each statement and each COMMIT; raises what a server might."""

OLDEST: Final = 14
"""The first major version of PostgreSQL that has all we ask for."""
CONNECT_S: Final = 5
STATEMENTS_KEPT: Final = 512
"""Prepared statements of a connection: more than there are queries."""
_INT8: Final = 20
_NUMERIC: Final = "numeric"

_PLACEHOLDER: Final = re.compile(r"('[^']*')|:([a-z_][a-z0-9_]*)")
"""A text in quotes, which is none, or a parameter by its name."""

_BEGIN: Final = "BEGIN ISOLATION LEVEL SERIALIZABLE"
# Commands look at all of the books, and think in between. Nobody waits for what only reads.
_BEGIN_SNAPSHOT: Final = (
    "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; "
    "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0"
)
_SETTINGS: Final = (
    # What was answered is on disk, whatever the server's default.
    "SET synchronous_commit = on",
    # A replica that was frozen inside a transaction must not keep the others waiting for its locks.
    "SET idle_in_transaction_session_timeout = '5s'",
    "SET statement_timeout = '30s'",
)
_READ_ONLY: Final = "SET default_transaction_read_only = on"


class CommitUnclear(Exception):
    """COMMIT got no answer. `result` is what its function returned."""

    def __init__(self, result: object) -> None:
        super().__init__("COMMIT got no answer")
        self.result = result


class _FlagDumper(Dumper):
    """A flag is 0 or 1, as the embedded engine has it."""

    oid = _INT8

    def dump(self, obj: bool) -> Buffer:
        return b"1" if obj else b"0"


class _WholeLoader(Loader):
    """A sum of integers is numeric to PostgreSQL, and an integer to us. Raises ValueError for a fraction."""

    def load(self, data: Buffer) -> int:
        return int(bytes(data))


@lru_cache(maxsize=STATEMENTS_KEPT)
def named(sql: str) -> LiteralString:
    """The query with the driver's placeholders instead of `:name`."""

    def placeholder(found: re.Match[str]) -> str:
        return found[1] if found[1] is not None else f"%({found[2]})s"

    # The arch tests prove that every query is a constant.
    return _PLACEHOLDER.sub(placeholder, sql.replace("%", "%%"))


def for_writing(connection: Connection) -> None:
    """Set up a new connection that writes."""
    connection.prepared_max = STATEMENTS_KEPT
    connection.adapters.register_dumper(int, Int8Dumper)
    connection.adapters.register_dumper(bool, _FlagDumper)
    connection.adapters.register_loader(_NUMERIC, _WholeLoader)
    connection.execute("; ".join(_SETTINGS))


def for_reading(connection: Connection) -> None:
    """Set up a new connection that only reads."""
    for_writing(connection)
    connection.execute(_READ_ONLY)


def connect(url: str, *, reads_only: bool = False) -> Connection:
    """One connection, outside any transaction. Raises StoreError when the server cannot be reached or used."""
    try:
        connection = psycopg.connect(url, autocommit=True, row_factory=dict_row, connect_timeout=CONNECT_S)
    except psycopg.Error as error:
        raise StoreError(f"cannot use {place_name(url)}: {first_line(error)}") from error
    try:
        _require_usable(connection, url)
        (for_reading if reads_only else for_writing)(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def place_name(url: str) -> str:
    """The database's name for people, without user and password."""
    parts = conninfo_to_dict(url)
    host, port = parts.get("host") or "localhost", parts.get("port") or 5432
    return f"the PostgreSQL database {parts.get('dbname') or 'spawn'} at {host}:{port}"


def first_line(error: psycopg.Error) -> str:
    """What the server says, as a sentence."""
    return str(error).strip().partition("\n")[0].removesuffix(".") + "."


def _require_usable(connection: Connection, url: str) -> None:
    if connection.info.server_version < OLDEST * 10_000:
        raise StoreError(
            f"{place_name(url)} runs version {connection.info.server_version // 10_000}: spawn needs {OLDEST} or newer."
        )
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise StoreError(
            f"{place_name(url)} has the encoding {encoding}: create it with ENCODING 'UTF8' TEMPLATE template0."
        )


class PostgresTx:
    """`Tx` over a connection that is inside a transaction. `execute` counts only what a statement changed."""

    __slots__ = ("_cursor", "_fate")

    def __init__(self, connection: Connection, fate: Fate) -> None:
        self._cursor = connection.cursor()
        self._fate = fate

    def execute(self, sql: str, params: Params = NO_PARAMS, /) -> int:
        self._fate()
        return self._cursor.execute(named(sql), params).rowcount

    def one(self, sql: str, params: Params = NO_PARAMS, /) -> Row | None:
        rows = self.all(sql, params)
        return rows[0] if rows else None

    def all(self, sql: str, params: Params = NO_PARAMS, /) -> list[Row]:
        self._fate()
        return cast("list[Row]", self._cursor.execute(named(sql), params).fetchall())


def no_fate() -> None:
    """Nothing happens."""


def collisions(share: float) -> Fate:
    """As if another transaction came first, in this share of cases: how CockroachDB is tested, too."""
    chance = random.Random()  # noqa: S311 - it decides about tests, and guards nothing

    def collide() -> None:
        if chance.random() < share:
            raise errors.SerializationFailure("as SPAWN_DATABASE_RETRIES asks for")

    return collide


def transact(connection: Connection, fn: Callable[[Tx], T], mark: str, fate: Fate = no_fate) -> T:
    """Run `fn` in one serializable transaction, once. `mark` is a statement by which the transaction is known again.

    Raises psycopg's SerializationFailure and DeadlockDetected when it has to be repeated, CommitUnclear when nobody
    knows; after everything else that is raised nothing was kept.
    """
    # One message. It is no query of ours by text, as `mark` differs each time, so the driver has nothing to keep of it.
    connection.execute(f"{_BEGIN}; {mark}".encode(), prepare=False)
    try:
        result = fn(PostgresTx(connection, fate))
        fate()
    except errors.ReadOnlySqlTransaction:
        # What the address leads to is a standby by now: another connection may lead elsewhere.
        connection.close()
        raise
    except BaseException:
        _roll_back(connection)
        raise
    try:
        status = connection.execute("COMMIT").statusmessage
    except (errors.SerializationFailure, errors.DeadlockDetected):
        raise
    except psycopg.Error as error:
        raise CommitUnclear(result) from error
    if status != "COMMIT":
        raise DatabaseFailed("the transaction was lost to an earlier error")
    return result


def _roll_back(connection: Connection) -> None:
    try:
        connection.execute("ROLLBACK")
    except psycopg.Error:
        # The server forgets a transaction with its connection.
        connection.close()


def begin_snapshot(connection: Connection) -> PostgresTx:
    """What every statement sees from now on is of one moment."""
    connection.execute(_BEGIN_SNAPSHOT)
    return PostgresTx(connection, no_fate)
