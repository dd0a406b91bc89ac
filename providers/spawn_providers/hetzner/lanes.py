"""Which call gets the next free thread.

Invariant: of those who wait the most urgent goes first, and the less urgent kinds never have all threads between them;
whoever stops waiting leaves nothing behind.
"""

import asyncio
import heapq
from collections.abc import Mapping
from itertools import count
from typing import Final

from spawn_providers.hetzner.budget import Priority

THREADS: Final = 8
_THREADS_MAX: Final[Mapping[Priority, int]] = {
    Priority.DESTROY: THREADS,
    Priority.CREATE: THREADS - 1,
    Priority.POWER: THREADS - 2,
    Priority.POLL: THREADS - 4,
    Priority.RECONCILE: THREADS - 5,
}
"""How many threads may be busy before a call of this kind has to wait, itself counted."""


class Lanes:
    """Threads as turns to be taken. Used on the event loop only."""

    def __init__(self) -> None:
        self._busy = 0
        self._waiting: list[tuple[Priority, int, asyncio.Future[None]]] = []
        self._arrivals = count()

    @property
    def busy(self) -> int:
        return self._busy

    async def enter(self, priority: Priority) -> None:
        """Wait for a turn; it is taken when this returns, and given back by `leave`."""
        if self._free(priority) and not any(w[0] <= priority for w in self._waiting):
            self._busy += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (priority, next(self._arrivals), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()
            raise

    def leave(self) -> None:
        self._busy -= 1
        while self._waiting and (self._waiting[0][2].done() or self._free(self._waiting[0][0])):
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                self._busy += 1
                turn.set_result(None)

    def _free(self, priority: Priority) -> bool:
        return self._busy < _THREADS_MAX[priority]
