"""What the holder of the relayer's lease has in memory, and the tasks that work on it.

Invariant: all of it was read in transactions that compared the lease's token. On a serializable engine what an earlier
holder was about to write is in what they read, or is refused; so no nonce is assigned beside one that is not seen yet.
It is thrown away with the token, and the next holder reads the same rows.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from spawn_ledger.tx import Tx
from spawn_schemas.ids import Address

from spawn.clock import Clock
from spawn.domain.settlements import RelayPolicy
from spawn.evm.node import Node
from spawn.payments.contract_wallets import ContractWallets
from spawn.payments.exact import Terms
from spawn.payments.onchain import OnChain
from spawn.services.leader import Fenced
from spawn.services.relayer_desk import Desk
from spawn.services.relayer_flight import Flight, Signer
from spawn.services.relayer_lane import Lane
from spawn.services.relayer_outcomes import Outcomes
from spawn.services.relayer_trial import Trial
from spawn.services.relayer_watch import stored
from spawn.store import settlements as rows
from spawn.store.leases import LeaseLost
from spawn.store.settlements import Place, Relay, Settlement

log = logging.getLogger(__name__)

PAUSE_S: Final = 1.0
"""How long a lane rests after an error that nobody foresaw."""


class Tenure:
    """From taking the lease to losing it, or letting go. `lost` is called where a lane finds that it is another's."""

    def __init__(
        self,
        token: int,
        db: Fenced,
        node: Node,
        on_chain: OnChain,
        terms: Terms,
        policy: RelayPolicy,
        signers: Sequence[Signer],
        wallets: ContractWallets,
        clock: Clock,
        lost: Callable[[], None],
    ) -> None:
        """`db` refuses what is not written under the token."""
        self.token = token
        self.is_complete = False
        """Whether nothing can wait that is not on the desk."""
        self._db = db
        self._node = node
        self._policy = policy
        self._signers = {signer.account: signer for signer in signers}
        self._clock = clock
        self._lost = lost
        self.desk = Desk()
        self._trial = Trial(node, on_chain, terms, policy, self.desk, has_code=wallets.has_code)
        self._outcomes = Outcomes(
            db,
            node,
            on_chain,
            terms,
            self.desk,
            confirmations=policy.confirmations,
            eth_price_usdc=policy.eth_price_usdc,
        )
        self._lanes: list[Lane] = []
        self._wakes: list[asyncio.Event] = []
        self._running: list[asyncio.Task[None]] = []
        self._seen_all = False
        self._looked_to: Place | None = None

    # --- what others left, and write ----------------------------------------------------------------------------

    async def restore(self) -> None:
        """Take over what is in flight: a lane for each key, and for each account that still has transactions there."""
        relays = await self._db.write(_open_relays)
        flights: dict[tuple[Address, int], Flight] = {}
        for relay in relays:
            name = (relay.relayer, relay.nonce)
            flights.setdefault(name, Flight(nonce=relay.nonce, items=[], relays=[])).relays.append(relay)
        after: Place | None = rows.START
        while after is not None:
            page, after = await self._page(rows.SELECT_IN_FLIGHT, after)
            for settlement in page:
                if settlement.relayer is None or settlement.relayer_nonce is None:
                    raise RuntimeError(f"settlement {settlement.id} is in no transaction")
                item = self.desk.open(settlement.id, stored(settlement))
                item.transaction = settlement.transaction_hash
                flights[settlement.relayer, settlement.relayer_nonce].items.append(item)
        accounts = dict.fromkeys([*self._signers, *(relayer for relayer, _ in flights)])
        self._lanes = [
            await self._lane(account, [f for (a, _), f in flights.items() if a == account])
            for account in accounts
        ]

    async def look(self) -> None:
        """Lay what other processes have written down on the desk: a page of it, and all of it the first time.

        Pages go round, so that what waits for long hides nothing and a look costs the same however much there is.
        """
        while not self.is_complete:
            with self.desk.noting_ends() as ended:
                after = self._looked_to
                page, self._looked_to = await self._page(rows.SELECT_RESERVED, after or rows.START)
                fresh = [
                    self.desk.open(row.id, stored(row))
                    for row in page
                    if self.desk.find(row.id) is None and row.id not in ended
                ]
            self.desk.line_up(fresh)
            if fresh:
                self.wake()
            self._seen_all = self._seen_all or self._looked_to is None
            # With the database to ourselves, what waits from now on has been laid here by `Relayer.settle`.
            self.is_complete = self._seen_all and self._db.exclusive
            if self._seen_all:
                return

    async def _page(self, sql: str, after: Place) -> tuple[list[Settlement], Place | None]:
        return await self._db.write(lambda tx: rows.page_of(tx, sql, after))

    async def _lane(self, account: Address, flights: Sequence[Flight]) -> Lane:
        return Lane(
            account,
            self._signers.get(account),
            db=self._db,
            node=self._node,
            desk=self.desk,
            trial=self._trial,
            outcomes=self._outcomes,
            flights=flights,
            next_nonce=await self._db.write(lambda tx: rows.next_nonce(tx, account)),
            in_flight_max=self._policy.in_flight_max,
        )

    # --- its life -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """A task for each lane, once."""
        if self._running:
            return
        for lane in self._lanes:
            wake = asyncio.Event()
            self._wakes.append(wake)
            self._running.append(asyncio.create_task(self._run(lane, wake), name=f"relayer {lane.account}"))

    async def stop(self) -> None:
        """Stop at once; the rows say where the next holder goes on."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def wake(self) -> None:
        """Something waits."""
        for wake in self._wakes:
            wake.set()

    async def step(self, now: int) -> bool:
        """One round of every key, at this time (unix seconds); True when another should follow at once."""
        return any([await lane.step(now) for lane in self._lanes])

    async def _run(self, lane: Lane, wake: asyncio.Event) -> None:
        while True:
            wake.clear()
            try:
                if await lane.step(self._clock.now_s()):
                    await self._linger()
                    continue
            except LeaseLost:
                self._lost()
                return
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
        if len(self.desk.waiting) < self._policy.batch_max:
            await asyncio.sleep(self._policy.linger_s)


def _open_relays(tx: Tx) -> list[Relay]:
    return [rows.relay_from(row) for row in tx.all(rows.SELECT_OPEN_RELAYS)]
