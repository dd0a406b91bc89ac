"""Looks each ten seconds for whom nothing was heard of, after what this process heard was written down."""

from collections.abc import Awaitable, Callable

from spawn.services.billing import Billing
from spawn.services.host_silence import Silence
from spawn.store.database import Database


class Hosts:
    """`flush` writes down when the hosts of this process were last heard."""

    def __init__(
        self, db: Database, billing: Billing, flush: Callable[[], Awaitable[None]], *, listening_since: int
    ) -> None:
        self._flush = flush
        self._silence = Silence(db, billing, listening_since=listening_since)

    async def tick(self, now: int) -> None:
        await self._flush()
        await self._silence.tick(now)
