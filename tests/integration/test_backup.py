"""A copy taken while the service works is one moment of it, proven; and taking it disturbs nothing."""

import asyncio
import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from spawn_ledger.accounts import EXT_USDC
from spawn_ledger.transfers import balance_of
from spawn_ledger.verify import verify
from spawn_schemas.money import Usdc, parse_usdc

from spawn.store.backup import Contents, UnsoundBackup, back_up, inspect, restoring
from spawn.store.database import DatabaseBusy, StoreError
from spawn.store.migrate import SchemaMismatch, head_version
from spawn.store.owner import Owner
from spawn.store.places import file_of
from spawn.store.snapshot import snapshot
from spawn.store.sqlite_place import SqliteFile
from tests import databases
from tests.engines import ROOT
from tests.harness import World, open_world

pytestmark = pytest.mark.embedded


def database_of(world: World) -> Path:
    return file_of(world.settings.database_url)


def beginning(folder: Path, name: str) -> list[str]:
    """What lies in the folder under names that begin so."""
    return sorted(path.name for path in folder.glob(f"{name}*"))


def changed(path: Path, sql: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TRIGGER transfer_no_update")
        connection.execute(sql)
        connection.commit()


async def test_a_copy_says_what_it_holds_and_its_books_are_right(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        await world.rent(wallet)
        copy = tmp_path / "copy.db"
        contents = back_up(database_of(world), copy, replace=False)
        transfers = (await world.rows("SELECT COUNT(*) AS n, MAX(at) AS newest FROM transfer"))[0]
        assert contents == Contents(
            version=head_version(),
            transfers=transfers["n"],
            paid_in_usdc=parse_usdc("20.00"),
            newest_at=transfers["newest"],
            size_bytes=copy.stat().st_size,
        )
    with snapshot(copy) as tx:
        assert verify(tx) == []
        assert balance_of(tx, EXT_USDC).balance == parse_usdc("20.00")
    assert copy.stat().st_mode & 0o777 == 0o600
    assert beginning(tmp_path, "copy") == ["copy.db"]


async def test_copies_taken_between_payments_are_each_one_moment(tmp_path: Path) -> None:
    """Were a copy torn, an account would not be the sum of its transfers."""
    async with open_world(tmp_path) as world:
        wallets = [await world.customer("1.00") for _ in range(4)]
        source = database_of(world)

        async def pay() -> None:
            for round_ in range(10):
                for wallet in wallets:
                    answer = await world.sign(
                        wallet, "POST", "/v1/ssh-keys", {"name": "k", "public_key": "no"}
                    )
                    assert answer.status_code == 400, round_
                    paid = await world.pay(wallet, "POST", "/v1/balance/deposit", {"amount": "1.00"})
                    assert paid.status_code == 200, paid.text

        paying = asyncio.create_task(pay())
        taken: list[int] = []
        while not paying.done() and len(taken) < 200:
            copy = tmp_path / f"copy-{len(taken)}.db"
            contents = await asyncio.to_thread(back_up, source, copy, replace=False)
            taken.append(contents.transfers)
        await paying
    assert taken == sorted(taken)
    assert len(set(taken)) > 2, "the service stood still while copies were taken"


async def test_taking_a_copy_never_checkpoints(tmp_path: Path) -> None:
    """Two connections that checkpoint are what corrupts a database under SQLite before 3.51.3."""
    async with open_world(tmp_path) as world:
        await world.customer("2.00")
        # As a process that was killed leaves them: then a reader is the only connection, and the last to close.
        for suffix in ("", "-wal"):
            shutil.copy(f"{database_of(world)}{suffix}", tmp_path / f"left.db{suffix}")
    left = tmp_path / "left.db"
    files = [left, tmp_path / "left.db-wal"]
    before = [file.read_bytes() for file in files]
    assert len(before[1]) > 4096
    assert back_up(left, tmp_path / "copy.db", replace=False).paid_in_usdc == parse_usdc("2.00")
    assert [file.read_bytes() for file in files] == before


def test_what_is_there_is_not_replaced_unless_asked(tmp_path: Path) -> None:
    source, copy = tmp_path / "spawn.db", tmp_path / "copy.db"
    databases.make_file(source)
    copy.write_text("something dear")
    with pytest.raises(StoreError, match=r"copy\.db exists already: name another file, or say --force"):
        back_up(source, copy, replace=False)
    assert copy.read_text() == "something dear"
    assert back_up(source, copy, replace=True).transfers == 0
    assert inspect(copy).version == head_version()


def test_a_running_database_is_no_place_for_a_copy(tmp_path: Path) -> None:
    source = tmp_path / "spawn.db"
    databases.make_file(source)
    (tmp_path / "other.db-wal").touch()
    with pytest.raises(StoreError, match="is a database in use"):
        back_up(source, tmp_path / "other.db", replace=True)
    assert not (tmp_path / "other.db").exists()


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    source = tmp_path / "spawn.db"
    databases.make_file(source)
    with pytest.raises(StoreError, match=r"cannot write .*: No such file or directory"):
        back_up(source, tmp_path / "nowhere" / "copy.db", replace=False)


BROKEN = {
    "books": ("UPDATE account SET balance = balance + 1", "cached balance"),
    "history": ("UPDATE transfer SET amount = amount + 1", "cached balance"),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_copy_of_broken_books_is_not_kept(tmp_path: Path, name: str) -> None:
    async with open_world(tmp_path) as world:
        await world.customer("2.00")
        source = database_of(world)
    sql, rule = BROKEN[name]
    changed(source, sql)
    old = tmp_path / "copy.db"
    old.write_text("yesterday's")
    with pytest.raises(UnsoundBackup, match=rule):
        back_up(source, old, replace=True)
    assert old.read_text() == "yesterday's"
    assert beginning(tmp_path, "copy") == ["copy.db"]


def torn(copy: Path) -> None:
    databases.make_file(copy)
    content = bytearray(copy.read_bytes())
    for page in range(2, len(content) // 4096):
        content[page * 4096 : page * 4096 + 100] = b"\xff" * 100
    copy.write_bytes(content)


def test_torn_pages_are_seen(tmp_path: Path) -> None:
    for copy in (one := tmp_path / "one.db", other := tmp_path / "other.db"):
        torn(copy)
    with pytest.raises(UnsoundBackup, match="is not sound"):
        inspect(one)
    with pytest.raises(UnsoundBackup), restoring(other, tmp_path / "spawn.db", replace=False):
        pass


def test_a_database_without_tables_or_of_another_version_is_no_backup(tmp_path: Path) -> None:
    empty = tmp_path / "empty.db"
    sqlite3.connect(empty).close()
    empty.touch()
    with pytest.raises(SchemaMismatch, match="has no tables yet"):
        inspect(empty)
    foreign = tmp_path / "foreign.db"
    with contextlib.closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE somebody_elses (id INTEGER)")
    for file in (empty, foreign):
        with (
            pytest.raises(UnsoundBackup, match=rf"{file.name} has no books of spawn in it"),
            restoring(file, tmp_path / "spawn.db", replace=False),
        ):
            pass
    assert beginning(tmp_path, "spawn.db") == ["spawn.db.lock"]


# --- putting one in place -----------------------------------------------------------------------------------------


async def test_what_a_dead_service_left_is_kept_whole_and_never_mixed_with_what_takes_its_place(
    tmp_path: Path,
) -> None:
    """A log that stays behind would be replayed into the next database of that name."""
    left, copy = tmp_path / "left.db", tmp_path / "copy.db"
    databases.make_file(copy)
    async with open_world(tmp_path) as world:
        await world.customer("2.00")
        for suffix in ("", "-wal", "-shm"):
            shutil.copy(f"{database_of(world)}{suffix}", f"{left}{suffix}")
    with restoring(copy, left, replace=True) as place:
        place.take()
    assert paid_in(left) == 0
    assert paid_in(tmp_path / "left.db.replaced-1") == parse_usdc("2.00")


def paid_in(path: Path) -> Usdc:
    with snapshot(path) as tx:
        assert verify(tx) == []
        return balance_of(tx, EXT_USDC).balance


def test_a_place_that_is_not_taken_leaves_nothing(tmp_path: Path) -> None:
    copy, database = tmp_path / "copy.db", tmp_path / "spawn.db"
    databases.make_file(copy)
    with restoring(copy, database, replace=False) as place:
        assert inspect(place.path).transfers == 0
    assert beginning(tmp_path, "spawn.db") == ["spawn.db.lock"]


def test_no_service_starts_while_a_copy_is_made_ready(tmp_path: Path) -> None:
    copy, database = tmp_path / "copy.db", tmp_path / "spawn.db"
    databases.make_file(copy)
    with restoring(copy, database, replace=False), pytest.raises(DatabaseBusy):
        Owner.claim(database)


def test_an_older_backup_is_brought_up_to_date(tmp_path: Path) -> None:
    """By the very migrations that a service of that age would go through."""
    copy, database = tmp_path / "copy.db", tmp_path / "spawn.db"
    empty_of_version(copy, "0001")
    with restoring(copy, database, replace=False) as place:
        place.take()
    assert SqliteFile(database).version() == head_version()
    assert SqliteFile(copy).version() == "0001"


def empty_of_version(path: Path, version: str) -> None:
    engine = sa.create_engine(f"sqlite:///{path}")
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))
    with engine.connect() as connection:
        config.attributes.update(connection=connection, on_version_apply=lambda **_: None)
        command.upgrade(config, version)
        connection.commit()
    engine.dispose()


def test_a_backup_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    databases.make_file(copy)
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    with (
        pytest.raises(SchemaMismatch, match="upgrade spawn"),
        restoring(copy, tmp_path / "spawn.db", replace=False),
    ):
        pass
    assert beginning(tmp_path, "spawn.db") == ["spawn.db.lock"]
