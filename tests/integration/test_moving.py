"""Books that move from a file to PostgreSQL are the same books, whatever interrupts the move."""

import asyncio
import contextlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from spawn_ledger.verify import verify

from spawn.parts import open_parts
from spawn.store import postgres_copy
from spawn.store.database import DatabaseBusy, StoreError
from spawn.store.migrate import migrate, require_current
from spawn.store.moving import CopyDiffers, Move, move
from spawn.store.owner import Owner
from spawn.store.places import place_of
from spawn.store.postgres_copy import UnfinishedCopy
from spawn.store.sqlite_place import Moved, moved_note
from tests import databases
from tests.harness import settings_in
from tests.integration.moving_books import fill
from tests.integration.moving_world import Lived, ask_everything, bulk_usdc, live, sqlite_url

pytestmark = pytest.mark.usefixtures("postgres_server")

TRANSFERS: Final = 100_000
CUT: Final = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'"
Told = list[tuple[str, str, int, int]]


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Lived]:
    """Where a service lived, and what it did."""
    folder = tmp_path_factory.mktemp("lived")
    return folder, asyncio.run(live(folder))


@pytest.fixture
def lived(life: tuple[Path, Lived], tmp_path: Path) -> Lived:
    """That life; its world is copied to `tmp_path`."""
    shutil.copytree(life[0], tmp_path, dirs_exist_ok=True)
    return life[1]


@pytest.fixture
def file(lived: Lived, tmp_path: Path) -> Path:
    return tmp_path / "spawn.db"


def empty(folder: Path, name: str = "target") -> str:
    """A database without tables, named for the folder."""
    url = databases.server_url(f"moved_{abs(hash((str(folder), name))):x}")
    databases.make_empty(url)
    return url


@pytest.fixture
def target(tmp_path: Path) -> str:
    return empty(tmp_path)


def quiet(*_: object) -> None:
    """Nobody looks on."""


def run(file: Path, target: str, tell: Callable[..., None] = quiet, *, page_rows: int = 7) -> Move:
    return move(f"sqlite:///{file}", target, tell, page_rows=page_rows)


