"""Time and randomness, handed to whoever needs them so that tests can own both."""

import os
import threading
import time
from typing import Final, Protocol

_STORED: Final = 4096
"""Random bytes that are fetched at once."""


class Clock(Protocol):
    """The only source of time in the service."""

    def now_s(self) -> int:
        """Unix time in whole seconds, UTC."""
        ...

    def now_ms(self) -> int:
        """Unix time in milliseconds, UTC."""
        ...

    def elapsed_s(self) -> float:
        """Seconds since some moment in the past. Nobody sets this clock: it measures, and tells no time."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_s(self) -> int:
        return int(time.time())

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def elapsed_s(self) -> float:
        return time.monotonic()


class SystemEntropy:
    """The operating system's random bytes, fetched ahead: a call costs more in waiting for the interpreter's lock
    than in randomness.

    Invariant: no byte is handed out twice. Each thread has a store of its own, and a forked process would share its
    parent's, so the service never forks.
    """

    def __init__(self) -> None:
        self._stores = threading.local()

    def bytes(self, count: int, /) -> bytes:
        at: int = getattr(self._stores, "at", _STORED)
        if at + count > _STORED:
            if count > _STORED:
                return os.urandom(count)
            self._stores.bytes, at = os.urandom(_STORED), 0
        self._stores.at = at + count
        taken: bytes = self._stores.bytes[at : at + count]
        return taken
