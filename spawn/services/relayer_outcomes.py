"""Recording what became of transactions and of the payments in them.

Invariant: a payment is confirmed by the token's own events in a receipt, or found on the chain; in the write that ends
a transaction each of its payments ends too, or waits again, and the gas that it cost is booked.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Final, assert_never

from spawn_ledger.accounts import COST_GAS, EXT_GAS
from spawn_ledger.transfers import Code, Transfer, post, transfer_id
from spawn_ledger.tx import Tx
from spawn_schemas.money import Usdc
from spawn_schemas.x402 import Reason

from spawn.domain.settlements import gas_cost_usdc
from spawn.evm.eip3009 import moves
from spawn.evm.node import Block, Node, Receipt
from spawn.payments.exact import Terms
from spawn.payments.facilitator import Rejected, Settled, SettlementUnclear
from spawn.payments.onchain import OnChain
from spawn.services.relayer_desk import Desk, Item, Outcome
from spawn.services.relayer_flight import Flight
from spawn.store import settlements as rows
from spawn.store.database import Database
from spawn.store.settlements import Relay

_EXPIRED: Final = Rejected(
    reason=Reason.VALID_BEFORE.value, message="The authorization expired before it reached the chain."
)


class Outcomes:
    """Writes outcomes down, then tells who waits. Shared by all keys."""

    def __init__(
        self,
        db: Database,
        node: Node,
        on_chain: OnChain,
        terms: Terms,
        desk: Desk,
        *,
        confirmations: int,
        eth_price_usdc: Usdc,
    ) -> None:
        self._db = db
        self._node = node
        self._on_chain = on_chain
        self._terms = terms
        self._desk = desk
        self._confirmations = confirmations
        self._eth_price_usdc = eth_price_usdc

    async def mined(self, deep: Sequence[tuple[Flight, Relay, Receipt]], now: int) -> None:
        """These versions are in blocks for good: what they moved is confirmed, and what they did not waits again."""
        moved = [self._moved(flight, receipt) for flight, _, receipt in deep]

        def record(tx: Tx) -> None:
            for (flight, relay, receipt), paid in zip(deep, moved, strict=True):
                rows.confirm_relay(tx, relay, block_number=receipt.block_number, gas_wei=receipt.fee_wei)
                self._book_gas(tx, relay, receipt.fee_wei, now)
                for item in flight.items:
                    if item.id in paid:
                        rows.confirm(tx, item.id, receipt.transaction, now)
                    else:
                        rows.give_back(tx, item.id)

        await self._db.write(record)
        for (flight, _, receipt), paid in zip(deep, moved, strict=True):
            for item in flight.items:
                if item.id in paid:
                    self._desk.end(item, Settled(transaction=receipt.transaction))
                else:
                    item.failures += 1
                    item.apart = True
                    self._line_up(item)

    def _moved(self, flight: Flight, receipt: Receipt) -> set[str]:
        """The ids of the payments that this transaction moved, by the token's events."""
        if not receipt.succeeded:
            return set()
        found = moves(receipt.logs, asset=self._terms.asset, pay_to=self._terms.pay_to)
        moved = {(move.sender, move.nonce, move.amount) for move in found}
        return {
            item.id
            for item in flight.items
            if (item.payment.payer, item.payment.nonce, item.payment.value) in moved
        }

    def _book_gas(self, tx: Tx, relay: Relay, gas_wei: int, now: int) -> None:
        cost = gas_cost_usdc(gas_wei, self._eth_price_usdc)
        if cost > 0:
            movement = Transfer(
                id=transfer_id("gas", relay.hash),
                debit=COST_GAS,
                credit=EXT_GAS,
                amount=cost,
                code=Code.GAS,
                reference=relay.hash,
                at=now,
            )
            post(tx, movement)

    async def passed(self, flight: Flight) -> None:
        """Something that is not ours has this nonce: no version can be mined, and its payments wait again."""

        def record(tx: Tx) -> None:
            rows.replace_relays(tx, flight.newest.relayer, flight.nonce)
            for item in flight.items:
                rows.give_back(tx, item.id)

        await self._db.write(record)
        for item in flight.items:
            self._line_up(item)

    def _line_up(self, item: Item) -> None:
        item.transaction = None
        self._desk.line_up((item,))

    async def decide(self, decided: Sequence[tuple[Item, Outcome]], now: int) -> None:
        """Record the outcome of payments that no transaction of ours could move any more."""
        if not decided:
            return

        def record(tx: Tx) -> None:
            for item, outcome in decided:
                match outcome:
                    case Settled(transaction=transaction):
                        rows.confirm(tx, item.id, transaction, now)
                    case Rejected(reason=reason, message=message):
                        rows.fail(tx, item.id, reason=reason, message=message, now=now)
                    case _:
                        assert_never(outcome)

        await self._db.write(record)
        for item, outcome in decided:
            self._desk.end(item, outcome)

    async def expire(self, flights: Collection[Flight], head: Block, now: int) -> None:
        """Give up on payments whose time has passed on the chain with their nonce unspent.

        Their transaction may be mined yet, and can only fail. Asked of a block as deep as we confirm, so that no
        other history of the chain can bring the time back.
        """
        late = [flight for flight in flights if _expired(flight.items, head)]
        if not late:
            return
        deep = await self._node.block(max(0, head.number - self._confirmations + 1))
        if deep is None:
            return
        for flight in late:
            found = [(item, await self._at_the_end(item)) for item in _expired(flight.items, deep)]
            decided = [(item, outcome) for item, outcome in found if outcome is not None]
            await self.decide(decided, now)
            ended = {item.id for item, _ in decided}
            flight.items = [item for item in flight.items if item.id not in ended]

    async def _at_the_end(self, item: Item) -> Outcome | None:
        """What became of a payment whose time is over: whoever moved it, it is paid."""
        try:
            return await self._on_chain.find(item.payment) or _EXPIRED
        except SettlementUnclear:
            return None


def _expired(items: Iterable[Item], block: Block) -> list[Item]:
    return [item for item in items if item.payment.valid_before <= block.at]
