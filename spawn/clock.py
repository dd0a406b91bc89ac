"""Time and randomness, handed to whoever needs them so that tests can own both."""

import os
import time
from typing import Protocol


class Clock(Protocol):
    """The only source of time in the service."""

    def now_s(self) -> int:
        """Unix time in whole seconds, UTC."""
        ...

    def now_ms(self) -> int:
        """Unix time in milliseconds, UTC."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_s(self) -> int:
        return int(time.time())

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000


class SystemEntropy:
    """The operating system's random bytes."""

    def bytes(self, count: int, /) -> bytes:
        return os.urandom(count)
