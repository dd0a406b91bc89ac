"""Settling through a facilitator that we did not write (PyPI x402's own), on a real chain."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count

import httpx
import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from spawn_schemas.ids import parse_address
from spawn_schemas.money import Usdc
from spawn_schemas.x402 import Reason

from spawn.evm.web3_node import Web3Node
from spawn.payments.exact import ExactPayment
from spawn.payments.facilitator import Rejected, Settled, SettlementUnclear
from spawn.payments.onchain import OnChain
from spawn.payments.remote import RemoteFacilitators
from tests.anvil import RELAYER_KEYS, Chain, Transfer, anvil
from tests.interop.self_hosted import SelfHosted, self_hosted
from tests.payments import PAYEE, TERMS, authorize

PATIENCE_S = 20
_payers = count(1)


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    with anvil() as chain:
        yield chain


@pytest.fixture(scope="module")
def theirs(chain: Chain) -> Iterator[SelfHosted]:
    """One for all tests that leave it alone."""
    with self_hosted(rpc_url=chain.url, network=TERMS.network, key=RELAYER_KEYS[0]) as running:
        yield running


@pytest.fixture
def doomed(chain: Chain) -> Iterator[SelfHosted]:
    """One to be killed, on a chain that mines only when told."""
    with self_hosted(rpc_url=chain.url, network=TERMS.network, key=RELAYER_KEYS[1]) as running:
        chain.set_automine(False)
        try:
            yield running
        finally:
            chain.drop_all()
            chain.set_automine(True)


@pytest.fixture
def payer(chain: Chain) -> LocalAccount:
    """An account with 0.01 USDC that nobody else uses."""
    account: LocalAccount = Account.from_key(f"0x{next(_payers):064x}")
    chain.fund(parse_address(account.address), Usdc(10_000))
    return account


@asynccontextmanager
async def _ours(chain: Chain, *urls: str, confirmations: int = 1) -> AsyncIterator[RemoteFacilitators]:
    node = Web3Node(chain.url, timeout_s=5)
    try:
        async with httpx.AsyncClient(trust_env=False) as http:
            yield RemoteFacilitators(
                http,
                urls,
                TERMS,
                OnChain(node, TERMS, confirmations=confirmations),
                now=lambda: int(time.time()),
                wait_s=2.0,
                look_every_s=0.05,
            )
    finally:
        await node.close()


def _payment(payer: LocalAccount, nonce: int = 0, *, value: int = 1_000) -> ExactPayment:
    return authorize(payer, value=value, nonce=nonce, valid_before=int(time.time()) + 300)


def _received(chain: Chain, payer: LocalAccount) -> list[Transfer]:
    """What the payee has from this account."""
    return [transfer for transfer in chain.transfers(PAYEE) if transfer.sender == payer.address.lower()]


async def _until_pending(chain: Chain) -> str:
    """The hash of what waits to be mined, once something does."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        pending = chain.pending()
        if pending:
            return pending[0]
        await asyncio.sleep(0.02)
    raise AssertionError("the facilitator sent nothing")


async def test_it_settles_and_the_chain_shows_it(
    chain: Chain, theirs: SelfHosted, payer: LocalAccount
) -> None:
    payment = _payment(payer)
    async with _ours(chain, theirs.url) as ours:
        settled = await ours.settle(payment)
        assert await ours.find(payment) == settled
    (transfer,) = _received(chain, payer)
    assert settled == Settled(transaction=transfer.transaction)
    assert transfer.amount == 1_000


async def test_sent_again_it_is_the_same_transfer(
    chain: Chain, theirs: SelfHosted, payer: LocalAccount
) -> None:
    payment = _payment(payer)
    async with _ours(chain, theirs.url) as ours:
        settled = await ours.settle(payment)
        assert await ours.settle(payment) == settled
    async with _ours(chain, theirs.url) as restarted:
        assert await restarted.settle(payment) == settled
    assert len(_received(chain, payer)) == 1


async def test_many_at_once(chain: Chain, theirs: SelfHosted, payer: LocalAccount) -> None:
    payments = [_payment(payer, nonce, value=100 + nonce) for nonce in range(8)]
    async with _ours(chain, theirs.url) as ours:
        outcomes = await asyncio.gather(*(ours.settle(payment) for payment in (*payments, *payments)))
    assert outcomes[:8] == outcomes[8:]
    shown = {transfer.transaction: transfer.amount for transfer in _received(chain, payer)}
    for payment, outcome in zip(payments, outcomes, strict=False):
        assert isinstance(outcome, Settled)
        assert shown[outcome.transaction] == payment.value
    assert len(shown) == 8


