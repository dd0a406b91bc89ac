"""`spawn economics`: what each route and machine is sold for, what it costs us, and what is left.

Invariant: it reads settings and price lists alone; no database, chain or provider is asked. Exit 1 says that something
sells at a loss, so that a script notices.
"""
# ruff: noqa: PLC0415 - the price list is made from the routes, which take seconds to import

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec
from spawn_providers.catalog import DEFAULT_CATALOG
from spawn_schemas.money import USDC, Usdc, format_usdc

from spawn.cli_common import process_settings
from spawn.domain import economics as sums
from spawn.domain.charges import Kind
from spawn.domain.prices import floored, retail
from spawn.services.economics import settling_of
from spawn.settings import Settings

if TYPE_CHECKING:
    from rich.table import Table

_RAILS: Final = ("self", "facilitator", "devnet")


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is printed."""

    rail: str
    settings: Settings
    settling: sums.Settling
    routes: tuple[sums.RouteSale, ...]
    servers: tuple[sums.ServerSale, ...]
    at_list: tuple[sums.ListSale, ...]

    @property
    def sells_at_a_loss(self) -> bool:
        return any(sale.loss for sale in self.routes) or any(sale.loss for sale in self.servers)

    @property
    def least_minimum_usdc(self) -> Usdc:
        """The smallest minimum charge with which no payment that is never spent loses."""
        return sums.least_minimum_charge(self.settling, permille=1000)

    @property
    def safe_minimum_usdc(self) -> Usdc | None:
        """The same for a payment that is spent on the machine that earns least; None where that earns nothing."""
        shares = (sale.margin.permille for sale in self.servers if sale.margin is not None)
        thinnest = min((share for share in shares if share is not None), default=1000)
        return sums.least_minimum_charge(self.settling, permille=thinnest) if thinnest > 0 else None


@click.command("economics")
@click.option("--rail", type=click.Choice(_RAILS), help="How payments settle  [default: SPAWN_PAYMENTS].")
@click.option("--gas-price-gwei", type=float, help="[default: SPAWN_GAS_PRICE_GWEI]")
@click.option("--eth-price", metavar="USDC", help="For one ether  [default: SPAWN_ETH_PRICE].")
@click.option("--fx", metavar="USDC", help="For one euro  [default: SPAWN_EUR_PRICE].")
@click.option(
    "--batch",
    type=click.IntRange(1, 100),
    help="Payments that settle together  [default: SPAWN_RELAY_BATCH_MAX].",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def economics(
    rail: str | None,
    gas_price_gwei: float | None,
    eth_price: str | None,
    fx: str | None,
    batch: int | None,
    as_json: bool,
) -> None:
    """Show price, cost and margin of every route and server.

    Exit 1 if anything sells at a loss, if only a payment that settles alone. docs/economics.md says what is assumed.
    """
    settings = process_settings(gas_price_gwei=gas_price_gwei, eth_price=eth_price, eur_price=fx)
    report = _report(settings, rail or settings.payments, batch or settings.relay_batch_max)
    if as_json:
        click.echo(msgspec.json.encode(_plain(report)).decode())
    else:
        _show(report)
    if report.sells_at_a_loss:
        sys.exit(1)


def _report(settings: Settings, rail: str, batch: int) -> Report:
    from spawn.api.routes import charged_routes

    settling = settling_of(settings, rail, batch)
    # What the simulated provider sells; nobody is asked what others charge by now.
    listed = DEFAULT_CATALOG
    eur_usdc, percent = settings.eur_price_usdc, settings.price_floor_percent
    margin = settings.price_margin_percent
    priced = retail(listed, eur_usdc=eur_usdc, margin_percent=margin, floor_percent=0)
    sold = floored(priced, eur_usdc=eur_usdc, percent=percent)
    return Report(
        rail=rail,
        settings=settings,
        settling=settling,
        routes=tuple(
            sums.route_sale(
                method,
                path,
                charge,
                settling=settling,
                minimum_usdc=settings.minimum_charge_usdc,
                deposit_minimum_usdc=settings.deposit_minimum_usdc,
            )
            for method, path, charge, _ in charged_routes()
            if charge.kind is not Kind.FREE
        ),
        servers=tuple(sums.server_sales(priced, sold, eur_usdc=eur_usdc)),
        at_list=sums.list_sales(sold, eur_usdc=eur_usdc, percent=percent),
    )


# --- for people ---------------------------------------------------------------------------------------------------


def _show(report: Report) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    for part in _parts(report):
        console.print(part)


def _parts(report: Report) -> Iterator["Table | str"]:
    settings = report.settings
    yield f"{_about_settling(report)}\n"
    yield _routes(report)
    yield (
        "\nleast: the smallest payment for it. What that carries above the price is credit, cannot be withdrawn, and "
        "counts as earned. A call from the balance settles nothing: all of its price is margin."
    )
    yield "loss: sells at a loss. lone: so does a payment that is not in a batch."
    yield from _advice(report)
    margin = f", a margin of {settings.price_margin_percent} %" if settings.price_margin_percent else ""
    yield (
        f"\nServers for 24 hours, at {settings.eur_price} USDC for one euro{margin} and with a floor of "
        f"{settings.price_floor_percent} % of the cost:\n"
    )
    yield _servers(report.servers)
    yield (
        "\nThe same at Hetzner's list of autumn 2026, which is not what the provider of this version charges. `floor` "
        "is what they would be sold for:\n"
    )
    yield _at_list(report.at_list)


def _advice(report: Report) -> Iterator[str]:
    least, safe, current = (
        report.least_minimum_usdc,
        report.safe_minimum_usdc,
        report.settings.minimum_charge_usdc,
    )
    if least > USDC:
        yield "\nNo minimum charge that stock clients pay makes up for this: settle in batches, or elsewhere."
        return
    advice = []
    if least > current:
        advice.append(
            f"With SPAWN_MINIMUM_CHARGE={format_usdc(least)} no lone payment costs more than it brings."
        )
    if safe is not None and current < safe <= USDC:
        advice.append(
            f"With {format_usdc(safe)} none does, even if all of it is spent on the server that earns least."
            if advice
            else f"With SPAWN_MINIMUM_CHARGE={format_usdc(safe)} no lone payment costs more than it brings, even if "
            "all of it is spent on the server that earns least."
        )
    if advice:
        yield "\n" + "\n".join(advice)


def _about_settling(report: Report) -> str:
    settings, settling = report.settings, report.settling
    alone, batched = format_usdc(settling.alone_usdc), format_usdc(settling.batched_usdc)
    match report.rail:
        case "self":
            return (
                f"We settle payments ourselves, at {settings.gas_price_gwei:g} gwei and {settings.eth_price} USDC for "
                f"one ether: that costs {alone} USDC for a payment alone, {batched} in a batch of {settling.batch}. It "
                "is the gas of a minimal token: real USDC is a proxy and takes more, and a rollup adds its share of L1."
            )
        case "facilitator":
            return f"Payments settle through a facilitator, which takes {alone} USDC for each."
        case _:
            return "Payments settle on the development chain, which costs nothing."


def _table(*columns: str, left: int = 1) -> "Table":
    """Columns as words, numbers after the first `left`; the last one is words again."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for index, column in enumerate(columns):
        words = index < left or index == len(columns) - 1
        table.add_column(column, justify="left" if words else "right", overflow="fold", no_wrap=not words)
    return table


