"""What every `Node` must do: the one that asks a real node, and the one that stands in for it in tests."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import pytest
from eth_account import Account
from spawn_schemas.ids import Address, parse_address

from spawn.devchain import MINTER
from spawn.evm.eip3009 import (
    AUTHORIZATION_USED,
    TRANSFER,
    address_topic,
    authorization_state_call,
    balance_of_call,
    moves,
)
from spawn.evm.multicall import Call, aggregate3, results
from spawn.evm.node import (
    AlreadyKnown,
    Block,
    CallReverted,
    Node,
    NodeUnavailable,
    NonceTooLow,
    OutOfGasMoney,
    Receipt,
    SendRefused,
    Underpriced,
)
from spawn.evm.transactions import Signed, address_of, sign
from spawn.evm.web3_node import Web3Node
from spawn.payments.exact import ExactPayment
from tests.anvil import CHAIN_ID, DEPLOYER_KEY, MULTICALL, RELAYER_KEYS, TOKEN, Chain, anvil, transfer_data
from tests.fake_node import FakeNode
from tests.payments import NOW, PAYEE, TERMS, authorize

PAYER = Account.from_key("0x" + "a1" * 32)
WALLET = parse_address(PAYER.address)
SENDER = address_of(DEPLOYER_KEY)
STRANGER_KEY = RELAYER_KEYS[0]
NO_TRANSACTION = "0x" + "00" * 32
GWEI = 10**9


def signed(nonce: int = 0, *, to: Address = TOKEN, data: bytes = b"", **changes: int) -> Signed:
    """A transaction of the chain's rich account."""
    fields = {
        "chain_id": CHAIN_ID,
        "gas_limit": 3_000_000,
        "max_fee_wei": 10 * GWEI,
        "priority_fee_wei": GWEI,
    } | changes
    return sign(DEPLOYER_KEY, nonce=nonce, to=to, data=data, **fields)


class World(Protocol):
    """A chain and what others do on it; the clock stands at NOW and moves with `set_time` alone."""

    @property
    def node(self) -> Node: ...
    def fund(self, account: Address, usdc: int) -> None: ...
    def balance(self, account: Address) -> int: ...
    def set_ether_wei(self, account: Address, wei: int) -> None: ...
    def set_time(self, at: int) -> None:
        """The next block, mined now, has this time."""

    def hold(self) -> None:
        """From here on, transactions wait for `mine`; before, each is mined at once or soon."""

    def mine(self, blocks: int = 1) -> None: ...
    def submit(self, payment: ExactPayment) -> None:
        """A stranger's transaction, mined at once."""

    def take_back(self, depth: int) -> None:
        """Replace that many blocks by empty ones."""


class AnvilWorld:
    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.node = Web3Node(chain.url, timeout_s=5)
        self.fund, self.balance, self.set_ether_wei = chain.fund, chain.balance, chain.set_ether_wei
        self.set_time, self.mine, self.take_back = chain.set_time, chain.mine, chain.reorg

    def hold(self) -> None:
        self.chain.set_automine(False)

    def submit(self, payment: ExactPayment) -> None:
        assert self.chain.succeeded(self.chain.submit(payment, key=STRANGER_KEY))


class FakeWorld:
    def __init__(self) -> None:
        self.now = NOW
        self.node = FakeNode(TERMS, now=lambda: self.now)
        self.node.give_ether(SENDER, 10 * 10**18)
        self.fund, self.balance = self.node.fund, self.node.balance
        self.mine, self.submit = self.node.mine, self.node.submit

    def set_ether_wei(self, account: Address, wei: int) -> None:
        self.node.give_ether(account, wei - self.node.ether_wei(account))

    def set_time(self, at: int) -> None:
        self.now = at
        self.mine()

    def hold(self) -> None:
        self.node.automine = False

    def take_back(self, depth: int) -> None:
        self.node.reorganise(depth, lose=True)


@asynccontextmanager
async def open_anvil() -> AsyncIterator[AnvilWorld]:
    with anvil(at=NOW) as chain:
        world = AnvilWorld(chain)
        try:
            yield world
        finally:
            await world.node.close()


@asynccontextmanager
async def open_fake() -> AsyncIterator[FakeWorld]:
    yield FakeWorld()


