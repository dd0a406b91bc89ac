"""Settling on a real chain by ourselves: the facilitator whose transactions we sign and pay.

Invariant: a payment has one row and one outcome for whoever settles it, however often and in whichever process. A row
is `failed` only while nothing of ours could move the money, and `confirmed` only by what the chain shows; everything
between is carried on by whoever holds the lease next. Of all processes on a database one relays, with all the keys.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Final

import msgspec
from spawn_schemas.errors import SpawnError
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
from spawn.services.leader import Fenced, Leader, Office
from spawn.services.relayer_desk import Handed, Item
from spawn.services.relayer_flight import Signer
from spawn.services.relayer_tenure import Tenure
from spawn.services.relayer_watch import Watch, outcome_of, stored
from spawn.store import settlements as rows
from spawn.store.database import Database, StoreError
from spawn.store.leases import LeaseLost
from spawn.store.settlements import Settlement

log = logging.getLogger(__name__)

RELAYING: Final = Office(name="relayer", does="relays payments", renew_s=5, lease_s=15)
"""Its lease is shorter than a call waits for its payment, so that some outlive the process that relays."""
PAUSE_S: Final = 1.0
"""How long nobody is elected after an error that nobody foresaw."""

_encoder: Final = msgspec.json.Encoder()


class Relayer:
    """A `Facilitator`. It works by itself between `start` and `stop`; tests call `step` instead."""

    def __init__(
        self,
        db: Database,
        node: Node,
        on_chain: OnChain,
        terms: Terms,
        policy: RelayPolicy,
        keys: Sequence[str],
        clock: Clock,
        holder: str,
        office: Office = RELAYING,
    ) -> None:
        """`on_chain` must ask for as many confirmations as `policy`; `holder` is a name that no other process has.

        Raises ValueError for a key that is none.
        """
        self._db = db
        self._node = node
        self._on_chain = on_chain
        self._terms = terms
        self._policy = policy
        self._clock = clock
        self._wallets = ContractWallets(node, terms, clock.now_s)
        self._signers = tuple(
            Signer(key, chain_id=terms.chain_id, asset=terms.asset, multicall=policy.multicall)
            for key in keys
        )
        self._lease = Leader(db, clock, holder, office)
        self._role: Tenure | Watch = Watch(db)
        self._electing = asyncio.Lock()
        self._lost = asyncio.Event()
        self._reserving: set[asyncio.Task[None]] = set()
        self._keeper: asyncio.Task[None] | None = None

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
            item = await self._settling(payment, end)
            if not item.ended.done():
                raise SettlementUnclear(
                    "The transfer is under way; it is not confirmed yet.", transaction=item.transaction
                )
            outcome = item.ended.result()
            if isinstance(outcome, Handed):
                continue
            if isinstance(outcome, Exception):
                raise outcome
            if item.payment == payment:
                return outcome
            if isinstance(outcome, Settled):
                return _settled_for(payment, item.payment, outcome)
            # Another authorization had this nonce, and it failed: now it is this one's turn.

    async def _settling(self, payment: ExactPayment, end: float) -> Item:
        """Wait for this payment; it is written down and lined up unless it is on its way already."""
        id_ = self._id(payment)
        item = self._role.desk.find(id_)
        written: asyncio.Task[None] | None = None
        if item is None:
            item = self._role.desk.open(id_, payment)
            # A task of its own: whoever waits may be cancelled, what was written may not be forgotten.
            written = asyncio.create_task(self._reserve(self._role, item), name="reserve a settlement")
            self._reserving.add(written)
            written.add_done_callback(self._reserving.discard)
        item.askers += 1
        try:
            if written is not None:
                await asyncio.shield(written)
            left = end - asyncio.get_running_loop().time()
            await asyncio.wait({item.ended}, timeout=max(0.0, left))
        finally:
            item.askers -= 1
        return item

    async def find(self, payment: ExactPayment) -> Settled | None:
        """See `Facilitator.find`. What we have under way is unclear, whatever its time: it is given up first."""
        id_ = self._id(payment)
        known = [
            rows.settlement_from(row) for row in await self._db.read(rows.SELECT_SETTLEMENT, {"id": id_})
        ]
        if known and known[0].state is not SettlementState.FAILED and stored(known[0]) == payment:
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

    async def _reserve(self, role: Tenure | Watch, item: Item) -> None:
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
            role.desk.end(item, error)
            return
        if known is not row:
            # Another process was first, maybe with another authorization of this nonce.
            item.payment = stored(known)
            item.transaction = known.transaction_hash
        outcome = outcome_of(known)
        if outcome is not None:
            role.desk.end(item, outcome)
            return
        role.desk.line_up((item,))
        role.wake()

    # --- its life ---------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Relay if nobody does, and go on until `stop`. The node need not answer yet."""
        with contextlib.suppress(LeaseLost):
            (await self._turn()).start()
        self._keeper = asyncio.create_task(self._keep(), name="relayer's lease")

    async def stop(self) -> None:
        """Stop at once, and let another process relay; the rows say where it goes on. Who waits is told that it is
        unclear.
        """
        tasks = [*self._reserving] if self._keeper is None else [self._keeper, *self._reserving]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._role.stop()
        self._role.desk.clear(
            lambda item: SettlementUnclear("The service is stopping.", transaction=item.transaction)
        )
        with contextlib.suppress(StoreError, SpawnError):  # another waits until the lease is old, then
            await self._lease.resign()

    async def step(self, now: int) -> bool:
        """One round of every key, at this time (unix seconds); True when another should follow at once.

        What is being written down is waited for, so that a test knows what a round has seen.
        """
        await asyncio.gather(*self._reserving)
        try:
            return await (await self._turn()).step(now)
        except LeaseLost:
            return True

    async def _keep(self) -> None:
        """See to the lease, and to what other processes write: for ever, but with the database to ourselves."""
        while True:
            self._lost.clear()
            pause = self._policy.look_s
            try:
                (await self._turn()).start()
            except LeaseLost:
                pass  # the next turn finds out whose it is
            except Exception:
                log.exception("what other processes do with payments cannot be seen")
                pause = PAUSE_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if self._role.is_complete else pause):
                    await self._lost.wait()

    async def _turn(self) -> Tenure | Watch:
        """Take the part that the lease gives us, and look at what other processes wrote. Raises LeaseLost."""
        async with self._electing:
            token = await self._lease.token()
            if self._role.token is not None and self._role.token != token:
                log.warning("this process relays payments no more")
                await self._become(Watch(self._db))
            if token is not None and self._role.token != token:
                tenure = self._tenure(token)
                await tenure.restore()
                await self._become(tenure)
            else:
                await self._role.look()
            return self._role

    async def _become(self, role: Tenure | Watch) -> None:
        """Whoever waits goes over to the other desk, once what is written down lies there."""
        before, self._role = self._role, role
        try:
            await before.stop()
            await asyncio.gather(*self._reserving, return_exceptions=True)
            await role.look()
        finally:
            before.desk.clear(lambda _: Handed())

    def _tenure(self, token: int) -> Tenure:
        return Tenure(
            token,
            Fenced(self._db, self._lease, token),
            self._node,
            self._on_chain,
            self._terms,
            self._policy,
            self._signers,
            self._wallets,
            self._clock,
            self._lost.set,
        )


def _settled_for(asked: ExactPayment, moved: ExactPayment, settled: Settled) -> Settled | Rejected:
    """The nonce moved `moved`: was it what was asked about? Two signatures may be over one authorization."""
    if (asked.pay_to, asked.value) == (moved.pay_to, moved.value):
        return settled
    return Rejected(
        reason=Reason.NONCE_USED.value,
        message="The nonce was spent by another authorization. Sign one with a fresh nonce.",
    )
