"""Stock clients buy from `spawn serve`, and their money moves on a real chain: by us, and by somebody's facilitator."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from eth_account import Account
from spawn_schemas.money import parse_usdc

from spawn import devchain
from tests.anvil import RELAYER_KEYS, anvil, install
from tests.engines import anvil_programs
from tests.interop.anvil_service import (
    PAY_TO,
    AnvilService,
    by_facilitators,
    by_ourselves,
    spawn,
    spawn_serve,
)
from tests.interop.clients import BUYERS, open_httpx
from tests.interop.self_hosted import self_hosted
from tests.interop.service import in_folder, serving
from tests.interop.story import ORDER, public_key, shopping
from tests.payments import TERMS
from tests.ports import free_address
from tests.wallets import Wallet

DEPOSIT = "/v1/balance/deposit"
FUNDS = "20.00"


@pytest.fixture(scope="module")
def ourselves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnvilService]:
    with (
        anvil() as chain,
        spawn_serve(tmp_path_factory.mktemp("self"), chain, by_ourselves(chain)) as service,
    ):
        yield service


@pytest.fixture(scope="module")
def by_theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnvilService]:
    with (
        anvil() as chain,
        self_hosted(rpc_url=chain.url, network=TERMS.network, key=RELAYER_KEYS[0]) as theirs,
        spawn_serve(tmp_path_factory.mktemp("facilitator"), chain, by_facilitators(theirs.url)) as service,
    ):
        yield service


async def buy_a_server(service: AnvilService, name: str) -> None:
    """A deposit, a key, and a server with a few dollars: each price is one transfer to us and one credit."""
    buyer = BUYERS[name]
    wallet = Wallet.numbered(300 + list(BUYERS).index(name))
    await service.mint(wallet, FUNDS)
    before = await service.mark()
    async with (
        buyer.open(service.url, wallet, "$10") as client,
        shopping(service, client, wallet, pays_by_x402=buyer.version) as shopper,
    ):
        paid_in = await shopper.buy("POST", DEPOSIT, {"amount": "3.00"}, credited="3.00")
        assert paid_in["deposited"] == "3.00"
        key = await shopper.buy("POST", "/v1/ssh-keys", {"name": "laptop", "public_key": public_key()})
        order = ORDER | {
            "name": "bought",
            "ssh_keys": [key["ssh_key"]["id"]],
            "deposit": "4.00",
            "fund": "2.00",
        }
        bought = await shopper.buy("POST", "/v1/servers", order, credited="2.00")
        assert bought["deposit_charged"] == "4.00"
    moved = await service.moved(wallet.address, before)
    assert [transfer.recipient for transfer in moved.on_chain] == [PAY_TO] * 3
    assert tuple(transfer.amount for transfer in moved.on_chain) == moved.paid_in
    left = parse_usdc(FUNDS) - sum(moved.paid_in)
    assert service.chain.balance(wallet.address) == left


@pytest.mark.parametrize("name", BUYERS)
async def test_a_stock_client_buys_and_we_settle(ourselves: AnvilService, name: str) -> None:
    await buy_a_server(ourselves, name)
    assert await ourselves.violations() == []


@pytest.mark.parametrize("name", ["x402[httpx]", "x402[requests]", "@x402/fetch", "x402-fetch 1.2"])
async def test_a_stock_client_buys_and_a_facilitator_settles(by_theirs: AnvilService, name: str) -> None:
    await buy_a_server(by_theirs, name)
    assert await by_theirs.violations() == []


@pytest.mark.parametrize("rail", ["ourselves", "by_theirs"])
async def test_books_and_chain_agree_to_the_operators_commands(
    request: pytest.FixtureRequest, rail: str
) -> None:
    """After all that was bought above, and one thing more."""
    service: AnvilService = request.getfixturevalue(rail)
    wallet = Wallet.numbered(320)
    await service.mint(wallet, "1.00")
    async with open_httpx(service.url, wallet, None) as client:
        assert (await client.call("POST", DEPOSIT, {"amount": "1.00"})).status == 200
    service.check_books()


async def test_a_developers_first_purchase(tmp_path: Path) -> None:
    """`spawn dev --chain anvil`, a new wallet, the faucet, and a client from the shelf."""
    anvil_programs()
    install(devchain.FOLDER)  # as `make anvil` does
    settings = in_folder(tmp_path) | {"SPAWN_RPC_URL": f"http://{free_address()}"}
    with serving(tmp_path, settings, "dev", "--chain", "anvil") as listen:
        made = json.loads(spawn(tmp_path, settings, "wallet", "new", "--json"))
        wallet = Wallet(Account.from_key(made["private_key"]))
        given = spawn(tmp_path, settings, "faucet", "--chain", "anvil", made["address"], "--amount", "2.00")
        assert given == f"{made['address']} has 2.00 USDC on {TERMS.network} (play money)\n"
        async with open_httpx(f"http://{listen}", wallet, None) as client:
            paid = await client.call("POST", DEPOSIT, {"amount": "0.75"})
        assert (paid.status, paid.body["balance"]) == (200, "0.75")
        again = spawn(tmp_path, settings, "faucet", "--chain", "anvil", made["address"], "--amount", "1.00")
        assert "has 2.25 USDC" in again
