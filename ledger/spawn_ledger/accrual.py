"""What a server costs over time, exact to the micro-USDC however often it is settled.

Invariant: over any run of settlements at one price, the charges add up to floor(daily_usdc · T / 86 400) for
the T seconds metered. What does not fill a micro-USDC is carried as `remainder`, never rounded away.
"""

from typing import Final

import msgspec
from spawn_schemas.money import Usdc

DAY: Final = 86_400
"""Seconds in a day: the unit that prices and remainders are kept in."""

FAR_FUTURE: Final = 253_402_300_799
"""The last second of the year 9999: "never", where a moment must be a number."""


class Meter(msgspec.Struct, frozen=True, kw_only=True):
    """A server's price per day, and the unix second up to which it has been charged.

    `remainder`, at least 0 and below `DAY`, counts 86 400ths of a micro-USDC owed but not yet charged.
    """

    daily_usdc: Usdc
    remainder: int
    charged_until: int


def accrue(meter: Meter, until: int) -> tuple[Usdc, Meter]:
    """Charge for the seconds from the watermark to `until`, and move the watermark there.

    A moment at or before the watermark was charged already: nothing is due and the meter stays.
    """
    if until <= meter.charged_until:
        return Usdc(0), meter
    owed = meter.daily_usdc * (until - meter.charged_until) + meter.remainder
    charge_usdc, remainder = divmod(owed, DAY)
    return Usdc(charge_usdc), Meter(daily_usdc=meter.daily_usdc, remainder=remainder, charged_until=until)


def charge_until(meter: Meter, until: int) -> Usdc:
    """What `accrue` charges for the seconds up to `until`."""
    if until <= meter.charged_until:
        return Usdc(0)
    return Usdc((meter.daily_usdc * (until - meter.charged_until) + meter.remainder) // DAY)


def paid_until(meter: Meter, funds_usdc: Usdc) -> int:
    """The last second that `funds_usdc` pay for in full; `FAR_FUTURE` when they last longer than that."""
    if meter.daily_usdc == 0:
        return FAR_FUTURE
    paid_s = ((funds_usdc + 1) * DAY - 1 - meter.remainder) // meter.daily_usdc
    return min(meter.charged_until + paid_s, FAR_FUTURE)


def one_hour(daily_usdc: Usdc) -> Usdc:
    """The price of one hour, rounded up: the least that a server costs in its life."""
    return Usdc(-(-daily_usdc // 24))


def minimum_due(charged_usdc: Usdc, minimum_usdc: Usdc) -> Usdc:
    """What is still missing to the least that a server costs, when it ends after `charged_usdc` of burn."""
    return Usdc(max(0, minimum_usdc - charged_usdc))


def reserve_for_same_runway(reserve_usdc: Usdc, old_daily_usdc: Usdc, new_daily_usdc: Usdc) -> Usdc:
    """The reserve that lasts as long at the new price as this one does at the old, rounded up.

    Raises ValueError when the old price is zero: such a reserve lasts for ever, and no other does.
    """
    if old_daily_usdc <= 0:
        raise ValueError("a server without a price has no runway to keep")
    return Usdc(-(-reserve_usdc * new_daily_usdc // old_daily_usdc))
