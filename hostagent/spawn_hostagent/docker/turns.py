"""One thing at a time is done to a rental, whoever asks for it.

Invariant: who waits is served in the order of asking, and a rental that nobody asks about is forgotten.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from spawn_schemas.ids import RentalId

from spawn_hostagent.machines import MachineError


class _Turn:
    """Whose turn it is, and how many want it."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.wanted = 0


class Turns:
    def __init__(self) -> None:
        self._of: dict[RentalId, _Turn] = {}

    @asynccontextmanager
    async def of(self, rental_id: RentalId) -> AsyncIterator[None]:
        """Wait for one's turn with this rental, and have it for as long as this lasts."""
        turn = self._of.setdefault(rental_id, _Turn())
        turn.wanted += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.wanted -= 1
            if turn.wanted == 0:
                del self._of[rental_id]


async def each(*chores: Callable[[], Awaitable[object]]) -> None:
    """Do them all: what fails keeps none of the others from being done. Raises the first MachineError at the end."""
    failed: list[MachineError] = []
    for chore in chores:
        try:
            await chore()
        except MachineError as error:
            failed.append(error)
    if failed:
        raise failed[0]
