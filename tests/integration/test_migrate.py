"""A database gets exactly the schema this code was written for, and no other is served."""

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from spawn.store.database import DatabaseBusy, StoreError
from spawn.store.migrate import (
    SchemaMismatch,
    check_version,
    head_version,
    migrate,
    require_current,
    upgrade,
)
from spawn.store.owner import Owner
from spawn.store.places import file_of, place_of
from spawn.store.sqlite_place import SqliteFile
from tests.engines import ROOT

pytestmark = pytest.mark.embedded


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "100% of spawn.db"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite:///{path}"


def execute(path: Path, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(sql).fetchall()


def test_a_new_database_gets_every_version_once(url: str, path: Path) -> None:
    versions = migrate(url)
    assert versions[-1] == head_version()
    assert versions == sorted(set(versions))
    assert SqliteFile(path).version() == head_version()
    require_current(url)
    assert migrate(url) == []


def test_every_table_is_strict(url: str, path: Path) -> None:
    migrate(url)
    tables = {
        name: strict
        for schema, name, kind, _columns, _rowid, strict in execute(path, "PRAGMA table_list")
        # Alembic makes its own table, SQLite the one in which it counts what is never numbered twice.
        if schema == "main"
        and kind == "table"
        and name not in ("sqlite_schema", "sqlite_sequence", "alembic_version")
    }
    assert {"account", "transfer", "server"} <= tables.keys()
    assert set(tables.values()) == {1}


def test_no_constraint_waits_for_commit(url: str, path: Path) -> None:
    """COMMIT carries many callers' writes: one of them must not be able to make it fail."""
    migrate(url)
    ((schema,),) = execute(path, "SELECT group_concat(sql) FROM sqlite_master")
    assert "DEFERR" not in str(schema).upper()


def test_a_fresh_database_is_in_wal_mode_and_sound(url: str, path: Path) -> None:
    migrate(url)
    assert execute(path, "PRAGMA journal_mode") == [("wal",)]
    assert execute(path, "PRAGMA integrity_check") == [("ok",)]


def test_looking_changes_nothing(url: str, path: Path) -> None:
    assert SqliteFile(path).version() is None
    with pytest.raises(SchemaMismatch):
        require_current(url)
    assert list(path.parent.iterdir()) == []
    migrate(url)
    before = path.read_bytes()
    require_current(url)
    assert path.read_bytes() == before
    # A reader never checkpoints, so it leaves SQLite's empty log behind for the next writer.
    log = path.with_name(path.name + "-wal")
    assert not log.exists() or log.read_bytes() == b""


def test_a_database_without_tables_is_named(url: str, path: Path) -> None:
    for prepare in (lambda: None, path.touch, lambda: execute(path, "CREATE TABLE other (id INTEGER)")):
        prepare()
        with pytest.raises(SchemaMismatch, match="has no tables yet: run `spawn migrate`"):
            require_current(url)


def test_an_older_database_is_told_to_migrate(path: Path) -> None:
    with pytest.raises(
        SchemaMismatch, match=r"is at version 0002, this spawn needs 0010: run `spawn migrate`"
    ):
        check_version(str(path), current="0002", head="0010")
    check_version(str(path), current="0010", head="0010")


def test_a_newer_database_is_neither_served_nor_migrated(url: str, path: Path) -> None:
    migrate(url)
    execute(path, "UPDATE alembic_version SET version_num = '9999'")
    before = path.read_bytes()
    for refuse in (require_current, migrate):
        with pytest.raises(SchemaMismatch, match="version 9999, which is newer than this spawn: upgrade"):
            refuse(url)
    assert path.read_bytes() == before


def test_what_is_no_database_is_refused_untouched(url: str, path: Path) -> None:
    path.write_bytes(b"something else entirely" * 100)
    for refuse in (require_current, migrate):
        with pytest.raises(StoreError, match="as a SQLite database"):
            refuse(url)
    assert path.read_bytes() == b"something else entirely" * 100


def test_migrating_beside_a_running_service_is_refused(url: str, path: Path) -> None:
    owner = Owner.claim(path)
    with pytest.raises(DatabaseBusy, match="Stop that process first"):
        migrate(url)
    assert not path.exists()
    owner.release()
    migrate(url)
    Owner.claim(path).release()


def test_a_migration_that_fails_leaves_nothing_of_itself(url: str, path: Path) -> None:
    execute(path, "CREATE TABLE server (id INTEGER)")
    before = execute(path, "SELECT name FROM sqlite_master ORDER BY name")
    with pytest.raises(Exception, match="table server already exists"):
        migrate(url)
    assert execute(path, "SELECT name FROM sqlite_master ORDER BY name") == before
    execute(path, "DROP TABLE server")
    assert migrate(url)[-1] == head_version()


@pytest.mark.parametrize(
    ("kept", "forgotten"), [([], []), ([1, 2], []), ([41, 43], [("", 40)])], ids=["none", "all", "some"]
)
def test_events_forgotten_before_there_were_heads_stay_forgotten(
    url: str, path: Path, kept: list[int], forgotten: list[tuple[str, int]]
) -> None:
    upgrade(place_of(url), "0004")
    for seq in kept:
        execute(
            path,
            f"INSERT INTO event (seq, wallet, type, resource, at, data) VALUES ({seq}, '', '', '', 0, '')",
        )
    migrate(url)
    assert execute(path, "SELECT wallet, forgotten FROM event_head") == forgotten


def test_revisions_are_named_by_their_files(path: Path) -> None:
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_current_head() == head_version()
    for revision in scripts.walk_revisions():
        assert Path(revision.path).name.startswith(f"{revision.revision}_")


SERVING_PROCESS: Final = """
import sys
from spawn.store.migrate import require_current
require_current(sys.argv[1])
print(sorted({"alembic", "sqlalchemy"} & sys.modules.keys()))
"""


def test_serving_does_not_import_the_migration_tools(url: str) -> None:
    migrate(url)
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", SERVING_PROCESS, url],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert (run.stdout, run.stderr) == ("[]\n", "")


def test_an_installed_package_brings_its_migrations(tmp_path: Path, url: str) -> None:
    site = tmp_path / "100% site-packages"
    shutil.copytree(ROOT / "spawn", site / "spawn")
    shutil.copytree(ROOT / "migrations", site / "spawn" / "_migrations")
    script = "import sys, spawn; from spawn.store.migrate import migrate; print(spawn.__file__, migrate(sys.argv[1]))"
    run = subprocess.run(
        [sys.executable, "-c", script, url],
        env=os.environ | {"PYTHONPATH": str(site)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert run.stdout.startswith(f"{site / 'spawn' / '__init__.py'} ['0001'")


def test_migrating_is_quiet(url: str) -> None:
    script = "import sys; from spawn.store.migrate import migrate; migrate(sys.argv[1])"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, url],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert (run.stdout, run.stderr) == ("", "")


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///spawn.db", "spawn.db"),
        ("sqlite:///data/spawn.db", "data/spawn.db"),
        ("sqlite:////var/lib/spawn.db", "/var/lib/spawn.db"),
        ("sqlite:///my data.db", "my data.db"),
    ],
)
def test_three_slashes_are_relative_and_four_absolute(url: str, path: str) -> None:
    assert file_of(url) == Path(path)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://me:hunter2@db", "a PostgreSQL URL is postgresql://"),
        ("postgres://me:hunter2@db/spawn?nothing=like&it", "a PostgreSQL URL is postgresql://"),
        ("postgresql+psycopg://me:hunter2@db/spawn", "a database URL is sqlite:///"),
        ("mysql://me:hunter2@db/spawn", "a database URL is sqlite:///"),
        ("spawn.db", "a database URL is sqlite:///"),
        ("sqlite:spawn.db", "a database URL is sqlite:///"),
        ("", "a database URL is sqlite:///"),
        ("sqlite://spawn.db", "names no host"),
        ("sqlite://", "names no host"),
        ("sqlite:///", "path of a file"),
        ("sqlite:////var/lib/", "path of a file"),
        ("sqlite:///:memory:", "path of a file"),
        ("sqlite:///spawn.db?mode=ro", "no options"),
    ],
)
def test_any_other_url_is_refused_without_repeating_it(url: str, words: str) -> None:
    for refuse in (file_of, migrate, require_current):
        with pytest.raises(ValueError, match=words) as caught:
            refuse(url)
        assert "hunter2" not in str(caught.value)
