"""What a chain in memory is made of: transactions, states, blocks, and what goes wrong at its node.

Invariant: a state that a block refers to is never changed, so that blocks which change nothing share one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from spawn_schemas.ids import Address

from spawn.evm.node import Block, Log, Receipt


@dataclass(kw_only=True)
class NodeFaults:
    """What goes wrong next. Counts go down to zero by use."""

    down: bool = False
    """Nothing is answered."""
    lose_request: int = 0
    """A transaction that is sent does not arrive, and the sender is not told."""
    lose_answer: int = 0
    """It arrives, and the sender is not told."""
    swallow: int = 0
    """It is taken, and forgotten."""
    least_tip_wei: int = 0
    """Less is refused."""
    on_call: Callable[[str], None] = field(default=lambda _: None)
    """Called with each method's name, before and after it does something; may raise."""

    def take(self, name: str) -> bool:
        left: int = getattr(self, name)
        setattr(self, name, max(0, left - 1))
        return left > 0


@dataclass(frozen=True, kw_only=True)
class Transaction:
    raw: bytes = field(repr=False)
    hash: str
    sender: Address
    nonce: int
    to: Address
    data: bytes = field(repr=False)
    gas_limit: int
    max_fee_wei: int
    tip_wei: int


@dataclass(kw_only=True)
class State:
    """After some block. What is history is shared by blocks and never changed: whoever changes a state copies it.

    Balances are beside what was given from outside, which every history has; so they may be below zero.
    """

    balances: dict[str, int] = field(default_factory=dict)
    spent: set[tuple[str, str]] = field(default_factory=set)
    nonces: dict[str, int] = field(default_factory=dict)
    ether_wei: dict[str, int] = field(default_factory=dict)

    def copy(self) -> "State":
        return State(
            balances=self.balances.copy(),
            spent=self.spent.copy(),
            nonces=self.nonces.copy(),
            ether_wei=self.ether_wei.copy(),
        )


@dataclass(kw_only=True)
class Mined:
    block: Block
    before: State = field(repr=False)
    transactions: list[Transaction] = field(default_factory=list)
    receipts: list[Receipt] = field(default_factory=list)


def make_receipt(
    hash_: str,
    mined: Mined,
    logs: list[tuple[Address, tuple[bytes, ...], bytes]],
    *,
    succeeded: bool,
    gas_used: int,
    price: int,
) -> Receipt:
    first = sum(len(receipt.logs) for receipt in mined.receipts)
    return Receipt(
        transaction=hash_,
        succeeded=succeeded,
        block_number=mined.block.number,
        block_hash=mined.block.hash,
        gas_used=gas_used,
        gas_price_wei=price,
        logs=tuple(
            Log(
                address=address,
                topics=topics,
                data=data,
                block_number=mined.block.number,
                block_hash=mined.block.hash,
                transaction=hash_,
                index=first + index,
            )
            for index, (address, topics, data) in enumerate(logs)
        ),
    )


def matches(log: Log, topics: tuple[bytes | tuple[bytes, ...] | None, ...]) -> bool:
    wanted = [(topic,) if isinstance(topic, bytes) else topic for topic in topics]
    return len(log.topics) >= len(wanted) and all(
        choice is None or topic in choice for topic, choice in zip(log.topics, wanted, strict=False)
    )
