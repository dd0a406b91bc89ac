"""An EVM chain as one node shows it: the few questions that settling a payment asks.

Invariant: an answer is what this node saw at this moment. Nothing here waits for the chain, remembers, or decides;
what a caller may rely on is decided by confirmation depth, above.
"""

from typing import Protocol

import msgspec
from spawn_schemas.ids import Address


class NodeUnavailable(Exception):
    """The node did not answer, or answered with nonsense: nothing is known, and anything sent may have arrived."""


class WrongChain(NodeUnavailable):
    """The node answers, and it is not of the chain or token that the settings name; the message says what to set."""


class CallReverted(Exception):
    """The contract refused this call; `data` is what it returned (its error, ABI-encoded)."""

    def __init__(self, data: bytes = b"") -> None:
        super().__init__("the call was reverted")
        self.data = data


class SendRefused(Exception):
    """The node refused these bytes; it has nothing of them. See the classes below for why."""


class NonceTooLow(SendRefused):
    """The account has used this nonce: by these very bytes, by another attempt, or by somebody who shares the key."""


class AlreadyKnown(SendRefused):
    """The node has these very bytes already."""


class Underpriced(SendRefused):
    """The fees are too low: for the network, or to take the place of the transaction that has this nonce."""


class OutOfGasMoney(SendRefused):
    """The sender cannot pay for the gas at this fee."""


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """`at` is the chain's time, in unix seconds; fees are in wei per gas."""

    number: int
    hash: str
    at: int
    base_fee_wei: int


class Log(msgspec.Struct, frozen=True, kw_only=True):
    """One event. `topics` and `data` as the contract wrote them; `address` in lower case."""

    address: Address
    topics: tuple[bytes, ...]
    data: bytes
    block_number: int
    block_hash: str
    transaction: str
    index: int


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a transaction in the block that has it.

    `rollup_fee_wei` is what a rollup takes besides, for the data that it writes to its own chain (OP stack: `l1Fee`).
    """

    transaction: str
    succeeded: bool
    block_number: int
    block_hash: str
    gas_used: int
    gas_price_wei: int
    rollup_fee_wei: int = 0
    logs: tuple[Log, ...]

    @property
    def fee_wei(self) -> int:
        """All that its sender paid."""
        return self.gas_used * self.gas_price_wei + self.rollup_fee_wei


class Node(Protocol):
    """Hashes are 0x and 64 lower-case hex digits. Every method raises NodeUnavailable."""

    async def chain_id(self) -> int:
        """Which chain this is (EIP-155)."""
        ...

    async def block(self, number: int | None = None) -> Block | None:
        """That block, or the newest; None where the chain has none of that number (yet, or any more)."""
        ...

    async def nonce(self, account: Address) -> int:
        """How many transactions of the account are in blocks: the number of its next one."""
        ...

    async def balance_wei(self, account: Address) -> int:
        """What the account has to pay for gas with."""
        ...

    async def code(self, account: Address) -> bytes:
        """Empty for an ordinary account; `0xef0100` and an address for a delegated one (EIP-7702)."""
        ...

    async def call(
        self,
        to: Address,
        data: bytes,
        *,
        sender: Address | None = None,
        gas: int | None = None,
        block: int | None = None,
    ) -> bytes:
        """What the contract would answer now, or after that block, changing nothing. Raises CallReverted.

        Questions that are to fit together name their block: behind one address there may be many nodes, and one that
        does not have the block yet answers NodeUnavailable instead of something older.

        So does a contract that halts otherwise, or needs more than `gas`; without it, more than the node allows.
        """
        ...

    async def priority_fee_wei(self) -> int:
        """The tip per gas that the node suggests."""
        ...

    async def send(self, raw: bytes) -> None:
        """Hand in a signed transaction. Raises SendRefused; after NodeUnavailable it may have arrived."""
        ...

    async def receipts(self, transactions: tuple[str, ...]) -> tuple[Receipt | None, ...]:
        """One per hash, in order; None for what is in no block. One round trip where the node allows it."""
        ...

    async def logs(
        self,
        address: Address,
        topics: tuple[bytes | tuple[bytes, ...] | None, ...],
        *,
        first_block: int,
        last_block: int,
    ) -> tuple[Log, ...]:
        """Events of one contract in a range of blocks (both ends included), oldest first; None matches any topic."""
        ...
