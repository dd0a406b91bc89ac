"""The chain that a developer starts with `spawn dev --chain anvil`, as a process and from the command line."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc

from spawn import devchain
from spawn.clock import SystemClock
from spawn.devchain import DevChainUnavailable, for_developers, installed, running, settings_here
from spawn.evm.transactions import address_of
from spawn.setting_reader import read_settings
from spawn.settings import Settings
from tests.anvil import anvil, install
from tests.e2e.test_cli import SOMEBODY, refused, spawn, wait_until_up
from tests.engines import anvil_programs
from tests.ports import free_address
from tests.wallets import Wallet

PAYER = Address("0x" + "11" * 20)


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    """As `make anvil` leaves it."""
    anvil_programs()
    install(devchain.FOLDER)


@pytest.fixture
def settings() -> Settings:
    environ = {"SPAWN_RPC_URL": f"http://{free_address()}"}
    return read_settings(environ, **settings_here(environ))


def pids_with(word: str) -> set[int]:
    """Processes that have this word in their command line."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if word.encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                found.add(int(folder.name))
    return found


def test_a_service_can_settle_on_it(settings: Settings, tmp_path: Path) -> None:
    assert (settings.payments, settings.chain_id) == ("self", 84532)
    with for_developers(settings, tmp_path / "state") as chain:
        assert int(chain.ask("eth_chainId"), 16) == settings.chain_id
        for account in (settings.x402_asset, settings.relay_multicall):
            assert len(chain.ask("eth_getCode", account, "latest")) > 1000
        (key,) = settings.relayer_keys
        assert int(chain.ask("eth_getBalance", address_of(key), "latest"), 16) == 10 * 10**18


def test_it_is_kept_from_one_run_to_the_next(settings: Settings, tmp_path: Path) -> None:
    with for_developers(settings, tmp_path / "state") as chain:
        assert chain.mint(PAYER, Usdc(5_000_000)) == 5_000_000
    with for_developers(settings, tmp_path / "state") as chain:
        assert chain.balance_of(PAYER) == 5_000_000
        assert chain.mint(PAYER, Usdc(1)) == 5_000_001


def test_choices_of_the_environment_stay() -> None:
    pay_to = "0x" + "77" * 20
    chosen = {"SPAWN_X402_PAY_TO": pay_to, "SPAWN_RELAYER_KEY": "22" * 32}
    settings = read_settings(chosen, **settings_here(chosen))
    assert (settings.pay_to, settings.relayer_key) == (pay_to, "22" * 32)
    assert settings.rpc_url == devchain.URL


def test_it_is_only_on_this_machine(tmp_path: Path) -> None:
    environ = {"SPAWN_RPC_URL": "https://node.example:8545"}
    elsewhere = read_settings(environ, **settings_here(environ))
    with (
        pytest.raises(DevChainUnavailable, match="on this machine"),
        for_developers(elsewhere, tmp_path / "state"),
    ):
        pytest.fail("it started")


def test_without_the_program_it_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DevChainUnavailable, match="make anvil"):
        installed(tmp_path)


def test_a_port_in_use_is_refused(settings: Settings, tmp_path: Path) -> None:
    with (
        for_developers(settings, tmp_path / "state"),
        pytest.raises(DevChainUnavailable, match="in use"),
        for_developers(settings, tmp_path / "other"),
    ):
        pytest.fail("it started")


def test_a_program_that_refuses_to_start_says_why() -> None:
    with pytest.raises(DevChainUnavailable, match="--nonsense"), running(installed(), "--nonsense"):
        pytest.fail("it started")


def test_only_our_chain_gives_money_away(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        refused(
            spawn(tmp_path, "faucet", "--chain=anvil", SOMEBODY, rpc_url=url), "no anvil answers", "spawn dev"
        )
    with anvil() as chain:
        chain.ask("anvil_setCode", chain.token, "0x")
        refused(spawn(tmp_path, "faucet", "--chain=anvil", SOMEBODY, rpc_url=chain.url), "not the chain of")


@contextlib.contextmanager
def dev(folder: Path, address: str, rpc_url: str) -> Iterator["subprocess.Popen[bytes]"]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SPAWN_")}
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "spawn", "dev", "--chain", "anvil", "--listen", address],
            cwd=folder,
            env=clean | {"SPAWN_RPC_URL": rpc_url},
            stdout=log,
            stderr=log,
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_starts_it_and_ends_it(tmp_path: Path, number: signal.Signals) -> None:
    address, rpc = free_address(), free_address()
    with dev(tmp_path, address, f"http://{rpc}") as process:
        wait_until_up(address)
        port = rpc.rpartition(":")[2]
        assert len(pids_with(port)) == 1
        process.send_signal(number)
        assert process.wait(20) == 0
        assert pids_with(port) == set()


def exported(folder: Path) -> dict[str, str]:
    """The settings that the command says others need."""
    said = (folder / "log").read_text()
    pairs = said.partition(": export ")[2].splitlines()[0].split()
    return {
        name.removeprefix("SPAWN_").lower(): value
        for name, _, value in (pair.partition("=") for pair in pairs)
    }


async def test_a_payment_is_a_transfer_on_it_and_stays_one(tmp_path: Path) -> None:
    address, rpc = free_address(), free_address()
    url = f"http://{rpc}"
    wallet = Wallet.numbered(77)
    with dev(tmp_path, address, url):
        wait_until_up(address)
        given = spawn(tmp_path, "faucet", "--chain", "anvil", wallet.address, rpc_url=url)
        assert "has 100.00 USDC on eip155:84532 (play money)" in given.stdout
        async with httpx.AsyncClient(base_url=f"http://{address}", timeout=30) as client:
            order = {"amount": "1.50"}
            asked = await client.post("/v1/balance/deposit", json=order)
            payment = wallet.payment(asked.headers["PAYMENT-REQUIRED"], now=SystemClock().now_s())
            paid = await client.post(
                "/v1/balance/deposit", json=order, headers={"PAYMENT-SIGNATURE": payment}
            )
        assert paid.status_code == 200, paid.text
        assert paid.json()["balance"] == "1.50"
    others = exported(tmp_path) | {"rpc_url": url}
    with dev(tmp_path, address, url):
        wait_until_up(address)
        treasury = spawn(tmp_path, "treasury", **others)
        assert "they agree" in treasury.stdout
        assert "1.500000 USDC" in treasury.stdout
        assert "the books are right" in spawn(tmp_path, "ledger", "verify", **others).stdout
        again = spawn(tmp_path, "faucet", wallet.address, "--amount", "0.25", **others)
        assert "has 98.75 USDC" in again.stdout
