"""Time as the daemon has it, and the service's as far as we know it.

Invariant: what expires is judged by the service's clock. Ours may be an hour off, and may be set while we run: only the
measured distance to the service's counts, and it survives a restart without link.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import datetime
from datetime import time as time_of_day
from typing import Final, Protocol

ROUND_TRIP_MAX_S: Final = 5.0
"""A word that was under way for longer says too little of what the time is now, unless it is the first."""
SAVED_DRIFT_MS: Final = 1000
"""By how much the distance changes before it is written down again."""


class Clock(Protocol):
    """The only source of time in the daemon."""

    def now_ms(self) -> int:
        """Unix milliseconds, as this machine has them."""
        ...

    def elapsed_s(self) -> float:
        """Seconds since some moment in the past, those of a suspended machine included. Nobody sets this clock."""
        ...

    def local_time(self) -> time_of_day:
        """The time of the day where the machine is: its owner's hours are meant so."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return `seconds` later."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def elapsed_s(self) -> float:
        # Linux stops CLOCK_MONOTONIC while a laptop sleeps, and leases run on.
        kind = getattr(time, "CLOCK_BOOTTIME", None)
        return time.monotonic() if kind is None else time.clock_gettime(kind)

    def local_time(self) -> time_of_day:
        return datetime.now().time()  # noqa: DTZ005 - the owner's hours are by the machine's own clock and zone

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class ServiceClock:
    """The service's clock: counted from its last word, or ours and the saved distance before there is one."""

    def __init__(self, clock: Clock, offset_ms: int, save: Callable[[int], None]) -> None:
        self._clock = clock
        self._save = save
        self._saved_ms = offset_ms
        self._at_ms = clock.now_ms() + offset_ms
        self._at_elapsed_s = clock.elapsed_s()
        self._heard = False

    def now_ms(self) -> int:
        return self._at_ms + round((self._clock.elapsed_s() - self._at_elapsed_s) * 1000)

    def now_s(self) -> int:
        """Unix seconds."""
        return self.now_ms() // 1000

    def offset_ms(self) -> int:
        """How far the service's clock is ahead of this machine's."""
        return self.now_ms() - self._clock.now_ms()

    def hear(self, ts_ms: int, round_trip_s: float) -> None:
        """The service said that it is `ts_ms`, in an answer to what we sent `round_trip_s` ago."""
        if self._heard and round_trip_s > ROUND_TRIP_MAX_S:
            return
        self._heard = True
        self._at_ms = ts_ms + round(round_trip_s * 500)
        self._at_elapsed_s = self._clock.elapsed_s()
        self.keep()

    def keep(self) -> None:
        """Write the distance down where it changed: a restart without link begins with it."""
        offset_ms = self.offset_ms()
        if abs(offset_ms - self._saved_ms) > SAVED_DRIFT_MS:
            self._save(offset_ms)
            self._saved_ms = offset_ms
