"""`spawn migrate --from --to` as an operator uses it: what it says, what it refuses, and that it may be killed."""

import asyncio
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import psycopg
import pytest

from spawn.setting_reader import read_settings
from tests import databases
from tests.e2e.test_cli import beside, misunderstood, refused, spawn
from tests.e2e.test_cli_backup import WORLD, deposit
from tests.integration.moving_books import fill
from tests.interop.service import RunningService, environment, in_folder, serving, spawn_dev
from tests.ports import free_address
from tests.wallets import Wallet

pytestmark = [pytest.mark.usefixtures("postgres_server"), pytest.mark.embedded]

FROM: Final = ("migrate", "--from", "sqlite:///spawn.db", "--to")
NOWHERE: Final = "postgresql://me:hunter2@127.0.0.1:9/spawn"
PATIENCE_S: Final = 60


@pytest.fixture
def target(tmp_path: Path) -> str:
    url = databases.server_url(f"cli_{abs(hash(str(tmp_path))):x}")
    databases.make_empty(url)
    return url


@pytest.fixture
def wallet() -> Wallet:
    return Wallet.numbered(78)


def test_a_service_moves_and_goes_on(tmp_path: Path, wallet: Wallet, target: str) -> None:
    with spawn_dev(tmp_path) as service:
        asyncio.run(service.mint(wallet, "20.00"))
        deposit(service, wallet, "2.00")
        refused(beside(service, tmp_path, *FROM, target), "spawn.db is in use: stop the service")
    done = spawn(tmp_path, *FROM, target)
    assert done.returncode == 0, done.stderr
    moved, proven, following, kept = done.stdout.splitlines()
    assert re.fullmatch(
        r"moved spawn.db to the PostgreSQL database cli_\w+ at \S+: \d+ rows of \d+ tables, in \d+\.\d s "
        r"\([\d,]+ rows/s\)",
        moved,
    )
    assert proven.endswith("every rule of `spawn ledger verify`; customers have 2.00 USDC")
    assert following.startswith("  next       set SPAWN_DATABASE_URL to where the books are now, ")
    assert following.endswith("set SPAWN_SECRET_KEY to what spawn.key holds, and run `spawn serve`")
    assert kept == (
        "  the file   spawn.db is as it was, and no service starts on it while spawn.db.moved is there"
    )
    assert re.search(r"^  copied     transfer +1 of 1 rows$", done.stderr, re.MULTILINE)
    again = spawn(tmp_path, *FROM, target)
    assert again.stdout.startswith("spawn.db was moved to the PostgreSQL database cli_")
    refused(spawn(tmp_path, "serve", listen=free_address()), "were moved to", "set SPAWN_DATABASE_URL")
    books = spawn(tmp_path, "ledger", "verify", database_url=target, **WORLD)
    assert books.stdout == "the books are right: 1 transfers, 2.00 USDC paid in and accounted for\n"
    other = {"database_url": target, "secret_key": "17" * 32, **WORLD}
    refused(spawn(tmp_path, "serve", listen=free_address(), **other), "sealed with another key")
    right = {"SPAWN_DATABASE_URL": target, "SPAWN_SECRET_KEY": (tmp_path / "spawn.key").read_text().strip()}
    settings = in_folder(tmp_path) | right
    with serving(tmp_path, settings, "serve") as address:
        deposit(RunningService(url=f"http://{address}", settings=read_settings(settings)), wallet, "1.00")
    books = spawn(tmp_path, "ledger", "verify", database_url=target, **WORLD)
    assert books.stdout.startswith("the books are right: 2 transfers, 3.00 USDC paid in")


def test_a_move_that_is_killed_goes_on(tmp_path: Path, target: str) -> None:
    assert spawn(tmp_path, "migrate").returncode == 0
    fill(tmp_path / "spawn.db", 60_000)
    command = [sys.executable, "-m", "spawn", *FROM, target]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment({}), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        wait_for_pages(target, process)
        process.kill()
    refused(
        spawn(tmp_path, "serve", listen=free_address(), database_url=target, secret_key="17" * 32),
        "unfinished copy",
    )
    refused(
        spawn(tmp_path, "migrate", database_url=target),
        "unfinished copy of",
        "go on with `spawn migrate --from",
    )
    done = spawn(tmp_path, *FROM, target)
    assert done.returncode == 0, done.stderr
    found = re.search(r": ([\d,]+) rows of \d+ tables, ([\d,]+) of them by an attempt before", done.stdout)
    assert found is not None, done.stdout
    rows, before = (int(number.replace(",", "")) for number in found.groups())
    assert 0 < before < rows
    assert rows > 60_000
    assert "set SPAWN_SECRET_KEY to the key of that service" in done.stdout


def wait_for_pages(target: str, process: "subprocess.Popen[bytes]") -> None:
    """Until some of the transfers are there; most are not."""
    end = time.monotonic() + PATIENCE_S
    with psycopg.connect(target, autocommit=True) as connection:
        while time.monotonic() < end and process.poll() is None:
            found = connection.execute("SELECT to_regclass('unfinished_copy')").fetchone()
            if found != (None,):
                (reached,) = connection.execute("SELECT reached FROM unfinished_copy").fetchone() or ("",)
                if '"transfer"' in reached:
                    return
            time.sleep(0.01)
    raise AssertionError("the move was over, or never began")


def test_what_cannot_be_meant_is_not_understood(tmp_path: Path) -> None:
    misunderstood(spawn(tmp_path, "migrate", "--from", "sqlite:///spawn.db"), "--from and --to go together")
    misunderstood(spawn(tmp_path, "migrate", "--to", NOWHERE), "--from and --to go together")
    misunderstood(spawn(tmp_path, "migrate", "--from", "spawn.db", "--to", NOWHERE), "--from: a database URL")
    badly = spawn(tmp_path, *FROM, "postgresql://me:hunter2@db")
    misunderstood(badly, "--to: a PostgreSQL URL is")
    assert "hunter2" not in badly.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_is_not_there_is_a_sentence_without_its_password(tmp_path: Path) -> None:
    refused(spawn(tmp_path, *FROM, NOWHERE), "there is no database at spawn.db")
    assert spawn(tmp_path, "migrate").returncode == 0
    done = spawn(tmp_path, *FROM, NOWHERE)
    refused(done, "cannot use the PostgreSQL database spawn at 127.0.0.1:9")
    assert "hunter2" not in done.stderr
    assert "the file   " not in done.stdout
