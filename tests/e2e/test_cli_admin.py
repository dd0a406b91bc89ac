"""`spawn admin` as an operator meets it: beside a running service and without one, as a process of its own."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from signing import SignedRequestAuth

from tests import databases
from tests.e2e.test_cli import beside, misunderstood, refused, spawn
from tests.harness import CHAIN_ID, ORDER
from tests.interop.service import RunningService, spawn_dev
from tests.wallets import Wallet

SOMEBODY = "0x8ba1f109551bd432803012645ac136ddd64dba72"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with spawn_dev(tmp_path_factory.mktemp("adm")) as service:
        yield service


def told(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def shown(done: subprocess.CompletedProcess[str]) -> str:
    """A table, which fits into a terminal."""
    assert max(map(len, told(done).splitlines()), default=0) <= 100, done.stdout
    return done.stdout


def read(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- the same either way ------------------------------------------------------------------------------------------


class Desk:
    """`spawn admin` on a database that a service holds, or that nobody does."""

    def __init__(self, folder: Path, service: RunningService | None) -> None:
        self._folder = folder
        self._service = service

    def __call__(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        if self._service is None:
            return spawn(self._folder, "admin", *arguments, **settings)
        return beside(self._service, self._folder, "admin", *arguments, **settings)


@pytest.fixture(params=["beside a service", "alone"])
def admin(request: pytest.FixtureRequest, tmp_path: Path) -> Desk:
    if request.param == "alone":
        databases.make(databases.database_url(tmp_path))
        return Desk(tmp_path, None)
    return Desk(tmp_path, request.getfixturevalue("running"))


def test_credit_is_given_once_for_its_id(admin: Desk) -> None:
    wallet = Wallet.numbered(71).address
    give = ("credit", wallet, "2.50", "--reason", "an outage", "--id", "incident-71")
    assert "Given: 2.50 USDC" in told(admin(*give))
    assert "not again" in told(admin(*give))
    refused(
        admin("credit", wallet, "3", "--reason", "x", "--id", "incident-71"),
        "another wallet or amount",
        "--id",
    )
    assert read(admin("wallet", wallet, "--json"))["wallet"]["available"] == "2.50"
    assert [line["reference"] for line in read(admin("statement", wallet, "--json"))["movements"]] == [
        "incident-71"
    ]
    assert "goodwill" in shown(admin("statement", wallet))
    assert "an outage" in shown(admin("notes", wallet))


def test_a_wallet_is_blocked_and_let_go(admin: Desk) -> None:
    wallet = Wallet.numbered(72).address
    assert "is blocked" in told(admin("block", wallet, "--reason", "a sanctions list"))
    assert "blocked" in shown(admin("wallets", "--barred", "blocked", "--search", wallet[2:20]))
    assert "BLOCKED" in shown(admin("wallet", wallet))
    refused(admin("restore", wallet), "spawn admin unblock")
    assert "may do everything" in told(admin("unblock", wallet))
    assert [note["kind"] for note in read(admin("notes", wallet, "--json"))] == ["unblock", "block"]


def test_a_price_is_announced_listed_and_withdrawn(admin: Desk) -> None:
    change = told(admin("price-change", "--type", "large", "--location", "hil", "--daily", "1.5")).partition(
        ":"
    )[0]
    assert change.startswith("prc_")
    assert "announced" in shown(admin("price-changes"))
    again = admin("price-change", "--type", "large", "--location", "hil", "--daily", "1.6")
    refused(again, f"spawn admin price-withdraw {change}")
    assert "withdrawn by" in told(admin("price-withdraw", change))
    refused(admin("price-withdraw", change), "withdrawn already", "price-changes")
    lines = {line["id"]: line["state"] for line in read(admin("price-changes", "--json"))}
    assert lines[change] == "withdrawn"


def test_the_whole_on_one_page(admin: Desk) -> None:
    assert "destroys    none failing" in shown(admin("status"))
    assert read(admin("status", "--json"))["incidents"] == []
    assert shown(admin("servers"))
    assert shown(admin("wallets"))


def test_what_cannot_be_done_is_one_sentence(admin: Desk) -> None:
    refused(admin("credit", SOMEBODY, "2000", "--reason", "x"), "1000.00", "several credits")
    refused(
        admin("price-change", "--type", "small", "--location", "moon", "--daily", "1"), "no location moon"
    )


def test_what_is_not_understood_exits_with_2(tmp_path: Path) -> None:
    misunderstood(spawn(tmp_path, "admin"), "Look after wallets")
    misunderstood(spawn(tmp_path, "admin", "credit", "0x12", "1", "--reason", "x"), "40 hex digits")
    assert list(tmp_path.iterdir()) == []


# --- who holds the database ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("status",), ("credit", SOMEBODY, "1", "--reason", "x")])
def test_without_a_database_one_is_told_to_migrate(tmp_path: Path, command: tuple[str, ...]) -> None:
    refused(spawn(tmp_path, "admin", *command), "run `spawn migrate`")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.embedded
def test_a_holder_that_takes_no_orders_is_named(tmp_path: Path) -> None:
    databases.make_file(tmp_path / "spawn.db")
    hold = (
        "from pathlib import Path; from spawn.store.owner import Owner; "
        "Owner.claim(Path('spawn.db')); print('held', flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        refused(
            spawn(tmp_path, "admin", "block", SOMEBODY, "--reason", "x"),
            "another process holds",
            "spawn.db.admin",
        )
        assert "no wallets" in shown(spawn(tmp_path, "admin", "wallets")), "looking needs nobody"
    finally:
        holder.communicate("\n", timeout=10)


@pytest.mark.embedded
def test_a_path_too_long_for_a_socket_works_alone_and_is_explained_beside_a_service(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 90)
    folder.mkdir()
    with spawn_dev(folder) as service:
        done = beside(service, folder, "admin", "block", SOMEBODY, "--reason", "x")
        refused(done, "longer than the 100 bytes", "Stop the service")
        assert "no wallets" in shown(beside(service, folder, "admin", "wallets"))
    url = f"sqlite:///{folder / 'spawn.db'}"
    assert "blocked" in told(spawn(folder, "admin", "block", SOMEBODY, "--reason", "x", database_url=url))


def test_many_at_once_without_a_service_come_one_after_the_other(tmp_path: Path) -> None:
    databases.make(databases.database_url(tmp_path))

    def give(number: int) -> subprocess.CompletedProcess[str]:
        return spawn(tmp_path, "admin", "credit", SOMEBODY, "1", "--reason", "x", "--id", f"c{number % 2}")

    with ThreadPoolExecutor(4) as pool:
        said = [told(done) for done in pool.map(give, range(4))]
    assert sum("Given: " in line for line in said) == 2
    assert read(spawn(tmp_path, "admin", "wallet", SOMEBODY, "--json"))["wallet"]["available"] == "2.00"


@pytest.mark.embedded
def test_a_service_that_stops_leaves_no_socket_and_the_books_right(tmp_path: Path) -> None:
    with spawn_dev(tmp_path) as service:
        assert (tmp_path / "spawn.db.admin").is_socket()
        assert "Given" in told(beside(service, tmp_path, "admin", "credit", SOMEBODY, "1", "--reason", "x"))
        assert asyncio.run(service.violations()) == []
    assert not (tmp_path / "spawn.db.admin").exists()


# --- what comes of it ---------------------------------------------------------------------------------------------


def test_a_suspended_wallets_server_goes_off_and_its_owner_is_refused(
    running: RunningService, tmp_path: Path
) -> None:
    admin, wallet = Desk(tmp_path, running), Wallet.numbered(73)
    told(admin("credit", wallet.address, "20", "--reason", "a start"))
    auth = SignedRequestAuth(wallet.account, CHAIN_ID)
    with httpx.Client(base_url=running.url, auth=auth, trust_env=False, timeout=70) as http:
        created = http.post("/v1/servers", json=ORDER)
        assert created.status_code == 201, created.text
        server = created.json()["server"]["id"]
        assert http.get(f"/v1/servers/{server}?wait=60").json()["server"]["status"] == "running"
        assert f"Being powered off: {server}" in told(admin("suspend", wallet.address, "--reason", "abuse"))
        assert http.post(f"/v1/servers/{server}/start").json()["error"]["code"] == "suspended"
        assert http.get(f"/v1/servers/{server}?wait=60").json()["server"]["status"] == "off"
        assert server in shown(admin("servers", "--wallet", wallet.address, "--status", "off"))
        assert "SUSPENDED" in shown(admin("wallet", wallet.address))
        told(admin("restore", wallet.address, "--reason", "cleared"))
        assert http.post(f"/v1/servers/{server}/start").is_success


@pytest.mark.embedded
def test_a_price_announced_at_the_socket_is_sold_at_once(running: RunningService, tmp_path: Path) -> None:
    told(Desk(tmp_path, running)("price-change", "--type", "medium", "--location", "hel1", "--daily", "0.3"))
    catalog = httpx.get(f"{running.url}/v1/catalog", trust_env=False).json()
    prices = {(offer["type"], offer["location"]): offer["daily_burn"] for offer in catalog["offers"]}
    assert (prices["medium", "hel1"], prices["medium", "nbg1"]) == ("0.30", "0.22")
