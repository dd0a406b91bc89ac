"""Stock clients buy from `spawn serve`, and their money moves on a real chain: by us, and by somebody's facilitator."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from spawn_schemas.money import format_usdc

from spawn import devchain
from spawn.payments.curve import checksummed
from tests.anvil import RELAYER_KEYS, anvil, install
from tests.engines import anvil_programs
from tests.interop.anvil_service import PAY_TO, AnvilService, by_facilitators, by_ourselves, spawn, spawn_serve
from tests.interop.clients import BUYERS, open_httpx
from tests.interop.self_hosted import self_hosted
from tests.interop.service import free_port, serving
from tests.interop.story import ORDER, public_key, shopping
from tests.payments import TERMS
from tests.wallets import Wallet

DEPOSIT = "/v1/balance/deposit"


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
    await service.mint(wallet, "20.00")
    before = await service.mark()
    async with (
        buyer.open(service.url, wallet, "$10") as client,
        shopping(service, client, wallet, pays_by_x402=buyer.version) as shopper,
    ):
        paid_in = await shopper.buy("POST", DEPOSIT, {"amount": "3.00"}, credited="3.00")
        assert paid_in["deposited"] == "3.00"
        key = await shopper.buy("POST", "/v1/ssh-keys", {"name": "laptop", "public_key": public_key()})
        order = ORDER | {"ssh_keys": [key["ssh_key"]["id"]], "deposit": "4.00", "fund": "2.00"}
        bought = await shopper.buy("POST", "/v1/servers", order, credited="2.00")
        assert bought["deposit_charged"] == "4.00"
    moved = await service.moved(wallet.address, before)
    assert [transfer.recipient for transfer in moved.on_chain] == [PAY_TO] * 3
    assert tuple(transfer.amount for transfer in moved.on_chain) == moved.paid_in
    spent = format_usdc(sum(moved.paid_in))
    assert (spent, service.chain.balance(wallet.address)) == ("5.012", 20_000_000 - sum(moved.paid_in))


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
    # A transfer that nobody credited is not theirs to claim away: it shows, and is no breach.
    service.chain.fund(PAY_TO, 1)
    assert json.loads(service.command("treasury", "--json"))["difference"] == "0.000001"
    service.chain.fund(PAY_TO, -1)


def test_a_developers_first_purchase(tmp_path: Path) -> None:
    """`spawn dev --chain anvil`, a new wallet, the faucet, and a client from the shelf."""
