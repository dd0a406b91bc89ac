"""The embedded engine on a real disk: it groups commits, owns its file, stops at the first bad commit, and keeps
across `kill -9` whatever it answered."""

import asyncio
import os
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import pytest
from spawn_ledger.tx import Tx
from spawn_schemas.errors import Code, SpawnError

from spawn.store.database import DatabaseBusy, DatabaseFailed, StoreError, UnsuitableFilesystem
from spawn.store.owner import Owner
from spawn.store.sqlite import SqliteDatabase
from spawn.store.sqlite_writer import BATCH_MAX

pytestmark = pytest.mark.embedded

CREATE: Final = "CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT"
INSERT: Final = "INSERT INTO note (id, body) VALUES (:id, 'text')"
COUNT: Final = "SELECT COUNT(*) AS n FROM note"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spawn.db"


@pytest.fixture
async def db(path: Path) -> AsyncIterator[SqliteDatabase]:
    database = await SqliteDatabase.open(path)
    await database.write(lambda tx: tx.execute(CREATE))
    yield database
    await database.close()


def insert(note_id: int) -> Callable[[Tx], int]:
    return lambda tx: tx.execute(INSERT, {"id": note_id})


def ids(path: Path) -> set[int]:
    """What the file holds, seen by a plain connection; the file is sound."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return {row[0] for row in connection.execute("SELECT id FROM note")}


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.parent.iterdir()}


async def hold(db: SqliteDatabase) -> tuple[threading.Event, asyncio.Task[bool]]:
    """Keep the writer inside a write until the event is set."""
    loop = asyncio.get_running_loop()
    reached = asyncio.Event()
    release = threading.Event()

    def fn(_tx: Tx) -> bool:
        loop.call_soon_threadsafe(reached.set)
        return release.wait(timeout=10)

    task = asyncio.create_task(db.write(fn))
    await reached.wait()
    return release, task


async def test_writes_that_wait_share_one_commit(db: SqliteDatabase) -> None:
    release, held = await hold(db)
    before = db.commits
    tasks = [asyncio.create_task(db.write(insert(n))) for n in range(2 * BATCH_MAX + 1)]
    await asyncio.sleep(0)
    release.set()
    assert await held
    await asyncio.gather(*tasks)
    # The held write's own, two full groups, and the rest.
    assert db.commits - before == 4
    assert len(await db.read("SELECT id FROM note")) == len(tasks)


async def test_who_was_answered_may_join_the_next_commit(db: SqliteDatabase) -> None:
    release, held = await hold(db)
    before = db.commits

    async def write_again() -> int:
        await held
        return await db.write(insert(2))

    tasks = [asyncio.create_task(db.write(insert(1))), asyncio.create_task(write_again())]
    await asyncio.sleep(0)
    release.set()
    assert await asyncio.gather(*tasks) == [1, 1]
    # The held one's, and one for both: the first of them waited for the second, who waits for nobody.
    assert db.commits - before == 2


async def test_a_full_queue_refuses_and_recovers(path: Path) -> None:
    db = await SqliteDatabase.open(path, queue_limit=3)
    await db.write(lambda tx: tx.execute(CREATE))
    release, held = await hold(db)
    waiting = [asyncio.create_task(db.write(insert(n))) for n in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(SpawnError) as refused:
        await db.write(insert(2))
    assert (refused.value.code, refused.value.retry_after_s) == (Code.OVERLOADED, 1)
    release.set()
    assert await held
    await asyncio.gather(*waiting)
    assert await db.write(insert(3)) == 1
    await db.close()
    assert ids(path) == {0, 1, 3}


async def test_the_connections_are_set_up(db: SqliteDatabase) -> None:
    expected = {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "recursive_triggers": 1,
        "trusted_schema": 0,
        "wal_autocheckpoint": 32000,
    }

    def settings(tx: Tx) -> dict[str, object]:
        rows = {name: tx.one(f"PRAGMA {name}") for name in expected}
        return {name: row[name] for name, row in rows.items() if row is not None}

    def timeout(tx: Tx) -> object:
        row = tx.one("PRAGMA busy_timeout")
        return row and row["timeout"]

    assert await db.write(settings) == expected
    assert await db.write(timeout) == 5000
    reader = {"query_only": 1, "wal_autocheckpoint": 0, "trusted_schema": 0}
    for name, value in reader.items():
        for row in await asyncio.gather(*(db.read(f"PRAGMA {name}") for _ in range(4))):
            assert row[0][name] == value


async def test_closing_ends_every_thread_and_leaves_one_file(path: Path) -> None:
    before = set(threading.enumerate())
    db = await SqliteDatabase.open(path, readers=3)
    started = set(threading.enumerate()) - before
    assert len(started) == 4
    await db.write(lambda tx: tx.execute(CREATE))
    await db.close()
    for thread in started:
        thread.join(timeout=5)
        assert not thread.is_alive()
    assert sorted(files(path)) == ["spawn.db", "spawn.db.lock"]


async def test_closing_commits_what_already_waits(path: Path) -> None:
    before = set(threading.enumerate())
    db = await SqliteDatabase.open(path)
    await db.write(lambda tx: tx.execute(CREATE))
    readers = {thread for thread in set(threading.enumerate()) - before if thread.name != "sqlite-writer"}
    release, held = await hold(db)
    writes = [asyncio.create_task(db.write(insert(n))) for n in range(10)]
    await asyncio.sleep(0)
    closing_task = asyncio.create_task(db.close())
    # The writer is told to stop once the readers are gone, so its queue then ends with that word.
    for thread in readers:
        await asyncio.to_thread(thread.join, 5)
    await asyncio.sleep(0)
    release.set()
    assert await held
    assert await asyncio.gather(*writes) == [1] * 10
    await asyncio.wait_for(closing_task, timeout=10)
    assert ids(path) == set(range(10))


async def test_the_owner_is_exclusive_and_a_reader_is_not(db: SqliteDatabase, path: Path) -> None:
    assert db.exclusive
    await db.write(insert(1))
    reader = await SqliteDatabase.open_reader(path)
    assert not reader.exclusive
    assert (await reader.read(COUNT))[0]["n"] == 1
    await db.write(insert(2))
    assert (await reader.read(COUNT))[0]["n"] == 2
    with pytest.raises(DatabaseFailed, match="reading only"):
        await reader.write(insert(3))
    await reader.close()


async def test_a_reader_needs_a_database(path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot use .* unable to open"):
        await SqliteDatabase.open_reader(path)
    assert files(path) == {}


async def test_what_is_no_database_is_refused_untouched(path: Path) -> None:
    text = b"something else entirely" * 100
    write(path, text)
    for opener in (SqliteDatabase.open, SqliteDatabase.open_reader):
        with pytest.raises(StoreError, match="as a SQLite database"):
            await opener(path)
    assert files(path) == {"spawn.db": text, "spawn.db.lock": b""}
    Owner.claim(path).release()


async def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"No such file or directory\. The folder must exist"):
        await SqliteDatabase.open(tmp_path / "missing" / "spawn.db")


OWNING_PROCESS: Final = """
import asyncio, sys
from pathlib import Path
from spawn.store.sqlite import SqliteDatabase

