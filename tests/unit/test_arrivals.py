"""What a chain shows of USDC that reached us: whose, how much, for which nonce, and from which depth on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc

from spawn.evm.eip3009 import AUTHORIZATION_USED, TRANSFER, address_topic
from spawn.evm.node import Block, CallReverted, Log, Node, NodeUnavailable, Receipt
from spawn.payments.arrivals import BLOCKS_PER_PAGE, START, Arrived, ChainArrivals
from spawn.payments.holdings import TokenHoldings
from tests.payments import PAYEE, TERMS, authorize
from tests.unit.test_devnet import PAYER, WALLET

STRANGER = Address("0x" + "5e" * 20)
OTHER_TOKEN = Address("0x" + "70" * 20)
GENESIS_S = 1_900_000_000
BLOCK_S = 2

Event = tuple[Address, tuple[bytes, ...], bytes]
"""Contract, topics, data."""


def transfer(
    amount: int, *, sender: Address = WALLET, to: Address = PAYEE, token: Address = TERMS.asset
) -> Event:
    return token, (TRANSFER, address_topic(sender), address_topic(to)), amount.to_bytes(32, "big")


def used(nonce: int, *, payer: Address = WALLET) -> Event:
    return TERMS.asset, (AUTHORIZATION_USED, address_topic(payer), nonce.to_bytes(32, "big")), b""


@dataclass
class Blocks:
    """A node with the blocks that a test mined: each has transactions, each of them events."""

    salt: str = "a"
    transactions: list[list[list[Event]]] = field(default_factory=lambda: [[]])
    answers_at_once: int = 10_000
    asked: list[tuple[int, int]] = field(default_factory=list)
    lies: bool = False

    def mine(self, *transactions: list[Event]) -> None:
        self.transactions.append(list(transactions))

    def name(self, kind: str, *numbers: int) -> str:
        return "0x" + f"{self.salt}{kind}{'-'.join(map(str, numbers))}".encode().hex().rjust(64, "0")

    async def block(self, number: int | None = None) -> Block | None:
        at = len(self.transactions) - 1 if number is None else number
        if not 0 <= at < len(self.transactions):
            return None
        hash_ = self.name("block", at, int(self.lies))
        return Block(number=at, hash=hash_, at=GENESIS_S + BLOCK_S * at, base_fee_wei=7)

    def _logs(self, number: int) -> list[Log]:
        logs: list[Log] = []
        for place, events in enumerate(self.transactions[number]):
            for address, topics, data in events:
                logs.append(
                    Log(
                        address=address,
                        topics=topics,
                        data=data,
                        block_number=number,
                        block_hash=self.name("block", number, 0),
                        transaction=self.name("tx", number, place),
                        index=len(logs),
                    )
                )
        return logs

    async def logs(
        self,
        address: Address,
        topics: Sequence[bytes | tuple[bytes, ...] | None],
        *,
        first_block: int,
        last_block: int,
    ) -> tuple[Log, ...]:
        self.asked.append((first_block, last_block))
        if last_block - first_block + 1 > self.answers_at_once:
            raise NodeUnavailable("query returned more than 10000 results")
        return tuple(
            log
            for number in range(first_block, min(last_block, len(self.transactions) - 1) + 1)
            for log in self._logs(number)
            if log.address == address
            and all(want is None or want == got for want, got in zip(topics, log.topics, strict=False))
            and len(log.topics) >= len(topics)
        )

    async def receipts(self, transactions: tuple[str, ...]) -> tuple[Receipt | None, ...]:
        found: dict[str, Receipt] = {}
        for number in range(len(self.transactions)):
            for log in self._logs(number):
                logs = tuple(other for other in self._logs(number) if other.transaction == log.transaction)
                found[log.transaction] = Receipt(
                    transaction=log.transaction,
                    succeeded=True,
                    block_number=number,
                    block_hash=log.block_hash,
                    gas_used=1,
                    gas_price_wei=1,
                    logs=logs,
                )
        return tuple(found.get(transaction) for transaction in transactions)


def reading(blocks: Blocks, *, confirmations: int = 1, from_block: int = 0) -> ChainArrivals:
    return ChainArrivals(cast("Node", blocks), TERMS, confirmations=confirmations, from_block=from_block)


async def everything(arrivals: ChainArrivals, cursor: str = START) -> tuple[list[Arrived], str]:
    """All pages there are."""
    found: list[Arrived] = []
    for _ in range(1_000):
        page, behind = await arrivals.page(cursor)
        if behind == cursor:
            return found, cursor
        found += page
        cursor = behind
    raise AssertionError("the pages do not end")


async def test_a_transfer_is_an_arrival_and_nothing_else_is() -> None:
    blocks = Blocks()
    blocks.mine([transfer(5)], [transfer(6, token=OTHER_TOKEN)], [transfer(7, to=STRANGER)])
    blocks.mine([transfer(0)], [transfer(8, sender=PAYEE)])
    found, cursor = await everything(reading(blocks))
    assert found == [
        Arrived(
            id=f"{blocks.name('tx', 1, 0)}|0",
            transaction=blocks.name("tx", 1, 0),
            sender=WALLET,
            amount=Usdc(5),
            nonce_key=None,
            at=GENESIS_S + BLOCK_S,
        )
    ]
    assert cursor == "3"


async def test_the_nonce_has_the_name_that_the_payment_of_a_call_has() -> None:
    blocks = Blocks()
    payment = authorize(PAYER, value=5, nonce=77)
    blocks.mine([used(77), transfer(5), transfer(6)])
    found, _ = await everything(reading(blocks))
    assert [(one.amount, one.nonce_key) for one in found] == [
        (5, payment.nonce_key(TERMS.chain_id, TERMS.asset)),
        (6, None),
    ]
    assert [one.id for one in found] == [f"{blocks.name('tx', 1, 0)}|{index}" for index in (1, 2)]


async def test_a_nonce_of_somebody_elses_payment_in_the_same_transaction_is_not_ours() -> None:
    blocks = Blocks()
    blocks.mine([used(77), transfer(5, to=STRANGER), transfer(6)], [used(78, payer=STRANGER), transfer(7)])
    found, _ = await everything(reading(blocks))
    assert [(one.amount, one.nonce_key) for one in found] == [(6, None), (7, None)]


@pytest.mark.parametrize("confirmations", [1, 2, 5])
async def test_nothing_is_shown_before_it_is_deep_enough(confirmations: int) -> None:
    blocks = Blocks()
    arrivals = reading(blocks, confirmations=confirmations)
    blocks.mine([transfer(5)])
    cursor = START
    for _ in range(confirmations - 1):
        found, cursor = await everything(arrivals, cursor)
        assert found == []
        blocks.mine()
    found, cursor = await everything(arrivals, cursor)
    assert [one.amount for one in found] == [5]
    assert await everything(arrivals, cursor) == ([], cursor)


async def test_what_a_reorganisation_took_back_is_never_shown() -> None:
    blocks = Blocks()
    arrivals = reading(blocks, confirmations=3)
    for number in range(4):
        blocks.mine([transfer(number + 1)])
    found, cursor = await everything(arrivals)
    assert [one.amount for one in found] == [1, 2]
    blocks.transactions[3:] = [[[transfer(30)]], [], [], []]
    found, _ = await everything(arrivals, cursor)
    assert [one.amount for one in found] == [30]


async def test_without_a_beginning_it_begins_with_the_next_block() -> None:
    blocks = Blocks()
    blocks.mine([transfer(5)])
    arrivals = reading(blocks, from_block=-1)
    found, cursor = await everything(arrivals)
    assert (found, cursor) == ([], "2")
    blocks.mine([transfer(6)])
    found, cursor = await everything(arrivals, cursor)
    assert ([one.amount for one in found], cursor) == ([6], "3")


async def test_the_first_block_that_is_not_deep_enough_yet_is_one_to_come() -> None:
    blocks = Blocks()
    blocks.mine([transfer(5)])
    blocks.mine([transfer(6)])
    arrivals = reading(blocks, confirmations=2, from_block=-1)
    _, cursor = await everything(arrivals)
    blocks.mine()
    found, _ = await everything(arrivals, cursor)
    assert [one.amount for one in found] == [6]


async def test_a_long_chain_is_read_in_ranges_that_leave_nothing_out() -> None:
    blocks = Blocks()
    for number in range(1, 2 * BLOCKS_PER_PAGE + 3):
        blocks.mine([transfer(number)])
    found, cursor = await everything(reading(blocks))
    assert [one.amount for one in found] == list(range(1, 2 * BLOCKS_PER_PAGE + 3))
    assert cursor == str(2 * BLOCKS_PER_PAGE + 3)
    assert [last - first + 1 for first, last in blocks.asked] == [BLOCKS_PER_PAGE, BLOCKS_PER_PAGE, 3]


async def test_a_node_that_finds_it_too_much_is_asked_for_less() -> None:
    blocks = Blocks(answers_at_once=3)
    for number in range(1, 12):
        blocks.mine([transfer(number)])
    arrivals = reading(blocks)
    cursor, found = await arrivals_in_tries(arrivals)
    assert (found, cursor) == (list(range(1, 12)), "12")


async def arrivals_in_tries(arrivals: ChainArrivals) -> tuple[str, list[int]]:
    """Page by page, as the job does: what fails is asked again."""
    cursor, found, still = START, list[int](), 0
    for _ in range(60):
        try:
            page, behind = await arrivals.page(cursor)
        except NodeUnavailable:
            continue
        still = still + 1 if behind == cursor else 0
        cursor = behind
        found += [one.amount for one in page]
        if still:
            break
    return cursor, found


async def test_a_node_that_shows_two_chains_is_not_believed() -> None:
    blocks = Blocks(lies=True)
    blocks.mine([transfer(5)])
    with pytest.raises(NodeUnavailable, match="two chains"):
        await everything(reading(blocks))


async def test_a_node_without_the_receipt_or_with_another_is_not_believed() -> None:
    class Forgetful(Blocks):
        async def receipts(self, transactions: tuple[str, ...]) -> tuple[Receipt | None, ...]:
            return (None,) * len(transactions)

    class Elsewhere(Blocks):
        async def receipts(self, transactions: tuple[str, ...]) -> tuple[Receipt | None, ...]:
            self.transactions[1] = [[transfer(6)]]
            return await super().receipts(transactions)

    for kind, words in ((Forgetful, "not its transaction"), (Elsewhere, "two chains")):
        blocks = kind()
        blocks.mine([transfer(5)])
        with pytest.raises(NodeUnavailable, match=words):
            await everything(reading(blocks))


@dataclass
class Token:
    """A node that only calls."""

    answer: bytes | CallReverted

    async def call(
        self, to: Address, data: bytes, *, sender: Address | None = None, gas: int | None = None
    ) -> bytes:
        assert (to, data[4:]) == (TERMS.asset, address_topic(PAYEE))
        if isinstance(self.answer, CallReverted):
            raise self.answer
        return self.answer


async def test_the_token_tells_what_an_account_holds() -> None:
    holdings = TokenHoldings(cast("Node", Token((12).to_bytes(32, "big"))), TERMS.asset)
    assert await holdings.balance_of(PAYEE) == 12


@pytest.mark.parametrize("answer", [b"", b"\x01", CallReverted()])
async def test_what_is_no_token_tells_nothing(answer: Any) -> None:
    with pytest.raises(NodeUnavailable, match=TERMS.asset):
        await TokenHoldings(cast("Node", Token(answer)), TERMS.asset).balance_of(PAYEE)
