"""How fast bytes may leave: a bucket that refills by the clock, and waits in line when it is empty.

Invariant: over any stretch of time no more passes than the rate allows, plus one second's worth; and whoever waits is
served in the order of asking, a piece at a time, so that streams share evenly.
"""

import asyncio

from spawn_hostagent.clock import Clock

BYTES_PER_MBIT = 125_000


class Bucket:
    """`mbit` a second, in units of a million bits."""

    def __init__(self, mbit: float, clock: Clock) -> None:
        self._rate = mbit * BYTES_PER_MBIT
        self._clock = clock
        self._left = self._rate
        self._at = clock.elapsed_s()
        self._line = asyncio.Lock()

    async def take(self, count: int) -> None:
        """Return when `count` bytes may pass."""
        async with self._line:
            self._refill()
            # A piece larger than the bucket goes into debt, which the next in line waits for.
            while self._left <= 0:
                await self._clock.sleep(-self._left / self._rate + 0.001)
                self._refill()
            self._left -= count

    def _refill(self) -> None:
        now = self._clock.elapsed_s()
        self._left = min(self._rate, self._left + (now - self._at) * self._rate)
        self._at = now
