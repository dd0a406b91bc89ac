"""Wakes who waits for events of a wallet.

One query for everybody who waits, a few times a second and only while somebody does: so it also sees what another
process or thread has committed, and a commit needs to tell nobody. Invariant: a wake-up says only that it is worth
looking; nobody who waits from the number he has seen up to misses what comes after it.
"""

import asyncio
import logging
from collections import defaultdict
from typing import Final

from spawn_ledger.tx import Row
from spawn_schemas.ids import Address

from spawn.store.database import Database, StoreError
from spawn.store.events import SELECT_NEWS

log = logging.getLogger(__name__)

EVERY_S: Final = 0.25
AT_ONCE: Final = 1_000


class Watch:
    """Watches the table of events for all who wait. For one event loop."""

    def __init__(self, db: Database, *, every_s: float = EVERY_S) -> None:
        self._db = db
        self._every_s = every_s
        self._waiters: defaultdict[Address, set[asyncio.Future[None]]] = defaultdict(set)
        self._seen = 0
        self._watching: asyncio.Task[None] | None = None
        self._stopped = False

    @property
    def is_stopped(self) -> bool:
        """Whether nothing is worth waiting for any more, because the service stops."""
        return self._stopped

    @property
    def is_watching(self) -> bool:
        """Whether the table is looked at again and again."""
        return self._watching is not None

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(map(len, self._waiters.values()))

    async def changed(self, wallet: Address, after: int, *, timeout_s: float) -> None:
        """Wait until the wallet has an event after this number, or may have; at most so long.

        `after` is the last number that there was, of whatever wallet, when the caller looked.
        """
        if self._stopped or (self._watching is not None and self._seen > after):
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[wallet].add(waiter)
        if self._watching is None:
            self._seen = after
            self._watching = asyncio.create_task(self._watch())
        try:
            await asyncio.wait((waiter,), timeout=timeout_s)
        finally:
            self._forget(wallet, waiter)

    def stop(self) -> None:
        """Let go of everybody who waits, now and from now on."""
        self._stopped = True
        self._wake_all()

    async def _watch(self) -> None:
        try:
            while self._waiters:
                news = await self._db.read(SELECT_NEWS, {"after": self._seen, "limit": AT_ONCE})
                self._tell(news)
                if len(news) < AT_ONCE:
                    await asyncio.sleep(self._every_s)
        except StoreError:
            log.warning("the events cannot be watched any more", exc_info=True)
        finally:
            self._watching = None
            self._wake_all()

    def _tell(self, news: list[Row]) -> None:
        if not news:
            return
        self._seen = news[-1]["seq"]
        for wallet in {row["wallet"] for row in news}:
            self._wake(wallet)

    def _wake(self, wallet: Address) -> None:
        for waiter in self._waiters.pop(wallet, ()):
            if not waiter.done():
                waiter.set_result(None)

    def _wake_all(self) -> None:
        for wallet in [*self._waiters]:
            self._wake(wallet)

    def _forget(self, wallet: Address, waiter: "asyncio.Future[None]") -> None:
        waiter.cancel()
        waiters = self._waiters.get(wallet)
        if waiters is not None:
            waiters.discard(waiter)
            if not waiters:
                del self._waiters[wallet]
