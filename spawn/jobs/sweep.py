"""Forgets what has been remembered long enough: idempotency keys, used nonces, stored answers, events, what a command
in a server wrote, and what hosts were told.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from spawn.store import events, rentals, reservations, secrets
from spawn.store.database import Database

BATCH: Final = 500
BATCHES_PER_TICK: Final = 200
"""A tick forgets up to 100,000 rows, in transactions that hold nobody up; the next goes on."""
RESULTS_KEEP_S: Final = 3_600
"""How long what a tenant asked a host for can be read again, by whoever repeats the call."""
COMMANDS_KEEP_S: Final = 30 * 86_400
"""How long it is known what else a host was told, and what came of it."""


class Sweep:
    """Keeps the tables as large as what is remembered, whatever the traffic; events for `events_keep_s`."""

    def __init__(self, db: Database, *, events_keep_s: int) -> None:
        self._db = db
        self._events_keep_s = events_keep_s

    async def tick(self, now: int) -> None:
        for sql, before in (
            (reservations.DELETE_OLD_KEYS, now),
            (reservations.DELETE_OLD_RESERVATIONS, now),
            (secrets.DELETE_OLD_RESULTS, now - RESULTS_KEEP_S),
            (rentals.DELETE_OLD_ASKS, now - RESULTS_KEEP_S),
            (rentals.DELETE_OLD_COMMANDS, now - COMMANDS_KEEP_S),
        ):
            await _in_batches(partial(self._delete, sql, before))
        await _in_batches(partial(self._forget_events, now - self._events_keep_s))

    async def _delete(self, sql: str, before: int) -> int:
        return await self._db.write(lambda tx: tx.execute(sql, {"before": before, "limit": BATCH}))

    async def _forget_events(self, before: int) -> int:
        return await self._db.write(lambda tx: events.forget(tx, before=before, limit=BATCH))


async def _in_batches(forget: Callable[[], Awaitable[int]]) -> None:
    for _ in range(BATCHES_PER_TICK):
        if await forget() < BATCH:
            return
