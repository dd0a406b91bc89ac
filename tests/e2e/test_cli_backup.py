"""`spawn backup`, `spawn restore`, `spawn ledger export` as an operator uses them: beside the service, and after it."""

import asyncio
import contextlib
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import httpx
import pytest
from spawn_ledger.accounts import EXT_USDC, wallet_account
from spawn_ledger.transfers import balance_of
from spawn_schemas.money import parse_usdc

from tests.e2e.test_cli import beside, misunderstood, refused, spawn
from tests.engines import require
from tests.harness import ORDER
from tests.integration.restoring import lose
from tests.interop.service import RunningService, environment, in_folder, spawn_dev
from tests.wallets import Wallet

pytestmark = pytest.mark.embedded

WORLD: Final = {"devnet_path": "devnet.db", "simulated_path": "cloud.db"}


def pay(service: RunningService, wallet: Wallet, path: str, body: dict[str, str]) -> dict[str, object]:
    """Meet the 402, sign it, and send the same again."""
    with httpx.Client(base_url=service.url, trust_env=False, timeout=20) as http:
        challenge = http.post(path, json=body)
        payment = wallet.payment(challenge.headers["PAYMENT-REQUIRED"], now=int(time.time()))
        paid = http.post(path, json=body, headers={"PAYMENT-SIGNATURE": payment})
    assert paid.is_success, paid.text
    answer: dict[str, object] = paid.json()
    return answer


def deposit(service: RunningService, wallet: Wallet, amount: str) -> None:
    pay(service, wallet, "/v1/balance/deposit", {"amount": amount})


@pytest.fixture(scope="module")
def wallet() -> Wallet:
    return Wallet.numbered(77)


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory, wallet: Wallet) -> tuple[Path, dict[str, object]]:
    """A service took 2.00, was copied, took 3.00 and rented out a server, and stopped: its folder, and that server."""
    folder = tmp_path_factory.mktemp("lived")
    return folder, live(folder, wallet)


@pytest.fixture
def server(lived: tuple[Path, dict[str, object]], tmp_path: Path) -> dict[str, object]:
    """That server; its world is in `tmp_path`."""
    shutil.copytree(lived[0], tmp_path, dirs_exist_ok=True)
    return lived[1]


def live(folder: Path, wallet: Wallet) -> dict[str, object]:
    with spawn_dev(folder) as service:
        asyncio.run(service.mint(wallet, "20.00"))
        deposit(service, wallet, "2.00")
        done = beside(service, folder, "backup", "copy.db")
        assert done.returncode == 0, done.stderr
        deposit(service, wallet, "3.00")
        rented = pay(service, wallet, "/v1/servers", ORDER | {"fund": "0.60", "deposit": "0.50"})
    server: dict[str, object] = rented["server"]  # type: ignore[assignment]  # an object of the answer
    return server


def test_a_copy_beside_the_service_is_told_and_is_right(tmp_path: Path, wallet: Wallet) -> None:
    with spawn_dev(tmp_path) as service:
        asyncio.run(service.mint(wallet, "20.00"))
        deposit(service, wallet, "2.00")
        done = beside(service, tmp_path, "backup", "copy.db")
        assert (done.returncode, done.stderr) == (0, "")
        first, holds, checked, key, world = done.stdout.splitlines()
        assert first.startswith("wrote copy.db in ")
        assert holds.startswith("  holds      1 transfers, the newest of 20")
        assert "2.00 USDC paid in" in holds
        assert checked == "  checked    its pages, its references, and every rule of `spawn ledger verify`"
        assert "spawn.key" in key
        assert "devnet.db" in world
        refused(beside(service, tmp_path, "backup", "copy.db"), "copy.db exists already", "--force")
        deposit(service, wallet, "1.00")
        assert "2 transfers" in beside(service, tmp_path, "backup", "copy.db", "--force").stdout
        refused(beside(service, tmp_path, "backup", "nowhere/copy.db"), "cannot write nowhere/copy.db")
        refused(beside(service, tmp_path, "restore", "copy.db", "--force"), "in use by process")
    books = spawn(tmp_path, "ledger", "verify", database_url="sqlite:///copy.db", **WORLD)
    assert books.stdout == "the books are right: 2 transfers, 3.00 USDC paid in and accounted for\n"


def test_a_lost_database_comes_back_with_what_was_paid_and_rented_since(
    tmp_path: Path, wallet: Wallet, server: dict[str, object]
) -> None:
    lose(tmp_path)
    done = spawn(tmp_path, "restore", "copy.db", **WORLD)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "3.61 USDC credited to who paid, 0.00 USDC waiting in suspense" in done.stdout
    assert f"adopted                {server['id']} (small 'web' of {wallet.address})" in done.stdout
    assert done.stdout.endswith("spawn.db is restored: start the service.\n")
    with spawn_dev(tmp_path) as service:
        assert asyncio.run(service.violations()) == []
        with service.books() as tx:
            assert balance_of(tx, EXT_USDC).balance == parse_usdc("5.61")
            assert balance_of(tx, wallet_account(wallet.address)).balance > parse_usdc("5.60")


