"""What the service asks for its machines, and what a payment costs it: the operator's settings, applied.

Invariant: the price list of the running service and the one that `spawn economics` examines are made alike. What is
read from a provider is not examined there: `services.price_refresh` makes a sheet of it.
"""

import logging

from spawn_providers.catalog import Catalog
from spawn_schemas.money import Usdc, format_usdc, parse_usdc

from spawn.domain import economics
from spawn.domain.price_sheets import Terms
from spawn.settings import Settings

log = logging.getLogger(__name__)


def terms_of(settings: Settings, eur_usdc: Usdc) -> Terms:
    """How prices are made while a euro costs this."""
    return Terms(
        eur_usdc=eur_usdc,
        margin_percent=settings.price_margin_percent,
        floor_percent=settings.price_floor_percent,
    )


def price_list(catalog: Catalog, settings: Settings) -> Catalog:
    """The catalog as it is sold from. A price that the floor raised is logged: it is not the one that was set."""
    sold = terms_of(settings, settings.eur_price_usdc).retail(catalog)
    for listed, offer in zip(catalog.offers, sold.offers, strict=True):
        if settings.price_margin_percent == 0 and offer.daily_usdc != listed.daily_usdc:
            log.warning(
                "%s in %s is sold for %s USDC a day instead of %s: SPAWN_PRICE_FLOOR_PERCENT is %d",
                offer.type,
                offer.location,
                format_usdc(offer.daily_usdc),
                format_usdc(listed.daily_usdc),
                settings.price_floor_percent,
            )
    return sold


def settling_of(settings: Settings, rail: str, batch: int) -> economics.Settling:
    """What it costs to settle a payment by this rail, alone and as one of `batch`."""
    match rail:
        case "self":
            return economics.by_gas(
                batch=batch, gas_price_wei=settings.gas_price_wei, eth_usdc=settings.eth_price_usdc
            )
        case "facilitator":
            return economics.by_fee(parse_usdc(settings.facilitator_fee))
        case _:
            return economics.by_fee(Usdc(0))


def warn_of_loss(settings: Settings) -> None:
    """Say at start what a lone payment loses us: nothing else would before the ether is gone."""
    cost_usdc = settling_of(settings, settings.payments, settings.relay_batch_max).alone_usdc
    if cost_usdc > settings.minimum_charge_usdc:
        log.warning(
            "a payment alone costs about %s USDC to settle, and the smallest is %s (SPAWN_MINIMUM_CHARGE): "
            "`spawn economics` says what that loses, and what would not",
            format_usdc(cost_usdc),
            format_usdc(settings.minimum_charge_usdc),
        )
