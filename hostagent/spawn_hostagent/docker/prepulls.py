"""Images that the owner wants here ahead of time, fetched one after another while nobody waits.

Invariant: one at a time, so that rentals' own images come first; what fails is told, and tried again.
"""

import logging
from typing import Final, Literal

import msgspec

from spawn_hostagent.clock import Clock
from spawn_hostagent.machines import MachineError, Machines

AGAIN_S: Final = 60.0
AGAIN_MAX_S: Final = 3600.0
"""How long after one that failed it is tried again: doubled each time, up to the second."""
LOOK_S: Final = 6 * 3600.0
"""How long after all are here it is looked whether they still are."""

_log: Final = logging.getLogger(__name__)


class Prepulled(msgspec.Struct, frozen=True, kw_only=True):
    """An image of the owner's list; `problem` is why it is not here yet."""

    image: str
    state: Literal["waiting", "fetching", "here", "failed"]
    percent: int | None = None
    problem: str | None = None


class Prepulls:
    """`shown` is how far each image is, in the owner's order."""

    def __init__(self, images: tuple[str, ...], machines: Machines, clock: Clock) -> None:
        self._machines, self._clock = machines, clock
        self._shown = {image: Prepulled(image=image, state="waiting") for image in images}

    def shown(self) -> tuple[Prepulled, ...]:
        return tuple(self._shown.values())

    async def run(self) -> None:
        """Fetch what is not here, again and again."""
        again_s = AGAIN_S
        while True:
            if all([await self._fetch(image) for image in self._shown]):
                again_s = AGAIN_S
                await self._clock.sleep(LOOK_S)
            else:
                await self._clock.sleep(again_s)
                again_s = min(2 * again_s, AGAIN_MAX_S)

    async def _fetch(self, image: str) -> bool:
        async def tell(percent: int, _: str) -> None:
            self._shown[image] = Prepulled(image=image, state="fetching", percent=percent)

        try:
            await self._machines.prepull(image, tell)
        except MachineError as error:
            _log.warning("An image of images.prepull is not here yet: %s", error)
            self._shown[image] = Prepulled(image=image, state="failed", problem=str(error))
            return False
        self._shown[image] = Prepulled(image=image, state="here")
        return True
