"""A machine is never sold for less than the floor over what it costs, and a price above it is left alone."""

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from spawn_ledger.accrual import DAY, NO_CAP_S
from spawn_providers.catalog import DEFAULT_CATALOG, Currency, Offer, Wholesale
from spawn_schemas.money import Usdc

from spawn.domain.prices import Cost, cost_of, cost_usdc, floor_usdc, floored, repriced
from spawn.settings import Settings

EUR = Usdc(1_080_000)
WHOLESALES = st.builds(Wholesale, currency=st.sampled_from(Currency), daily_micro=st.integers(0, 10**9))
FX = st.integers(1, 10**7).map(Usdc)
PERCENTS = st.integers(0, 1000)


@pytest.mark.parametrize(
    ("currency", "daily_micro", "cost"),
    [
        (Currency.USD, 123_457, 123_457),
        (Currency.EUR, 1_000_000, 1_080_000),
        (Currency.EUR, 1, 2),  # 1.08
        (Currency.EUR, 0, 0),
    ],
)
def test_a_cost_in_euro_is_exchanged_and_rounded_up(currency: Currency, daily_micro: int, cost: int) -> None:
    assert cost_usdc(Wholesale(currency=currency, daily_micro=daily_micro), eur_usdc=EUR) == cost


@given(wholesale=WHOLESALES, eur_usdc=FX)
def test_a_cost_is_never_less_than_it_is_and_less_than_a_millionth_more(
    wholesale: Wholesale, eur_usdc: Usdc
) -> None:
    rate = eur_usdc if wholesale.currency is Currency.EUR else 1_000_000
    assert 0 <= cost_usdc(wholesale, eur_usdc=eur_usdc) * 1_000_000 - wholesale.daily_micro * rate < 1_000_000


@given(wholesale=WHOLESALES, eur_usdc=FX, percent=PERCENTS)
def test_a_floor_is_the_next_tenth_of_a_cent(wholesale: Wholesale, eur_usdc: Usdc, percent: int) -> None:
    floor = floor_usdc(wholesale, eur_usdc=eur_usdc, percent=percent)
    over = floor * 100 - cost_usdc(wholesale, eur_usdc=eur_usdc) * percent
    assert floor % 1_000 == 0
    assert 0 <= over < 100 * 1_000


@given(daily=st.integers(0, 10**7), days=st.integers(1, 40), wholesale=WHOLESALES, percent=PERCENTS)
def test_a_floor_only_raises_and_a_deposit_lasts_as_long(
    daily: int, days: int, wholesale: Wholesale, percent: int
) -> None:
    listed = replace(
        DEFAULT_CATALOG.offers[0],
        daily_usdc=Usdc(daily),
        deposit_usdc=Usdc(daily * days),
        monthly_usdc=Usdc(daily * 30),
        wholesale=wholesale,
    )
    (sold,) = floored(replace(DEFAULT_CATALOG, offers=(listed,)), eur_usdc=EUR, percent=percent).offers
    floor = floor_usdc(wholesale, eur_usdc=EUR, percent=percent)
    assert sold.daily_usdc == max(daily, floor)
    if sold.daily_usdc == daily:
        assert sold == listed
    else:
        assert sold.deposit_usdc >= sold.daily_usdc * (days if daily else 1)
        assert sold.deposit_usdc % 10_000 == 0
        assert sold.monthly_usdc == (sold.daily_usdc * 30 if daily else None)
    unpriced = {"daily_usdc": Usdc(0), "deposit_usdc": Usdc(0), "monthly_usdc": None}
    assert replace(sold, **unpriced) == replace(listed, **unpriced)


@given(daily=st.integers(1, 10**7), monthly=st.integers(0, 10**9), new=st.integers(0, 10**7))
def test_at_another_price_as_much_of_a_month_costs(daily: int, monthly: int, new: int) -> None:
    offer = replace(DEFAULT_CATALOG.offers[0], daily_usdc=Usdc(daily), monthly_usdc=Usdc(monthly))
    found = repriced(offer, Usdc(new)).monthly_usdc
    assert found is not None
    assert 0 <= found * daily - monthly * new < daily


def test_a_month_without_limit_stays_one() -> None:
    assert repriced(replace(DEFAULT_CATALOG.offers[0], monthly_usdc=None), Usdc(1)).monthly_usdc is None


def test_a_cost_is_pinned_with_the_part_of_a_month_that_costs() -> None:
    """3.29 EUR a month, at 1.08 each, are 3.5532: a little less than 26 days of 0.1368."""
    listed = Wholesale(currency=Currency.EUR, daily_micro=126_666, monthly_micro=3_290_000, step_s=3600)
    cost = cost_of(listed, eur_usdc=EUR)
    assert cost == Cost(daily_usdc=Usdc(136_800), capped_s=2_244_126, step_s=3600)
    assert (
        cost.daily_usdc * cost.capped_s // DAY
        <= 3_553_200
        <= cost.daily_usdc * (cost.capped_s + 1) // DAY + 1
    )


def test_a_cost_without_a_limit_is_that_of_every_second() -> None:
    forever = Wholesale(currency=Currency.USD, daily_micro=5)
    assert cost_of(forever, eur_usdc=EUR) == Cost(daily_usdc=Usdc(5), capped_s=NO_CAP_S, step_s=1)


def test_where_no_cost_is_known_there_is_no_floor() -> None:
    unknown = replace(
        DEFAULT_CATALOG, offers=tuple(replace(o, wholesale=None) for o in DEFAULT_CATALOG.offers)
    )
    assert floored(unknown, eur_usdc=EUR, percent=1000) == unknown


def test_the_default_floor_leaves_the_specified_prices() -> None:
    settings = Settings()
    percent = settings.price_floor_percent
    assert floored(DEFAULT_CATALOG, eur_usdc=settings.eur_price_usdc, percent=percent) == DEFAULT_CATALOG


def test_a_raised_price_is_the_same_wherever_the_machine_costs_the_same() -> None:
    def small(percent: int) -> set[tuple[int, int]]:
        sold = floored(DEFAULT_CATALOG, eur_usdc=EUR, percent=percent).offers
        return {(o.daily_usdc, o.deposit_usdc) for o in sold if o.provider_type == "cx23"}

    assert small(100) == {(150_000, 5_000_000)}
    assert small(135) == {(160_000, 5_340_000)}  # 5.00 * 160 / 150 = 5.3334, in cents


def test_an_offer_says_what_it_costs_us_or_that_nobody_knows() -> None:
    def months(offer: Offer) -> int | None:
        if offer.wholesale is None or offer.wholesale.monthly_micro is None:
            return None
        assert offer.wholesale.daily_micro == ceil(Fraction(offer.wholesale.monthly_micro, 30))
        assert offer.wholesale.step_s == 3600
        return offer.wholesale.monthly_micro // 10_000

    found = {offer.provider_type: months(offer) for offer in DEFAULT_CATALOG.offers}
    assert found == {
        "cx23": 329, "cx33": 508, "cx43": 904, "cax11": 349, "cpx21": None, "cpx31": None, "cpx41": None
    }  # fmt: skip
