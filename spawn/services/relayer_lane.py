"""One key's transactions: what is in flight, what came of it, and what goes next.

Invariant: a transaction is stored before it is sent, and every nonce below the next one is in a block, in flight, or
about to be filled. Whatever instant we die at, the rows say what was signed; the chain decides which of it happened.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, TypeAlias

from spawn_ledger.tx import Tx
from spawn_schemas.ids import Address

from spawn.domain.settlements import Fees, RelayPolicy, bumped, market_fees, plan
from spawn.evm.node import Block, Node, NodeUnavailable, Receipt
from spawn.services.relayer_desk import Desk, Item
from spawn.services.relayer_flight import Flight, Signer
from spawn.services.relayer_outcomes import Outcomes
from spawn.services.relayer_sending import Sending
from spawn.services.relayer_trial import Trial
from spawn.store import settlements as rows
from spawn.store.database import Database
from spawn.store.settlements import Relay

log = logging.getLogger(__name__)

RECORDED_AT_ONCE: Final = 4
"""Transactions whose outcome is written in one go: each has up to a hundred payments."""

Plan: TypeAlias = tuple[Item, ...]


class Lane:
    """Works for one account. `signer` is None for an account whose key we were not given again: what it had in flight
    is seen to its end, and nothing new is signed.
    """

    def __init__(
        self,
        account: Address,
        signer: Signer | None,
        *,
        db: Database,
        node: Node,
        desk: Desk,
        trial: Trial,
        outcomes: Outcomes,
        flights: Sequence[Flight],
        next_nonce: int,
        in_flight_max: int,
    ) -> None:
        self.account = account
        self._signer = signer
        self._db = db
        self._node = node
        self._desk = desk
        self._trial = trial
        self._outcomes = outcomes
        self._sending = Sending(account, db, node)
        self._flights = {flight.nonce: flight for flight in flights}
        self._next_nonce = next_nonce
        self._in_flight_max = in_flight_max
        self._gap_since: int | None = None
        self._free: list[int] = []

    @property
    def is_idle(self) -> bool:
        return not self._flights and not self._desk.waiting

    @property
    def is_full(self) -> bool:
        """Whether nothing can be sent before something in flight is mined."""
        return len(self._flights) >= self._in_flight_max

    async def step(self, now: int) -> bool:
        """One round: look, push, launch. True when the next should follow at once.

        Everything that fails leaves rows and memory as if it had not begun, or as if it had been done.
        """
        if self.is_idle:
            return False
        try:
            policy = await self._trial.policy()
            head, mined, receipts = await self._ask()
            await self._conclude(receipts, head, mined, policy, now)
            await self._mend_gap(mined, policy, now)
            await self._push(head, mined, policy, now)
            launched = await self._launch(head, policy, now)
        except NodeUnavailable as error:
            self._sending.complain("node", str(error))
            return False
        self._sending.resolved("node")
        return launched

    # --- what came of it --------------------------------------------------------------------------------------

    async def _ask(self) -> tuple[Block, int, dict[str, Receipt]]:
        """The newest block, how many of our transactions are in blocks, and the receipts of what is in flight."""
        head, mined = await asyncio.gather(self._node.block(), self._node.nonce(self.account))
        hashes = tuple(relay.hash for flight in self._flights.values() for relay in flight.relays)
        # After the newest block: a receipt from before a reorganisation would look as deep as a newer block is high.
        receipts = await self._receipts(hashes)
        if head is None:
            raise NodeUnavailable("it shows no block")
        self._next_nonce = max(self._next_nonce, mined)
        return head, mined, {receipt.transaction: receipt for receipt in receipts if receipt is not None}

    async def _receipts(self, hashes: tuple[str, ...]) -> tuple[Receipt | None, ...]:
        return await self._node.receipts(hashes) if hashes else ()

    async def _conclude(
        self, receipts: dict[str, Receipt], head: Block, mined: int, policy: RelayPolicy, now: int
    ) -> None:
        """Record what is decided: by a receipt that is deep enough, by a stranger at our nonce, by time."""
        deep: list[tuple[Flight, Relay, Receipt]] = []
        passed: list[Flight] = []
        for flight in self._flights.values():
            found = [(relay, receipts[relay.hash]) for relay in flight.relays if relay.hash in receipts]
            if flight.seen and not found:
                flight.push_at, flight.sent = now, False  # its block is gone: the same bytes again
            flight.seen = bool(found)
            if found or flight.nonce >= mined:
                flight.passed_since = None
            elif flight.passed_since is None:
                flight.passed_since = now
            elif now - flight.passed_since >= policy.bump_after_s:
                passed.append(flight)
            if len(found) == 1:  # two can only be seen while the chain changes its mind
                relay, receipt = found[0]
                # A block that came after we asked for the newest counts as the newest.
                if max(0, head.number - receipt.block_number) + 1 >= policy.confirmations:
                    deep.append((flight, relay, receipt))
        for start in range(0, len(deep), RECORDED_AT_ONCE):
            part = deep[start : start + RECORDED_AT_ONCE]
            await self._outcomes.mined(part, now)
            for flight, _, _ in part:
                del self._flights[flight.nonce]
        for flight in passed:
            await self._outcomes.passed(flight)
            del self._flights[flight.nonce]
        await self._outcomes.expire(self._flights.values(), head, now)

    async def _mend_gap(self, mined: int, policy: RelayPolicy, now: int) -> None:
        """See to nonces that are neither in a block nor in flight, since nothing after them can be mined.

        They come from a chain that was reorganised deeper than we confirm, or a database that was put back. A node
        that lags behind another shows the same for a moment, hence the patience.
        """
        missing = [nonce for nonce in range(mined, self._next_nonce) if nonce not in self._flights]
        if not missing or self._gap_since is None:
            self._gap_since = now if missing else None
            self._free = []
            return
        if now - self._gap_since < policy.bump_after_s:
            return
        self._gap_since = now
        self._free = []
        for nonce in missing[: self._in_flight_max]:
            known = await self._db.read(rows.SELECT_NEWEST_RELAY, {"relayer": self.account, "nonce": nonce})
            if known:
                await self._sending.resend(rows.relay_from(known[0]))
            else:
                self._free.append(nonce)
        log.warning("relayer %s: nonces from %d on were missing", self.account, missing[0])

    # --- what is sent again -----------------------------------------------------------------------------------

    async def _push(self, head: Block, mined: int, policy: RelayPolicy, now: int) -> None:
        """Send again what waits for too long, for more if the policy allows."""
        late = [
            flight
            for flight in self._flights.values()
            if not flight.seen and flight.nonce >= mined and flight.push_at <= now
        ]
        if not late:
            return
        market = await self._market(head, policy)
        if market is not None and self._signer is not None:
            await self._offer_more(self._signer, late, market, policy, now)
        await self._sending.send(late, policy, now)

    async def _offer_more(
        self, signer: Signer, late: Sequence[Flight], market: Fees, policy: RelayPolicy, now: int
    ) -> None:
        """Sign what a node has had for too long, or found too cheap, for more; what was lost is only sent again."""
        wanted: list[tuple[Flight, Fees]] = []
        for flight in late:
            fees = bumped(flight.fees, market, cap_wei=policy.fee_cap_wei)
            if (flight.sent or flight.dear) and fees is not None:
                wanted.append((flight, fees))
        if not wanted:
            return

        def sign() -> list[Relay]:
            return [
                signer.sign(
                    flight.items, nonce=flight.nonce, attempt=flight.newest.attempt + 1, fees=fees, now=now
                )
                for flight, fees in wanted
            ]

        relays = await asyncio.to_thread(sign)
        await self._db.write(lambda tx: _store(tx, relays))
        for (flight, _), relay in zip(wanted, relays, strict=True):
            flight.add(relay)

    async def _market(self, head: Block, policy: RelayPolicy) -> Fees | None:
        tip = await self._node.priority_fee_wei()
        market = market_fees(base_fee_wei=head.base_fee_wei, tip_wei=tip, cap_wei=policy.fee_cap_wei)
        if market is None:
            self._sending.complain("fees", "gas costs more than SPAWN_RELAY_FEE_CAP_GWEI: payments wait")
        else:
            self._sending.resolved("fees")
        return market

    # --- what goes next ---------------------------------------------------------------------------------------

    async def _launch(self, head: Block, policy: RelayPolicy, now: int) -> bool:
        """Put what waits into transactions, after trying it out; True when any was sent."""
        room = self._room()
        market = await self._market(head, policy) if room > 0 else None
        waiting = [item for item in self._desk.waiting if item.rests_until <= now]
        if market is None:
            # Nothing can be sent, but what expires is told so.
            taken = [item for item in waiting if item.payment.valid_before <= head.at]
            taken = taken[: policy.examined_max]
        else:
            taken = [item for together in plan(waiting, policy, room=room) for item in together]
        if not taken and (market is None or not self._free):
            return False
        self._desk.take(taken)
        plans: list[Plan] = []
        try:
            passing = await self._trial.passing(taken, head, now)
            if market is not None and self._signer is not None:
                plans = plan(passing, policy, room=room)
                await self._dispatch(self._signer, plans, market, policy, now)
            passed = {item.id for item in passing}
            doomed = [item for item in taken if item.id not in passed]
            await self._outcomes.decide(await self._trial.judge(doomed, head, now), now)
        finally:
            self._desk.line_up(item for item in taken if item.transaction is None)
        return bool(plans)

    def _room(self) -> int:
        """How many transactions may be signed now: to fill a gap first, and none while something is not sent."""
        if self._signer is None:
            return 0
        unsent = [flight.nonce for flight in self._flights.values() if not flight.sent]
        if self._free:
            return 0 if min(unsent, default=self._next_nonce) < self._free[0] else len(self._free)
        if unsent or self._gap_since is not None:
            return 0
        return self._in_flight_max - len(self._flights)

    async def _dispatch(
        self, signer: Signer, plans: Sequence[Plan], fees: Fees, policy: RelayPolicy, now: int
    ) -> None:
        """Sign, store, and only then send. What fills a gap and has no payment goes to ourselves."""
        fillers: list[Plan] = [()] * max(0, len(self._free) - len(plans))
        contents = [*plans, *fillers]
        if not contents:
            return
        fresh = range(self._next_nonce, self._next_nonce + len(contents))
        nonces = [*self._free, *fresh][: len(contents)]

        def sign() -> list[Relay]:
            return [
                signer.sign(items, nonce=nonce, attempt=1, fees=fees, now=now)
                for nonce, items in zip(nonces, contents, strict=True)
            ]

        relays = await asyncio.to_thread(sign)
        await self._db.write(lambda tx: _store(tx, relays, contents))
        flights = [
            Flight(nonce=relay.nonce, items=list(items), relays=[])
            for relay, items in zip(relays, contents, strict=True)
        ]
        for flight, relay in zip(flights, relays, strict=True):
            flight.add(relay)
            self._flights[flight.nonce] = flight
        self._free = [nonce for nonce in self._free if nonce not in self._flights]
        self._next_nonce = max(self._next_nonce, nonces[-1] + 1)
        await self._sending.send(flights, policy, now)


def _store(tx: Tx, relays: Sequence[Relay], contents: Sequence[Plan] = ()) -> None:
    for relay in relays:
        rows.store_attempt(tx, relay)
    for relay, items in zip(relays, contents, strict=False):
        for item in items:
            rows.sign(tx, item.id, relay)
