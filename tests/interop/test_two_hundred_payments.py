"""Two hundred payments from fifty wallets, all under way at once, on a real chain: each settles once, in company.

Asked of the relayer itself, and of the whole service over HTTP; the chain and the books are read beside them.
"""

import asyncio
import json
import time
from base64 import b64decode
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import httpx
import pytest
from eth_account import Account
from msgspec.structs import replace
from spawn_ledger.accounts import COST_GAS, wallet_account
from spawn_ledger.transfers import balance_of
from spawn_ledger.verify import verify
from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc, format_usdc, parse_usdc

from spawn.clock import SystemClock
from spawn.domain.settlements import gas_cost_usdc
from spawn.evm.transactions import address_of
from spawn.evm.web3_node import Web3Node
from spawn.payments.exact import ExactPayment
from spawn.payments.facilitator import Settled
from spawn.payments.onchain import OnChain
from spawn.services.relayer import Relayer
from spawn.store.place import Place
from spawn.store.places import place_of
from tests.anvil import MULTICALL, RELAYER_KEYS, Chain, anvil
from tests.fake_node import GWEI
from tests.interop.service import spawn_dev
from tests.payments import PAYEE, TERMS, authorize
from tests.relaying import POLICY, open_database, relays
from tests.wallets import Wallet

WALLETS: Final = 50
EACH: Final = 4
COUNT: Final = WALLETS * EACH
TRANSACTIONS_MAX: Final = COUNT // 4
"""With full batches far fewer; how many payments are written down when one leaves is the machine's affair."""
FUNDS: Final = parse_usdc("10.00")
TIMEOUT_S: Final = 60
PATH: Final = "/v1/balance/deposit"


class Deposit(NamedTuple):
    """A payment of `amount` into the payer's balance: the value of PAYMENT-SIGNATURE."""

    payer: Address
    amount: Usdc
    payment: str


@pytest.fixture
def chain() -> Iterator[Chain]:
    with anvil() as chain:
        yield chain


def no_gap(chain: Chain, account: Address) -> int:
    """How many transactions the account has sent; none of them is left over, or waits for one that is missing."""
    assert chain.pending() == []
    return chain.nonce(account)


def payments() -> list[ExactPayment]:
    """Each of another value, by which the chain tells them apart."""
    accounts = [Account.from_key(number.to_bytes(32, "big")) for number in range(1, WALLETS + 1)]
    later = int(time.time()) + 600
    return [
        authorize(accounts[number % WALLETS], value=1_000 + number, nonce=number, valid_before=later)
        for number in range(COUNT)
    ]


@pytest.mark.parametrize("keys", [1, 3])
async def test_through_the_relayer(chain: Chain, tmp_path: Path, keys: int) -> None:
    asked = payments()
    for payer in {payment.payer for payment in asked}:
        chain.fund(payer, FUNDS)
    node = Web3Node(chain.url, timeout_s=10)
    # Fewer at a time than there are, so that nonces go on from one round to the next.
    policy = replace(POLICY, multicall=MULTICALL, fee_cap_wei=50 * GWEI, batch_max=20, examined_max=40)
    async with open_database(tmp_path) as db:
        on_chain = OnChain(node, TERMS, confirmations=policy.confirmations)
        relayer = Relayer(db, node, on_chain, TERMS, policy, RELAYER_KEYS[:keys], SystemClock(), "test")
        await relayer.start()
        # Each is asked for twice: two callers of one payment wait for one transfer.
        outcomes = await asyncio.gather(*(relayer.settle(payment) for payment in (*asked, *asked)))
        await relayer.stop()
        stored = await relays(db)
        booked = await db.write(lambda tx: balance_of(tx, COST_GAS).balance)
    await node.close()

    assert outcomes[:COUNT] == outcomes[COUNT:]
    told = {payment.value: outcome for payment, outcome in zip(asked, outcomes, strict=False)}
    moved = chain.transfers(PAYEE)
    assert sorted((move.sender, move.amount) for move in moved) == sorted(
        (payment.payer, payment.value) for payment in asked
    )
    assert {move.amount: Settled(transaction=move.transaction) for move in moved} == told

    transactions = {move.transaction for move in moved}
    assert len(transactions) <= TRANSACTIONS_MAX
    assert {relay["hash"] for relay in stored} == transactions, "a transaction moved nothing"
    assert {relay["state"] for relay in stored} == {"confirmed"}
    for account in relayer.accounts:
        nonces = [relay["nonce"] for relay in stored if relay["relayer"] == account]
        assert nonces == list(range(no_gap(chain, account)))
    assert booked == sum(gas_cost_usdc(relay["gas_wei"], policy.eth_price_usdc) for relay in stored)