def contents(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table, sorted, columns by name."""
    if url.startswith("sqlite:"):
        path = place_of(url).file("it is one")
        connection: Any = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        names = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite~_%' ESCAPE '~'"
    else:
        connection = psycopg.connect(url)
        names = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
    with contextlib.closing(connection):
        found = {}
        for (table,) in connection.execute(names).fetchall():
            cursor = connection.execute(f"SELECT * FROM {table}")
            columns = [column[0] for column in cursor.description]
            order = sorted(range(len(columns)), key=columns.__getitem__)
            rows = [tuple(row[index] for index in order) for row in cursor.fetchall()]
            found[table] = sorted(rows, key=repr)
        return found


def bytes_of(file: Path) -> dict[str, bytes]:
    """The database and its log, if there is anything in that."""
    paths = (file, file.with_name(file.name + "-wal"))
    return {path.name: path.read_bytes() for path in paths if path.exists() and path.stat().st_size}


def execute(target: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(target, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def change(file: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute(statement)


# --- the same service -------------------------------------------------------------------------------------------


async def test_a_service_goes_on_there_as_it_would_have_here(
    lived: Lived, file: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, target: str
) -> None:
    fill(file, TRANSFERS)
    here, there = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there")
    shutil.copytree(tmp_path, here, dirs_exist_ok=True)
    before = bytes_of(file)
    told: Told = []
    done = run(file, target, lambda *what: told.append(what), page_rows=5_000)
    assert done.copied == done.rows > TRANSFERS
    assert bytes_of(file) == before
    assert ("copied", "transfer", 50_000) in {(what, table, rows) for what, table, rows, _ in told}
    assert {"copied", "read here", "read there", "verifying"} == {what for what, *_ in told}
    assert contents(target) == contents(sqlite_url(tmp_path))
    with place_of(target).snapshot() as tx:
        assert verify(tx) == []
    shutil.copytree(tmp_path, there, dirs_exist_ok=True)
    bulk = bulk_usdc(TRANSFERS)
    expected = await ask_everything(here, lived, sqlite_url(here), beyond_the_chain=bulk)
    assert len(expected) > 150
    assert await ask_everything(there, lived, target, beyond_the_chain=bulk) == expected


def test_every_table_and_no_other_is_moved(file: Path, tmp_path: Path, target: str) -> None:
    run(file, target)
    found = contents(target)
    assert found == contents(sqlite_url(tmp_path))
    assert {"transfer", "event", "lease", "secret", "alembic_version"} < found.keys()


def test_numbers_go_on_behind_the_highest_that_was_ever_given(file: Path, target: str) -> None:
    change(file, "DELETE FROM delivery")
    change(file, "UPDATE sqlite_sequence SET seq = 5000 WHERE name = 'event'")
    run(file, target)
    (last,) = execute(target, "SELECT MAX(seq) FROM transfer")
    wallet, note = "'0x' || repeat('a1', 20)", "'', 1, 'credit', 'why'"
    event = (
        f"INSERT INTO event (wallet, type, resource, at, data) VALUES ({wallet}, '', '', 1, '') RETURNING seq"
    )
    assert execute(target, event) == [(5001,)]
    row = "VALUES ('new', 'ext:usdc', 'rev:opfee', 1, 'topup', '', 1) RETURNING seq"
    transfer = f"INSERT INTO transfer (id, debit, credit, amount, code, reference, at) {row}"
    assert execute(target, transfer) == [(last[0] + 1,)]
    assert execute(
        target, f"INSERT INTO wallet_note (wallet, at, kind, reason) VALUES ({note}) RETURNING seq"
    ) == [(1,)]


# --- interrupted ------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process is gone, as far as the database can tell."""


@contextlib.contextmanager
def dying_once(steps: set[str], *, behind: bool) -> Iterator[None]:
    """Die at the first step that nobody died at yet: within its transaction, or when it is committed."""

    def die_at(step: str) -> None:
        if step not in steps:
            steps.add(step)
            raise Killed(step)

    copying: Any = postgres_copy.Target
    names = ("begin", "_add", "set_series", "finish") if not behind else ("begin", "take", "set_series")
    original = {name: getattr(copying, name) for name in names}

    def dying(name: str) -> Callable[..., None]:
        def step(self: Any, *arguments: Any) -> None:
            original[name](self, *arguments)
            die_at(repr((name, arguments)))

        return step

    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(copying, name, dying(name))
        yield


@pytest.mark.parametrize("behind", [False, True])
def test_a_move_that_dies_at_any_page_goes_on_where_it_stopped(
    file: Path, tmp_path: Path, target: str, *, behind: bool
) -> None:
    steps: set[str] = set()
    before = bytes_of(file)
    done: Move | None = None
    while done is None:
        with contextlib.suppress(Killed), dying_once(steps, behind=behind):
            done = run(file, target, page_rows=5)
        if done is None and "finish" not in "".join(steps):
            with pytest.raises(UnfinishedCopy, match="go on with `spawn migrate --from sqlite:///"):
                require_current(target)
    assert len(steps) > 20
    assert done.copied == (0 if behind else None)
    assert bytes_of(file) == before
    assert contents(target) == contents(sqlite_url(tmp_path))


def test_a_connection_that_is_cut_is_told_and_gone_on_with(file: Path, tmp_path: Path, target: str) -> None:
    def cut(what: str, table: str, *_: object) -> None:
        if (what, table) == ("copied", "transfer"):
            name = psycopg.conninfo.conninfo_to_dict(target)["dbname"]
            execute(databases.server_url("postgres"), CUT.format(name))

    with pytest.raises(StoreError, match=r"the connection to .* was lost .*repeat the command: it goes on"):
        run(file, target, cut)
    done = run(file, target)
    assert 0 < (done.copied or 0) < done.rows
    assert contents(target) == contents(sqlite_url(tmp_path))


# --- proven -----------------------------------------------------------------------------------------------------


TAMPERED: Final = {
    "server": "UPDATE server SET name = name || '!' WHERE id = (SELECT MIN(id) FROM server)",
    "secret": "UPDATE secret SET ciphertext = set_byte(ciphertext, 3, 255 - get_byte(ciphertext, 3))",
    "account": "UPDATE account SET barred = 'blocked' WHERE id = (SELECT MAX(id) FROM account)",
    "delivery": "DELETE FROM delivery WHERE seq = (SELECT MAX(seq) FROM delivery)",
    "watch": "INSERT INTO watch (name, cursor) VALUES ('mine', '1')",
    "wallet_note": "UPDATE wallet_note SET reason = CASE seq WHEN 1 THEN 'b' ELSE 'a' END",
}
"""A value, a byte, a null, a row missing, a row more, two values swapped."""


@pytest.mark.parametrize("table", TAMPERED)
def test_a_target_that_was_tampered_with_is_found(
    file: Path, target: str, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    for reason in "ab":
        change(
            file, f"INSERT INTO wallet_note (wallet, at, kind, reason) VALUES ('', 1, 'credit', '{reason}')"
        )
    original = postgres_copy.Target.analyze
    monkeypatch.setattr(
        postgres_copy.Target, "analyze", lambda self: (execute(target, TAMPERED[table]), original(self))
    )
    with pytest.raises(CopyDiffers, match=f"{table} differs"):
        run(file, target)
    assert not moved_note(file).exists()
    with pytest.raises(UnfinishedCopy):
        require_current(target)


def test_books_that_are_wrong_are_not_served(file: Path, target: str) -> None:
    change(file, "UPDATE account SET balance = balance + 1 WHERE id = (SELECT MIN(id) FROM account)")
    with pytest.raises(StoreError, match=r"but its books are wrong \(2 times: cached balance: "):
        run(file, target)
    with pytest.raises(UnfinishedCopy):
        require_current(target)


def test_a_row_that_refers_to_none_is_told(file: Path, target: str) -> None:
    change(file, "DELETE FROM event WHERE seq = (SELECT MAX(seq) FROM delivery)")
    with pytest.raises(StoreError, match=r"does not take a row of delivery: .*foreign key"):
        run(file, target)


# --- only one truth ---------------------------------------------------------------------------------------------


async def test_what_was_moved_is_not_served_any_more(file: Path, tmp_path: Path, target: str) -> None:
    run(file, target)
    settings = settings_in(tmp_path, database_url=sqlite_url(tmp_path), database_retries=0.0)
    with pytest.raises(Moved, match=r"were moved to the PostgreSQL database moved_.*set SPAWN_DATABASE_URL"):
        await open_parts(settings)
    moved_note(file).unlink()
    parts = await open_parts(settings)
    await parts.close()


def test_a_second_run_says_that_it_is_done(file: Path, tmp_path: Path, target: str) -> None:
    done = run(file, target)
    assert done.copied == done.rows
    execute(target, "INSERT INTO watch (name, cursor) VALUES ('since', '1')")
    assert run(file, target) == Move(source=file, target=done.target)
    assert execute(target, "SELECT cursor FROM watch WHERE name = 'since'") == [("1",)]
    with pytest.raises(StoreError, match=r"were moved to .* already.*delete .*spawn.db.moved and repeat"):
        run(file, empty(tmp_path, "another"))


def test_nothing_is_moved_beside_whoever_writes(file: Path, target: str) -> None:
    owner = Owner.claim(file)
    try:
        with pytest.raises(DatabaseBusy, match="in use: stop the service"):
            run(file, target)
    finally:
        owner.release()
    busy: list[bool] = []

    def claim(*_: object) -> None:
        with contextlib.suppress(DatabaseBusy):
            Owner.claim(file).release()
            busy.append(False)

    run(file, target, claim)
    assert busy == []


def test_of_two_that_move_to_the_same_place_one_gives_up(
    file: Path, tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(what: str, table: str, *_: object) -> None:
        if (what, table) == ("copied", "transfer"):
            execute(target, """UPDATE unfinished_copy SET reached = '{"transfer":99}'""")

    with pytest.raises(StoreError, match="another process is at work on"):
        run(file, target, other)
    again = empty(tmp_path, "again")
    monkeypatch.setattr(postgres_copy, "_SETTINGS", "SET lock_timeout = '50ms'")
    stopped_halfway(file, again)
    with psycopg.connect(again) as dying:
        dying.execute("UPDATE unfinished_copy SET reached = reached")
        with pytest.raises(StoreError, match="another process is at work on"):
            run(file, again)
        dying.rollback()
    assert run(file, again).copied


# --- refused ----------------------------------------------------------------------------------------------------


def stopped_halfway(file: Path, target: str) -> None:
    def stop(what: str, table: str, *_: object) -> None:
        if (what, table) == ("copied", "transfer"):
            raise Killed

    with pytest.raises(Killed):
        run(file, target, stop)


def test_a_half_copy_is_only_gone_on_with_from_the_very_same_books(file: Path, target: str) -> None:
    stopped_halfway(file, target)
    change(file, "INSERT INTO watch (name, cursor) VALUES ('since', '1')")
    with pytest.raises(
        StoreError, match=r"an unfinished copy of .*spawn.db as it was then.*Drop that database"
    ):
        run(file, target)


def test_a_target_that_was_migrated_before_is_empty_still(file: Path, tmp_path: Path, target: str) -> None:
    migrate(target)
    assert run(file, target).copied
    assert contents(target) == contents(sqlite_url(tmp_path))


@pytest.mark.parametrize("table", ["stranger", "watch"])
def test_a_target_that_is_not_empty_is_refused(file: Path, target: str, table: str) -> None:
    if table == "watch":
        migrate(target)
    else:
        execute(target, "CREATE TABLE stranger (name TEXT, cursor TEXT)")
    execute(target, f"INSERT INTO {table} (name, cursor) VALUES ('a', '1')")
    with pytest.raises(StoreError, match=rf"is not empty \({table} has rows\): name an empty database"):
        run(file, target)


def test_a_target_with_tables_of_others_is_refused(file: Path, target: str) -> None:
    execute(target, "CREATE TABLE stranger (name TEXT)")
    with pytest.raises(StoreError, match=r"other tables than its migrations make \(stranger\)"):
        run(file, target)


@pytest.mark.parametrize(
    ("version", "words"),
    [("0001", "run `SPAWN_DATABASE_URL=sqlite:///.*spawn migrate` first"), ("9999", "upgrade spawn")],
)
def test_a_source_of_another_version_is_refused(file: Path, target: str, version: str, words: str) -> None:
    change(file, f"UPDATE alembic_version SET version_num = '{version}'")
    with pytest.raises(StoreError, match=f"at version {version}.*{words}"):
        run(file, target)


def test_what_is_no_source_or_no_target_is_refused(file: Path, tmp_path: Path, target: str) -> None:
    with pytest.raises(StoreError, match="there is no database at"):
        run(tmp_path / "nowhere.db", target)
    change(tmp_path / "bare.db", "PRAGMA user_version = 1")
    with pytest.raises(StoreError, match="has no books of spawn in it"):
        run(tmp_path / "bare.db", target)
    with pytest.raises(StoreError, match="use `spawn backup`"):
        run(file, sqlite_url(tmp_path))
    with pytest.raises(StoreError, match="--from is the file of an embedded database"):
        move(target, target, quiet)
    with pytest.raises(StoreError, match="cannot use the PostgreSQL database nobody at"):
        run(file, databases.server_url("nobody"))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            psycopg.errors.DiskFull("could not extend file: No space left on device"),
            "no room left on its disk",
        ),
        (
            psycopg.errors.InsufficientPrivilege("permission denied for schema public"),
            "does not let this user",
        ),
        (psycopg.errors.ReadOnlySqlTransaction("read-only"), "is a standby"),
        (psycopg.errors.OutOfMemory("out of memory"), "was lost .out of memory"),
        (psycopg.errors.UndefinedTable("relation is gone"), "refused: relation is gone"),
    ],
)
def test_what_the_server_refuses_is_a_sentence(
    file: Path, target: str, monkeypatch: pytest.MonkeyPatch, error: psycopg.Error, words: str
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(postgres_copy.Target, "_add", refuse)
    with pytest.raises(StoreError, match=words):
        run(file, target)
    monkeypatch.undo()
    assert run(file, target).copied


def test_a_text_that_the_server_cannot_hold_is_told(file: Path, target: str) -> None:
    change(file, "UPDATE server SET name = 'a' || char(0) || 'b' WHERE id = (SELECT MIN(id) FROM server)")
    with pytest.raises(StoreError, match=r"does not take a row of server: .*0x00"):
        run(file, target)


def test_a_command_may_look_for_longer_than_a_call_may(target: str) -> None:
    """The books are read as a whole: a server that ends slow calls must not end that."""
    migrate(target)
    with place_of(target).snapshot() as tx:
        for setting in ("statement_timeout", "idle_in_transaction_session_timeout"):
            assert tx.one("SELECT current_setting(:name) AS value", {"name": setting}) == {"value": "0"}
