"""What the service asks for its machines: the provider's catalog over the operator's price floor.

Invariant: the price list of the running service and the one that `spawn economics` examines are the same.
"""

import logging

from spawn_providers.catalog import Catalog
from spawn_schemas.money import format_usdc

from spawn.domain import prices
from spawn.settings import Settings

log = logging.getLogger(__name__)


def price_list(catalog: Catalog, settings: Settings) -> Catalog:
    """The catalog as it is sold from. A price that the floor raised is logged: it is not the one that was set."""
    sold = prices.floored(catalog, eur_usdc=settings.eur_price_usdc, percent=settings.price_floor_percent)
    for listed, offer in zip(catalog.offers, sold.offers, strict=True):
        if offer.daily_usdc != listed.daily_usdc:
            log.warning(
                "%s in %s is sold for %s USDC a day instead of %s: SPAWN_PRICE_FLOOR_PERCENT is %d",
                offer.type,
                offer.location,
                format_usdc(offer.daily_usdc),
                format_usdc(listed.daily_usdc),
                settings.price_floor_percent,
            )
    return sold
