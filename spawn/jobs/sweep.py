"""Forgets what has been remembered long enough: idempotency keys, used nonces, stored answers."""

from typing import Final

from spawn.store import reservations
from spawn.store.database import Database

BATCH: Final = 500
BATCHES_PER_TICK: Final = 200
"""A tick forgets up to 100,000 rows, in transactions that hold nobody up; the next goes on."""


class Sweep:
    """Keeps the tables as large as what is remembered, whatever the traffic."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def tick(self, now: int) -> None:
        for sql in (reservations.DELETE_OLD_KEYS, reservations.DELETE_OLD_RESERVATIONS):
            for _ in range(BATCHES_PER_TICK):
                if await self._delete(sql, now) < BATCH:
                    break

    async def _delete(self, sql: str, now: int) -> int:
        return await self._db.write(lambda tx: tx.execute(sql, {"now": now, "limit": BATCH}))
