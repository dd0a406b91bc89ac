"""What a sale earns: price, cost and margin of each priced route and each machine.

Invariant: a cost is rounded up and a share of the price down, so that nothing looks better than it is; every amount is
a whole number.

A payment costs us its settlement whatever it pays for. It is told what that leaves of the least payment for the call:
credit cannot be withdrawn, so whoever pays once and never comes back has paid all of it.
"""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Final

import msgspec
from spawn_providers.catalog import Catalog, Currency, Wholesale
from spawn_schemas.money import Usdc

from spawn.domain.charges import Charge, Price, quote
from spawn.domain.prices import cost_usdc, floor_usdc, rounded_up
from spawn.domain.settlements import gas_cost_usdc

GAS_ALONE: Final = 64_760
"""Gas of one `transferWithAuthorization` in a transaction of its own.

Measured on anvil with a minimal EIP-3009 token, as are the next two. Real USDC is a proxy with more checks and takes
more; compare with what `cost:gas` books.
"""
GAS_BATCHED: Final = 41_510
"""Gas that each further payment adds to a Multicall3 transaction."""
GAS_A_BATCH: Final = 29_960
"""Gas that a batch takes besides: N payments together take 42,109 each for N = 50, all of it measured."""

HETZNER_LIST: Final[Mapping[str, Wholesale]] = {
    "cx23": Wholesale(currency=Currency.EUR, daily_micro=183_000),
    "cx33": Wholesale(currency=Currency.EUR, daily_micro=283_000),
    "cx43": Wholesale(currency=Currency.EUR, daily_micro=533_000),
}
"""What Hetzner lists for these types: 5.49, 8.49 and 15.99 EUR a month, net, in autumn 2026; a thirtieth of each.

Not what any provider of ours charges: it shows what the specification's prices would earn there.
"""

_LEAST_STEP: Final = 1_000


class Settling(msgspec.Struct, frozen=True, kw_only=True):
    """What it costs us to settle one payment: in a transaction of its own, and as one of `batch`."""

    alone_usdc: Usdc
    batched_usdc: Usdc
    batch: int


def by_gas(*, batch: int, gas_price_wei: int, eth_usdc: Usdc) -> Settling:
    """Settling by ourselves. `eth_usdc` is the price of one ether; a batch of one is a payment alone."""
    together = GAS_ALONE if batch == 1 else GAS_A_BATCH + GAS_BATCHED * batch
    return Settling(
        alone_usdc=gas_cost_usdc(GAS_ALONE * gas_price_wei, eth_usdc),
        batched_usdc=Usdc(rounded_up(gas_cost_usdc(together * gas_price_wei, eth_usdc), batch)),
        batch=batch,
    )


def by_fee(fee_usdc: Usdc) -> Settling:
    """Settling by somebody who takes a fee for each payment; nothing comes of a batch."""
    return Settling(alone_usdc=fee_usdc, batched_usdc=fee_usdc, batch=1)


class Margin(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of `price_usdc` after `cost_usdc`."""

    price_usdc: Usdc
    cost_usdc: Usdc

    @property
    def amount_usdc(self) -> Usdc:
        return Usdc(self.price_usdc - self.cost_usdc)

    @property
    def permille(self) -> int | None:
        """The share of the price, rounded down; None where nothing is asked."""
        return None if self.price_usdc == 0 else self.amount_usdc * 1000 // self.price_usdc

    @property
    def is_loss(self) -> bool:
        return self.amount_usdc < 0


class Loss(StrEnum):
    """How something sells at a loss."""

    ALWAYS = "loss"
    LONE = "lone"
    """Only when its payment settles alone: in a batch it earns."""


class RouteSale(msgspec.Struct, frozen=True, kw_only=True):
    """One priced route, called by somebody who pays as little as it takes."""

    method: str
    path: str
    charge: Charge
    price: Price
    alone: Margin
    batched: Margin

    @property
    def loss(self) -> Loss | None:
        if self.batched.is_loss:
            return Loss.ALWAYS
        return Loss.LONE if self.alone.is_loss else None


def route_sale(
    method: str,
    path: str,
    charge: Charge,
    *,
    settling: Settling,
    minimum_usdc: Usdc,
    deposit_minimum_usdc: Usdc,
) -> RouteSale:
    """What the least payment for a route earns. `charge` is that of a priced route."""
    price = quote(charge, fund=None, default_deposit_usdc=deposit_minimum_usdc, minimum_usdc=minimum_usdc)
    return RouteSale(
        method=method,
        path=path,
        charge=charge,
        price=price,
        alone=Margin(price_usdc=price.payment_usdc, cost_usdc=settling.alone_usdc),
        batched=Margin(price_usdc=price.payment_usdc, cost_usdc=settling.batched_usdc),
    )


def least_minimum_charge(settling: Settling, *, permille: int) -> Usdc:
    """The smallest minimum charge, in whole tenths of a cent, of which `permille` pays for settling one payment alone.

    1000 is for money that is never spent; the thinnest margin, for money that is spent on what has it. Above 0.
    """
    return Usdc(rounded_up(settling.alone_usdc * 1000, permille * _LEAST_STEP) * _LEAST_STEP)


class ServerSale(msgspec.Struct, frozen=True, kw_only=True):
    """One machine for a day. `listed_usdc` is its price before the floor, `margin` None where no cost is known."""

    type: str
    location: str
    provider_type: str
    listed_usdc: Usdc
    daily_usdc: Usdc
    wholesale: Wholesale | None
    margin: Margin | None

    @property
    def is_raised(self) -> bool:
        return self.daily_usdc != self.listed_usdc

    @property
    def loss(self) -> Loss | None:
        return Loss.ALWAYS if self.margin is not None and self.margin.is_loss else None


def server_sales(listed: Catalog, sold: Catalog, *, eur_usdc: Usdc) -> Iterator[ServerSale]:
    """Every offer, as the provider lists it and as it is sold."""
    for before, offer in zip(listed.offers, sold.offers, strict=True):
        wholesale, margin = offer.wholesale, None
        if wholesale is not None:
            margin = Margin(price_usdc=offer.daily_usdc, cost_usdc=cost_usdc(wholesale, eur_usdc=eur_usdc))
        yield ServerSale(
            type=offer.type,
            location=offer.location,
            provider_type=offer.provider_type,
            listed_usdc=before.daily_usdc,
            daily_usdc=offer.daily_usdc,
            wholesale=wholesale,
            margin=margin,
        )


class ListSale(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine would earn at `HETZNER_LIST`, and what the floor would then ask for it."""

    type: str
    provider_type: str
    margin: Margin
    floor_usdc: Usdc


def list_sales(sold: Catalog, *, eur_usdc: Usdc, percent: int) -> tuple[ListSale, ...]:
    """Each machine whose list price is known, once."""
    sales = {
        (offer.type, offer.provider_type, offer.daily_usdc): HETZNER_LIST[offer.provider_type]
        for offer in sold.offers
        if offer.provider_type in HETZNER_LIST
    }
    return tuple(
        ListSale(
            type=type_,
            provider_type=provider_type,
            margin=Margin(price_usdc=daily, cost_usdc=cost_usdc(wholesale, eur_usdc=eur_usdc)),
            floor_usdc=floor_usdc(wholesale, eur_usdc=eur_usdc, percent=percent),
        )
        for (type_, provider_type, daily), wholesale in sales.items()
    )