async def test_through_the_service(chain: Chain, tmp_path: Path) -> None:
    wallets = [Wallet.numbered(number) for number in range(1, WALLETS + 1)]
    for wallet in wallets:
        chain.fund(wallet.address, FUNDS)
    settings = {
        "SPAWN_PAYMENTS": "self",
        "SPAWN_RPC_URL": chain.url,
        "SPAWN_RELAYER_KEY": RELAYER_KEYS[0],
        "SPAWN_X402_PAY_TO": PAYEE,
    }
    with spawn_dev(tmp_path, settings) as service:
        limits = httpx.Limits(max_connections=COUNT)
        async with httpx.AsyncClient(
            base_url=service.url, trust_env=False, timeout=TIMEOUT_S, limits=limits
        ) as http:
            deposits = await sign_deposits(http, wallets)
            answers = await asyncio.gather(*(pay(http, deposit) for deposit in deposits))
            again = await asyncio.gather(*(pay(http, deposit) for deposit in deposits))
        place = place_of(service.settings.database_url)

    assert [answer.status_code for answer in answers] == [200] * COUNT, answers[0].text
    assert [answer.content for answer in again] == [answer.content for answer in answers]
    told = {
        (deposit.payer, deposit.amount): transaction_of(answer)
        for deposit, answer in zip(deposits, answers, strict=True)
    }
    moved = chain.transfers(PAYEE)
    assert len(moved) == COUNT
    assert {(move.sender, move.amount): move.transaction for move in moved} == told
    require_credited(chain, place, wallets)
    transactions = set(told.values())
    assert len(transactions) <= TRANSACTIONS_MAX
    assert no_gap(chain, address_of(RELAYER_KEYS[0])) == len(transactions)


def require_credited(chain: Chain, place: Place, wallets: Sequence[Wallet]) -> None:
    """Every transfer to us is in the books as that wallet's, once, and nothing else is."""
    on_chain: defaultdict[Address, list[Usdc]] = defaultdict(list)
    for move in chain.transfers(PAYEE):
        on_chain[move.sender].append(move.amount)
    assert set(on_chain) == {wallet.address for wallet in wallets}
    with place.snapshot() as tx:
        assert verify(tx, chain_balance_usdc=chain.balance(PAYEE)) == []
        for wallet in wallets:
            params = {"wallet": wallet_account(wallet.address)}
            rows = tx.all("SELECT amount FROM transfer WHERE credit = :wallet AND code = 'topup'", params)
            assert sorted(row["amount"] for row in rows) == sorted(on_chain[wallet.address])
            assert len(rows) == EACH


async def sign_deposits(http: httpx.AsyncClient, wallets: Sequence[Wallet]) -> list[Deposit]:
    """Each wallet pays several in, each of another amount."""
    found = []
    for number in range(EACH):
        amount = Usdc(10_000 + number)
        asked = await http.post(PATH, json={"amount": format_usdc(amount)})
        challenge, now = asked.headers["PAYMENT-REQUIRED"], int(time.time())
        found += [Deposit(wallet.address, amount, wallet.payment(challenge, now=now)) for wallet in wallets]
    return found


async def pay(http: httpx.AsyncClient, deposit: Deposit) -> httpx.Response:
    headers = {"PAYMENT-SIGNATURE": deposit.payment}
    return await http.post(PATH, json={"amount": format_usdc(deposit.amount)}, headers=headers)


def transaction_of(answer: httpx.Response) -> str:
    told = json.loads(b64decode(answer.headers["PAYMENT-RESPONSE"]))
    return str(told["transaction"])
