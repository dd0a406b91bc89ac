"""Keeps the claim on a call for as long as somebody is at it, so that a claim is short: who died is soon followed.

Invariant: a claim only says that others had better wait. Whoever is overtaken all the same, because its process stood
still, finds that out at its next write.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from spawn_schemas.errors import SpawnError

from spawn.clock import Clock
from spawn.store.database import Database, StoreError
from spawn.store.reservations import RENEW_CLAIM, Reservation

CLAIM_S: Final = 30
"""How long a claim lasts: how long a client waits for another process when the one that it called died."""
RENEW_S: Final = 10
"""How often it is made new. Most calls end before the first time."""


@contextmanager
def kept(db: Database, clock: Clock, claimed: Reservation) -> Iterator[None]:
    """Renew this claim for as long as the context lasts."""
    renewing: asyncio.Task[None] | None = None

    def begin() -> None:
        nonlocal renewing
        renewing = asyncio.create_task(_renew(db, clock, claimed), name=f"claim on {claimed.id}")

    timer = asyncio.get_running_loop().call_later(RENEW_S, begin)
    try:
        yield
    finally:
        timer.cancel()
        if renewing is not None:
            renewing.cancel()


async def _renew(db: Database, clock: Clock, claimed: Reservation) -> None:
    """Until it is another's, or nobody's any more."""
    params = {"id": claimed.id, "claim": claimed.claim}
    is_ours = True
    while is_ours:
        now = {"until": clock.now_s() + CLAIM_S}
        # One that fails is made good by the next.
        with contextlib.suppress(SpawnError, StoreError):
            is_ours = await db.write(lambda tx: tx.execute(RENEW_CLAIM, params | now) == 1)  # noqa: B023 - awaited here
        await asyncio.sleep(RENEW_S)
