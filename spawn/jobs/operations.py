"""Carries on with operations that are due: polls, retries, and what a crash left behind."""

from spawn_schemas.ids import ActionId

from spawn.services.operator import Operator
from spawn.store import operations
from spawn.store.database import Database

OPERATIONS_PER_TICK = 100


class Operations:
    """Starts what is due and does not wait for it: one slow provider call holds up nobody else's server."""

    def __init__(self, db: Database, operator: Operator) -> None:
        self._db = db
        self._operator = operator

    async def tick(self, now: int) -> None:
        due = await self._db.read(operations.SELECT_DUE, {"now": now, "limit": OPERATIONS_PER_TICK})
        for row in due:
            self._operator.kick(ActionId(row["id"]))
