"""What a call costs is decided by its route and body alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.money import MAX_USDC, Usdc, format_usdc

from spawn.domain import charges
from spawn.domain.charges import Charge, Kind, Price, quote
from spawn.settings import Settings

DEFAULT = Usdc(1_000_000)
AMOUNTS = st.integers(min_value=0, max_value=MAX_USDC).map(Usdc)
PRICED = (
    charges.IDENTIFIED,
    charges.DEPOSIT,
    charges.CREATE_SERVER,
    charges.READ,
    charges.UPDATE,
    charges.POWER,
    charges.RESIZE,
    charges.REBUILD,
    charges.DESTROY,
    charges.SSH_KEY,
)


def price(charge: Charge, fund: str | None = None, minimum_usdc: int = 0) -> Price:
    return quote(charge, fund=fund, default_deposit_usdc=DEFAULT, minimum_usdc=Usdc(minimum_usdc))


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


@given(charge=st.sampled_from(PRICED), fund=AMOUNTS, minimum=AMOUNTS)
def test_a_payment_is_what_is_asked_for_or_the_minimum_and_the_fee_stays_the_same(
    charge: Charge, fund: Usdc, minimum: Usdc
) -> None:
    asked, raised = price(charge, format_usdc(fund)), price(charge, format_usdc(fund), minimum)
    assert (raised.fee_usdc, raised.fund_usdc) == (asked.fee_usdc, asked.fund_usdc)
    assert raised.payment_usdc == max(asked.payment_usdc, minimum)
    assert raised.is_raised is (raised.payment_usdc > asked.payment_usdc)


def test_what_is_free_has_no_minimum() -> None:
    assert price(charges.FREE, minimum_usdc=50_000).payment_usdc == 0


@pytest.mark.parametrize("charge", PRICED)
def test_the_default_minimum_raises_nothing(charge: Charge) -> None:
    assert not price(charge, minimum_usdc=Settings().minimum_charge_usdc).is_raised


@given(AMOUNTS)
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
