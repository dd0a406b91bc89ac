"""Giving an order of the operator: here, or to the service that holds the database.

Invariant: an order takes the database itself when nobody holds it, and else asks the service that does, so that it is
the same order either way.
"""
# ruff: noqa: PLC0415 - a command imports what it needs: all of it takes seconds, and `--help` answers at once

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

import click

from spawn.cli_common import Refusal, process_settings
from spawn.clock import SystemClock, SystemEntropy
from spawn.settings import Settings
from spawn.store.database import DatabaseBusy
from spawn.store.migrate import require_current
from spawn.store.places import place_of

if TYPE_CHECKING:
    from spawn.desk import Answer
    from spawn.services.admin import Order

TRIES: Final = 50
PAUSE_S: Final = 0.1
"""Between two of them: another command, or a service that starts, lets go or answers within this many."""


def give_order(order: "Order") -> None:
    """Have it carried out, and say what was done. Raises Refusal for what was not."""
    settings = process_settings()
    require_current(settings.database_url)
    answer = asyncio.run(give(settings, order))
    if answer.refused:
        raise Refusal(" ".join(answer.said))
    for line in answer.said:
        click.echo(line)


async def give(settings: Settings, order: "Order") -> "Answer":
    """Carry the order out here, or have it carried out; raises StoreError where neither can be."""
    from spawn import desk

    place = place_of(settings.database_url)
    for tries_left in reversed(range(TRIES)):
        try:
            db = await place.open()
        except DatabaseBusy as busy:
            try:
                return await desk.ask(desk.socket_of(place.file(str(busy))), order)
            except desk.NobodyListens:
                if tries_left == 0:
                    raise
                await asyncio.sleep(PAUSE_S)
        else:
            try:
                return await _carry_out(settings, db, order)
            finally:
                await db.close()
    raise RuntimeError("the last try neither answered nor refused")


async def _carry_out(settings: Settings, db: Any, order: "Order") -> "Answer":
    from spawn_providers.catalog import DEFAULT_CATALOG

    from spawn import desk
    from spawn.jobs.prices import Prices
    from spawn.parts import open_exchange, open_provider
    from spawn.services.admin import Clerk, RefreshPrices
    from spawn.services.price_list import PriceList
    from spawn.services.price_refresh import Refresher

    clock, entropy = SystemClock(), SystemEntropy()
    async with AsyncExitStack() as opened:
        # Any other provider's sheet is in the database once a service has run with it.
        prices, refresher = await PriceList.read(DEFAULT_CATALOG, settings, db), None
        if isinstance(order, RefreshPrices) and settings.providers == "hetzner":
            provider = await open_provider(settings, clock, opened)
            exchange = open_exchange(settings, clock)
            refresher = Refresher(provider, settings.providers, prices, exchange, clock, entropy)
        answer = await desk.carried_out(Clerk(db, prices, clock, entropy, refresher).carry_out, order)
    await Prices(db).tick(clock.now_s())
    return answer
