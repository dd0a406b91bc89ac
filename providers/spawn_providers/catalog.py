"""What is for sale, where, and for how much.

Invariant: a (type, location) pair that is not in `offers` cannot be bought there; nothing guesses a price.
"""

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


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """One server type as sold in one location. `daily_usdc` is the burn per 24 h, in micro-USDC."""

    type: str
    location: str
    provider_type: str
    architecture: str
    cores: int
    memory_gb: int
    disk_gb: int
    daily_usdc: Usdc
    deposit_usdc: Usdc


class Catalog(msgspec.Struct, frozen=True, kw_only=True):
    offers: tuple[Offer, ...]
    images: tuple[Image, ...]
    locations: tuple[Location, ...]

    def find(self, type: str, location: str) -> Offer | None:
        """The offer for this type in this location, or None when it is not sold there."""
        return next((o for o in self.offers if o.type == type and o.location == location), None)

    def sold_in(self, location: str) -> tuple[str, ...]:
        return tuple(o.type for o in self.offers if o.location == location)


def _offers(
    locations: tuple[str, ...], rows: tuple[tuple[str, str, str, int, int, int, int, int], ...]
) -> tuple[Offer, ...]:
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
        )
        for location in locations
        for type_, provider_type, architecture, cores, memory_gb, disk_gb, daily, deposit in rows
    )


_EUROPE: Final = _offers(
    ("nbg1", "fsn1", "hel1"),
    (
        ("small", "cx23", "x86", 2, 4, 40, 150_000, 5_000_000),
        ("medium", "cx33", "x86", 4, 8, 80, 220_000, 7_500_000),
        ("large", "cx43", "x86", 8, 16, 160, 400_000, 13_000_000),
        ("arm-small", "cax11", "arm", 2, 4, 40, 160_000, 5_250_000),
    ),
)

# Neither cx nor cax is sold in the United States; cpx is the nearest there, at its own, higher price.
# These three prices are estimates from the provider's public list until the catalog is read from it.
_UNITED_STATES: Final = _offers(
    ("ash", "hil"),
    (
        ("small", "cpx21", "x86", 3, 4, 80, 320_000, 10_600_000),
        ("medium", "cpx31", "x86", 4, 8, 160, 590_000, 19_500_000),
        ("large", "cpx41", "x86", 8, 16, 240, 1_080_000, 35_700_000),
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
"""The specification's prices, used until a provider's own are read."""
