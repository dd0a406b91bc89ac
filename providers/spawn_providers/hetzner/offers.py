"""What Hetzner sells, in our four sizes: chosen from its own lists, at its own prices.

Invariant: pure. A size is offered in a location only as a type that Hetzner lists and prices there; money is whole
millionths, rounded up.
"""

from collections.abc import Sequence
from decimal import ROUND_CEILING, Decimal
from typing import Final, TypeVar

import msgspec
from spawn_schemas.money import Usdc

from spawn_providers import catalog
from spawn_providers.base import Refused, RefusedCode, Unavailable
from spawn_providers.catalog import DEFAULT_CATALOG, Catalog, Currency, Offer, Wholesale
from spawn_providers.hetzner.names import SIZES
from spawn_providers.hetzner.wire import Image, Location, Price, Pricing, ServerType, TypeLocation, unix

P = TypeVar("P", bound=Price)

_MICRO: Final = 1_000_000
_HOUR_S: Final = 3_600
_DAY_HOURS: Final = 24
_MONTH_DAYS: Final = 30


class Stock(msgspec.Struct, frozen=True, kw_only=True):
    """Hetzner's lists, as they were read."""

    types: tuple[ServerType, ...]
    locations: tuple[Location, ...]
    images: tuple[Image, ...]
    pricing: Pricing

    def image_id(self, name: str, architecture: str) -> int:
        """One name stands for an image of each architecture. Raises `Refused(invalid)`."""
        for image in self.images:
            if (image.name, image.architecture) == (name, architecture):
                return image.id
        raise Refused(RefusedCode.INVALID, f"there is no image {name} for {architecture}")

    def architecture_of(self, provider_type: str) -> str:
        for type_ in self.types:
            if type_.name == provider_type:
                return type_.architecture
        raise Refused(RefusedCode.INVALID, f"there is no server type {provider_type}")


def sold(stock: Stock, now: int, only: Sequence[str] = ()) -> Catalog:
    """What can be bought at `now` (unix seconds), in the locations named in `only`, or everywhere.

    Raises `Unavailable` where prices are in a currency that we cannot convert.
    """
    currency = _currency(stock.pricing.currency)
    places = tuple(p for p in stock.locations if not only or p.name in only)
    offers = tuple(
        _offer(size, type_, place.name, currency, stock.pricing)
        for place in places
        for size, names in SIZES.items()
        if (type_ := _first_sold(stock.types, names, place.name, now)) is not None
    )
    kinds = {offer.architecture for offer in offers}
    return Catalog(
        offers=offers,
        images=_images(stock.images, kinds),
        locations=tuple(
            catalog.Location(name=p.name, city=p.city, country=p.country)
            for p in places
            if any(offer.location == p.name for offer in offers)
        ),
    )


def micro(amount: str) -> int:
    """A decimal string in whole millionths, rounded up."""
    return int((Decimal(amount) * _MICRO).to_integral_value(rounding=ROUND_CEILING))


def _currency(name: str) -> Currency:
    try:
        return Currency(name)
    except ValueError:
        raise Unavailable(
            f"Hetzner charges in {name}, for which there is no exchange rate: use a project in EUR or USD",
            retry_after_s=3600,
        ) from None


def _first_sold(
    types: Sequence[ServerType], names: Sequence[str], location: str, now: int
) -> ServerType | None:
    for name in names:
        for type_ in types:
            if type_.name == name and _is_sold(type_, location, now):
                return type_
    return None


def _is_sold(type_: ServerType, location: str, now: int) -> bool:
    """Listed there, priced there, and not past the day from which it cannot be ordered any more.

    A type that is sold out for the moment is sold all the same: another one in its place would change the size's price.
    """
    listed = _listed(type_, location)
    if listed is None or _price(type_.prices, location) is None:
        return False
    return listed.deprecation is None or now < unix(listed.deprecation.unavailable_after)


def _listed(type_: ServerType, location: str) -> TypeLocation | None:
    return next((place for place in type_.locations if place.name == location), None)


def _price(prices: Sequence[P], location: str) -> P | None:
    return next((price for price in prices if price.location == location), None)


def _offer(size: str, type_: ServerType, location: str, currency: Currency, pricing: Pricing) -> Offer:
    wholesale, price = _wholesale(type_, location, currency, pricing), _price(type_.prices, location)
    listed = _listed(type_, location)
    usual = next((o for o in DEFAULT_CATALOG.offers if (o.type, o.provider_type) == (size, type_.name)), None)
    daily = int(usual.daily_usdc) if usual is not None else wholesale.daily_micro
    deposit = int(usual.deposit_usdc) if usual is not None else _MONTH_DAYS * daily
    tb = usual.tb_usdc if usual is not None and usual.tb_usdc is not None else wholesale.tb_micro
    return Offer(
        type=size,
        location=location,
        provider_type=type_.name,
        architecture=type_.architecture,
        cores=type_.cores,
        memory_gb=int(type_.memory),
        disk_gb=int(type_.disk),
        daily_usdc=Usdc(daily),
        deposit_usdc=Usdc(deposit),
        monthly_usdc=Usdc(_MONTH_DAYS * daily),
        wholesale=wholesale,
        included_bytes=0 if price is None else price.included_traffic,
        tb_usdc=None if tb is None else Usdc(tb),
        available=listed is None or listed.available,
    )


def _wholesale(type_: ServerType, location: str, currency: Currency, pricing: Pricing) -> Wholesale:
    """The machine and its IPv4 address, by the started hour, up to what a month costs at most; and its traffic."""
    hourly, monthly, machine = 0, 0, _price(type_.prices, location)
    addresses = [ip.prices for ip in pricing.primary_ips if ip.type == "ipv4"]
    for prices in (type_.prices, *addresses):
        price = _price(prices, location)
        if price is not None:
            hourly += micro(price.price_hourly.net)
            monthly += micro(price.price_monthly.net)
    return Wholesale(
        currency=currency,
        daily_micro=_DAY_HOURS * hourly,
        monthly_micro=monthly,
        step_s=_HOUR_S,
        tb_micro=None if machine is None else micro(machine.price_per_tb_traffic.net),
    )


def _images(images: Sequence[Image], kinds: set[str]) -> tuple[catalog.Image, ...]:
    """The images that every size can be ordered with, in Hetzner's order."""
    names = {image.name: image.description for image in images if image.name is not None}
    there = {(image.name, image.architecture) for image in images}
    return tuple(
        catalog.Image(name=name, description=description)
        for name, description in names.items()
        if all((name, kind) in there for kind in kinds)
    )
