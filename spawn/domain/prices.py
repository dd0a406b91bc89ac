"""What a machine costs us and what it must be sold for.

Invariant: a floor only ever raises a price, and a deposit lasts as long as before.
"""

from typing import Final

import msgspec
from spawn_providers.catalog import Catalog, Currency, Offer, Wholesale
from spawn_schemas.money import USDC, Usdc

_PRICE_STEP: Final = 1_000
"""Raised prices are whole tenths of a cent."""
_DEPOSIT_STEP: Final = 10_000
"""Raised deposits are whole cents."""


def cost_usdc(wholesale: Wholesale, *, eur_usdc: Usdc) -> Usdc:
    """What 24 h cost us, rounded up; `eur_usdc` is the price of one euro. A dollar counts as one USDC."""
    match wholesale.currency:
        case Currency.EUR:
            return Usdc(rounded_up(wholesale.daily_micro * eur_usdc, USDC))
        case Currency.USD:
            return Usdc(wholesale.daily_micro)


def floor_usdc(wholesale: Wholesale, *, eur_usdc: Usdc, percent: int) -> Usdc:
    """The least that 24 h may be sold for: `percent` of what they cost us, in whole tenths of a cent."""
    return Usdc(
        rounded_up(cost_usdc(wholesale, eur_usdc=eur_usdc) * percent, 100 * _PRICE_STEP) * _PRICE_STEP
    )


def floored(catalog: Catalog, *, eur_usdc: Usdc, percent: int) -> Catalog:
    """The catalog with every price below its floor raised to it. Where no cost is known, there is no floor."""
    offers = tuple(_floored(offer, eur_usdc, percent) for offer in catalog.offers)
    return msgspec.structs.replace(catalog, offers=offers)


def _floored(offer: Offer, eur_usdc: Usdc, percent: int) -> Offer:
    if offer.wholesale is None:
        return offer
    floor = floor_usdc(offer.wholesale, eur_usdc=eur_usdc, percent=percent)
    if offer.daily_usdc >= floor:
        return offer
    deposit = floor if offer.daily_usdc == 0 else rounded_up(offer.deposit_usdc * floor, offer.daily_usdc)
    return msgspec.structs.replace(
        offer, daily_usdc=floor, deposit_usdc=Usdc(rounded_up(deposit, _DEPOSIT_STEP) * _DEPOSIT_STEP)
    )


def rounded_up(amount: int, unit: int) -> int:
    """How many whole units are enough for the amount."""
    return -(-amount // unit)
