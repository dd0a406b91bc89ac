"""A real PostgreSQL server for the worlds of this process, and the books of one world on it.

Each program that lives worlds has a server of its own: what a serializable transaction is refused for depends on every
transaction of its server. Invariants: what a commit touched is noted by triggers, in its own transaction, so that it is
known exactly; and nothing on the server happens by itself.
"""

import atexit
import multiprocessing.util
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import TYPE_CHECKING, Any, Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from spawn_ledger.tx import Tx

from spawn.store.migrate import migrate
from spawn.store.places import place_of
from spawn.store.postgres_marks import prepare
from spawn.store.postgres_session import for_writing, named
from tests.engines import Postgres, postgres
from tests.sim.disk import WATCHED
from tests.sim.oracle.part import Changes
from tests.sim.replica import Link, Replica

if TYPE_CHECKING:
    from tests.sim.process import Process
    from tests.sim.world import World

TEMPLATE: Final = "template_of_worlds"
GROWING: Final = ("transfer", "event")
KEYS: Final = {**WATCHED, **dict.fromkeys(GROWING, ("seq",))}
_QUIET: Final = (
    "ALTER SYSTEM SET autovacuum = off",
    "ALTER SYSTEM SET max_parallel_workers_per_gather = 0",
    "ALTER SYSTEM SET jit = off",
    "SELECT pg_reload_conf()",
)
_NOTING: Final = """
CREATE SCHEMA sim;
CREATE FUNCTION sim.touch() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  touched jsonb := CASE WHEN TG_OP = 'DELETE' THEN to_jsonb(OLD) ELSE to_jsonb(NEW) END;
  before text := COALESCE(current_setting('sim.touched', true), '');
  key text := jsonb_build_array(TG_TABLE_NAME, touched -> TG_ARGV[0], touched -> TG_ARGV[1])::text || E'\\n';
BEGIN
  IF POSITION(key IN before) = 0 THEN
    PERFORM set_config('sim.touched', before || key, false);
  END IF;
  RETURN NULL;
END $$;
"""
"""A setting of the session goes back with its transaction, and no other transaction ever meets it."""
_TABLES: Final = "SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"


@dataclass(kw_only=True)
class ServerClimate:
    """What a world's server is like, beside its other climate."""

    pause: float
    """How likely a transaction rests before a statement, while others go on."""
    collide: float
    """How likely a statement, or COMMIT, is refused as if another transaction had come first."""
    unclear: float
    """How likely a COMMIT has no answer."""
    away: float
    """How likely the server goes away before a statement."""


def draw_server_climate(random: Random) -> ServerClimate:
    def rate(often: float, most: float) -> float:
        return random.uniform(0, most) if random.random() < often else 0.0

    return ServerClimate(
        pause=rate(0.9, 0.5),
        collide=rate(0.7, 0.03),
        unclear=rate(0.6, 0.02),
        away=rate(0.5, 0.0005),
    )


class _Server:
    """The one of this program, from its first world on."""

    def __init__(self, server: Postgres) -> None:
        self._server = server
        with self.operator("postgres") as connection:
            for statement in _QUIET:
                connection.execute(statement)
            connection.execute(_create(TEMPLATE, "template0"))
        migrate(server.url(TEMPLATE))
        prepare(server.url(TEMPLATE))
        with self.operator(TEMPLATE) as connection:
            connection.execute(_NOTING)
            for table, keys in KEYS.items():
                connection.execute(_trigger(table, keys))

    def operator(self, database: str) -> psycopg.Connection[Any]:
        return psycopg.connect(self._server.url(database), autocommit=True)

    def create(self, name: str) -> str:
        """A database with all tables, and its address."""
        with self.operator("postgres") as connection:
            connection.execute(_drop(name))
            connection.execute(_create(name, TEMPLATE))
        return self._server.url(name)

    def drop(self, name: str) -> None:
        with self.operator("postgres") as connection:
            connection.execute(_drop(name))


def _create(name: str, template: str) -> sql.Composed:
    text: LiteralString = "CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy"
    return sql.SQL(text).format(sql.Identifier(name), sql.Identifier(template))


def _drop(name: str) -> sql.Composed:
    return sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))


