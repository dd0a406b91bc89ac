"""What a server costs over time, exact to the micro-USDC however often it is settled.

Of each UTC calendar month at most `capped_s` seconds cost anything: a cap kept in seconds carries over by itself when
the price changes inside a month.

Invariant: over any run of settlements, across prices and months, the charges add up to
floor(Σ daily_usdc · billed seconds / 86 400). What does not fill a micro-USDC is carried as `remainder`, never
rounded away.
"""

from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from typing import Final, NamedTuple

import msgspec
from spawn_schemas.money import Usdc

DAY: Final = 86_400
"""Seconds in a day: the unit that prices and remainders are kept in."""

FAR_FUTURE: Final = 253_402_300_799
"""The last second of the year 9999: "never", where a moment must be a number."""

NO_CAP_S: Final = 31 * DAY
"""The seconds of the longest month: a cap that never bites."""

_FEBRUARY_S: Final = 28 * DAY
_MONTH_DAYS: Final = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_CYCLE_MONTHS: Final = 4_800
_CYCLE_DAYS: Final = 146_097
"""The Gregorian calendar repeats itself after 400 years."""
_LEAP_DAYS_TO_1970: Final = 477


class Meter(msgspec.Struct, frozen=True, kw_only=True):
    """A server's price per day, and the unix second up to which it has been charged.

    `remainder`, at least 0 and below `DAY`, counts 86 400ths of a micro-USDC owed but not yet charged. `month_s` counts
    the seconds metered so far of the UTC month of `charged_until`, those beyond `capped_s` included: 0 at its start.
    """

    daily_usdc: Usdc
    remainder: int
    charged_until: int
    capped_s: int = NO_CAP_S
    month_s: int = 0


def accrue(meter: Meter, until: int) -> tuple[Usdc, Meter]:
    """Charge for the seconds from the watermark to `until`, and move the watermark there.

    A moment at or before the watermark was charged already: nothing is due and the meter stays.
    """
    if until <= meter.charged_until:
        return Usdc(0), meter
    owed = meter.daily_usdc * _billed_s(meter, until) + meter.remainder
    charge_usdc, remainder = divmod(owed, DAY)
    start = month_start(until)
    month_s = meter.month_s + until - meter.charged_until if start < meter.charged_until else until - start
    return Usdc(charge_usdc), Meter(
        daily_usdc=meter.daily_usdc,
        remainder=remainder,
        charged_until=until,
        capped_s=meter.capped_s,
        month_s=month_s,
    )


def charge_until(meter: Meter, until: int) -> Usdc:
    """What `accrue` charges for the seconds up to `until`."""
    if until <= meter.charged_until:
        return Usdc(0)
    return Usdc((meter.daily_usdc * _billed_s(meter, until) + meter.remainder) // DAY)


def paid_until(meter: Meter, funds_usdc: Usdc) -> int:
    """The last second that `funds_usdc` pay for in full, the free ones at a month's end among them.

    `FAR_FUTURE` when they last longer than that.
    """
    if meter.daily_usdc == 0:
        return FAR_FUTURE
    paid_s = ((funds_usdc + 1) * DAY - 1 - meter.remainder) // meter.daily_usdc
    if meter.capped_s >= NO_CAP_S or meter.month_s + paid_s < meter.capped_s:
        return min(meter.charged_until + paid_s, FAR_FUTURE)
    month = _month_of(meter.charged_until // DAY)
    this_month_s = _billed_s(meter, month.ends_at)
    if paid_s < this_month_s:
        return meter.charged_until + paid_s
    return _last_billed(month.number + 1, paid_s - this_month_s, meter.capped_s)


def capped_s(monthly_usdc: Usdc | None, daily_usdc: Usdc) -> int:
    """How many seconds of a month cost anything, when it costs at most `monthly_usdc`; None is no cap."""
    if monthly_usdc is None or daily_usdc == 0:
        return NO_CAP_S
    return min(NO_CAP_S, monthly_usdc * DAY // daily_usdc)


def month_start(at: int) -> int:
    """The first second of the UTC calendar month of `at`, a unix second from 1970 on."""
    return _month_of(at // DAY).starts_at


def next_month(at: int) -> int:
    """The first second of the UTC calendar month after that of `at`."""
    return _month_of(at // DAY).ends_at


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


def _billed_s(meter: Meter, until: int) -> int:
    """How many of the seconds from the watermark to `until`, which is later, cost anything."""
    span_s = until - meter.charged_until
    if meter.capped_s >= NO_CAP_S or meter.month_s + span_s <= meter.capped_s:
        # However many months this touches, none of them has more seconds of it than the cap.
        return span_s
    month_ends_at = next_month(meter.charged_until)
    metered_s = meter.month_s + min(until, month_ends_at) - meter.charged_until
    billed_s = min(metered_s, meter.capped_s) - min(meter.month_s, meter.capped_s)
    if until > month_ends_at:
        billed_s += _billed_by(until, meter.capped_s) - _billed_by(month_ends_at, meter.capped_s)
    return billed_s


def _billed_by(at: int, capped_s: int) -> int:
    """The seconds that cost anything up to `at` for who is metered since 1970."""
    month = _month_of(at // DAY)
    return _billed_before(month.number, capped_s) + min(at - month.starts_at, capped_s)


def _last_billed(month: int, billed_s: int, capped_s: int) -> int:
    """The last moment up to which, from the start of `month` on, only `billed_s` seconds cost anything."""
    if capped_s == 0:
        return FAR_FUTURE
    total_s = _billed_before(month, capped_s) + billed_s
    candidates = range(
        month + billed_s // min(capped_s, NO_CAP_S), month + billed_s // min(capped_s, _FEBRUARY_S) + 1
    )
    begun = bisect_right(candidates, total_s, key=lambda number: _billed_before(number, capped_s))
    last = candidates[begun - 1]
    starts_at = _billed_before(last, NO_CAP_S)
    return min(starts_at + total_s - _billed_before(last, capped_s), FAR_FUTURE)


class _Month(NamedTuple):
    """A UTC calendar month: its number since January 1970, which is 0, and its first second and the next one's."""

    number: int
    starts_at: int
    ends_at: int


@lru_cache(maxsize=4_096)
def _month_of(day: int) -> _Month:
    """The month of a day since 1970. The mean length of a month leads to it or to a neighbour."""
    number = day * _CYCLE_MONTHS // _CYCLE_DAYS
    while _billed_before(number, NO_CAP_S) > day * DAY:
        number -= 1
    while _billed_before(number + 1, NO_CAP_S) <= day * DAY:
        number += 1
    return _Month(number, _billed_before(number, NO_CAP_S), _billed_before(number + 1, NO_CAP_S))


@lru_cache(maxsize=4_096)
def _billed_before(month: int, capped_s: int) -> int:
    """The seconds from 1970 to the start of a month, by its number, that cost anything; all of them without a cap."""
    years, months = divmod(month, 12)
    common_year = _common_year(capped_s)
    past = 1_969 + years + (months > 1)
    leap_days = past // 4 - past // 100 + past // 400 - _LEAP_DAYS_TO_1970
    leap_day_s = min(capped_s, _FEBRUARY_S + DAY) - min(capped_s, _FEBRUARY_S)
    return years * common_year[-1] + common_year[months] + leap_days * leap_day_s


@lru_cache(maxsize=1_024)
def _common_year(capped_s: int) -> tuple[int, ...]:
    """The seconds that cost anything in the first n months of a year of 365 days, for n from 0 to 12."""
    return tuple(accumulate((min(days * DAY, capped_s) for days in _MONTH_DAYS), initial=0))
