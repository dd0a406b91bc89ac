"""What a chain shows of an authorization, on a real one: paid, by whomever; cancelled; spent otherwise; not yet."""

from collections.abc import AsyncIterator

import msgspec
import pytest
from eth_account import Account
from spawn_schemas.ids import Address, parse_address
from spawn_schemas.x402 import Reason

from spawn.evm.multicall import Call, aggregate3
from spawn.evm.web3_node import Web3Node
from spawn.payments.exact import MAX_LIFE_S, ExactPayment
from spawn.payments.facilitator import Rejected, Settled, SettlementUnclear
from spawn.payments.onchain import OnChain
from tests.anvil import MULTICALL, TOKEN, Chain, anvil, transfer_data
from tests.payments import NOW, PAYEE, TERMS, authorize

PAYER = Account.from_key("0x" + "a1" * 32)
WALLET = parse_address(PAYER.address)
ELSEWHERE = Address("0x" + "99" * 20)


class World:
    """A chain whose clock stands at NOW, and what we ask about it."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.node = Web3Node(chain.url, timeout_s=5)
        self.onchain = OnChain(self.node, TERMS)
        chain.fund(WALLET, 10_000)

    def mined(self, transaction: str) -> str:
        assert self.chain.succeeded(transaction)
        return transaction

    def in_parts_of(self, blocks: int) -> OnChain:
        return OnChain(self.node, TERMS, blocks_per_question=blocks)

    def deep(self, confirmations: int) -> OnChain:
        return OnChain(self.node, TERMS, confirmations=confirmations)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    with anvil(at=NOW) as chain:
        world = World(chain)
        yield world
        await world.node.close()


async def refused(world: World, payment: ExactPayment) -> bool:
    outcome = await world.onchain.find(payment)
    return isinstance(outcome, Rejected) and outcome.reason == Reason.NONCE_USED


async def test_an_unspent_nonce_is_nothing_yet_and_nothing_for_ever(world: World) -> None:
    payment = authorize(PAYER, value=1_000)
    assert await world.onchain.find(payment) is None
    assert not await world.onchain.is_over(payment)
    world.chain.set_time(payment.valid_before + 1)
    assert await world.onchain.is_over(payment)
    assert await world.onchain.find(payment) is None


async def test_a_payment_is_found_whoever_submitted_it(world: World) -> None:
    payment = authorize(PAYER, value=1_000)
    transaction = world.mined(world.chain.submit(payment))
    assert await world.onchain.find(payment) == Settled(transaction=transaction)


async def test_a_payment_is_found_long_after_its_life(world: World) -> None:
    payment = authorize(PAYER, value=1_000)
    world.chain.mine(30)
    transaction = world.mined(world.chain.submit(payment))
    world.chain.mine(30)
    world.chain.set_time(payment.valid_before + 30 * 86_400)
    world.chain.mine(30)
    assert await world.onchain.find(payment) == Settled(transaction=transaction)


async def test_a_payment_among_many_in_one_transaction_is_found(world: World) -> None:
    payments = [authorize(PAYER, value=100 + number, nonce=number) for number in range(5)]
    payments.append(authorize(PAYER, value=1_000_000, nonce=5))
    data = aggregate3([Call(to=TOKEN, data=transfer_data(payment)) for payment in payments])
    transaction = world.mined(world.chain.send(MULTICALL, data))
    for payment in payments[:5]:
        assert await world.onchain.find(payment) == Settled(transaction=transaction)
    assert await world.onchain.find(payments[5]) is None, "it was not covered"


async def test_a_contract_wallet_s_payment_is_found(world: World) -> None:
    signer = parse_address(PAYER.address)
    wallet = world.chain.deploy_wallet(signer)
    world.chain.fund(wallet, 1_000)
    short = authorize(PAYER, value=400, nonce=1, payer=wallet)
    plain = authorize(PAYER, value=600, nonce=2, payer=wallet)
    prefixed = msgspec.structs.replace(plain, signature=signer + plain.signature[2:])
    for payment in (short, prefixed):
        transaction = world.mined(world.chain.submit(payment))
        assert await world.onchain.find(payment) == Settled(transaction=transaction)
    world.chain.set_owner(wallet, ELSEWHERE)
    late = authorize(PAYER, value=0, nonce=3, payer=wallet)
    assert not world.chain.succeeded(world.chain.submit(late))


async def test_a_delegated_account_pays_by_its_code_alone(world: World) -> None:
    world.chain.delegate(PAYER)
    payment = authorize(PAYER, value=400, nonce=1)
    assert await world.onchain.find(payment) is None
    transaction = world.mined(world.chain.submit(payment))
    assert await world.onchain.find(payment) == Settled(transaction=transaction)
    world.chain.set_owner(WALLET, ELSEWHERE)
    assert not world.chain.succeeded(world.chain.submit(authorize(PAYER, value=400, nonce=2)))
    world.chain.undelegate(PAYER)
    assert world.chain.succeeded(world.chain.submit(authorize(PAYER, value=400, nonce=2)))


async def test_a_cancelled_nonce_is_told_apart_from_a_used_one(world: World) -> None:
    payment = authorize(PAYER, value=1_000)
    world.mined(world.chain.cancel(PAYER, payment.nonce))
    assert await refused(world, payment)
    assert world.chain.transfers(PAYEE) == []


async def test_cancelling_what_has_paid_changes_nothing(world: World) -> None:
    payment = authorize(PAYER, value=1_000)
    transaction = world.mined(world.chain.submit(payment))
    assert not world.chain.succeeded(world.chain.cancel(PAYER, payment.nonce))
    assert await world.onchain.find(payment) == Settled(transaction=transaction)


async def test_a_nonce_spent_on_another_amount_is_not_this_payment(world: World) -> None:
    small, large = authorize(PAYER, value=1), authorize(PAYER, value=5_000)
    transaction = world.mined(world.chain.submit(small))
    assert await refused(world, large)
    assert await world.onchain.find(small) == Settled(transaction=transaction)


async def test_a_nonce_spent_for_another_payee_is_not_this_payment(world: World) -> None:
    ours = authorize(PAYER, value=1_000)
    theirs = authorize(PAYER, value=1_000, pay_to=ELSEWHERE)
    world.mined(world.chain.submit(theirs))
    assert await refused(world, ours)


async def test_another_s_nonce_in_our_transaction_is_not_our_payment(world: World) -> None:
    """One transaction pays us by one nonce and somebody else by the next: the two must not be mixed up."""
    ours = authorize(PAYER, value=1_000, nonce=1)
    theirs = authorize(PAYER, value=1_000, nonce=2, pay_to=ELSEWHERE)
    calls = [Call(to=TOKEN, data=transfer_data(payment)) for payment in (theirs, ours)]
    transaction = world.mined(world.chain.send(MULTICALL, aggregate3(calls)))
    assert await world.onchain.find(ours) == Settled(transaction=transaction)
    assert await refused(world, authorize(PAYER, value=1_000, nonce=2))


async def test_a_nonce_belongs_to_its_payer(world: World) -> None:
    world.mined(world.chain.submit(authorize(PAYER, value=1_000)))
    other = Account.from_key("0x" + "b2" * 32)
    assert await world.onchain.find(authorize(other, value=1_000)) is None


async def test_what_was_spent_before_we_could_know_is_refused_once_its_time_is_over(world: World) -> None:
    long_lived = authorize(PAYER, value=1_000, valid_before=NOW + 3 * MAX_LIFE_S)
    world.mined(world.chain.submit(long_lived))
    world.chain.set_time(NOW + MAX_LIFE_S)
    world.chain.mine(10)
    world.chain.set_time(long_lived.valid_before - 60)
    patient = world.in_parts_of(5)
    with pytest.raises(SettlementUnclear):
        await patient.find(long_lived)
    world.chain.set_time(long_lived.valid_before + 3600)
    outcome = await patient.find(long_lived)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == Reason.NONCE_USED


async def test_cancelled_after_its_life_it_is_refused(world: World) -> None:
    payment = authorize(PAYER, value=1_000)
    world.chain.mine(2)
    world.chain.set_time(payment.valid_before + 7_200)
    world.mined(world.chain.cancel(PAYER, payment.nonce))
    assert await refused(world, payment)


async def test_it_is_settled_when_it_is_deep_enough(world: World) -> None:
    payment = authorize(PAYER, value=1_000)
    transaction = world.mined(world.chain.submit(payment))
    depth = world.chain.head - world.chain.transfers(PAYEE)[0].block_number + 1
    assert await world.deep(depth).find(payment) == Settled(transaction=transaction)
    with pytest.raises(SettlementUnclear) as caught:
        await world.deep(depth + 1).find(payment)
    assert caught.value.transaction == transaction
    world.chain.mine()
    assert await world.deep(depth + 1).find(payment) == Settled(transaction=transaction)


async def test_a_cancellation_counts_when_it_is_deep_enough(world: World) -> None:
    """Before that, a reorganisation may bring the payment in its place."""
    payment = authorize(PAYER, value=1_000)
    world.mined(world.chain.cancel(PAYER, payment.nonce))
    with pytest.raises(SettlementUnclear) as caught:
        await world.deep(10).find(payment)
    assert caught.value.transaction is None, "no transfer has this hash"
    world.chain.mine(10)
    assert isinstance(await world.deep(10).find(payment), Rejected)


async def test_a_reorganised_payment_is_unspent_again(world: World) -> None:
    world.chain.mine()
    payment = authorize(PAYER, value=1_000)
    world.mined(world.chain.submit(payment))
    world.chain.reorg(world.chain.head - world.chain.transfers(PAYEE)[0].block_number + 1)
    assert await world.onchain.find(payment) is None


async def test_a_chain_longer_than_one_question_is_searched_in_parts(world: World) -> None:
    world.chain.mine(33)
    payment = authorize(PAYER, value=1_000)
    transaction = world.mined(world.chain.submit(payment))
    world.chain.mine(33)
    for blocks in (1, 2, 7, 33, 34, 66, 1000):
        assert await world.in_parts_of(blocks).find(payment) == Settled(transaction=transaction)


async def test_what_comes_after_an_authorization_s_life_is_not_searched(world: World) -> None:
    payment = authorize(PAYER, value=1_000)
    world.chain.set_time(payment.valid_before + 7_200)
    world.chain.mine(150)
    world.mined(world.chain.cancel(PAYER, payment.nonce))
    assert isinstance(await world.in_parts_of(1).find(payment), Rejected)


@pytest.mark.parametrize("code", ["0x", "0x60006000fd"], ids=["none", "reverts"])
async def test_a_token_that_cannot_be_one_leaves_it_unclear(world: World, code: str) -> None:
    world.chain.ask("anvil_setCode", TOKEN, code)
    with pytest.raises(SettlementUnclear):
        await world.onchain.find(authorize(PAYER, value=1_000))


async def test_a_chain_that_cannot_be_asked_leaves_it_unclear(world: World) -> None:
    world.chain.stop()
    with pytest.raises(SettlementUnclear):
        await world.onchain.find(authorize(PAYER, value=1_000))
    with pytest.raises(SettlementUnclear):
        await world.onchain.is_over(authorize(PAYER, value=1_000))
