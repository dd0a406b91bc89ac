"""The meter against exact fractions: no split, order or repetition of settlements changes what is charged."""

from fractions import Fraction
from math import ceil, floor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spawn_ledger.accrual import (
    DAY,
    FAR_FUTURE,
    Meter,
    accrue,
    charge_until,
    minimum_due,
    one_hour,
    paid_until,
    reserve_for_same_runway,
)
from spawn_schemas.money import Usdc

START = 1_800_000_000
daily_prices = st.integers(0, 50_000_000).map(Usdc)
amounts = st.integers(0, 10**12).map(Usdc)


@st.composite
def meters(draw: st.DrawFn) -> Meter:
    return Meter(daily_usdc=draw(daily_prices), remainder=draw(st.integers(0, DAY - 1)), charged_until=START)


def owed(meter: Meter, seconds: int) -> Fraction:
    return Fraction(meter.daily_usdc * seconds + meter.remainder, DAY)


@given(meters(), st.integers(-DAY, 40 * DAY))
def test_what_is_charged_is_known_without_moving_the_meter(meter: Meter, seconds: int) -> None:
    assert charge_until(meter, START + seconds) == accrue(meter, START + seconds)[0]


@given(meters(), st.lists(st.integers(0, 40 * DAY), max_size=12))
def test_any_split_charges_the_exact_floor_and_keeps_the_rest(meter: Meter, steps_s: list[int]) -> None:
    now, total, current = START, 0, meter
    for step_s in steps_s:
        now += step_s
        charge, current = accrue(current, now)
        total += charge

    exact = owed(meter, sum(steps_s))
    assert total == floor(exact)
    assert Fraction(current.remainder, DAY) == exact - total
    assert (current.charged_until, current.daily_usdc) == (now, meter.daily_usdc)


@given(meters(), st.integers(0, 10 * DAY))
def test_a_moment_already_charged_costs_nothing(meter: Meter, earlier_s: int) -> None:
    assert accrue(meter, START - earlier_s) == (0, meter)


@given(meters().filter(lambda meter: meter.daily_usdc > 0), amounts)
def test_paid_until_is_the_last_second_that_the_funds_cover(meter: Meter, funds: Usdc) -> None:
    end = paid_until(meter, funds)
    assert end >= START
    if end < FAR_FUTURE:
        assert accrue(meter, end)[0] <= funds < accrue(meter, end + 1)[0]


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
