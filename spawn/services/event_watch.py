"""Wakes who waits for events of a wallet.

One query for everybody who waits, a few times a second and only while somebody does: so it also sees what another
process or thread has committed, and a commit needs to tell nobody. Where several write, a number may be visible before
a lower one, so those that were jumped over are looked for again. Invariant: a wake-up says only that it is worth
looking; nobody misses what became visible after his look, however the numbers come, unless it is given up (`Numbers`):
who waits looks once more by himself when his time is over.
"""

import asyncio
import logging
from collections import defaultdict
from typing import Final

import msgspec
from spawn_ledger.tx import Row
from spawn_schemas.errors import SpawnError
from spawn_schemas.ids import Address

from spawn.domain.event_numbers import LATE_MAX, Numbers
from spawn.domain.events import Page
from spawn.store.database import Database, StoreError
from spawn.store.events import SELECT_NEWS

log = logging.getLogger(__name__)

EVERY_S: Final = 0.25
AT_ONCE: Final = 1_000


class _Waiter(msgspec.Struct, frozen=True, eq=False):
    """Somebody who has seen what his wallet had up to the number `after`."""

    after: int
    woken: "asyncio.Future[None]"


class Watch:
    """Watches the table of events for all who wait. For one event loop."""

    def __init__(self, db: Database, *, every_s: float = EVERY_S) -> None:
        self._db = db
        self._every_s = every_s
        self._waiters: defaultdict[Address, set[_Waiter]] = defaultdict(set)
        self._numbers = Numbers(0, 0.0, in_order=True)
        self._told = 0
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

    @property
    def told(self) -> int:
        """How often there was something to tell: remembered before a look, it says whether anything came since."""
        return self._told

    async def changed(self, wallet: Address, seen: Page, *, told: int, timeout_s: float) -> None:
        """Wait until the wallet has an event that was not there in this look, or may have; at most so long.

        `told` is what the property was before the look: what was told since may have been the caller's.
        """
        if self._stopped or self._told != told:
            return
        loop = asyncio.get_running_loop()
        waiter = _Waiter(seen.after, loop.create_future())
        self._waiters[wallet].add(waiter)
        if self._watching is None:
            # Whoever has looked before this look may have seen less.
            self._told += 1
            self._numbers = Numbers(seen.newest, loop.time(), in_order=self._db.exclusive)
            self._watching = asyncio.create_task(self._watch())
        try:
            await asyncio.wait((waiter.woken,), timeout=timeout_s)
        finally:
            self._forget(wallet, waiter)

    def stop(self) -> None:
        """Let go of everybody who waits, now and from now on."""
        self._stopped = True
        self._wake_all()

    async def _watch(self) -> None:
        try:
            while self._waiters:
                late = await self._late()
                news = await self._db.read(SELECT_NEWS, {"after": self._numbers.newest, "limit": AT_ONCE})
                self._tell([*late, *news])
                if len(news) < AT_ONCE:
                    await asyncio.sleep(self._every_s)
        except (StoreError, SpawnError):
            # Whoever waits looks, and is told what is wrong; the next who waits watches again.
            log.warning("the events cannot be watched any more", exc_info=True)
        finally:
            self._watching = None
            self._wake_all()

    async def _late(self) -> list[Row]:
        """What there is now from the lowest number on that is awaited; nothing where none is."""
        self._numbers.give_up(asyncio.get_running_loop().time())
        awaited = self._numbers.awaited
        if not awaited:
            return []
        return await self._db.read(SELECT_NEWS, {"after": awaited[0] - 1, "limit": LATE_MAX})

    def _tell(self, rows: list[Row]) -> None:
        now = asyncio.get_running_loop().time()
        for row in rows:
            if self._numbers.see(row["seq"], now):
                self._told += 1
                self._wake(row["wallet"], row["seq"])

    def _wake(self, wallet: Address, seq: int) -> None:
        """Wake who has not seen this number of the wallet's."""
        for waiter in self._waiters.get(wallet, ()):
            if waiter.after < seq and not waiter.woken.done():
                waiter.woken.set_result(None)

    def _wake_all(self) -> None:
        self._told += 1
        for waiters in self._waiters.values():
            for waiter in waiters:
                if not waiter.woken.done():
                    waiter.woken.set_result(None)

    def _forget(self, wallet: Address, waiter: _Waiter) -> None:
        waiter.woken.cancel()
        waiters = self._waiters.get(wallet)
        if waiters is not None:
            waiters.discard(waiter)
            if not waiters:
                del self._waiters[wallet]
