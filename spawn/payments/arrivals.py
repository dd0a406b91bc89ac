"""USDC that reached us on chain, whoever sent it and for whatever reason, read in the chain's order.

Invariant: a source shows each arrival once for a cursor that only grows, and shows none that the chain could still
take back at the depth that it was told to wait for.
"""

from typing import Final, Protocol

import msgspec
from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc

from spawn.evm.eip3009 import TRANSFER, Move, address_topic, moves
from spawn.evm.node import Log, Node, NodeUnavailable
from spawn.payments.exact import Terms
from spawn.payments.nonces import authorization_key

BLOCKS_PER_PAGE: Final = 500
"""What the strictest public nodes still search at once."""

START: Final = ""
"""The cursor of somebody who has not read anything yet."""


class Arrived(msgspec.Struct, frozen=True, kw_only=True):
    """A transfer that raised our balance by `amount` micro-USDC, at `at` (unix seconds, the chain's time).

    `id` is its transaction and its place in it. `nonce_key` names the authorization that it spent, as a reservation
    does; None for an ordinary transfer.
    """

    id: str
    transaction: str
    sender: Address
    amount: Usdc
    nonce_key: str | None
    at: int


class Arrivals(Protocol):
    """Where arrivals are read. `name` is that of the log, under which its cursor is kept."""

    @property
    def name(self) -> str: ...

    async def page(self, cursor: str) -> tuple[tuple[Arrived, ...], str]:
        """What came after `cursor`, and the cursor behind it; the same one when there is nothing new.

        Raises NodeUnavailable.
        """
        ...


def raises_balance(*, sender: Address, amount: int, pay_to: Address) -> bool:
    """Whether a transfer to us brings anything: anybody may send nothing, and what we send ourselves we had."""
    return amount > 0 and sender != pay_to


class ChainArrivals:
    """Arrivals on an EVM chain, in blocks that have `confirmations` (their own included)."""

    def __init__(self, node: Node, terms: Terms, *, confirmations: int, from_block: int) -> None:
        """`from_block`: where somebody begins who has not read yet; -1 for the blocks that come from then on."""
        self._node = node
        self._terms = terms
        self._confirmations = confirmations
        self._from_block = from_block
        self._blocks = BLOCKS_PER_PAGE

    @property
    def name(self) -> str:
        return f"arrivals|{self._terms.network}|{self._terms.asset}|{self._terms.pay_to}"

    async def page(self, cursor: str) -> tuple[tuple[Arrived, ...], str]:
        """See `Arrivals.page`. The cursor is the number of the next block to read."""
        head = await self._node.block()
        if head is None:
            raise NodeUnavailable("the node shows no block")
        deepest = head.number - self._confirmations + 1
        if cursor == START:
            return (), str(max(0, deepest + 1) if self._from_block < 0 else self._from_block)
        first = int(cursor)
        last = min(deepest, first + self._blocks - 1)
        if last < first:
            return (), cursor
        try:
            arrived = await self._between(first, last)
        except NodeUnavailable:
            # It may have been too much for one answer.
            self._blocks = max(1, self._blocks // 2)
            raise
        self._blocks = min(BLOCKS_PER_PAGE, self._blocks * 2)
        return arrived, str(last + 1)

    async def _between(self, first: int, last: int) -> tuple[Arrived, ...]:
        topics = (TRANSFER, None, address_topic(self._terms.pay_to))
        transfers = await self._node.logs(self._terms.asset, topics, first_block=first, last_block=last)
        at = {log.block_number: await self._time_of(log) for log in _one_of_each_block(transfers)}
        return tuple(
            self._arrived(move, place, at[move.log.block_number])
            for move, place in await self._moves(transfers)
            if raises_balance(sender=move.sender, amount=move.amount, pay_to=self._terms.pay_to)
        )

    async def _time_of(self, log: Log) -> int:
        block = await self._node.block(log.block_number)
        if block is None or block.hash != log.block_hash:
            raise NodeUnavailable("the node shows two chains")
        return block.at

    async def _moves(self, transfers: tuple[Log, ...]) -> tuple[tuple[Move, int], ...]:
        """The transfers with their nonces, which only the whole receipts of their transactions tell.

        Beside each is its place in its transaction, which stays what it is if another block gets that transaction; the
        place in the block does not.
        """
        transactions = tuple(dict.fromkeys(log.transaction for log in transfers))
        events: list[Log] = []
        begins: dict[str, int] = {}
        for receipt in await self._node.receipts(transactions) if transactions else ():
            if receipt is None:
                raise NodeUnavailable("the node shows an event and not its transaction")
            events += receipt.logs
            begins |= {log.transaction: log.index for log in receipt.logs[:1]}
        found = moves(events, asset=self._terms.asset, pay_to=self._terms.pay_to)
        if [move.log for move in found] != list(transfers):
            raise NodeUnavailable("the node shows two chains")
        return tuple((move, move.log.index - begins[move.log.transaction]) for move in found)

    def _arrived(self, move: Move, place: int, at: int) -> Arrived:
        key = None
        if move.nonce is not None:
            key = authorization_key(self._terms.chain_id, self._terms.asset, move.sender, move.nonce)
        return Arrived(
            id=f"{move.log.transaction}|{place}",
            transaction=move.log.transaction,
            sender=move.sender,
            amount=Usdc(move.amount),
            nonce_key=key,
            at=at,
        )


def _one_of_each_block(logs: tuple[Log, ...]) -> tuple[Log, ...]:
    return tuple({log.block_number: log for log in logs}.values())
