"""What a relayer has in memory: the payments that are not decided, and which of them wait for a transaction.

Invariant: the database says the same or less. A payment is on the desk from before its row is written until its row
is final, once, so that everybody who settles it waits for one answer.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

from spawn_schemas.ids import Address

from spawn.domain.settlements import signed_by_key
from spawn.evm.eip3009 import transfer_call
from spawn.payments.exact import ExactPayment
from spawn.payments.facilitator import Rejected, Settled

Outcome: TypeAlias = Settled | Rejected


class Handed(Exception):
    """The payment is on another desk from now on, of this process or of another: whoever waits asks anew."""


@dataclass(eq=False, kw_only=True)
class Item:
    """A payment on its way. `ended` has its outcome, or the error because of which there will be none for now.

    `apart`: it shares no transaction. `untried`: the chain cannot be asked in advance. `failures`: how many mined
    transactions had it and did not move it.
    `transaction`: the newest one of ours that has it. `rests_until`: when to look at it again (unix seconds), where the
    chain did not say what became of it; `rest_s` is how long that was the last time. `askers`: how many calls wait.
    """

    id: str
    payment: ExactPayment = field(repr=False)
    ended: "asyncio.Future[Outcome | Exception]" = field(repr=False)
    apart: bool = False
    untried: bool = False
    failures: int = 0
    rest_s: int = 0
    rests_until: int = 0
    transaction: str | None = None
    askers: int = 0

    @property
    def value(self) -> int:
        return self.payment.value

    @property
    def signature(self) -> str:
        return self.payment.signature

    @property
    def by_code(self) -> bool:
        """Whether code may check its signature: a wallet's, or that of an account with a key too (EIP-7702)."""
        return self.apart or not signed_by_key(self.signature)

    @cached_property
    def call(self) -> bytes:
        """What the token is asked to do."""
        payment = self.payment
        return transfer_call(
            payer=payment.payer,
            pay_to=payment.pay_to,
            value=payment.value,
            valid_after=payment.valid_after,
            valid_before=payment.valid_before,
            nonce=payment.nonce,
            signature=payment.signature,
        )


class Desk:
    """Shared by all keys of a relayer."""

    def __init__(self) -> None:
        self._open: dict[str, Item] = {}
        self._waiting: dict[str, Item] = {}
        self._noted: set[str] | None = None

    @property
    def waiting(self) -> Collection[Item]:
        """What waits for a transaction, the oldest first."""
        return self._waiting.values()

    def find(self, id_: str) -> Item | None:
        return self._open.get(id_)

    def open(self, id_: str, payment: ExactPayment) -> Item:
        """Lay a payment on the desk; it does not wait yet."""
        item = Item(id=id_, payment=payment, ended=asyncio.get_running_loop().create_future())
        self._open[id_] = item
        return item

    def line_up(self, items: Iterable[Item]) -> None:
        """Let these wait, after those that do. What has ended meanwhile does not."""
        for item in items:
            if item.id in self._open:
                self._waiting[item.id] = item

    def take(self, items: Iterable[Item]) -> None:
        """They wait no more: whoever took them ends them, or lines them up again."""
        for item in items:
            self._waiting.pop(item.id, None)

    def end(self, item: Item, outcome: Outcome | Exception) -> None:
        """Tell everybody who waits for it."""
        if self._noted is not None:
            self._noted.add(item.id)
        self._open.pop(item.id, None)
        self._waiting.pop(item.id, None)
        if not item.ended.done():
            item.ended.set_result(outcome)

    def clear(self, why: Callable[[Item], Exception]) -> None:
        """Nothing is brought to an end here any more."""
        for item in list(self._open.values()):
            self.end(item, why(item))

    @contextmanager
    def noting_ends(self) -> Iterator[Collection[str]]:
        """The ids of what ends inside: a row that was read meanwhile may show it as it was before."""
        noted = self._noted = set()
        try:
            yield noted
        finally:
            self._noted = None

    def under_way_usdc(self, payer: Address) -> int:
        """How much of the payer's money our transactions are about to move, in micro-USDC."""
        return sum(
            item.value
            for item in self._open.values()
            if item.transaction is not None and item.payment.payer == payer
        )
