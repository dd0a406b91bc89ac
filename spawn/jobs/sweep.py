"""Forgets what has been remembered long enough: idempotency keys, used nonces, stored answers, events, and what a
command in a server wrote.
"""

from typing import Final

from spawn.store import events, reservations, secrets
from spawn.store.database import Database

BATCH: Final = 500
BATCHES_PER_TICK: Final = 200
"""A tick forgets up to 100,000 rows, in transactions that hold nobody up; the next goes on."""
RESULTS_KEEP_S: Final = 3_600
"""How long what a tenant asked a host for can be read again, by whoever repeats the call."""


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
        for _ in range(BATCHES_PER_TICK):
            if await self._forget_results(now - RESULTS_KEEP_S) < BATCH:
                break

    async def _delete(self, sql: str, now: int) -> int:
        return await self._db.write(lambda tx: tx.execute(sql, {"now": now, "limit": BATCH}))

    async def _forget_results(self, before: int) -> int:
        params = {"before": before, "limit": BATCH}
        return await self._db.write(lambda tx: tx.execute(secrets.DELETE_OLD_RESULTS, params))

    async def _forget_events(self, before: int) -> int:
        return await self._db.write(lambda tx: events.forget(tx, before=before, limit=BATCH))
