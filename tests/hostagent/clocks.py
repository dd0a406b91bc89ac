"""Time that passes only when a test says so, for daemons; and how a test waits for what a real socket carries."""

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from datetime import time as time_of_day
from typing import Final, Protocol

START_S: Final = 1_790_000_000
SETTLE: Final = 20
"""Turns of the event loop that whoever was woken gets before time goes on."""
WAIT_S: Final = 20.0


class TrueTime(Protocol):
    """What the time really is: a service has no other."""

    def true_s(self) -> int:
        """Unix seconds."""
        ...

    def true_ms(self) -> int:
        """Unix milliseconds."""
        ...


class WallTime:
    """This machine's own, for whoever talks to real processes."""

    def true_s(self) -> int:
        return self.true_ms() // 1000

    def true_ms(self) -> int:
        return time.time_ns() // 1_000_000


class VirtualClock:
    """`wall_off_s` is how far this machine's own clock is off; `hour` what its owner's wall shows."""

    def __init__(self, *, wall_off_s: int = 0, hour: int = 12) -> None:
        self._passed_s = 0.0
        self.wall_off_s = wall_off_s
        self.hour = hour
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    def true_s(self) -> int:
        """What the time really is, as the service knows it."""
        return START_S + int(self._passed_s)

    def true_ms(self) -> int:
        return START_S * 1000 + round(self._passed_s * 1000)

    def now_ms(self) -> int:
        return self.true_ms() + self.wall_off_s * 1000

    def elapsed_s(self) -> float:
        return self._passed_s

    def local_time(self) -> time_of_day:
        return time_of_day(self.hour)

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._passed_s + seconds, next(self._numbers), woken))
        await woken

    async def advance(self, seconds: float) -> None:
        """Let so much time pass; whoever sleeps wakes at its moment, in order."""
        await settle()
        end = self._passed_s + seconds
        while self._sleepers and self._sleepers[0][0] <= end:
            at, _, woken = heapq.heappop(self._sleepers)
            if woken.done():
                continue
            self._passed_s = max(self._passed_s, at)
            woken.set_result(None)
            await settle()
        self._passed_s = end
        await settle()

    def jump(self, seconds: float) -> None:
        """Let time pass while nobody is there to notice."""
        self._passed_s += seconds
        self._sleepers.clear()


async def settle() -> None:
    for _ in range(SETTLE):
        await asyncio.sleep(0)


async def until(is_so: Callable[[], object], what: str = "") -> None:
    """Wait for what a real socket, thread or process brings about; fail where it does not come."""
    end = asyncio.get_running_loop().time() + WAIT_S
    while not is_so():
        assert asyncio.get_running_loop().time() < end, f"it did not come about: {what or is_so}"
        await asyncio.sleep(0.005)
