"""Charges servers that are due: by the thousand where nothing is to be decided, by the wallet where money may end."""

import logging
from typing import Final

from spawn_ledger.accrual import DAY
from spawn_ledger.tx import Row
from spawn_schemas.ids import Address, ServerId

from spawn.services.billing import Billing
from spawn.store import burning, servers
from spawn.store.burning import START, Place
from spawn.store.database import Database

log = logging.getLogger(__name__)

CHUNKS_PER_TICK: Final = 2_500
SERVERS_PER_PAGE: Final = 500
PAGES_PER_TICK: Final = 20
"""What one tick does at most, a million servers and the wallets of ten thousand; the next goes on."""


class Burn:
    """Each chunk and each wallet is a transaction of its own, so that no tick holds the writer for long."""

    def __init__(self, db: Database, billing: Billing) -> None:
        self._db = db
        self._billing = billing

    async def tick(self, now: int) -> None:
        if not await self._db.read(servers.SELECT_ANY_DUE, {"now": now}):
            return  # an idle service writes nothing
        await self._settle_many(now)
        place = START
        for _ in range(PAGES_PER_TICK):
            due = await self._due(now, place)
            for wallet in dict.fromkeys(row["wallet"] for row in due):
                await self._settle(Address(wallet), now)
            if len(due) < SERVERS_PER_PAGE:
                return
            place = Place(due_at=due[-1]["due_at"], id=ServerId(due[-1]["id"]))

    async def _due(self, now: int, after: Place) -> list[Row]:
        """A page of the servers that are due, each with its wallet."""
        params = {"now": now, "after_due_at": after.due_at, "after_id": after.id, "limit": SERVERS_PER_PAGE}
        return await self._db.read(servers.SELECT_DUE, params)

    async def _settle_many(self, now: int) -> None:
        """Those whose own reserve lasts for longer than anybody is warned of."""
        horizon_s = DAY + self._billing.policy.thresholds_s[0]
        place = START
        for _ in range(CHUNKS_PER_TICK):
            try:
                next_place = await self._chunk(now, horizon_s, place)
            except Exception:
                # They are still due, and are settled wallet by wallet.
                log.exception("a chunk of the burn stumbled")
                return
            if next_place is None:
                return
            place = next_place

    async def _chunk(self, now: int, horizon_s: int, after: Place) -> Place | None:
        chunk = await self._db.write(
            lambda tx: burning.settle_chunk(tx, now=now, horizon_s=horizon_s, after=after)
        )
        return chunk.next

    async def _settle(self, wallet: Address, now: int) -> None:
        try:
            await self._db.write(lambda tx: self._billing.settle(tx, wallet, now))
        except Exception:
            # One wallet whose books do not add up must not let all others run unpaid.
            log.exception("the burn of %s stumbled", wallet)
