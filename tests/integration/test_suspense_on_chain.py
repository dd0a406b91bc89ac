"""The watcher of arrivals and the operator's commands beside a real chain."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from eth_account import Account
from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc

from spawn.evm.transactions import address_of
from spawn.evm.web3_node import Web3Node
from spawn.jobs.suspense import Suspense
from spawn.payments import exact
from spawn.payments.arrivals import ChainArrivals
from spawn.payments.holdings import TokenHoldings
from spawn.services import funds
from tests.anvil import Chain, anvil
from tests.e2e.test_cli import refused, spawn
from tests.harness import World, open_world
from tests.integration.paid_calls import challenge
from tests.wallets import Wallet, encode

DEPOSIT = ("POST", "/v1/balance/deposit", {"amount": "5.00"})
FIVE = 5_000_000
SOMEBODY = Address("0x" + "50" * 20)
CONFIRMATIONS = 4
"""One more than there are blocks at the first look, and one that `Chain.succeeded` may have to mine."""


@pytest.fixture
def chain() -> Iterator[Chain]:
    with anvil() as chain:
        yield chain


@asynccontextmanager
async def node_of(chain: Chain) -> AsyncIterator[Web3Node]:
    node = Web3Node(chain.url, timeout_s=10)
    try:
        yield node
    finally:
        await node.close()


async def watch(world: World, node: Web3Node) -> None:
    arrivals = ChainArrivals(node, world.service.services.terms, confirmations=CONFIRMATIONS, from_block=0)
    await Suspense(world.parts.db, arrivals).tick(world.clock.now_s())


async def held(world: World, node: Web3Node) -> tuple[Usdc, Usdc]:
    """What waits in suspense, and what the chain shows that we hold."""
    terms = world.service.services.terms
    return (
        await world.account("suspense"),
        await TokenHoldings(node, terms.asset).balance_of(terms.pay_to),
    )


async def test_what_a_real_chain_shows_is_kept_for_its_sender_and_taken_by_its_call(
    tmp_path: Path, chain: Chain
) -> None:
    async with open_world(tmp_path) as world, node_of(chain) as node:
        terms = world.service.services.terms
        wallet = Wallet.numbered(1)
        chain.fund(wallet.address, 100_000_000)
        chain.transfer(wallet.address, terms.pay_to, 250_000)
        offer = challenge(await world.ask(*DEPOSIT))["accepts"][0]
        header = encode(wallet.payload(offer, now=chain.now))
        payment = exact.identify(exact.decode_payment(header), terms)
        transaction = chain.submit(payment)
        assert chain.succeeded(transaction)
        await watch(world, node)
        assert await held(world, node) == (0, FIVE + 250_000)  # there, and not deep enough
        chain.mine(CONFIRMATIONS - 1)
        await watch(world, node)
        assert await held(world, node) == (FIVE + 250_000, FIVE + 250_000)
        key = payment.nonce_key(terms.chain_id, terms.asset)
        for _ in range(2):
            await world.parts.db.write(
                lambda tx: funds.credit_payment(
                    tx, wallet.address, Usdc(FIVE), nonce_key=key, reference=transaction, at=chain.now
                )
            )
            assert await world.available(wallet.address) == FIVE
        claimed = await world.sign(wallet, "POST", "/v1/suspense/claim")
        assert (claimed.json()["claimed"], claimed.json()["balance"]) == ("0.25", "5.25")
        await watch(world, node)
        assert await held(world, node) == (0, FIVE + 250_000)


async def test_what_a_reorganisation_took_back_was_never_in_the_books(tmp_path: Path, chain: Chain) -> None:
    async with open_world(tmp_path) as world, node_of(chain) as node:
        pay_to = world.settings.pay_to
        chain.fund(SOMEBODY, 10_000_000)
        chain.transfer(SOMEBODY, pay_to, 1_000_000)
        chain.mine()
        await watch(world, node)
        chain.reorg(2)
        chain.mine(CONFIRMATIONS)
        await watch(world, node)
        assert await held(world, node) == (0, 0)
        chain.transfer(SOMEBODY, pay_to, 2_000_000)
        chain.mine(CONFIRMATIONS)
        await watch(world, node)
        assert await held(world, node) == (2_000_000, 2_000_000)


def test_the_operators_commands_ask_the_chain_that_settles(tmp_path: Path, chain: Chain) -> None:
    relayer = "0x" + "11" * 32
    chain.set_ether_wei(address_of(relayer), 10**16)
    chain.fund(SOMEBODY, 7_000_000)
    ours = {
        "payments": "self",
        "rpc_url": chain.url,
        "relayer_key": relayer,
        "x402_pay_to": Account.create().address,
    }
    assert spawn(tmp_path, "migrate").returncode == 0
    chain.fund(Address(ours["x402_pay_to"].lower()), 7_000_000)
    done = spawn(tmp_path, "treasury", "--json", **ours)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert (shown["chain"], shown["books"], shown["short"]) == ("7.00", "0.00", False)
    (key,) = shown["gas"]["relayers"]
    assert (key["address"], key["balance_wei"]) == (address_of(relayer), 10**16)
    assert key["payments_now"] > 0
    assert "0.010000 ETH" in spawn(tmp_path, "treasury", **ours).stdout
    verified = spawn(tmp_path, "ledger", "verify", **ours)
    assert (verified.returncode, verified.stderr) == (0, "")
    chain.stop()
    for command in (("treasury",), ("ledger", "verify")):
        refused(spawn(tmp_path, *command, **ours), "SPAWN_RPC_URL")
