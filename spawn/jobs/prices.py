"""Goes on telling servers of announced prices; reads the provider's lists each day; and keeps a process's price list
current, whoever leads.
"""

import logging
from typing import Final

from spawn.services import price_changes
from spawn.services.price_list import PriceList
from spawn.services.price_refresh import Refresher, Unread, said
from spawn.store.database import Database

log = logging.getLogger(__name__)

CHUNKS_PER_TICK: Final = 200
REFRESH_S: Final = 86_400
RETRY_S: Final = 3600


class Listing:
    """Each process sells from its own list, so that each has to look, the leader or not."""

    def __init__(self, db: Database, prices: PriceList) -> None:
        self._db = db
        self._prices = prices

    async def tick(self, now: int) -> None:
        await self._prices.refresh(self._db)


class Prices:
    """Each chunk is a transaction of its own, so that calls get in between."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def tick(self, now: int) -> None:
        for _ in range(CHUNKS_PER_TICK):
            if not await self._db.write(lambda tx: price_changes.tell(tx, now)):
                return


class Refreshing:
    """When a process begins to lead, and each day from then on; each hour while it fails.

    When it was is remembered in this process alone: reading once more changes nothing.
    """

    def __init__(self, db: Database, refresher: Refresher) -> None:
        self._db = db
        self._refresher = refresher
        self._next_at = 0

    async def tick(self, now: int) -> None:
        # A moment further ahead than that was planned before the clock was set back.
        if now < self._next_at <= now + REFRESH_S:
            return
        self._next_at = now + RETRY_S
        try:
            reading = await self._refresher.run(self._db)
        except Unread as error:
            log.warning("the prices stay as they are, because the provider's lists cannot be read: %s", error)
            return
        self._next_at = now + REFRESH_S
        log.info("the provider's lists were read: %s", " ".join(said(reading)))