async def main():
    await SqliteDatabase.open(Path(sys.argv[1]))
    print("open", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@contextmanager
def child(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


async def test_a_second_process_is_refused_until_the_first_is_killed(path: Path) -> None:
    with child(OWNING_PROCESS, str(path)) as owner:
        assert read_line(owner) == "open"
        before = files(path)
        with pytest.raises(DatabaseBusy, match=rf"in use by process {owner.pid}\. Stop that process"):
            await SqliteDatabase.open(path)
        assert files(path) == before
        owner.kill()
        owner.wait(timeout=10)
        db = await SqliteDatabase.open(path)
        await db.write(lambda tx: tx.execute(CREATE))
        await db.close()


async def test_a_second_engine_in_one_process_is_refused(db: SqliteDatabase, path: Path) -> None:
    with pytest.raises(DatabaseBusy, match=f"process {os.getpid()}"):
        await SqliteDatabase.open(path.parent / "." / path.name)
    (path.parent / "link.db").symlink_to(path)
    with pytest.raises(DatabaseBusy, match=f"process {os.getpid()}"):
        await SqliteDatabase.open(path.parent / "link.db")
    assert await db.write(insert(1)) == 1


def test_a_network_filesystem_is_refused_and_nothing_is_created(tmp_path: Path) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(
        f"22 1 8:1 / / rw - ext4 /dev/sda rw\n23 22 0:50 / {tmp_path} rw - nfs4 server:/x rw\n"
    )
    with pytest.raises(
        UnsuitableFilesystem, match=r"network filesystem \(nfs4\).*Put the database on a local disk"
    ):
        Owner.claim(tmp_path / "spawn.db", mountinfo=mountinfo)
    assert [file.name for file in tmp_path.iterdir()] == ["mountinfo"]


class Failures:
    """What `on_fatal` was told."""

    def __init__(self) -> None:
        self.seen: list[DatabaseFailed] = []

    async def open(self, path: Path) -> SqliteDatabase:
        return await SqliteDatabase.open(path, on_fatal=self.seen.append)


async def fail_a_batch(db: SqliteDatabase, fatal: Callable[[Tx], object]) -> list[object]:
    """Commit a batch of five with `fatal` in the middle, and one more that waits behind it."""
    release, held = await hold(db)
    writes = [*map(insert, range(10, 12)), fatal, *map(insert, range(12, 14))]
    tasks = [asyncio.create_task(db.write(fn)) for fn in writes]
    await asyncio.sleep(0)
    release.set()
    assert await held
    return list(await asyncio.gather(*tasks, return_exceptions=True))


def orphan(tx: Tx) -> None:
    """A deferred constraint is checked by COMMIT, which makes COMMIT fail on a real engine."""
    tx.execute("INSERT INTO child (parent) VALUES (99)")


def lose_the_transaction(tx: Tx) -> None:
    """What SQLite does by itself after some errors, seen by a write that swallows them."""
    tx.execute("ROLLBACK")
    tx.execute(INSERT, {"id": 20})


def find_a_full_disk(tx: Tx) -> None:
    tx.all("PRAGMA max_page_count = 1")
    tx.execute("INSERT INTO note (id, body) VALUES (20, :body)", {"body": "x" * 100_000})


def find_a_disk_that_takes_no_writes(tx: Tx) -> None:
    """The error of a disk that was remounted for reading only; the transaction outlives it."""
    tx.all("PRAGMA query_only = ON")
    tx.execute(INSERT, {"id": 20})


@pytest.mark.parametrize(
    "fatal", [orphan, lose_the_transaction, find_a_full_disk, find_a_disk_that_takes_no_writes]
)
async def test_a_failed_commit_is_fatal(path: Path, fatal: Callable[[Tx], object]) -> None:
    failures = Failures()
    db = await failures.open(path)
    await db.write(lambda tx: tx.execute(CREATE))
    await db.write(
        lambda tx: tx.execute(
            "CREATE TABLE child (parent INTEGER REFERENCES note (id) DEFERRABLE INITIALLY DEFERRED) STRICT"
        )
    )
    await db.write(insert(1))
    results = await fail_a_batch(db, fatal)
    assert [type(result) for result in results] == [DatabaseFailed] * 5
    assert len({id(result) for result in results}) == 5
    assert [type(failure) for failure in failures.seen] == [DatabaseFailed]
    with pytest.raises(DatabaseFailed, match="Restart the service"):
        await db.write(insert(30))
    with pytest.raises(DatabaseFailed, match="Restart the service"):
        await db.read(COUNT)
    await db.close()
    assert len(failures.seen) == 1
    assert ids(path) == {1}


async def test_what_waits_behind_a_failed_commit_is_refused(path: Path) -> None:
    failures = Failures()
    db = await failures.open(path)
    await db.write(lambda tx: tx.execute(CREATE))
    release, held = await hold(db)
    bad = asyncio.create_task(db.write(lose_the_transaction))
    tasks = [asyncio.create_task(db.write(insert(n))) for n in range(BATCH_MAX + 10)]
    closing_task = asyncio.create_task(db.close())
    await asyncio.sleep(0)
    release.set()
    assert await held
    results = await asyncio.gather(bad, *tasks, return_exceptions=True)
    assert {type(result) for result in results} == {DatabaseFailed}
    await closing_task
    assert ids(path) == set()


async def test_a_foreign_writer_is_fatal(path: Path) -> None:
    failures = Failures()
    db = await failures.open(path)
    await db.write(lambda tx: tx.execute(CREATE))
    await db.write(lambda tx: tx.all("PRAGMA busy_timeout = 1"))
    with closing(sqlite3.connect(path, isolation_level=None)) as foreign:
        foreign.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseFailed, match="locked"):
            await db.write(insert(1))
        foreign.execute("ROLLBACK")
    await db.close()
    assert len(failures.seen) == 1
    assert ids(path) == set()


FULL_DISK_PROCESS: Final = """
import asyncio, resource, sys
from pathlib import Path
from spawn.store.database import DatabaseFailed
from spawn.store.sqlite import SqliteDatabase

async def main():
    fatal = asyncio.Event()
    db = await SqliteDatabase.open(Path(sys.argv[1]), on_fatal=lambda failure: fatal.set())
    await db.write(lambda tx: tx.execute("CREATE TABLE note (id INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    async def write(first):
        for note_id in range(first, first + 1000):
            params = {"id": note_id, "body": "x" * 2000}
            await db.write(lambda tx: tx.execute("INSERT INTO note (id, body) VALUES (:id, :body)", params))
            print(note_id, flush=True)

    results = await asyncio.gather(*(write(n * 1000) for n in range(4)), return_exceptions=True)
    assert [type(result) for result in results] == [DatabaseFailed] * 4, results
    await fatal.wait()
    await db.close()
    print("fatal", flush=True)

asyncio.run(main())
"""


def test_a_disk_that_takes_no_more_is_fatal_and_loses_nothing_answered(path: Path) -> None:
    with child(FULL_DISK_PROCESS, str(path)) as process:
        printed, _ = process.communicate(timeout=30)
    *answered, last = printed.split()
    assert (process.returncode, last) == (0, "fatal")
    assert len(answered) > 10
    assert ids(path) >= set(map(int, answered))


WRITING_PROCESS: Final = """
import asyncio, os, sys
from pathlib import Path
from spawn.store.sqlite import SqliteDatabase

def pair(note_id):
    def fn(tx):
        for one in (note_id, -note_id):
            tx.execute("INSERT INTO note (id, body) VALUES (:id, 'text')", {"id": one})
    return fn

async def main():
    db = await SqliteDatabase.open(Path(sys.argv[1]))

    async def write(first):
        for note_id in range(first, first + 100_000):
            await db.write(pair(note_id))
            os.write(1, f"{note_id}\\n".encode())

    await asyncio.gather(*(write(n * 100_000 + int(sys.argv[2])) for n in range(1, 17)))

asyncio.run(main())
"""


async def test_nothing_answered_is_lost_by_kill_9(path: Path) -> None:
    db = await SqliteDatabase.open(path)
    await db.write(lambda tx: tx.execute(CREATE))
    await db.close()
    dice = random.Random(9)
    answered: set[int] = set()
    for first in (0, 20_000, 40_000, 60_000):
        with child(WRITING_PROCESS, str(path), str(first)) as process:
            for _ in range(dice.randrange(1, 600)):
                answered.add(int(read_line(process)))
            process.kill()
            rest, _ = process.communicate(timeout=10)
        # The kill may have cut the last line short.
        answered |= {int(line) for line in rest.splitlines(keepends=True) if line.endswith("\n")}
        db = await SqliteDatabase.open(path)
        kept = {row["id"] for row in await db.read("SELECT id FROM note")}
        await db.close()
        assert kept >= answered
        assert kept == {-note_id for note_id in kept}
    assert len(answered) > 100


async def test_a_parameter_is_found_by_its_name_wherever_it_stands(db: SqliteDatabase) -> None:
    sql = "SELECT ':a' || ':b1' AS text, :b1 AS b, :a AS a, :b1 AS again WHERE :a = :a"
    row = await db.write(lambda tx: tx.one(sql, {"a": 1, "unused": 3, "b1": 2}))
    assert row is not None
    assert [row[name] for name in ("text", "b", "a", "again")] == [":a:b1", 2, 1, 2]
    with pytest.raises(KeyError, match="b1"):
        await db.write(lambda tx: tx.one(sql, {"a": 1}))