def _routes(report: Report) -> "Table":
    batch = report.settling.batch
    batched = ("batched",) if batch > 1 else ()
    table = _table("route", "price", "least", "cost", "margin", "%", *batched, "")
    for sale in report.routes:
        path = sale.path.replace("{server_id}", "{id}").replace("{key_id}", "{id}")
        table.add_row(
            f"{sale.method} {path}",
            _price(sale),
            format_usdc(sale.price.payment_usdc),
            *_cost(sale.alone),
            *((format_usdc(sale.batched.amount_usdc),) if batched else ()),
            sale.loss or "",
            style=_STYLE[sale.loss],
        )
    return table


def _price(sale: sums.RouteSale) -> str:
    match sale.charge.kind:
        case Kind.DEPOSIT:
            return "any"
        case Kind.IDENTIFIED | Kind.FREE:
            return "free"
        case Kind.FEE | Kind.FUNDED:
            return format_usdc(sale.price.fee_usdc)


_STYLE: Final = {None: "", sums.Loss.LONE: "yellow", sums.Loss.ALWAYS: "red"}


def _servers(sales: tuple[sums.ServerSale, ...]) -> "Table":
    """A line for each machine and price, with the locations that share them."""
    places: dict[tuple[str, ...], list[str]] = {}
    losses: dict[tuple[str, ...], sums.Loss | None] = {}
    for sale in sales:
        cells: tuple[str, ...] = (
            sale.type,
            sale.provider_type,
            format_usdc(sale.daily_usdc),
            *_cost(sale.margin),
            _note(sale),
        )
        places.setdefault(cells, []).append(sale.location)
        losses[cells] = sale.loss
    table = _table("server", "machine", "where", "price", "cost", "margin", "%", "", left=3)
    for cells, locations in places.items():
        table.add_row(*cells[:2], " ".join(locations), *cells[2:], style=_STYLE[losses[cells]])
    return table


