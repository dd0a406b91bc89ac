"""Tells waiting calls of this process that something they wait for may have changed.

Invariant: a signal only wakes; the truth is read from the database, so that a lost one costs a second, never an answer.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

_RECHECK_S = 1.0


class Signals:
    """One set of waiters per subject (an operation, a reservation)."""

    def __init__(self) -> None:
        self._waiters: defaultdict[str, set[asyncio.Future[None]]] = defaultdict(set)

    def notify(self, subject: str) -> None:
        """Wake everybody who waits for `subject`."""
        for waiter in self._waiters.pop(subject, ()):
            if not waiter.done():
                waiter.set_result(None)

    async def wait_until(
        self, subject: str, read: Callable[[], Awaitable[T]], done: Callable[[T], bool], *, timeout_s: float
    ) -> T:
        """Read until `done` or until `timeout_s` has passed; answers what was read last."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        while True:
            waiter: asyncio.Future[None] = loop.create_future()
            self._waiters[subject].add(waiter)
            try:
                value = await read()
                left = end - loop.time()
                if done(value) or left <= 0:
                    return value
                # Another process may have done the work: it cannot wake us.
                await asyncio.wait((waiter,), timeout=min(left, _RECHECK_S))
            finally:
                self._forget(subject, waiter)

    def _forget(self, subject: str, waiter: "asyncio.Future[None]") -> None:
        waiters = self._waiters.get(subject)
        if waiters is not None:
            waiters.discard(waiter)
            if not waiters:
                del self._waiters[subject]
        waiter.cancel()
