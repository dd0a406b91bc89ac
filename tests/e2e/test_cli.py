"""The command line as its user meets it: one sentence that says what to do, the right exit code, no traceback."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from spawn.clock import SystemClock
from spawn.rails import open_devnet
from spawn.settings import Settings
from spawn.store.places import place_of
from tests import databases
from tests.interop.service import RunningService, spawn_dev
from tests.ports import free_address

SOMEBODY = "0x8ba1f109551bD432803012645Ac136ddd64DBA72"


def spawn(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder` with these SPAWN_ settings and no others."""
    done = subprocess.run(
        [sys.executable, "-m", "spawn", *arguments],
        cwd=folder,
        env=environment_in(folder, **{f"SPAWN_{name.upper()}": value for name, value in settings.items()}),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    return done


def environment_in(folder: Path, **variables: str) -> dict[str, str]:
    """What a process in `folder` finds: these settings, and of ours only where its books are, unless that is usual."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SPAWN_")}
    books = {} if databases.engine() == "sqlite" else databases.variables(folder)
    return clean | books | variables


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit 1 with one line on stderr that begins with our name and has these words."""
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("spawn: ")
    for word in words:
        assert word in line


def misunderstood(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit 2 with the usage and what was wrong with it."""
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: ")
    for word in words:
        assert word in done.stderr


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with spawn_dev(tmp_path_factory.mktemp("cli")) as service:
        yield service


@pytest.fixture
def migrated(tmp_path: Path) -> Path:
    assert spawn(tmp_path, "migrate").returncode == 0
    return tmp_path


def change(folder: Path, sql: str) -> None:
    url = databases.database_url(folder)
    with contextlib.closing(
        sqlite3.connect(folder / "spawn.db") if databases.engine() == "sqlite" else databases.connection(url)
    ) as connection:
        connection.execute(sql)
        connection.commit()


# --- help -----------------------------------------------------------------------------------------------------


def test_help_comes_at_once_because_nothing_heavy_is_imported() -> None:
    heavy = ("litestar", "eth_account", "alembic", "sqlalchemy", "uvicorn", "httpx", "cryptography", "web3")
    program = f"import sys, spawn.cli; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_says_where_to_begin(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = spawn(tmp_path, *arguments)
    told = done.stdout + done.stderr
    for word in ("spawn demo", "spawn dev", "spawn migrate", "SPAWN_*"):
        assert word in told
    assert done.returncode == (0 if arguments else 2)


def test_a_command_nobody_knows_is_not_understood(tmp_path: Path) -> None:
    misunderstood(spawn(tmp_path, "frobnicate"), "No such command 'frobnicate'")


def test_the_version(tmp_path: Path) -> None:
    assert spawn(tmp_path, "--version").stdout.startswith("spawn, version 0.")


# --- settings -------------------------------------------------------------------------------------------------


def test_an_unknown_setting_is_refused_with_what_was_meant(tmp_path: Path) -> None:
    refused(spawn(tmp_path, "serve", listn="127.0.0.1:1"), "SPAWN_LISTN", "Did you mean SPAWN_LISTEN?")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("simulated_speed", "fast", "SPAWN_SIMULATED_SPEED should be a number"),
        ("listen", "abc", "SPAWN_LISTEN should be host:port"),
        ("database_url", "postgresql://me:hunter2@db", "a PostgreSQL URL is postgresql://"),
        ("database_url", "mysql://db", "sqlite:///relative/path.db"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(tmp_path: Path, name: str, value: str, words: str) -> None:
    done = spawn(tmp_path, "migrate", **{name: value})
    refused(done, f"SPAWN_{name.upper()}", words)
    assert "hunter2" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_speed_that_is_no_number_is_not_understood(tmp_path: Path) -> None:
    misunderstood(spawn(tmp_path, "dev", "--speed=x"), "'--speed'")


def test_an_address_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    refused(spawn(tmp_path, "dev", listen="192.0.2.1:8402"), "192.0.2.1:8402 is not ours", "--listen")
    assert list(tmp_path.iterdir()) == []


# --- wallets and play money -----------------------------------------------------------------------------------


def test_a_new_wallet_each_time_that_signs(tmp_path: Path) -> None:
    from eth_account import Account  # noqa: PLC0415 - takes a second that the other tests need not wait for

    first, second = (json.loads(spawn(tmp_path, "wallet", "new", "--json").stdout) for _ in range(2))
    assert first != second
    assert Account.from_key(first["private_key"]).address == first["address"]
    told = spawn(tmp_path, "wallet", "new").stdout.splitlines()
    assert [line.rpartition("  ")[0].strip() for line in told] == ["address", "private key"]


def test_the_faucet_needs_a_chain_that_somebody_uses(tmp_path: Path) -> None:
    refused = spawn(tmp_path, "faucet", SOMEBODY)
    assert refused.returncode == 1
    assert "start `spawn dev` first" in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_faucet_gives_again_and_again(tmp_path: Path) -> None:
    open_devnet(Settings(devnet_path=str(tmp_path / "spawn-devnet.db")), SystemClock()).close()
    assert "has 1.50 USDC" in spawn(tmp_path, "faucet", SOMEBODY, "--amount", "1.5").stdout
    assert "has 101.50 USDC" in spawn(tmp_path, "faucet", SOMEBODY.lower()).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Missing argument 'ADDRESS'"),
        (("0x12",), "an address is 0x and 40 hex digits"),
        ((SOMEBODY, "--amount", "lots"), "an amount is a decimal string such as 5.00"),
        ((SOMEBODY, "--amount", "0"), "more than zero"),
        ((SOMEBODY, "--amount=-5"), "an amount is a decimal string such as 5.00"),
    ],
)
def test_the_faucet_says_what_it_did_not_understand(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    misunderstood(spawn(tmp_path, "faucet", *arguments), words)
    assert list(tmp_path.iterdir()) == []


# --- the database ---------------------------------------------------------------------------------------------


def test_migrating_twice_changes_nothing(tmp_path: Path) -> None:
    url = databases.database_url(tmp_path)
    name = "spawn.db" if databases.engine() == "sqlite" else place_of(url).name
    applied = ", ".join(f"{number:04}" for number in range(1, 11))
    assert spawn(tmp_path, "migrate").stdout == f"{name}: applied {applied}\n"
    assert spawn(tmp_path, "migrate").stdout == f"{name}: up to date already\n"


@pytest.mark.parametrize("command", [("serve",), ("ledger", "verify")])
def test_without_a_database_one_is_told_to_migrate(tmp_path: Path, command: tuple[str, ...]) -> None:
    refused(spawn(tmp_path, *command, listen=free_address()), "run `spawn migrate`")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("version", "words"), [("0000", "run `spawn migrate`"), ("9999", "upgrade spawn")])
def test_a_database_of_another_version_is_not_served(migrated: Path, version: str, words: str) -> None:
    change(migrated, f"UPDATE alembic_version SET version_num = '{version}'")
    refused(spawn(migrated, "serve", listen=free_address()), version, words)


@pytest.mark.parametrize(
    ("name", "setting"),
    [("spawn-devnet.db", "SPAWN_DEVNET_PATH"), ("spawn-simulated.db", "SPAWN_SIMULATED_PATH")],
)
def test_a_companion_file_that_is_damaged_is_named(migrated: Path, name: str, setting: str) -> None:
    (migrated / name).write_text("this is no database, whatever its name says")
    refused(spawn(migrated, "serve", listen=free_address()), name, setting)


@pytest.mark.embedded
def test_a_damaged_database_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "spawn.db").write_text("this is no database, whatever its name says")
    for command in ("serve", "migrate"):
        refused(spawn(tmp_path, command, listen=free_address()), "spawn.db", "not a database")


# --- the books ------------------------------------------------------------------------------------------------


def test_books_that_are_right(migrated: Path) -> None:
    assert spawn(migrated, "ledger", "verify").stdout.startswith("the books are right: 0 transfers")


def test_books_that_are_wrong_exit_with_1_and_say_where(migrated: Path) -> None:
    change(migrated, "INSERT INTO account (id, balance, held) VALUES ('wallet:0x1', 5, 0)")
    done = spawn(migrated, "ledger", "verify")
    assert done.returncode == 1
    assert "broken: cached balance: wallet:0x1 shows a balance of 5" in done.stdout


@pytest.mark.embedded
def test_books_that_cannot_be_read(migrated: Path) -> None:
    path = migrated / "spawn.db"
    change(migrated, "PRAGMA wal_checkpoint(TRUNCATE)")
    whole = path.read_bytes()
    path.write_bytes(whole[:8192] + b"\xa5" * (len(whole) - 8192))
    refused(spawn(migrated, "ledger", "verify"), "restore it from a backup")


def test_reconciling_nothing_reports_nothing(migrated: Path) -> None:
    done = spawn(migrated, "reconcile")
    assert done.returncode == 0
    assert {line.split()[-1] for line in done.stdout.splitlines()} == {"0"}


# --- the description ------------------------------------------------------------------------------------------


def test_the_description_goes_where_it_is_told(tmp_path: Path) -> None:
    assert spawn(tmp_path, "openapi", "--output", "api.json").stdout == "wrote api.json\n"
    assert json.loads((tmp_path / "api.json").read_text())["info"]["title"] == "spawn"
    refused(spawn(tmp_path, "openapi", "--output", "nowhere/api.json"), "cannot write nowhere/api.json")


# --- beside a running service ---------------------------------------------------------------------------------


def beside(
    running: RunningService, folder: Path, *arguments: str, **changes: str
) -> subprocess.CompletedProcess[str]:
    settings = running.settings
    shared = {
        "database_url": settings.database_url,
        "devnet_path": settings.devnet_path,
        "simulated_path": settings.simulated_path,
    }
    return spawn(folder, *arguments, **(shared | changes))


def test_a_second_service_on_the_port_is_refused(running: RunningService, tmp_path: Path) -> None:
    done = spawn(tmp_path, "dev", listen=running.settings.listen)
    refused(done, running.settings.listen, "in use by another process", "--listen")
    assert list(tmp_path.iterdir()) == [], "it made no database before it had the port"


@pytest.mark.embedded
@pytest.mark.parametrize("command", ["dev", "migrate", "reconcile"])
def test_a_second_writer_is_refused(running: RunningService, tmp_path: Path, command: str) -> None:
    done = beside(running, tmp_path, command, listen=free_address())
    refused(done, "spawn.db is in use by process", "SPAWN_DATABASE_URL")


def test_play_money_and_a_look_at_the_books_are_free_to_come(running: RunningService, tmp_path: Path) -> None:
    assert "has 100.00 USDC" in beside(running, tmp_path, "faucet", SOMEBODY).stdout
    assert "the books are right" in beside(running, tmp_path, "ledger", "verify").stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_service_that_is_told_to_stop_stops_in_order(migrated: Path, number: signal.Signals) -> None:
    address = free_address()
    with (migrated / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "spawn", "serve", "--listen", address],
            cwd=migrated,
            env=environment_in(migrated),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until_up(address)
            process.send_signal(number)
            assert process.wait(timeout=15) == 0
        finally:
            process.kill()
            process.wait()
    assert "Traceback" not in (migrated / "log").read_text()
    assert not (migrated / "spawn.db-wal").exists(), "the database was closed"


def wait_until_up(address: str) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"http://{address}/health", timeout=5).is_success:
                return
    pytest.fail(f"nothing answers at {address}")
