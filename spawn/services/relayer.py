"""Settling on a real chain by ourselves: the facilitator whose transactions we sign and pay.

Invariant: a payment has one row and one outcome for whoever settles it, however often. A row is `failed` only while
nothing of ours could move the money, and `confirmed` only by what the chain shows; everything between is carried on
by the next start.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Final

import msgspec
from spawn_schemas.ids import Address
from spawn_schemas.money import MAX_USDC
from spawn_schemas.x402 import Reason

from spawn.clock import Clock
from spawn.domain.settlements import RelayPolicy, SettlementState
from spawn.evm.node import Node
from spawn.payments.contract_wallets import ContractWallets
from spawn.payments.exact import ExactPayment, Terms
from spawn.payments.facilitator import Rejected, Settled, SettlementUnclear
from spawn.payments.onchain import OnChain
from spawn.services.relayer_desk import Desk, Item
from spawn.services.relayer_flight import Flight, Signer
from spawn.services.relayer_lane import Lane
from spawn.services.relayer_outcomes import Outcomes
from spawn.services.relayer_trial import Trial
from spawn.store import settlements as rows
from spawn.store.database import Database
from spawn.store.settlements import Settlement

log = logging.getLogger(__name__)

PAUSE_S: Final = 1.0
"""How long a lane rests after an error that nobody foresaw."""

# Made at import: two threads that make the first one of a type at once crash the process.
_payments: Final = msgspec.json.Decoder(ExactPayment)
_encoder: Final = msgspec.json.Encoder()


class Relayer:
    """A `Facilitator`. One task per key, between `start` and `stop`; tests call `step` instead.

    A key, and the rows of a database, belong to one process at a time.
    """

    def __init__(
        self,
        db: Database,
        node: Node,
        on_chain: OnChain,
        terms: Terms,
        policy: RelayPolicy,
        keys: Sequence[str],
        clock: Clock,
    ) -> None:
        """`on_chain` must ask for as many confirmations as `policy`. Raises ValueError for a key that is none."""
        self._db = db
        self._on_chain = on_chain
        self._terms = terms
        self._policy = policy
        self._clock = clock
        self._node = node
        self._desk = Desk()
        self._trial = Trial(
            node,
            on_chain,
            terms,
            policy,
            self._desk,
            has_code=ContractWallets(node, terms, clock.now_s).has_code,
        )
        self._outcomes = Outcomes(
            db,
            node,
            on_chain,
            terms,
            self._desk,
            confirmations=policy.confirmations,
            eth_price_usdc=policy.eth_price_usdc,
        )
        self._signers = [
            Signer(key, chain_id=terms.chain_id, asset=terms.asset, multicall=policy.multicall)
            for key in keys
        ]
        self._lanes: list[Lane] | None = None
        self._restoring = asyncio.Lock()
        self._wakes: list[asyncio.Event] = []
        self._reserving: set[asyncio.Task[None]] = set()
        self._running: list[asyncio.Task[None]] = []

    @property
    def accounts(self) -> tuple[Address, ...]:
        """Who pays for gas."""
        return tuple(signer.account for signer in self._signers)

    # --- the facilitator --------------------------------------------------------------------------------------

    async def settle(self, payment: ExactPayment) -> Settled | Rejected:
        """See `Facilitator.settle`; waits for `settle_wait_s` at most."""
        if payment.value > MAX_USDC:
            return await self._beyond_all_money(payment)
        loop = asyncio.get_running_loop()
        end = loop.time() + self._policy.settle_wait_s
        while True:
            item = await self._item(payment)
            await asyncio.wait({item.ended}, timeout=max(0.0, end - loop.time()))
            if not item.ended.done():
                raise SettlementUnclear(
                    "The transfer is under way; it is not confirmed yet.", transaction=item.transaction
                )
            outcome = item.ended.result()
            if isinstance(outcome, Exception):
                raise outcome
            if item.payment == payment:
                return outcome
            if isinstance(outcome, Settled):
                return _settled_for(payment, item.payment, outcome)
            # Another authorization had this nonce, and it failed: now it is this one's turn.

    async def find(self, payment: ExactPayment) -> Settled | None:
        """See `Facilitator.find`. What we have under way is unclear, whatever its time: it is given up first."""
        id_ = self._id(payment)
        known = [
            rows.settlement_from(row) for row in await self._db.read(rows.SELECT_SETTLEMENT, {"id": id_})
        ]
        if known and known[0].state is not SettlementState.FAILED and _stored(known[0]) == payment:
            transaction = known[0].transaction_hash
            if known[0].state is SettlementState.CONFIRMED and transaction is not None:
                return Settled(transaction=transaction)
            raise SettlementUnclear("The transfer is under way.", transaction=transaction)
        outcome = await self._on_chain.find(payment)
        return outcome if isinstance(outcome, Settled) else None

    async def is_over(self, payment: ExactPayment) -> bool:
        """See `Facilitator.is_over`."""
        return await self._on_chain.is_over(payment)

    def _id(self, payment: ExactPayment) -> str:
        return payment.nonce_key(self._terms.chain_id, self._terms.asset)

    async def _beyond_all_money(self, payment: ExactPayment) -> Settled | Rejected:
        """No row could hold it, and no balance."""
        return await self._on_chain.find(payment) or Rejected(
            reason=Reason.INSUFFICIENT_FUNDS.value, message="Nobody holds as much as this authorizes."
        )

    async def _item(self, payment: ExactPayment) -> Item:
        """Where to wait for this payment; it is written down and lined up unless it is on its way already."""
        await self._restored()
        id_ = self._id(payment)
        item = self._desk.find(id_)
        if item is None:
            item = self._desk.open(id_, payment)
            # A task of its own: whoever waits may be cancelled, what was written may not be forgotten.
            task = asyncio.create_task(self._reserve(item), name="reserve a settlement")
            self._reserving.add(task)
            task.add_done_callback(self._reserving.discard)
            await asyncio.shield(task)
        return item

    async def _reserve(self, item: Item) -> None:
        now = self._clock.now_s()
        row = Settlement(
            id=item.id,
            payer=item.payment.payer,
            amount=item.value,
            payment=_encoder.encode(item.payment),
            valid_before=item.payment.valid_before,
            state=SettlementState.RESERVED,
            relayer=None,
            relayer_nonce=None,
            transaction_hash=None,
            reason=None,
            message=None,
            created_at=now,
            finished_at=None,
        )
        try:
            known = await self._db.write(lambda tx: rows.reserve(tx, row))
        except Exception as error:  # noqa: BLE001 - it is the answer of everybody who waits
            self._desk.end(item, error)
            return
        if known is row:
            self._desk.line_up((item,))
            for wake in self._wakes:
                wake.set()
        elif known.state is SettlementState.CONFIRMED and known.transaction_hash is not None:
            settled = Settled(transaction=known.transaction_hash)
            self._desk.end(item, _settled_for(item.payment, _stored(known), settled))
        else:
            unclear = SettlementUnclear(
                "Another process brings it to the chain.", transaction=known.transaction_hash
            )
            self._desk.end(item, unclear)

    # --- its life ---------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take up what the last process left, and go on until `stop`. The node need not answer yet."""
        for lane in await self._restored():
            wake = asyncio.Event()
            self._wakes.append(wake)
            self._running.append(asyncio.create_task(self._run(lane, wake), name=f"relayer {lane.account}"))

    async def stop(self) -> None:
        """Stop at once; the rows say where the next start goes on. Who waits is told that it is unclear."""
        tasks = [*self._running, *self._reserving]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for item in list(self._desk.undecided):
            self._desk.end(item, SettlementUnclear("The service is stopping.", transaction=item.transaction))

    async def step(self, now: int) -> bool:
        """One round of every key, at this time (unix seconds); True when another should follow at once.

        What is being written down is waited for, so that a test knows what a round has seen.
        """
        await asyncio.gather(*self._reserving)
        return any([await lane.step(now) for lane in await self._restored()])

    async def _run(self, lane: Lane, wake: asyncio.Event) -> None:
        while True:
            wake.clear()
            try:
                if await lane.step(self._clock.now_s()):
                    await self._linger()
                    continue
            except Exception:
                # What one round could not do, the next tries; the rows are as they were, or as they should be.
                log.exception("relayer %s stumbled", lane.account)
                await asyncio.sleep(PAUSE_S)
                continue
            await self._rest(lane, wake)

    async def _rest(self, lane: Lane, wake: asyncio.Event) -> None:
        """Until something waits, or it is time to look at what is in flight."""
        if lane.is_full:
            await asyncio.sleep(self._policy.poll_s)
            return
        try:
            async with asyncio.timeout(None if lane.is_idle else self._policy.poll_s):
                await wake.wait()
        except TimeoutError:
            return
        await self._linger()

    async def _linger(self) -> None:
        """Let payments that come one after the other share a transaction, unless enough wait to fill one."""
        if len(self._desk.waiting) < self._policy.batch_max:
            await asyncio.sleep(self._policy.linger_s)

    # --- what the last process left ---------------------------------------------------------------------------

    async def _restored(self) -> Sequence[Lane]:
        async with self._restoring:
            if self._lanes is None:
                self._lanes = await self._restore()
            return self._lanes

    async def _restore(self) -> list[Lane]:
        """A lane for each key, and for each account that still has transactions in flight."""
        flights: dict[tuple[Address, int], Flight] = {}
        for row in await self._db.read(rows.SELECT_OPEN_RELAYS):
            relay = rows.relay_from(row)
            name = (relay.relayer, relay.nonce)
            flights.setdefault(name, Flight(nonce=relay.nonce, items=[], relays=[])).relays.append(relay)
        async for settlement in self._unfinished():
            item = self._desk.open(settlement.id, _stored(settlement))
            item.transaction = settlement.transaction_hash
            if settlement.relayer is None or settlement.relayer_nonce is None:
                self._desk.line_up((item,))
            else:
                flights[settlement.relayer, settlement.relayer_nonce].items.append(item)
        signers = {signer.account: signer for signer in self._signers}
        accounts = dict.fromkeys([*signers, *(relayer for relayer, _ in flights)])
        return [
            await self._lane(
                account, signers.get(account), [f for (a, _), f in flights.items() if a == account]
            )
            for account in accounts
        ]

    async def _unfinished(self) -> AsyncIterator[Settlement]:
        created_at, id_ = 0, ""
        while True:
            params = {"created_at": created_at, "id": id_, "limit": rows.PAGE}
            page = [
                rows.settlement_from(row) for row in await self._db.read(rows.SELECT_OPEN_SETTLEMENTS, params)
            ]
            for settlement in page:
                yield settlement
            if len(page) < rows.PAGE:
                return
            created_at, id_ = page[-1].created_at, page[-1].id

    async def _lane(self, account: Address, signer: Signer | None, flights: Sequence[Flight]) -> Lane:
        (found,) = await self._db.read(rows.SELECT_NEXT_NONCE, {"relayer": account})
        return Lane(
            account,
            signer,
            db=self._db,
            node=self._node,
            desk=self._desk,
            trial=self._trial,
            outcomes=self._outcomes,
            flights=flights,
            next_nonce=found["nonce"],
            in_flight_max=self._policy.in_flight_max,
        )


def _stored(settlement: Settlement) -> ExactPayment:
    return _payments.decode(settlement.payment)


def _settled_for(asked: ExactPayment, moved: ExactPayment, settled: Settled) -> Settled | Rejected:
    """The nonce moved `moved`: was it what was asked about? Two signatures may be over one authorization."""
    if (asked.pay_to, asked.value) == (moved.pay_to, moved.value):
        return settled
    return Rejected(
        reason=Reason.NONCE_USED.value,
        message="The nonce was spent by another authorization. Sign one with a fresh nonce.",
    )
