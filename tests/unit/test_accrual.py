"""The meter against exact fractions: no split, order or repetition of settlements changes what is charged.

Months, and what of them costs, are held against the standard library's calendar.
"""

from fractions import Fraction
from math import ceil, floor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from spawn_ledger.accrual import (
    DAY,
    FAR_FUTURE,
    NO_CAP_S,
    Meter,
    accrue,
    capped_s,
    charge_until,
    minimum_due,
    month_start,
    next_month,
    one_hour,
    paid_until,
    reserve_for_same_runway,
)
from spawn_schemas.money import Usdc

from tests.unit import months

START = 1_800_000_000
JUNE, JULY, AUGUST, SEPTEMBER = 1_811_808_000, 1_814_400_000, 1_817_078_400, 1_819_756_800  # 2027
daily_prices = st.integers(0, 50_000_000).map(Usdc)
amounts = st.integers(0, 10**12).map(Usdc)
caps_s = st.one_of(st.just(NO_CAP_S), st.integers(0, NO_CAP_S), st.integers(25 * DAY, NO_CAP_S))
moments = st.integers(0, 6_000_000_000)
steps = st.lists(st.one_of(st.integers(0, 2 * DAY), st.integers(0, 400 * DAY)), max_size=12)


@st.composite
def meters(draw: st.DrawFn) -> Meter:
    charged_until = draw(moments)
    return Meter(
        daily_usdc=draw(daily_prices),
        remainder=draw(st.integers(0, DAY - 1)),
        charged_until=charged_until,
        capped_s=draw(caps_s),
        month_s=draw(st.integers(0, charged_until - months.starts_at(charged_until))),
    )


def owed(meter: Meter, until: int) -> Fraction:
    return Fraction(meter.daily_usdc * months.billed_s(meter, until) + meter.remainder, DAY)


@given(st.integers(0, FAR_FUTURE - 31 * DAY))
def test_months_are_those_of_the_calendar(at: int) -> None:
    assert month_start(at) == months.starts_at(at)
    assert next_month(at) == months.ends_at(at)


def test_every_month_follows_the_one_before() -> None:
    at = 0
    for number in range(12 * 8_030):
        assert month_start(at) == month_start(next_month(at) - 1) == at, number
        at = next_month(at)
    assert at == FAR_FUTURE + 1


@given(meters(), st.integers(-DAY, 4_000 * DAY))
def test_what_is_charged_is_known_without_moving_the_meter(meter: Meter, seconds: int) -> None:
    until = meter.charged_until + seconds
    assert charge_until(meter, until) == accrue(meter, until)[0]


@given(meters(), steps)
def test_any_split_charges_the_exact_floor_and_keeps_the_rest(meter: Meter, steps_s: list[int]) -> None:
    now, total, current = meter.charged_until, 0, meter
    for step_s in steps_s:
        now += step_s
        charge, current = accrue(current, now)
        total += charge

    exact = owed(meter, now)
    assert total == floor(exact)
    assert Fraction(current.remainder, DAY) == exact - total
    assert (current.charged_until, current.daily_usdc, current.capped_s) == (
        now, meter.daily_usdc, meter.capped_s
    )  # fmt: skip
    since = max(months.starts_at(now), meter.charged_until)
    assert current.month_s == now - since + (meter.month_s if since > months.starts_at(now) else 0)


@given(st.integers(-60, -1), st.integers(0, 90), st.integers(0, 90), st.integers(0, 200), daily_prices)
def test_second_by_second_over_the_end_of_a_month(
    start_s: int, cap_s: int, month_s: int, span_s: int, daily: Usdc
) -> None:
    meter = Meter(
        daily_usdc=daily, remainder=0, charged_until=AUGUST + start_s, capped_s=cap_s, month_s=month_s
    )
    billed, used_s = 0, month_s
    for second in range(AUGUST + start_s, AUGUST + start_s + span_s):
        used_s = 0 if second == AUGUST else used_s
        billed += used_s < cap_s
        used_s += 1
    assert charge_until(meter, AUGUST + start_s + span_s) == daily * billed // DAY


@given(meters(), st.lists(st.tuples(st.integers(0, 50 * DAY), daily_prices, caps_s), max_size=12))
def test_prices_and_caps_that_change_inside_months_add_up(
    meter: Meter, lives: list[tuple[int, Usdc, int]]
) -> None:
    now, total, exact = meter.charged_until, 0, Fraction(meter.remainder, DAY)
    for span_s, daily_usdc, cap_s in lives:
        meter = replace(meter, daily_usdc=daily_usdc, capped_s=cap_s)
        now += span_s
        exact += Fraction(daily_usdc * months.billed_s(meter, now), DAY)
        charge, meter = accrue(meter, now)
        total += charge
    assert total == floor(exact)
    assert Fraction(meter.remainder, DAY) == exact - total


@given(meters(), st.integers(0, 10 * DAY))
def test_a_moment_already_charged_costs_nothing(meter: Meter, earlier_s: int) -> None:
    assert accrue(meter, meter.charged_until - earlier_s) == (0, meter)


