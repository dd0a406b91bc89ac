"""The price of a server, fixed when it is rented, resized or repriced: what it costs its owner, and what it costs us.

Invariant: nothing that happens to a price list changes a pin.
"""

import msgspec
from spawn_ledger.accrual import NO_CAP_S, capped_s
from spawn_providers.catalog import Offer
from spawn_schemas.money import Usdc

from spawn.domain import prices


class Pin(msgspec.Struct, frozen=True, kw_only=True):
    """Micro-USDC per day, and the seconds of a UTC month that cost at most; for the owner and for us.

    `cost_daily_usdc` is None where the provider does not say. It charges every started `cost_step_s` seconds.
    Of what the server sends in a UTC month `included_bytes` are free, and `TB` bytes more cost `tb_usdc`, and us
    `cost_tb_usdc`; None where they cost nothing.
    """

    daily_usdc: Usdc
    capped_s: int
    cost_daily_usdc: Usdc | None = None
    cost_capped_s: int = NO_CAP_S
    cost_step_s: int = 1
    included_bytes: int = 0
    tb_usdc: Usdc | None = None
    cost_tb_usdc: Usdc | None = None


class Owed(msgspec.Struct, frozen=True, kw_only=True):
    """Time that is over and was not paid for, up to unix second `until`, and the price that it is owed at.

    `resized` where it ended with another machine, not with another price of the same.
    """

    until: int
    pin: Pin
    resized: bool


def pin_of(offer: Offer, *, eur_usdc: Usdc) -> Pin:
    """The offer's price of this moment; `eur_usdc` is the price of one euro."""
    pin = Pin(
        daily_usdc=offer.daily_usdc,
        capped_s=capped_s(offer.monthly_usdc, offer.daily_usdc),
        included_bytes=offer.included_bytes,
        tb_usdc=offer.tb_usdc,
    )
    if offer.wholesale is None:
        return pin
    cost = prices.cost_of(offer.wholesale, eur_usdc=eur_usdc)
    return msgspec.structs.replace(
        pin,
        cost_daily_usdc=cost.daily_usdc,
        cost_capped_s=cost.capped_s,
        cost_step_s=cost.step_s,
        cost_tb_usdc=cost.tb_usdc,
    )
