"""What is for sale, where, and for how much.

Invariant: a (type, location) pair that is not in `offers` cannot be bought there; nothing guesses a price.
"""

from enum import StrEnum
from typing import Final

import msgspec
from spawn_schemas.money import Usdc


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An operating system image, by the slug callers use."""

    name: str
    description: str


class Location(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    city: str
    country: str


TB: Final = 2**40
"""The bytes that traffic is priced by: Hetzner's 20 TB included are 20 · 2^40 bytes."""


class Currency(StrEnum):
    EUR = "EUR"
    USD = "USD"


class Wholesale(msgspec.Struct, frozen=True, kw_only=True):
    """What the provider charges us for 24 h, in millionths of its currency, net of tax.

    `monthly_micro` is the most it charges for a UTC month, None where that has no limit; `step_s` is what it counts a
    machine's life in: each second, or each started hour. `tb_micro` is what `TB` bytes cost that a machine sends beyond
    what is included; None where it does not say.
    """

    currency: Currency
    daily_micro: int
    monthly_micro: int | None = None
    step_s: int = 1
    tb_micro: int | None = None


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """One server type as sold in one location. `daily_usdc` is the burn per 24 h, in micro-USDC.

    `monthly_usdc` is the most that a UTC month costs, None where that has no limit.
    `included_bytes` may be sent for nothing in a UTC month, and `tb_usdc` is what `TB` bytes more cost, None where
    sending costs nothing.
    `wholesale` is None where the provider does not say what it charges us. `available` is whether there was room when
    the list was read: a hint, which decides nothing about an order.
    """

    type: str
    location: str
    provider_type: str
    architecture: str
    cores: int
    memory_gb: int
    disk_gb: int
    daily_usdc: Usdc
    deposit_usdc: Usdc
    monthly_usdc: Usdc | None = None
    wholesale: Wholesale | None = None
    included_bytes: int = 0
    tb_usdc: Usdc | None = None
    available: bool = True


class Catalog(msgspec.Struct, frozen=True, kw_only=True):
    offers: tuple[Offer, ...]
    images: tuple[Image, ...]
    locations: tuple[Location, ...]

    def find(self, type: str, location: str) -> Offer | None:
        """The offer for this type in this location, or None when it is not sold there."""
        return next((o for o in self.offers if o.type == type and o.location == location), None)

    def sold_in(self, location: str) -> tuple[str, ...]:
        return tuple(o.type for o in self.offers if o.location == location)


_Row = tuple[str, str, str, int, int, int, int, int, int | None]
_MONTH_DAYS: Final = 30
_TB_MICRO_EUR: Final = 1_000_000
_TB_USDC: Final = 1_200_000
_HOUR: Final = 3_600


def _monthly(price_micro_eur: int | None) -> Wholesale | None:
    """A thirtieth of what a month costs at most, rounded up, by the started hour."""
    if price_micro_eur is None:
        return None
    return Wholesale(
        currency=Currency.EUR,
        daily_micro=-(-price_micro_eur // _MONTH_DAYS),
        monthly_micro=price_micro_eur,
        step_s=_HOUR,
        tb_micro=_TB_MICRO_EUR,
    )


def _offers(locations: tuple[str, ...], rows: tuple[_Row, ...]) -> tuple[Offer, ...]:
    return tuple(
        Offer(
            type=type_,
            location=location,
            provider_type=provider_type,
            architecture=architecture,
            cores=cores,
            memory_gb=memory_gb,
            disk_gb=disk_gb,
            daily_usdc=Usdc(daily),
            deposit_usdc=Usdc(deposit),
            monthly_usdc=Usdc(_MONTH_DAYS * daily),
            wholesale=_monthly(monthly),
            included_bytes=0 if monthly is None else 20 * TB,
            tb_usdc=None if monthly is None else Usdc(_TB_USDC),
        )
        for location in locations
        for type_, provider_type, architecture, cores, memory_gb, disk_gb, daily, deposit, monthly in rows
    )


_EUROPE: Final = _offers(
    ("nbg1", "fsn1", "hel1"),
    (
        ("small", "cx23", "x86", 2, 4, 40, 150_000, 5_000_000, 3_290_000),
        ("medium", "cx33", "x86", 4, 8, 80, 220_000, 7_500_000, 5_080_000),
        ("large", "cx43", "x86", 8, 16, 160, 400_000, 13_000_000, 9_040_000),
        ("arm-small", "cax11", "arm", 2, 4, 40, 160_000, 5_250_000, 3_490_000),
    ),
)

# Neither cx nor cax is sold in the United States; cpx is the nearest there, at its own, higher price.
# These three prices are estimates from the provider's public list until the catalog is read from it, and nothing says
# what they cost us.
_UNITED_STATES: Final = _offers(
    ("ash", "hil"),
    (
        ("small", "cpx21", "x86", 3, 4, 80, 320_000, 10_600_000, None),
        ("medium", "cpx31", "x86", 4, 8, 160, 590_000, 19_500_000, None),
        ("large", "cpx41", "x86", 8, 16, 240, 1_080_000, 35_700_000, None),
    ),
)

DEFAULT_CATALOG: Final = Catalog(
    offers=_EUROPE + _UNITED_STATES,
    images=(
        Image(name="ubuntu-24.04", description="Ubuntu 24.04 LTS"),
        Image(name="ubuntu-22.04", description="Ubuntu 22.04 LTS"),
        Image(name="debian-12", description="Debian 12"),
        Image(name="fedora-41", description="Fedora 41"),
    ),
    locations=(
        Location(name="nbg1", city="Nuremberg", country="DE"),
        Location(name="fsn1", city="Falkenstein", country="DE"),
        Location(name="hel1", city="Helsinki", country="FI"),
        Location(name="ash", city="Ashburn, VA", country="US"),
        Location(name="hil", city="Hillsboro, OR", country="US"),
    ),
)
"""The specification's prices, wholesale and retail, used until a provider's own are read."""
