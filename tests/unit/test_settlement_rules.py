"""The relayer's rules: what fees may do, who shares a transaction, and what gas costs us."""

from dataclasses import dataclass
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st
from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc

from spawn.domain.settlements import (
    Fees,
    RelayPolicy,
    bumped,
    gas_cost_usdc,
    gas_limit,
    market_fees,
    plan,
    signed_by_key,
)

WEI = st.integers(0, 10**13)
BY_KEY, BY_CODE = "0x" + "11" * 65, "0x" + "22" * 96


@dataclass(frozen=True)
class Payment:
    number: int
    value: int
    signature: str
    apart: bool


def policy(*, batch_max: int = 50, alone_from: int = 1_000, examined_max: int = 200) -> RelayPolicy:
    return RelayPolicy(
        multicall=Address("0x" + "ca" * 20),
        batch_max=batch_max,
        alone_from_usdc=Usdc(alone_from),
        bump_after_s=15,
        fee_cap_wei=10**9,
        confirmations=1,
        settle_wait_s=20.0,
        eth_price_usdc=Usdc(3_000_000_000),
        examined_max=examined_max,
    )


@given(base=WEI, tip=WEI, cap=WEI)
def test_an_offer_fits_the_chain_and_the_cap(base: int, tip: int, cap: int) -> None:
    fees = market_fees(base_fee_wei=base, tip_wei=tip, cap_wei=cap)
    if fees is None:
        assert base > cap
        return
    assert base <= fees.max_fee_wei <= cap
    assert fees.max_fee_wei == min(cap, 2 * base + tip)
    assert fees.priority_fee_wei == min(tip, fees.max_fee_wei)


@given(old_max=WEI, old_tip=WEI, base=WEI, tip=WEI, cap=WEI)
def test_a_bump_outbids_by_an_eighth_and_stays_below_the_cap(
    old_max: int, old_tip: int, base: int, tip: int, cap: int
) -> None:
    old = Fees(max_fee_wei=max(old_max, old_tip), priority_fee_wei=old_tip)
    market = market_fees(base_fee_wei=base, tip_wei=tip, cap_wei=cap)
    if market is None:
        return
    new = bumped(old, market, cap_wei=cap)
    if new is None:
        assert Fraction(cap) < Fraction(old.max_fee_wei) * 9 / 8 + 1
        return
    assert market.max_fee_wei <= new.max_fee_wei <= cap
    assert new.priority_fee_wei <= new.max_fee_wei
    assert new.max_fee_wei > old.max_fee_wei
    assert new.priority_fee_wei > old.priority_fee_wei
    assert 8 * new.max_fee_wei >= 9 * old.max_fee_wei
    assert 8 * new.priority_fee_wei >= 9 * old.priority_fee_wei


PAYMENTS = st.lists(
    st.tuples(
        st.sampled_from([1, 999, 1_000, 5_000]), st.sampled_from([BY_KEY, BY_KEY, BY_CODE]), st.booleans()
    ),
    max_size=40,
).map(lambda drawn: [Payment(number, *one) for number, one in enumerate(drawn)])


@given(waiting=PAYMENTS, batch_max=st.integers(1, 7), room=st.integers(0, 9), examined=st.integers(1, 30))
def test_a_plan_keeps_to_its_bounds(waiting: list[Payment], batch_max: int, room: int, examined: int) -> None:
    rules = policy(batch_max=batch_max, examined_max=examined)
    plans = plan(waiting, rules, room=room)
    assert len(plans) <= room
    taken = [payment for together in plans for payment in together]
    assert len(taken) == len(set(taken)) <= examined
    for together in plans:
        assert 1 <= len(together) <= batch_max
        assert list(together) == sorted(together, key=lambda payment: payment.number)
        if len(together) > 1:
            assert all(p.value < 1_000 and not p.apart and p.signature == BY_KEY for p in together)
    # The oldest first: nobody is passed over for somebody younger.
    assert {payment.number for payment in taken} == set(range(len(taken)))


@given(waiting=PAYMENTS, batch_max=st.integers(1, 7))
def test_with_room_everybody_goes_in_as_few_transactions_as_there_can_be(
    waiting: list[Payment], batch_max: int
) -> None:
    plans = plan(waiting, policy(batch_max=batch_max), room=len(waiting))
    small = sum(p.value < 1_000 and not p.apart and p.signature == BY_KEY for p in waiting)
    assert len(plans) == len(waiting) - small + -(-small // batch_max)


def test_a_transaction_may_have_the_gas_that_the_protocol_allows() -> None:
    assert gas_limit(0) == 21_000
    assert gas_limit(100) < 2**24  # EIP-7825
    assert gas_limit(1, by_code=True) > gas_limit(1) > 100_000


@given(gas_wei=st.integers(0, 2**63), price=st.integers(1, 10**12))
def test_gas_is_rounded_up_to_the_smallest_unit(gas_wei: int, price: int) -> None:
    cost = Fraction(gas_wei * price, 10**18)
    assert cost <= gas_cost_usdc(gas_wei, Usdc(price)) < cost + 1


def test_a_key_signs_65_bytes() -> None:
    assert signed_by_key(BY_KEY)
    assert not signed_by_key(BY_CODE)
    assert not signed_by_key("0x")