async def test_no_funds_is_a_refusal_that_may_be_mended(
    chain: Chain, theirs: SelfHosted, payer: LocalAccount
) -> None:
    payment = _payment(payer, value=10_001)
    async with _ours(chain, theirs.url) as ours:
        outcome = await ours.settle(payment)
        assert isinstance(outcome, Rejected)
        assert outcome.reason == "invalid_exact_evm_insufficient_balance"
        assert ours.standings()[0].disagreed == 0
        assert ours.standings()[0].refused == 1
        chain.fund(payment.payer, Usdc(1))
        assert isinstance(await ours.settle(payment), Settled)


async def test_a_cancelled_authorization_is_a_refusal(
    chain: Chain, theirs: SelfHosted, payer: LocalAccount
) -> None:
    payment = _payment(payer)
    chain.cancel(payer, payment.nonce)
    async with _ours(chain, theirs.url) as ours:
        outcome = await ours.settle(payment)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == Reason.NONCE_USED
    assert _received(chain, payer) == []


async def test_what_a_stranger_submitted_first_is_settled(
    chain: Chain, theirs: SelfHosted, payer: LocalAccount
) -> None:
    payment = _payment(payer)
    submitted = chain.submit(payment)
    async with _ours(chain, theirs.url) as ours:
        assert await ours.settle(payment) == Settled(transaction=submitted)
    assert len(_received(chain, payer)) == 1


async def test_a_stranger_and_the_facilitator_at_once(
    chain: Chain, doomed: SelfHosted, payer: LocalAccount
) -> None:
    """Both transactions wait for one block, in which one of them reverts."""
    payment = _payment(payer)
    async with _ours(chain, doomed.url) as ours:
        settling = asyncio.ensure_future(ours.settle(payment))
        await _until_pending(chain)
        chain.submit(payment)
        chain.mine()
        outcome = await settling
    (transfer,) = _received(chain, payer)
    assert outcome == Settled(transaction=transfer.transaction)


async def test_killed_while_it_settles(chain: Chain, doomed: SelfHosted, payer: LocalAccount) -> None:
    payment = _payment(payer)
    async with _ours(chain, doomed.url) as ours:
        settling = asyncio.ensure_future(ours.settle(payment))
        transaction = await _until_pending(chain)
        doomed.kill()
        with pytest.raises(SettlementUnclear):
            await settling
        with pytest.raises(SettlementUnclear):  # nobody else is there, and it is no refusal
            await ours.settle(payment)
        assert await ours.find(payment) is None
        chain.mine()
        assert await ours.find(payment) == Settled(transaction=transaction)
        assert await ours.settle(payment) == Settled(transaction=transaction)
    assert len(_received(chain, payer)) == 1


async def test_killed_while_it_settles_another_may_finish_it(
    chain: Chain, doomed: SelfHosted, payer: LocalAccount
) -> None:
    payment = _payment(payer)
    with self_hosted(rpc_url=chain.url, network=TERMS.network, key=RELAYER_KEYS[2]) as other:
        async with _ours(chain, doomed.url, other.url) as ours:
            settling = asyncio.ensure_future(ours.settle(payment))
            chain.drop_transaction(await _until_pending(chain))
            doomed.kill()
            with pytest.raises(SettlementUnclear):
                await settling
            chain.set_automine(True)
            outcome = await ours.settle(payment)
            assert isinstance(outcome, Settled)
    (transfer,) = _received(chain, payer)
    assert transfer.transaction == outcome.transaction


async def test_it_is_not_settled_before_it_is_deep_enough(
    chain: Chain, theirs: SelfHosted, payer: LocalAccount
) -> None:
    payment = _payment(payer)
    async with _ours(chain, theirs.url, confirmations=3) as ours:
        with pytest.raises(SettlementUnclear) as unclear:
            await ours.settle(payment)
        (transfer,) = _received(chain, payer)
        assert unclear.value.transaction == transfer.transaction
        chain.mine(2)
        assert await ours.settle(payment) == Settled(transaction=transfer.transaction)
