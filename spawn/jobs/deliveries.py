"""Sends events to webhooks, and erases what was sent to those that are deleted."""

from typing import Final

from spawn_ledger.tx import Tx

from spawn.services.deliveries import Deliveries as Sender
from spawn.store import deliveries, webhooks
from spawn.store.database import Database

BATCHES_PER_TICK: Final = 20


class Deliveries:
    """Starts what is due and waits for none of it: one slow receiver holds up nobody else's events."""

    def __init__(self, db: Database, sender: Sender) -> None:
        self._db = db
        self._sender = sender

    async def tick(self, now: int) -> None:
        await self._sender.start_due()
        for _ in range(BATCHES_PER_TICK):
            if not await self._erase():
                return

    async def _erase(self) -> bool:
        """Erase some of a deleted webhook, the webhook itself last; False when there is none."""
        found = await self._db.read(webhooks.SELECT_DELETED)
        if not found:
            return False
        await self._db.write(lambda tx: _erase_some(tx, found[0]["id"]))
        return True


def _erase_some(tx: Tx, webhook_id: str) -> None:
    params = {"webhook_id": webhook_id, "limit": deliveries.AT_ONCE}
    if tx.execute(deliveries.ERASE, params) < deliveries.AT_ONCE:
        tx.execute(webhooks.DELETE_DELETED, {"id": webhook_id})
