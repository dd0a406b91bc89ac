"""Goes on telling servers of announced prices; and keeps a process's price list current, whoever leads."""

from typing import Final

from spawn.services import price_changes
from spawn.services.price_list import PriceList
from spawn.store.database import Database

CHUNKS_PER_TICK: Final = 200


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
