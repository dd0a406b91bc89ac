"""`spawn prices`: what the provider's lists of today change.

Invariant: a dry run writes nothing: it reads the provider's lists itself, beside a service that runs, and compares them
with a snapshot by the decisions that the service makes.
"""
# ruff: noqa: PLC0415 - a command imports what it needs: all of it takes seconds, and `--help` answers at once

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import click
from spawn_providers.catalog import Offer
from spawn_schemas.money import Usdc, format_usdc

from spawn.cli_common import Refusal, process_settings
from spawn.cli_orders import give_order
from spawn.clock import SystemClock, SystemEntropy
from spawn.domain.price_sheets import Reading
from spawn.domain.prices import cost_usdc
from spawn.settings import Settings
from spawn.store.migrate import require_current
from spawn.store.places import place_of

if TYPE_CHECKING:
    from rich.table import Table

    from spawn.store.price_sheets import Kept

_Cells = tuple[str, ...]


@click.group("prices")
def prices() -> None:
    """Make prices of what the provider charges. docs/economics.md says how."""


@prices.command("refresh")
@click.option("--dry-run", is_flag=True, help="Show what would be different, and change nothing.")
def refresh_command(*, dry_run: bool) -> None:
    """Read the provider's lists now, as the service does each day.

    A price that falls does so at once, one that rises is announced 30 days ahead.
    """
    from spawn.services.admin import RefreshPrices

    if not dry_run:
        give_order(RefreshPrices())
        return
    settings = process_settings()
    require_current(settings.database_url)
    if settings.providers == "simulated":
        raise Refusal(
            "the simulated provider sells what this version comes with: there is nothing to read. Announce a price "
            "with `spawn admin price-change`."
        )
    reading, kept = asyncio.run(_plan(settings))
    _show(settings, reading, kept)


async def _plan(settings: Settings) -> "tuple[Reading, Kept]":
    from spawn_providers.catalog import DEFAULT_CATALOG

    from spawn.parts import open_exchange, open_provider
    from spawn.services.price_list import PriceList
    from spawn.services.price_refresh import Refresher, Unread

    clock = SystemClock()
    async with AsyncExitStack() as opened:
        provider = await open_provider(settings, clock, opened)
        refresher = Refresher(
            provider,
            settings.providers,
            PriceList(DEFAULT_CATALOG, settings),
            open_exchange(settings, clock),
            clock,
            SystemEntropy(),
        )
        try:
            lists = await refresher.read()
        except Unread as error:
            raise Refusal(f"the prices stay as they are: {error}") from error
    with place_of(settings.database_url).snapshot() as tx:
        return refresher.plan(tx, lists)


def _show(settings: Settings, reading: Reading, kept: "Kept") -> None:
    from rich.console import Console

    from spawn.services.price_refresh import NOTHING

    console = Console(highlight=False, markup=False)
    margin = settings.price_margin_percent
    made = f"a margin of {margin} %" if margin else "prices as the provider's catalog lists them"
    console.print(
        f"At {format_usdc(kept.eur_usdc)} USDC for one euro, with {made} and a floor of "
        f"{settings.price_floor_percent} % of the cost:\n"
    )
    rows = _rows(reading, kept.eur_usdc)
    console.print(_table(rows) if rows else NOTHING)
    for held in reading.held:
        console.print(f"\nheld: {held.offer.type} in {held.offer.location}: {held.why}")


def _rows(reading: Reading, eur_usdc: Usdc) -> list[_Cells]:
    """A line for each machine and price, with the locations that share them."""
    from spawn.services.moments import moment

    places: dict[_Cells, list[str]] = {}

    def add(offer: Offer, price: Usdc | None, new: Usdc | None, note: str) -> None:
        shown = ("" if usdc is None else format_usdc(usdc) for usdc in (price, new))
        places.setdefault((offer.type, offer.provider_type, _cost(offer, eur_usdc), *shown, note), []).append(
            offer.location
        )

    for move in reading.moves:
        add(move.offer, move.offer.daily_usdc, move.change.daily_usdc, moment(move.change.effective_at))
    for held in reading.held:
        add(held.offer, held.offer.daily_usdc, held.wanted_usdc, "held")
    for offer in reading.new:
        add(offer, None, offer.daily_usdc, "new")
    for offer in reading.gone:
        add(offer, offer.daily_usdc, None, "not sold any more")
    return [(*cells[:2], " ".join(where), *cells[2:]) for cells, where in places.items()]


def _cost(offer: Offer, eur_usdc: Usdc) -> str:
    if offer.wholesale is None:
        return "unknown"
    return format_usdc(cost_usdc(offer.wholesale, eur_usdc=eur_usdc))


def _table(rows: list[_Cells]) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    numbers: dict[str, Any] = {"justify": "right", "no_wrap": True}
    for column in ("server", "machine", "where"):
        table.add_column(column, overflow="fold")
    for column in ("cost", "price", "new"):
        table.add_column(column, **numbers)
    table.add_column("from", no_wrap=True)
    for cells in rows:
        table.add_row(*cells)
    return table