def _trigger(table: str, keys: Sequence[str]) -> sql.Composed:
    return sql.SQL(
        "CREATE TRIGGER sim_touch AFTER INSERT OR UPDATE OR DELETE ON {} FOR EACH ROW EXECUTE FUNCTION sim.touch({})"
    ).format(sql.Identifier(table), sql.SQL(", ").join(sql.Literal(key) for key in keys))


@cache
def _server() -> _Server:
    stack = ExitStack()
    server = _Server(stack.enter_context(postgres()))
    # Whichever comes first: children of a pool hear of no end but the second.
    _ = atexit.register(stack.close)
    _ = multiprocessing.util.Finalize(None, stack.close, exitpriority=10)
    return server


class ServerBooks:
    """See `Books`."""

    has_replicas = True

    def __init__(self, name: str) -> None:
        self._name = name
        self._server = _server()
        self.url = self._server.create(name)
        self.climate = ServerClimate(pause=0.0, collide=0.0, unclear=0.0, away=0.0)
        self.commits = 0
        """That the oracle was shown so far."""
        self.away_until = 0.0
        """Until when (loop's time) the server takes no connection."""
        self.links: dict[Link, None] = {}
        """The connections of all processes."""
        self.late: dict[Link, None] = {}
        """Those whose COMMIT is under way, and nobody else's any more."""
        self._reader = psycopg.connect(self.url, autocommit=True, row_factory=dict_row)
        for_writing(self._reader)

    def open(self, world: "World") -> None:
        self._world = world
        self.climate = draw_server_climate(Random(f"{world.seed}|server"))

    def of_process(self, process: "Process") -> Replica:
        return Replica(self, process)

    def rows(self, sql: str, params: dict[str, Any]) -> list[dict[str, Any]]:
        return self._reader.execute(named(sql), params).fetchall()

    def tables(self) -> list[str]:
        return [row["name"] for row in self.rows(_TABLES, {})]

    def snapshot(self) -> AbstractContextManager[Tx]:
        return place_of(self.url).snapshot()

    def restored(self) -> None:
        raise NotImplementedError("nothing puts a server's books back")

    def calm(self) -> None:
        self.climate = ServerClimate(pause=self.climate.pause, collide=0.0, unclear=0.0, away=0.0)
        self.away_until = 0.0

    def close(self) -> None:
        for link in (*self.links, *self.late):
            link.let_go()
        self.late.clear()
        self._reader.close()
        self._server.drop(self._name)

    # --- what a process's connections report -------------------------------------------------------------------------

    def go_away(self, seconds: float) -> None:
        """The server ends every session, and takes no new one for a while."""
        self._world.count("database: away")
        self.away_until = self._world.loop.time() + seconds
        for link in list(self.links):
            link.cut()
        self._world.step(f"the database is away for {seconds:.1f} s")

    def show(self, process: "Process", touched: Sequence[tuple[str, Any, Any]], changes: Changes) -> None:
        """What was committed just now, to the oracle. Nobody commits meanwhile."""
        for table in dict.fromkeys(table for table, _, _ in touched):
            keys = [(first, second) for name, first, second in touched if name == table]
            if table in GROWING:
                rows = self._found(table, keys)
                grown = changes.transfers if table == "transfer" else changes.events
                grown += sorted((row for row in rows.values() if row is not None), key=lambda row: row["seq"])
            else:
                changes.rows[table] = self._found(table, keys)
        self.commits += 1
        changes.number = self.commits
        self._world.committed(process, changes)

    def _found(self, table: str, keys: list[tuple[Any, Any]]) -> dict[Any, dict[str, Any] | None]:
        """The rows of these keys as they are now, None where there is none."""
        columns = KEYS[table]
        wanted = [first if len(columns) == 1 else (first, second) for first, second in keys]
        found: dict[Any, dict[str, Any] | None] = dict.fromkeys(wanted)
        params = {f"first_{n}": key[0] for n, key in enumerate(keys)}
        params |= {f"second_{n}": key[1] for n, key in enumerate(keys)} if len(columns) == 2 else {}
        where = " OR ".join(
            " AND ".join(
                f"{column} = %({place}_{n})s" for column, place in zip(columns, _PLACES, strict=False)
            )
            for n in range(len(keys))
        )
        query = f"SELECT * FROM {table} WHERE {where}"
        for row in self._reader.execute(query, params, prepare=False):
            found[row[columns[0]] if len(columns) == 1 else tuple(row[column] for column in columns)] = row
        return found


_PLACES: Final = ("first", "second")
