"""Hetzner's lists of what there is, read page by page and kept for a while.

Invariant: a list is kept only whole. It is read again after `KEPT_S`; where that fails an older one is used, for a day
at most, so that a machine can be ordered while only the lists are out of order.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

from spawn_providers.base import Unavailable
from spawn_providers.hetzner.budget import Priority
from spawn_providers.hetzner.calls import Calls, Params
from spawn_providers.hetzner.offers import Stock
from spawn_providers.hetzner.states import PAGE
from spawn_providers.hetzner.wire import (
    Image,
    ImagePage,
    Location,
    LocationPage,
    Pricing,
    PricingAnswer,
    ServerType,
    TypePage,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

KEPT_S: Final = 600.0
_OLD_S: Final = 86_400.0


class _Kept(Generic[T]):
    """One list, by itself: those that were read stay read when the next one fails."""

    def __init__(self, read: Callable[[], Awaitable[T]], now: Callable[[], float]) -> None:
        self._read = read
        self._now = now
        self._value: tuple[T, float] | None = None

    async def get(self) -> T:
        if self._value is not None and self._now() - self._value[1] <= KEPT_S:
            return self._value[0]
        try:
            self._value = await self._read(), self._now()
        except Unavailable as error:
            if self._value is None or self._now() - self._value[1] > _OLD_S:
                raise
            log.warning("one of Hetzner's lists is used although it is old: %s", error.message)
        return self._value[0]


class Shelf:
    """Types, locations, images and prices. Used on the event loop only."""

    def __init__(self, calls: Calls, *, now: Callable[[], float]) -> None:
        self._calls = calls
        self._pricing = _Kept(self._read_pricing, now)
        self._types = _Kept(self._read_types, now)
        self._locations = _Kept(self._read_locations, now)
        self._images = _Kept(self._read_images, now)
        self._reading = asyncio.Lock()

    async def stock(self) -> Stock:
        """What there is. Raises `ProviderError`."""
        async with self._reading:
            return Stock(
                types=await self._types.get(),
                locations=await self._locations.get(),
                images=await self._images.get(),
                pricing=await self._pricing.get(),
            )

    async def _read_pricing(self) -> Pricing:
        return (await self._calls.get("/pricing", PricingAnswer, Priority.CREATE)).pricing

    async def _read_types(self) -> tuple[ServerType, ...]:
        found: tuple[ServerType, ...] = ()
        page: int | None = 1
        while page is not None:
            answer = await self._calls.get("/server_types", TypePage, Priority.CREATE, _page(page))
            found += answer.server_types
            page = answer.meta.pagination.next_page
        return found

    async def _read_locations(self) -> tuple[Location, ...]:
        found: tuple[Location, ...] = ()
        page: int | None = 1
        while page is not None:
            answer = await self._calls.get("/locations", LocationPage, Priority.CREATE, _page(page))
            found += answer.locations
            page = answer.meta.pagination.next_page
        return found

    async def _read_images(self) -> tuple[Image, ...]:
        """Those of the system that can be installed; what is deprecated is left out by Hetzner itself."""
        found: tuple[Image, ...] = ()
        page: int | None = 1
        while page is not None:
            params: Params = {**_page(page), "type": "system", "status": "available"}
            answer = await self._calls.get("/images", ImagePage, Priority.CREATE, params)
            found += answer.images
            page = answer.meta.pagination.next_page
        return found


def _page(number: int) -> Params:
    return {"page": number, "per_page": PAGE}
