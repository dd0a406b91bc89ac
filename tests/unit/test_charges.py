"""What a call costs is decided by its route and body alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.money import MAX_USDC, Usdc, format_usdc

from spawn.domain import charges
from spawn.domain.charges import Charge, Kind, Price, quote

DEFAULT = Usdc(1_000_000)


def price(charge: Charge, fund: str | None = None) -> Price:
    return quote(charge, fund=fund, default_deposit_usdc=DEFAULT)


@pytest.mark.parametrize(
    ("charge", "fund", "fee", "stays"),
    [
        (charges.FREE, None, 0, 0),
        (charges.READ, None, 1_000, 0),
        (charges.IDENTIFIED, None, 0, 1_000),
        (charges.CREATE_SERVER, None, 10_000, 0),
        (charges.CREATE_SERVER, "0.60", 10_000, 600_000),
        (charges.DEPOSIT, None, 0, DEFAULT),
        (charges.DEPOSIT, "5.00", 0, 5_000_000),
    ],
)
def test_a_price_is_a_fee_and_what_stays_the_callers(
    charge: Charge, fund: str | None, fee: int, stays: int
) -> None:
    quoted = price(charge, fund)
    assert (quoted.fee_usdc, quoted.fund_usdc, quoted.payment_usdc) == (fee, stays, fee + stays)


@pytest.mark.parametrize("charge", [charges.FREE, charges.READ, charges.IDENTIFIED])
def test_only_routes_that_say_so_take_more_than_their_price(charge: Charge) -> None:
    assert price(charge, "5.00") == price(charge)


@given(st.integers(min_value=0, max_value=MAX_USDC).map(Usdc))
def test_all_of_a_fund_stays_the_callers(fund: Usdc) -> None:
    assert price(charges.CREATE_SERVER, format_usdc(fund)).fund_usdc == fund


@pytest.mark.parametrize("charge", [charges.CREATE_SERVER, charges.DEPOSIT])
@pytest.mark.parametrize("fund", ["-1.00", "1e9", "", "1000000001"])
def test_an_amount_that_is_none_is_an_invalid_request(charge: Charge, fund: str) -> None:
    with pytest.raises(SpawnError) as refused:
        price(charge, fund)
    assert refused.value.code is Code.INVALID_REQUEST


def test_only_fees_are_ours() -> None:
    """A free, an identifying and a paying-in call earn nothing, whatever their charge says."""
    for kind in (Kind.FREE, Kind.IDENTIFIED, Kind.DEPOSIT):
        assert price(Charge(kind=kind)).fee_usdc == 0
