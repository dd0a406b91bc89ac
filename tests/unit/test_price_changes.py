"""When a price may change, for whom, and what is sold meanwhile."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from spawn_providers.catalog import DEFAULT_CATALOG, Offer
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.money import Usdc

from spawn.domain.price_changes import (
    AHEAD_MAX_S,
    NOTICE_S,
    PriceChange,
    PriceChangeId,
    State,
    announced,
    overlay,
    reprice_at,
    state,
    withdrawal,
)

NOW = 1_790_000_000
SMALL = DEFAULT_CATALOG.find("small", "nbg1") or pytest.fail("it is sold")
"""$0.15 a day."""


def change_of(daily: int, at: int | None = None, **options: Any) -> PriceChange:
    given_: dict[str, Any] = {
        "id": PriceChangeId("prc_1"),
        "effective_at": at,
        "floor_usdc": Usdc(1),
        "newest": None,
        "now": NOW,
    }
    return announced(SMALL, Usdc(daily), **(given_ | options))


def refused(code: Code, daily: int, at: int | None = None, **options: Any) -> str:
    with pytest.raises(SpawnError) as error:
        change_of(daily, at, **options)
    assert error.value.code is code
    assert error.value.next
    return f"{error.value.message} {error.value.next}"


def test_a_rise_is_in_force_thirty_days_later_and_not_a_second_sooner() -> None:
    assert change_of(200_000).effective_at == NOW + NOTICE_S == NOW + 30 * 86_400
    assert change_of(200_000, NOW + NOTICE_S).effective_at == NOW + NOTICE_S
    assert "30 days" in refused(Code.INVALID_REQUEST, 200_000, NOW + NOTICE_S - 1)


def test_a_fall_needs_no_notice_and_is_never_in_the_past() -> None:
    assert change_of(100_000).effective_at == NOW
    assert change_of(100_000, NOW).effective_at == NOW
    assert "over already" in refused(Code.INVALID_REQUEST, 100_000, NOW - 1)


def test_what_cannot_be_meant_is_refused() -> None:
    assert "costs already" in refused(Code.CONFLICT, 150_000)
    assert "floor of 0.16" in refused(Code.INVALID_REQUEST, 159_999, floor_usdc=Usdc(160_000))
    assert "year" in refused(Code.INVALID_REQUEST, 200_000, NOW + AHEAD_MAX_S + 1)
    for slip in (1_500_001, 14_999, 150_000_000, 1):
        assert "factor of 10" in refused(Code.INVALID_REQUEST, slip)
    for bold in (1_500_000, 15_000):
        assert change_of(bold).daily_usdc == bold


@pytest.mark.parametrize(
    ("changed", "pending"),
    [
        ({"effective_at": NOW + 1, "told_to": None}, True),
        ({"effective_at": NOW, "told_to": "srv_m"}, True),
        ({"effective_at": NOW, "told_to": ""}, True),
        ({"effective_at": NOW, "told_to": None}, False),
    ],
)
def test_one_change_at_a_time(changed: dict[str, Any], pending: bool) -> None:
    earlier = replace(change_of(200_000), announced_at=NOW - NOTICE_S, **changed)
    if pending:
        assert "price-withdraw prc_1" in refused(Code.CONFLICT, 300_000, newest=earlier)
    else:
        assert change_of(300_000, newest=earlier).daily_usdc == 300_000


def test_changes_of_an_offer_have_an_order_whatever_the_clock_does() -> None:
    ahead = replace(change_of(200_000), announced_at=NOW + 5, effective_at=NOW, told_to=None)
    assert change_of(300_000, newest=ahead).announced_at == NOW + 6


@given(own=st.integers(1, 10**7), to=st.integers(1, 10**7), late_s=st.integers(0, 90 * 86_400))
def test_no_price_rises_within_thirty_days_of_being_told(own: int, to: int, late_s: int) -> None:
    change = replace(change_of(200_000), daily_usdc=Usdc(to))
    told_at = NOW + late_s
    at = reprice_at(change, Usdc(own), told_at)
    assert at >= max(change.effective_at, told_at)
    assert at == max(change.effective_at, told_at) or to > own
    if to > own:
        assert at >= told_at + NOTICE_S


def test_a_withdrawal_puts_the_old_price_back_at_once() -> None:
    change = change_of(200_000)
    back = withdrawal(change, change, Usdc(150_000), id=PriceChangeId("prc_2"), now=NOW)
    assert (back.id, back.daily_usdc, back.effective_at, back.told_to) == ("prc_2", 150_000, NOW, "")
    assert back.announced_at == NOW + 1, "later than what it takes back, be it in the same second"
    assert state(change, back, NOW) is State.WITHDRAWN
    assert state(back, None, NOW) is State.IN_FORCE


def test_only_what_is_not_in_force_can_be_withdrawn() -> None:
    change = change_of(200_000)

    def refusal(newest: PriceChange, now: int) -> str:
        with pytest.raises(SpawnError) as error:
            withdrawal(change, newest, Usdc(150_000), id=PriceChangeId("prc_2"), now=now)
        assert error.value.code is Code.CONFLICT
        return error.value.message

    last_moment = change.effective_at - 1
    back = withdrawal(change, change, Usdc(1), id=PriceChangeId("prc_2"), now=last_moment)
    assert back.effective_at == last_moment
    assert "in force" in refusal(change, change.effective_at)
    back = replace(change, id=PriceChangeId("prc_2"), announced_at=NOW + 9)
    assert "withdrawn already" in refusal(back, NOW + 10)
    later = replace(back, announced_at=change.effective_at)
    assert "replaced already" in refusal(later, change.effective_at + 1)


def test_where_a_change_has_come_to() -> None:
    change = change_of(200_000)
    assert state(change, None, change.effective_at - 1) is State.ANNOUNCED
    assert state(change, None, change.effective_at) is State.IN_FORCE


def find(daily: int, location: str) -> Offer:
    change = change_of(daily)
    offer = overlay(DEFAULT_CATALOG, [change]).find("small", location)
    assert offer is not None
    return offer


def test_the_newest_price_is_what_is_sold_with_a_deposit_that_lasts_as_long() -> None:
    offer = find(300_000, "nbg1")
    assert offer.daily_usdc == 300_000
    assert offer.deposit_usdc == 2 * SMALL.deposit_usdc
    assert offer.monthly_usdc == 2 * (SMALL.monthly_usdc or 0)
    assert find(300_000, "fsn1") == DEFAULT_CATALOG.find("small", "fsn1"), "elsewhere nothing changes"


def test_without_changes_the_catalog_is_the_same() -> None:
    assert overlay(DEFAULT_CATALOG, []) is DEFAULT_CATALOG