WORLDS: dict[str, Callable[[], AbstractAsyncContextManager[World]]] = {"anvil": open_anvil, "fake": open_fake}


@pytest.fixture(params=WORLDS)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with WORLDS[request.param]() as world:
        yield world


@pytest.fixture
async def on_anvil() -> AsyncIterator[AnvilWorld]:
    async with open_anvil() as world:
        yield world


async def head(node: Node) -> Block:
    newest = await node.block()
    assert newest is not None
    return newest


async def mined(world: World, transaction: Signed) -> Receipt:
    await world.node.send(transaction.raw)
    world.mine()
    (receipt,) = await world.node.receipts((transaction.hash,))
    assert receipt is not None
    return receipt


# --- every node -----------------------------------------------------------------------------------------------


async def test_it_tells_the_chain_and_its_blocks(world: World) -> None:
    node = world.node
    assert await node.chain_id() == CHAIN_ID
    world.set_time(NOW + 100)
    newest = await head(node)
    assert newest.at == NOW + 100
    assert newest.base_fee_wei > 0
    assert await node.block(newest.number) == newest
    assert await node.block(newest.number + 1) is None
    world.mine(3)
    assert (await head(node)).number == newest.number + 3
    assert await node.block(newest.number) == newest
    assert await node.priority_fee_wei() >= 0


async def test_it_tells_an_account_s_nonce_ether_and_code(world: World) -> None:
    node = world.node
    assert await node.nonce(SENDER) == 0
    assert await node.balance_wei(SENDER) == 10 * 10**18
    assert await node.code(SENDER) == b""
    assert await node.code(TOKEN) != b""
    assert await node.code(MULTICALL) != b""
    receipt = await mined(world, signed(0))
    assert await node.nonce(SENDER) == 1
    assert await node.balance_wei(SENDER) == 10 * 10**18 - receipt.gas_used * receipt.gas_price_wei
    world.hold()
    await node.send(signed(1).raw)
    assert await node.nonce(SENDER) == 1, "what only waits is not counted"


async def test_it_calls_without_changing_anything(world: World) -> None:
    node = world.node
    world.fund(WALLET, 5_000)
    payment = authorize(PAYER, value=1_000)
    assert int.from_bytes(await node.call(TOKEN, balance_of_call(WALLET))) == 5_000
    assert await node.call(TOKEN, transfer_data(payment), sender=SENDER) == b""
    assert await node.call(TOKEN, authorization_state_call(WALLET, payment.nonce)) == bytes(32)
    assert world.balance(WALLET) == 5_000
    await mined(world, signed(data=transfer_data(payment)))
    assert int.from_bytes(await node.call(TOKEN, authorization_state_call(WALLET, payment.nonce))) == 1
    assert await node.call(SENDER, b"") == b"", "there is nobody to refuse"


async def test_a_call_that_the_contract_refuses_is_told_apart(world: World) -> None:
    with pytest.raises(CallReverted):
        await world.node.call(TOKEN, transfer_data(authorize(PAYER, value=1_000)))


async def test_what_is_sent_has_a_receipt_once_it_is_mined(world: World) -> None:
    node = world.node
    world.fund(WALLET, 1_000)
    world.hold()
    transaction = signed(data=transfer_data(authorize(PAYER, value=1_000)))
    await node.send(transaction.raw)
    assert await node.receipts((transaction.hash,)) == (None,)
    world.mine()
    missing, receipt = await node.receipts((NO_TRANSACTION, transaction.hash))
    newest = await head(node)
    assert missing is None
    assert receipt is not None
    assert receipt.succeeded
    assert receipt.transaction == transaction.hash
    assert (receipt.block_number, receipt.block_hash) == (newest.number, newest.hash)
    assert receipt.gas_used > 21_000
    assert receipt.gas_price_wei == newest.base_fee_wei + GWEI
    used, transfer = receipt.logs
    assert used.topics == (AUTHORIZATION_USED, address_topic(WALLET), bytes(32))
    assert transfer.topics == (TRANSFER, address_topic(WALLET), address_topic(PAYEE))
    assert (transfer.address, int.from_bytes(transfer.data), transfer.index) == (TOKEN, 1_000, 1)
    assert (transfer.block_hash, transfer.transaction) == (newest.hash, transaction.hash)


