"""Charges servers whose money may have ended, or who have not been charged for a day."""

import logging

from spawn_schemas.ids import Address

from spawn.services.billing import Billing
from spawn.store import servers
from spawn.store.database import Database

log = logging.getLogger(__name__)

WALLETS_PER_TICK = 500


class Burn:
    """Each wallet is settled in a transaction of its own, so that no tick holds the writer for long."""

    def __init__(self, db: Database, billing: Billing) -> None:
        self._db = db
        self._billing = billing

    async def tick(self, now: int) -> None:
        due = await self._db.read(servers.SELECT_DUE_WALLETS, {"now": now, "limit": WALLETS_PER_TICK})
        for row in due:
            try:
                await self._settle(Address(row["wallet"]), now)
            except Exception:
                # One wallet whose books do not add up must not let all others run unpaid.
                log.exception("the burn of %s stumbled", row["wallet"])

    async def _settle(self, wallet: Address, now: int) -> None:
        await self._db.write(lambda tx: self._billing.settle(tx, wallet, now))
