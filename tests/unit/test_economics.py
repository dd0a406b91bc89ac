"""Costs are rounded up, margins are exact, and a loss is called one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from spawn_providers.catalog import DEFAULT_CATALOG, Currency, Wholesale
from spawn_schemas.money import Usdc

from spawn.domain import charges, economics
from spawn.domain.charges import Charge
from spawn.domain.economics import Loss, Margin, RouteSale, Settling
from spawn.domain.prices import floored

GWEI = 10**9
EUR = Usdc(1_080_000)
AMOUNTS = st.integers(0, 10**12).map(Usdc)


def sale(charge: Charge, settling: Settling, minimum_usdc: int = 1_000) -> RouteSale:
    return economics.route_sale(
        "GET",
        "/",
        charge,
        settling=settling,
        minimum_usdc=Usdc(minimum_usdc),
        deposit_minimum_usdc=Usdc(max(10_000, minimum_usdc)),
    )


def settling(alone: int, batched: int, batch: int = 50) -> Settling:
    return Settling(alone_usdc=Usdc(alone), batched_usdc=Usdc(batched), batch=batch)


@pytest.mark.parametrize(("batch", "gas"), [(1, 64_760), (50, 42_110)])
def test_gas_is_what_was_measured(batch: int, gas: int) -> None:
    """At a micro-USDC a unit of gas, the cost is the gas: 42,109.2 of it in a batch of 50."""
    found = economics.by_gas(batch=batch, gas_price_wei=10**12, eth_usdc=Usdc(1_000_000))
    assert (found.alone_usdc, found.batched_usdc) == (64_760, gas)


def test_a_payment_costs_gas_at_its_price_in_ether() -> None:
    found = economics.by_gas(batch=50, gas_price_wei=GWEI // 100, eth_usdc=Usdc(3_000_000_000))
    assert found == settling(1_943, 1_264)  # 0.0019428 and 0.001263276


@given(
    batch=st.integers(1, 100),
    gas_price_wei=st.integers(0, 10_000 * GWEI),
    eth_usdc=st.integers(0, 10**11).map(Usdc),
)
def test_a_settlement_is_rounded_up_by_less_than_a_millionth(
    batch: int, gas_price_wei: int, eth_usdc: Usdc
) -> None:
    found = economics.by_gas(batch=batch, gas_price_wei=gas_price_wei, eth_usdc=eth_usdc)
    together = 64_760 if batch == 1 else 29_960 + 41_510 * batch
    assert 0 <= found.alone_usdc * 10**18 - 64_760 * gas_price_wei * eth_usdc < 10**18
    assert 0 <= batch * found.batched_usdc * 10**18 - together * gas_price_wei * eth_usdc < batch * 10**18


@given(st.integers(2, 100), st.integers(1, 10**13))
def test_a_larger_batch_never_costs_more(batch: int, gas_price_wei: int) -> None:
    eth_usdc = Usdc(3_000_000_000)
    small = economics.by_gas(batch=batch - 1, gas_price_wei=gas_price_wei, eth_usdc=eth_usdc)
    large = economics.by_gas(batch=batch, gas_price_wei=gas_price_wei, eth_usdc=eth_usdc)
    assert large.batched_usdc <= small.batched_usdc <= small.alone_usdc


@given(price=AMOUNTS, cost=AMOUNTS)
def test_a_margin_is_exact_and_its_share_is_rounded_down(price: Usdc, cost: Usdc) -> None:
    margin = Margin(price_usdc=price, cost_usdc=cost)
    assert margin.amount_usdc + margin.cost_usdc == margin.price_usdc
    assert margin.is_loss is (cost > price)
    if price == 0:
        assert margin.permille is None
    else:
        assert margin.permille is not None
        assert 0 <= margin.amount_usdc * 1000 - margin.permille * price < price


@pytest.mark.parametrize(
    ("alone", "batched", "loss"),
    [(1_000, 900, None), (1_001, 1_000, Loss.LONE), (1_943, 1_264, Loss.ALWAYS)],
)
def test_a_read_that_settles_for_more_than_its_price_is_a_loss(
    alone: int, batched: int, loss: Loss | None
) -> None:
    assert sale(charges.READ, settling(alone, batched)).loss is loss


def test_a_minimum_charge_pays_for_the_settlement() -> None:
    found = sale(charges.READ, settling(1_943, 1_264), minimum_usdc=50_000)
    assert (found.price.fee_usdc, found.price.payment_usdc) == (1_000, 50_000)
    assert (found.alone.amount_usdc, found.loss) == (48_057, None)


@pytest.mark.parametrize(
    ("charge", "least"),
    [(charges.IDENTIFIED, 1_000), (charges.DEPOSIT, 10_000), (charges.CREATE_SERVER, 10_000)],
)
def test_a_route_is_judged_by_its_smallest_payment(charge: Charge, least: int) -> None:
    assert sale(charge, settling(1, 1)).alone.price_usdc == least


@given(alone=st.integers(1, 10**7), permille=st.integers(1, 1000))
def test_the_least_minimum_charge_is_enough_and_no_more(alone: int, permille: int) -> None:
    least = economics.least_minimum_charge(settling(alone, alone), permille=permille)
    assert least * permille >= alone * 1000 > (least - 1_000) * permille
    assert sale(charges.READ, settling(alone, alone), minimum_usdc=least).loss is None


def test_a_machine_below_its_cost_is_a_loss_until_the_floor_raises_it() -> None:
    dear = Wholesale(currency=Currency.EUR, daily_micro=183_000)
    listed = replace(
        DEFAULT_CATALOG, offers=tuple(replace(o, wholesale=dear) for o in DEFAULT_CATALOG.offers[:1])
    )
    (as_listed,) = economics.server_sales(listed, listed, eur_usdc=EUR)
    assert as_listed.margin == Margin(price_usdc=Usdc(150_000), cost_usdc=Usdc(197_640))
    assert (as_listed.loss, as_listed.is_raised) == (Loss.ALWAYS, False)
    (as_sold,) = economics.server_sales(listed, floored(listed, eur_usdc=EUR, percent=105), eur_usdc=EUR)
    assert (as_sold.listed_usdc, as_sold.daily_usdc) == (150_000, 208_000)
    assert (as_sold.loss, as_sold.is_raised) == (None, True)


def test_a_machine_of_unknown_cost_has_no_margin() -> None:
    unknown = [
        s for s in economics.server_sales(DEFAULT_CATALOG, DEFAULT_CATALOG, eur_usdc=EUR) if not s.wholesale
    ]
    assert {s.location for s in unknown} == {"ash", "hil"}
    assert {(s.margin, s.loss) for s in unknown} == {(None, None)}


def test_at_the_listed_prices_of_autumn_2026_the_specified_ones_lose() -> None:
    sales = economics.list_sales(DEFAULT_CATALOG, eur_usdc=EUR, percent=105)
    assert [(s.provider_type, s.margin.amount_usdc, s.floor_usdc) for s in sales] == [
        ("cx23", -47_640, 208_000),
        ("cx33", -85_640, 321_000),
        ("cx43", -175_640, 605_000),
    ]