def _cost(margin: sums.Margin | None) -> tuple[str, str, str]:
    """Cost, margin and its share of the price in whole percent."""
    if margin is None:
        return "unknown", "", ""
    share = "" if margin.permille is None else str(margin.permille // 10)
    return format_usdc(margin.cost_usdc), format_usdc(margin.amount_usdc), share


def _note(sale: sums.ServerSale) -> str:
    if sale.is_raised:
        return f"raised from {format_usdc(sale.listed_usdc)}"
    return sale.loss or ""


def _at_list(sales: tuple[sums.ListSale, ...]) -> "Table":
    table = _table("server", "machine", "price", "cost", "margin", "%", "floor", "", left=2)
    for sale in sales:
        loss = sums.Loss.ALWAYS if sale.margin.is_loss else None
        table.add_row(
            sale.type,
            sale.provider_type,
            format_usdc(sale.margin.price_usdc),
            *_cost(sale.margin),
            format_usdc(sale.floor_usdc),
            loss or "",
            style=_STYLE[loss],
        )
    return table


# --- for programs -------------------------------------------------------------------------------------------------


def _plain(report: Report) -> dict[str, Any]:
    safe = report.safe_minimum_usdc
    settings, settling = report.settings, report.settling
    return {
        "rail": report.rail,
        "gas_price_wei": settings.gas_price_wei,
        "eth_price": settings.eth_price,
        "eur_price": settings.eur_price,
        "price_floor_percent": settings.price_floor_percent,
        "minimum_charge": format_usdc(settings.minimum_charge_usdc),
        "least_minimum_charge": format_usdc(report.least_minimum_usdc),
        "safe_minimum_charge": None if safe is None else format_usdc(safe),
        "settlement": {
            "alone": format_usdc(settling.alone_usdc),
            "batched": format_usdc(settling.batched_usdc),
            "batch": settling.batch,
        },
        "routes": [
            {
                "method": sale.method,
                "path": sale.path,
                "price": format_usdc(sale.price.fee_usdc),
                "least_payment": format_usdc(sale.price.payment_usdc),
                "alone": _plain_margin(sale.alone),
                "batched": _plain_margin(sale.batched),
                "loss": sale.loss,
            }
            for sale in report.routes
        ],
        "servers": [
            {
                "type": sale.type,
                "location": sale.location,
                "provider_type": sale.provider_type,
                "listed": format_usdc(sale.listed_usdc),
                "price": format_usdc(sale.daily_usdc),
                "wholesale": sale.wholesale,
                "margin": None if sale.margin is None else _plain_margin(sale.margin),
                "loss": sale.loss,
            }
            for sale in report.servers
        ],
        "at_list": [
            {
                "type": sale.type,
                "provider_type": sale.provider_type,
                "price": format_usdc(sale.margin.price_usdc),
                "margin": _plain_margin(sale.margin),
                "floor": format_usdc(sale.floor_usdc),
            }
            for sale in report.at_list
        ],
        "sells_at_a_loss": report.sells_at_a_loss,
    }


def _plain_margin(margin: sums.Margin) -> dict[str, Any]:
    permille = margin.permille
    return {
        "cost": format_usdc(margin.cost_usdc),
        "amount": format_usdc(margin.amount_usdc),
        "percent": None if permille is None else f"{permille / 10:.1f}",
    }