@pytest.mark.usefixtures("server")
def test_a_restore_that_is_killed_is_repeated(tmp_path: Path) -> None:
    lose(tmp_path)
    command = [sys.executable, "-m", "spawn", "restore", "copy.db"]
    half = tmp_path / "spawn.db.restoring"
    with subprocess.Popen(command, cwd=tmp_path, env=environment(in_folder(tmp_path))) as process:
        end = time.monotonic() + 20
        while not half.exists() and time.monotonic() < end:
            time.sleep(0.005)
        process.kill()
    assert half.exists()
    assert not (tmp_path / "spawn.db").exists()
    done = spawn(tmp_path, "restore", "copy.db", **WORLD)
    assert done.returncode == 0, done.stdout
    assert not half.exists()
    books = spawn(tmp_path, "ledger", "verify", **WORLD)
    assert "5.61 USDC paid in and accounted for" in books.stdout, books.stdout


@pytest.mark.usefixtures("server")
def test_a_database_that_is_there_is_only_replaced_when_asked_and_kept(tmp_path: Path) -> None:
    refused(spawn(tmp_path, "restore", "copy.db", **WORLD), "spawn.db exists already", "--force")
    for number in (1, 2):
        assert spawn(tmp_path, "restore", "copy.db", "--force", **WORLD).returncode == 0
        kept = f"spawn.db.replaced-{number}"
        books = spawn(tmp_path, "ledger", "verify", database_url=f"sqlite:///{kept}", **WORLD)
        assert "5.61 USDC paid in and accounted for" in books.stdout, books.stdout


@pytest.mark.usefixtures("server")
def test_without_its_key_a_database_is_not_restored(tmp_path: Path) -> None:
    lose(tmp_path)
    key = tmp_path / "spawn.key"
    right = key.read_text()
    key.unlink()
    refused(spawn(tmp_path, "restore", "copy.db", **WORLD), "there is no spawn.key", "SPAWN_SECRET_KEY")
    refused(spawn(tmp_path, "restore", "copy.db", secret_key="00" * 32, **WORLD), "sealed with another key")
    assert not (tmp_path / "spawn.db").exists()
    key.write_text(right)
    assert spawn(tmp_path, "restore", "copy.db", **WORLD).returncode == 0


def test_what_cannot_be_decided_is_said_and_nothing_is_put_in_place(
    tmp_path: Path, wallet: Wallet, server: dict[str, object]
) -> None:
    lose(tmp_path)
    cloud = tmp_path / "cloud.db"
    relabel(cloud, "UPDATE instance SET owner = NULL")
    done = spawn(tmp_path, "restore", "copy.db", **WORLD)
    assert done.returncode == 1
    assert f"({server['id']}) does not say whose it is" in done.stdout
    assert done.stdout.endswith("Nothing was put in place.\n")
    assert not (tmp_path / "spawn.db").exists()
    relabel(cloud, f"UPDATE instance SET owner = '{wallet.address}'")
    assert spawn(tmp_path, "restore", "copy.db", **WORLD).returncode == 0


def relabel(cloud: Path, sql: str) -> None:
    with contextlib.closing(sqlite3.connect(cloud)) as connection:
        connection.execute(sql)
        connection.commit()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["there is no backup at copy.db"]),
        ("no database", ["copy.db is not sound", "not a database"]),
        ("", ["copy.db has no books of spawn in it", "another backup"]),
    ],
)
def test_what_is_no_backup_is_refused(tmp_path: Path, text: str | None, words: list[str]) -> None:
    (tmp_path / "spawn.key").write_text("5a" * 32)
    if text is not None:
        (tmp_path / "copy.db").write_text(text * 400)
    refused(spawn(tmp_path, "restore", "copy.db"), *words)
    assert not (tmp_path / "spawn.db").exists()


# --- export -------------------------------------------------------------------------------------------------------


def test_the_export_of_a_running_service_is_right_in_hledger(tmp_path: Path, wallet: Wallet) -> None:
    require("hledger")
    with spawn_dev(tmp_path) as service:
        asyncio.run(service.mint(wallet, "20.00"))
        deposit(service, wallet, "2.00")
        pay(service, wallet, "/v1/servers", ORDER | {"fund": "0.60", "deposit": "0.50"})
        shown = beside(service, tmp_path, "ledger", "export", "--format", "hledger")
        assert shown.returncode == 0, shown.stderr
        written = beside(
            service, tmp_path, "ledger", "export", "--format", "hledger", "--output", "books.journal"
        )
        assert written.stdout == "wrote books.journal\n"
        again = beside(
            service, tmp_path, "ledger", "export", "--format", "hledger", "--output", "books.journal"
        )
        refused(again, "books.journal exists already", "--force")
    for text in (shown.stdout, (tmp_path / "books.journal").read_text()):
        checked = subprocess.run(
            ["hledger", "-f", "-", "check", "--strict"],
            input=text,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert checked.returncode == 0, checked.stderr


def test_a_period_that_ends_before_it_begins_is_not_understood(tmp_path: Path) -> None:
    period = ("--from", "2026-02-01", "--to", "2026-02-01")
    misunderstood(
        spawn(tmp_path, "ledger", "export", "--format", "beancount", *period), "--from must be before --to"
    )