@given(meters().filter(lambda meter: meter.daily_usdc > 0), amounts)
def test_paid_until_is_the_last_second_that_the_funds_cover(meter: Meter, funds: Usdc) -> None:
    end = paid_until(meter, funds)
    assert meter.charged_until <= end <= FAR_FUTURE
    if end < FAR_FUTURE:
        assert accrue(meter, end)[0] <= funds < accrue(meter, end + 1)[0]
    else:
        assert accrue(meter, end)[0] <= funds


@given(meters(), st.integers(100_000, 1_000_000).map(Usdc), st.integers(0, 4_000 * DAY))
def test_money_for_years_of_capped_months_lasts_to_the_last_second(
    meter: Meter, daily: Usdc, paid_s: int
) -> None:
    meter = replace(meter, daily_usdc=daily, capped_s=max(meter.capped_s, DAY))
    funds = Usdc(daily * paid_s // DAY)
    end = paid_until(meter, funds)
    assert end < FAR_FUTURE
    assert accrue(meter, end)[0] <= funds < accrue(meter, end + 1)[0]


@given(st.integers(1, 10**7).map(Usdc), st.integers(0, 10**9).map(Usdc))
def test_the_seconds_of_a_cap_cost_no_more_and_one_more_would(daily: Usdc, monthly: Usdc) -> None:
    cap_s = capped_s(monthly, daily)
    assert daily * cap_s <= monthly * DAY
    assert cap_s == NO_CAP_S or daily * (cap_s + 1) > monthly * DAY


def test_without_a_limit_or_a_price_nothing_is_capped() -> None:
    assert capped_s(None, Usdc(150_000)) == capped_s(Usdc(0), Usdc(0)) == NO_CAP_S


def test_a_capped_month_costs_its_limit_and_the_next_begins_anew() -> None:
    """A cap of 30 days' price bites on the 31st of July, which is free, and not in June."""
    daily = Usdc(220_000)
    meter = Meter(
        daily_usdc=daily, remainder=0, charged_until=JUNE, capped_s=capped_s(Usdc(30 * daily), daily)
    )
    june, meter = accrue(meter, JULY)
    july, meter = accrue(meter, AUGUST - DAY)
    last_of_july, meter = accrue(meter, AUGUST)
    first_of_august, _ = accrue(meter, AUGUST + DAY)
    assert (june, july, last_of_july, first_of_august) == (30 * daily, 30 * daily, 0, daily)


def test_what_is_paid_for_lasts_through_the_free_seconds_of_a_month() -> None:
    """Thirty days' money lasts all of July, to the second at which August's first micro-USDC is due."""
    daily = Usdc(DAY)
    meter = Meter(daily_usdc=daily, remainder=0, charged_until=JULY, capped_s=30 * DAY)
    assert paid_until(meter, Usdc(30 * DAY - 1)) == AUGUST - DAY - 1
    assert paid_until(meter, Usdc(30 * DAY)) == AUGUST
    assert paid_until(meter, Usdc(60 * DAY)) == SEPTEMBER


def test_months_that_cost_nothing_are_paid_for_ever() -> None:
    meter = Meter(daily_usdc=Usdc(1), remainder=0, charged_until=START, capped_s=0)
    assert paid_until(meter, Usdc(0)) == FAR_FUTURE


def test_a_server_without_a_price_is_paid_for_ever() -> None:
    assert paid_until(Meter(daily_usdc=Usdc(0), remainder=0, charged_until=START), Usdc(0)) == FAR_FUTURE


def test_money_for_longer_than_the_calendar_lasts_to_its_end() -> None:
    assert paid_until(Meter(daily_usdc=Usdc(1), remainder=0, charged_until=START), Usdc(10**15)) == FAR_FUTURE


def test_a_month_of_a_real_price_to_the_micro() -> None:
    meter = Meter(daily_usdc=Usdc(220_000), remainder=0, charged_until=START)
    hourly = 0
    for hour in range(1, 30 * 24 + 1):
        charge, meter = accrue(meter, START + hour * 3600)
        assert charge in {9166, 9167}
        hourly += charge
    assert hourly == 30 * 220_000
    assert meter.remainder == 0


@given(daily_prices)
def test_one_hour_is_rounded_up(daily: Usdc) -> None:
    assert one_hour(daily) == ceil(Fraction(daily, 24))


@given(amounts, amounts)
def test_the_minimum_is_made_up_once(charged: Usdc, minimum: Usdc) -> None:
    due = minimum_due(charged, minimum)
    assert charged + due == max(charged, minimum)
    assert minimum_due(Usdc(charged + due), minimum) == 0


@given(amounts, daily_prices.filter(bool), daily_prices)
def test_a_resized_reserve_lasts_as_long(reserve: Usdc, old: Usdc, new: Usdc) -> None:
    resized = reserve_for_same_runway(reserve, old, new)
    assert resized == ceil(Fraction(reserve * new, old))
    assert reserve_for_same_runway(reserve, old, old) == reserve


def test_a_free_server_has_no_runway_to_keep() -> None:
    with pytest.raises(ValueError, match="no runway"):
        reserve_for_same_runway(Usdc(5), Usdc(0), Usdc(1))
