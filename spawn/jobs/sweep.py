"""Forgets what has been remembered long enough: idempotency keys, used nonces, stored answers, events."""

from typing import Final

from spawn.store import events, reservations
from spawn.store.database import Database

BATCH: Final = 500
BATCHES_PER_TICK: Final = 200
"""A tick forgets up to 100,000 rows, in transactions that hold nobody up; the next goes on."""


class Sweep:
    """Keeps the tables as large as what is remembered, whatever the traffic; events for `events_keep_s`."""

    def __init__(self, db: Database, *, events_keep_s: int) -> None:
        self._db = db
        self._events_keep_s = events_keep_s

    async def tick(self, now: int) -> None:
        for sql in (reservations.DELETE_OLD_KEYS, reservations.DELETE_OLD_RESERVATIONS):
            for _ in range(BATCHES_PER_TICK):
                if await self._delete(sql, now) < BATCH:
                    break
        for _ in range(BATCHES_PER_TICK):
            if await self._forget_events(now - self._events_keep_s) < BATCH:
                break

    async def _delete(self, sql: str, now: int) -> int:
        return await self._db.write(lambda tx: tx.execute(sql, {"now": now, "limit": BATCH}))

    async def _forget_events(self, before: int) -> int:
        return await self._db.write(lambda tx: events.forget(tx, before=before, limit=BATCH))
