"""Carries on with operations that are due: polls, retries, and what a crash left behind.

What is fenced here, and why no more: this job's own writes, as those of every job. What the Operator does is not,
since it works for calls as well, in processes that run no jobs; each step it takes is claimed with a token of its own,
and its outcome is recorded only under that token, in the transaction of the money it moves. So a leader that was
paused may start an operation that another process has: it finds it claimed, or loses the claim and records nothing.
"""

import logging
from typing import Final

from spawn_schemas.ids import ActionId

from spawn.services.operator import CLAIM_S, Operator
from spawn.services.outcomes import BACKOFF_MAX_S
from spawn.store import operations
from spawn.store.database import Database

log = logging.getLogger(__name__)

OPERATIONS_PER_TICK: Final = 100
LOOK_S: Final = 60
"""How often it is looked for what an earlier run left in the future."""
BATCH: Final = 500


class Operations:
    """Starts what is due and does not wait for it: one slow provider call holds up nobody else's server."""

    def __init__(self, db: Database, operator: Operator) -> None:
        self._db = db
        self._operator = operator
        self._last = 0
        self._looked_at = 0

    async def tick(self, now: int) -> None:
        await self._bring_back(now)
        due = await self._db.read(operations.SELECT_DUE, {"now": now, "limit": OPERATIONS_PER_TICK})
        for row in due:
            self._operator.kick(ActionId(row["id"]))

    async def _bring_back(self, now: int) -> None:
        """After a clock was set back, what waits until then would wait for as long as it was set back.

        Whatever is planned further ahead than anything is ever put off is due now, and once the step itself was seen,
        everything is. A claim lasts as long as a new one, since its holder may be at work.
        """
        was_set_back = now < self._last
        self._last = now
        if not was_set_back and self._looked_at <= now < self._looked_at + LOOK_S:
            return
        self._looked_at = now
        params = {
            "now": now,
            "latest": now if was_set_back else now + BACKOFF_MAX_S,
            "claimed_until": now + CLAIM_S,
            "limit": BATCH,
        }
        while await self._db.read(operations.SELECT_AHEAD, params):
            count = await self._db.write(lambda tx: tx.execute(operations.BRING_BACK, params))
            log.warning("the clock was set back: %d operations go on", count)