async def test_a_transaction_that_failed_has_a_receipt_that_says_so(world: World) -> None:
    receipt = await mined(world, signed(data=transfer_data(authorize(PAYER, value=1_000))))
    assert not receipt.succeeded
    assert receipt.logs == ()
    assert await world.node.nonce(SENDER) == 1


async def test_what_comes_before_its_turn_waits_for_it(world: World) -> None:
    world.hold()
    second = signed(1)
    await world.node.send(second.raw)
    world.mine()
    assert await world.node.receipts((second.hash,)) == (None,)
    first = await mined(world, signed(0))
    (receipt,) = await world.node.receipts((second.hash,))
    assert receipt is not None
    assert receipt.block_number == first.block_number


async def test_a_refusal_says_why(world: World) -> None:
    node = world.node
    world.hold()
    waiting = signed(0)
    await node.send(waiting.raw)
    with pytest.raises(AlreadyKnown):
        await node.send(waiting.raw)
    with pytest.raises(Underpriced):
        await node.send(signed(0, gas_limit=100_000).raw)
    # A tenth more of both is what geth asks for; anvil is content with less.
    await node.send(signed(0, max_fee_wei=11 * GWEI, priority_fee_wei=11 * GWEI // 10).raw)
    world.mine()
    with pytest.raises(NonceTooLow):
        await node.send(signed(0, gas_limit=90_000).raw)
    world.set_ether_wei(SENDER, 1)
    with pytest.raises(OutOfGasMoney):
        await node.send(signed(1).raw)
    assert await node.nonce(SENDER) == 1


async def test_a_replacement_takes_the_place_of_what_waits(world: World) -> None:
    node = world.node
    world.hold()
    first, second = signed(0), signed(0, max_fee_wei=20 * GWEI, priority_fee_wei=2 * GWEI)
    await node.send(first.raw)
    await node.send(second.raw)
    world.mine()
    replaced, receipt = await node.receipts((first.hash, second.hash))
    assert replaced is None
    assert receipt is not None


async def test_events_are_found_by_topic_and_block(world: World) -> None:
    node = world.node
    world.fund(WALLET, 10_000)
    for number in range(3):
        world.submit(authorize(PAYER, value=1_000 + number, nonce=number))
    last = (await head(node)).number
    ours = (TRANSFER, None, address_topic(PAYEE))
    found = await node.logs(TOKEN, ours, first_block=0, last_block=last)
    assert [int.from_bytes(log.data) for log in found] == [1_000, 1_001, 1_002]
    at = found[1].block_number
    assert found[0].block_number < at < found[2].block_number
    assert await node.logs(TOKEN, ours, first_block=at, last_block=at) == (found[1],)
    either = ((TRANSFER, AUTHORIZATION_USED), address_topic(WALLET))
    assert len(await node.logs(TOKEN, either, first_block=0, last_block=last)) == 6
    others = (TRANSFER, None, address_topic(WALLET))
    assert await node.logs(TOKEN, others, first_block=0, last_block=last) == ()
    assert await node.logs(MULTICALL, ours, first_block=0, last_block=last) == ()


async def test_a_reorganisation_takes_back_what_was_shown(world: World) -> None:
    world.fund(WALLET, 1_000)
    world.mine()
    transaction = signed(data=transfer_data(authorize(PAYER, value=1_000)))
    receipt = await mined(world, transaction)
    newest = await head(world.node)
    world.take_back(newest.number - receipt.block_number + 1)
    assert await world.node.receipts((transaction.hash,)) == (None,)
    assert await world.node.nonce(SENDER) == 0
    assert world.balance(PAYEE) == 0
    instead = await world.node.block(receipt.block_number)
    assert instead is not None
    assert instead.hash != receipt.block_hash
    again = await mined(world, transaction)
    assert (again.transaction, again.succeeded) == (transaction.hash, True)


async def test_one_multicall_settles_many_and_tells_them_apart(world: World) -> None:
    world.fund(WALLET, 1_500)
    payments = [authorize(PAYER, value=1_000, nonce=1), authorize(PAYER, value=600, nonce=2)]
    payments += [authorize(PAYER, value=500, nonce=3)]
    data = aggregate3([Call(to=TOKEN, data=transfer_data(payment)) for payment in payments])
    simulated = results(await world.node.call(MULTICALL, data))
    assert [result.succeeded for result in simulated] == [True, False, True]
    receipt = await mined(world, signed(to=MULTICALL, data=data))
    assert receipt.succeeded
    paid = moves(receipt.logs, asset=TOKEN, pay_to=PAYEE)
    assert [(move.sender, move.amount, move.nonce) for move in paid] == [
        (WALLET, 1_000, payments[0].nonce),
        (WALLET, 500, payments[2].nonce),
    ]


# --- a real one -----------------------------------------------------------------------------------------------


async def test_a_call_that_the_contract_refuses_has_its_error(on_anvil: AnvilWorld) -> None:
    with pytest.raises(CallReverted) as caught:
        await on_anvil.node.call(TOKEN, transfer_data(authorize(PAYER, value=1_000)))
    # ERC20InsufficientBalance(address,uint256,uint256) of ERC-6093
    assert caught.value.data[:4].hex() == "e450d38c"


async def test_a_call_may_be_made_in_a_name(on_anvil: AnvilWorld) -> None:
    mint = bytes.fromhex("40c10f19") + address_topic(WALLET) + (1).to_bytes(32)
    assert await on_anvil.node.call(TOKEN, mint, sender=MINTER) == b""
    with pytest.raises(CallReverted):
        await on_anvil.node.call(TOKEN, mint, sender=WALLET)
    with pytest.raises(CallReverted):
        await on_anvil.node.call(TOKEN, mint)


async def test_it_shows_the_code_of_a_delegated_account(on_anvil: AnvilWorld) -> None:
    node, chain = on_anvil.node, on_anvil.chain
    delegate = chain.delegate(PAYER)
    assert await node.code(WALLET) == bytes.fromhex("ef0100" + delegate[2:])
    chain.undelegate(PAYER)
    assert await node.code(WALLET) == b""


async def test_more_receipts_than_one_question_may_ask_for(on_anvil: AnvilWorld) -> None:
    on_anvil.hold()
    sent = [signed(nonce) for nonce in range(3)]
    for transaction in sent:
        await on_anvil.node.send(transaction.raw)
    on_anvil.mine()
    asked = tuple(transaction.hash for transaction in sent) * 40
    found = await on_anvil.node.receipts(asked)
    assert tuple(receipt and receipt.transaction for receipt in found) == asked
    assert await on_anvil.node.receipts(()) == ()


async def test_what_no_chain_would_take_is_refused(on_anvil: AnvilWorld) -> None:
    with pytest.raises(Underpriced):
        await on_anvil.node.send(signed(max_fee_wei=1, priority_fee_wei=1).raw)
    with pytest.raises(SendRefused):
        await on_anvil.node.send(signed(gas_limit=100).raw)
    with pytest.raises(SendRefused):
        await on_anvil.node.send(signed(chain_id=1).raw)


async def test_a_transaction_may_come_back_in_another_block(on_anvil: AnvilWorld) -> None:
    on_anvil.mine()
    transaction = signed()
    receipt = await mined(on_anvil, transaction)
    depth = on_anvil.chain.head - receipt.block_number + 1
    on_anvil.chain.reorg(depth, transaction.raw)
    (again,) = await on_anvil.node.receipts((transaction.hash,))
    assert again is not None
    assert again.block_number == on_anvil.chain.head
    assert again.block_hash != receipt.block_hash


async def test_a_node_that_is_gone_is_unavailable_and_may_come_back(on_anvil: AnvilWorld) -> None:
    node, chain = on_anvil.node, on_anvil.chain
    await mined(on_anvil, signed(0))
    chain.stop()
    questions = (node.chain_id(), node.block(), node.send(signed(1).raw), node.receipts((NO_TRANSACTION,)))
    for question in questions:
        with pytest.raises(NodeUnavailable):
            await question
    chain.start()
    assert await node.nonce(SENDER) == 1
    on_anvil.mine()
    assert chain.now == NOW


async def test_a_node_that_hangs_is_unavailable(on_anvil: AnvilWorld) -> None:
    impatient = Web3Node(on_anvil.chain.url, timeout_s=0.1)
    on_anvil.chain.hang()
    try:
        with pytest.raises(NodeUnavailable):
            await impatient.send(signed(0).raw)
    finally:
        on_anvil.chain.wake()
        await impatient.close()
