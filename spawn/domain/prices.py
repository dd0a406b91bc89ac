"""What a machine costs us and what it must be sold for.

Invariant: a floor only ever raises a price; a deposit lasts as long as before, and as much of a month costs.
"""

from typing import Final

import msgspec
from spawn_ledger.accrual import capped_s
from spawn_providers.catalog import Catalog, Currency, Offer, Wholesale
from spawn_schemas.money import USDC, Usdc

_PRICE_STEP: Final = 1_000
"""Raised prices are whole tenths of a cent."""
_DEPOSIT_STEP: Final = 10_000
"""Raised deposits are whole cents."""


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine costs us, as pinned with its price: at most `capped_s` seconds of each UTC month cost anything.

    `step_s` is what its life is counted in, each step rounded up. `tb_usdc` is for `TB` bytes beyond the included.
    """

    daily_usdc: Usdc
    capped_s: int
    step_s: int
    tb_usdc: Usdc | None = None


def cost_of(wholesale: Wholesale, *, eur_usdc: Usdc) -> Cost:
    """What a machine costs us at this exchange rate, `eur_usdc` being the price of one euro."""
    daily_usdc, monthly_usdc = cost_usdc(wholesale, eur_usdc=eur_usdc), None
    if wholesale.monthly_micro is not None:
        monthly_usdc = _exchanged(wholesale.monthly_micro, wholesale.currency, eur_usdc)
    tb_usdc = None
    if wholesale.tb_micro is not None:
        tb_usdc = _exchanged(wholesale.tb_micro, wholesale.currency, eur_usdc)
    return Cost(
        daily_usdc=daily_usdc,
        capped_s=capped_s(monthly_usdc, daily_usdc),
        step_s=wholesale.step_s,
        tb_usdc=tb_usdc,
    )


def cost_usdc(wholesale: Wholesale, *, eur_usdc: Usdc) -> Usdc:
    """What 24 h cost us, rounded up; `eur_usdc` is the price of one euro. A dollar counts as one USDC."""
    return _exchanged(wholesale.daily_micro, wholesale.currency, eur_usdc)


def _exchanged(micro: int, currency: Currency, eur_usdc: Usdc) -> Usdc:
    match currency:
        case Currency.EUR:
            return Usdc(rounded_up(micro * eur_usdc, USDC))
        case Currency.USD:
            return Usdc(micro)


def floor_usdc(wholesale: Wholesale, *, eur_usdc: Usdc, percent: int) -> Usdc:
    """The least that 24 h may be sold for: `percent` of what they cost us, in whole tenths of a cent."""
    return Usdc(
        rounded_up(cost_usdc(wholesale, eur_usdc=eur_usdc) * percent, 100 * _PRICE_STEP) * _PRICE_STEP
    )


def margin_price_usdc(wholesale: Wholesale, *, eur_usdc: Usdc, margin_percent: int) -> Usdc:
    """The least price of 24 h, in whole tenths of a cent, of which at least `margin_percent` are left to us."""
    cost = cost_usdc(wholesale, eur_usdc=eur_usdc)
    return Usdc(rounded_up(cost * 100, (100 - margin_percent) * _PRICE_STEP) * _PRICE_STEP)


def retail(catalog: Catalog, *, eur_usdc: Usdc, margin_percent: int, floor_percent: int) -> Catalog:
    """What a provider's catalog is sold for: with a margin, at what it costs us and that; without, as it is listed.

    The floor holds either way, and an offer whose cost nobody says keeps its listed price.
    """
    if margin_percent > 0:
        offers = tuple(_with_margin(offer, eur_usdc, margin_percent) for offer in catalog.offers)
        catalog = msgspec.structs.replace(catalog, offers=offers)
    return floored(catalog, eur_usdc=eur_usdc, percent=floor_percent)


def _with_margin(offer: Offer, eur_usdc: Usdc, margin_percent: int) -> Offer:
    if offer.wholesale is None:
        return offer
    price = margin_price_usdc(offer.wholesale, eur_usdc=eur_usdc, margin_percent=margin_percent)
    return _tb_with_margin(repriced(offer, price), eur_usdc, margin_percent)


def _tb_with_margin(offer: Offer, eur_usdc: Usdc, margin_percent: int) -> Offer:
    if offer.wholesale is None or offer.wholesale.tb_micro is None:
        return offer
    cost = _exchanged(offer.wholesale.tb_micro, offer.wholesale.currency, eur_usdc)
    price = rounded_up(cost * 100, (100 - margin_percent) * _PRICE_STEP) * _PRICE_STEP
    return msgspec.structs.replace(offer, tb_usdc=Usdc(price))


def floored(catalog: Catalog, *, eur_usdc: Usdc, percent: int) -> Catalog:
    """The catalog with every price below its floor raised to it. Where no cost is known, there is no floor."""
    offers = tuple(_floored(offer, eur_usdc, percent) for offer in catalog.offers)
    return msgspec.structs.replace(catalog, offers=offers)


def _floored(offer: Offer, eur_usdc: Usdc, percent: int) -> Offer:
    if offer.wholesale is None:
        return offer
    floor = floor_usdc(offer.wholesale, eur_usdc=eur_usdc, percent=percent)
    offer = _tb_floored(offer, offer.wholesale, eur_usdc, percent)
    if offer.daily_usdc >= floor:
        return offer
    return repriced(offer, floor)


def _tb_floored(offer: Offer, wholesale: Wholesale, eur_usdc: Usdc, percent: int) -> Offer:
    if wholesale.tb_micro is None:
        return offer
    cost = _exchanged(wholesale.tb_micro, wholesale.currency, eur_usdc)
    floor = rounded_up(cost * percent, 100 * _PRICE_STEP) * _PRICE_STEP
    return msgspec.structs.replace(offer, tb_usdc=Usdc(max(floor, offer.tb_usdc or 0)))


def repriced(offer: Offer, daily_usdc: Usdc) -> Offer:
    """The offer at another price, with a deposit that lasts as long and as much of a month that costs.

    What was free has neither: its deposit becomes that of a day, and its months have no limit.
    """
    deposit_usdc, monthly_usdc = int(daily_usdc), None
    if offer.daily_usdc > 0:
        deposit_usdc = rounded_up(offer.deposit_usdc * daily_usdc, offer.daily_usdc)
        if offer.monthly_usdc is not None:
            monthly_usdc = Usdc(rounded_up(offer.monthly_usdc * daily_usdc, offer.daily_usdc))
    return msgspec.structs.replace(
        offer,
        daily_usdc=daily_usdc,
        deposit_usdc=Usdc(rounded_up(deposit_usdc, _DEPOSIT_STEP) * _DEPOSIT_STEP),
        monthly_usdc=monthly_usdc,
    )


def rounded_up(amount: int, unit: int) -> int:
    """How many whole units are enough for the amount."""
    return -(-amount // unit)
