"""What is counted and charged of traffic, against fractions and a list of what was really sent."""

from fractions import Fraction
from math import floor

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from spawn_ledger.accrual import month_start, next_month
from spawn_providers.base import Traffic
from spawn_providers.catalog import TB
from spawn_schemas.ids import ServerId
from spawn_schemas.money import Usdc

from spawn.domain import traffic
from spawn.domain.pins import Pin
from spawn.domain.traffic import APART_S, Counted, Debtor, Priced

NOW = 1_790_000_000
GB = 10**9
PIN = Pin(
    daily_usdc=Usdc(150_000),
    capped_s=10**9,
    included_bytes=2 * TB,
    tb_usdc=Usdc(1_200_000),
    cost_tb_usdc=Usdc(1_080_001),
)


def counters(outgoing: int, ingoing: int = 0, included: int = 0) -> Traffic:
    return Traffic(ingoing_bytes=ingoing, outgoing_bytes=outgoing, included_bytes=included)


def look(counted: Counted, outgoing: int, now: int = NOW, *, included: int = 0, pin: Pin = PIN) -> Priced:
    return traffic.read(counted, counters(outgoing, included=included), pin, now)


def test_what_is_included_costs_nothing_and_a_byte_more_is_carried() -> None:
    first = look(traffic.begun(PIN, NOW), 2 * TB)
    assert (first.charge_usdc, first.cost_usdc, first.counted.billed_bytes) == (0, 0, 0)
    second = look(first.counted, 2 * TB + 1)
    assert (second.charge_usdc, second.counted.billed_bytes, second.counted.remainder) == (0, 1, 1_200_000)
    third = look(second.counted, 3 * TB)
    assert (third.charge_usdc, third.cost_usdc, third.counted.month_usdc) == (1_200_000, 1_080_001, 1_200_000)
    assert third.counted.remainder == 0


def test_the_same_reading_again_changes_nothing() -> None:
    once = look(traffic.begun(PIN, NOW), 5 * TB)
    again = look(once.counted, 5 * TB)
    assert (again.counted, again.charge_usdc, again.cost_usdc) == (once.counted, 0, 0)


def test_a_counter_that_fell_is_believed_when_it_was_seen_twice() -> None:
    before = look(traffic.begun(PIN, NOW), 5 * TB).counted
    late = look(before, 4 * TB, NOW + 1)
    assert (late.charge_usdc, late.counted.outgoing_bytes, late.counted.fallen_at) == (0, 5 * TB, NOW + 1)
    sooner = look(late.counted, 4 * TB, NOW + APART_S)
    assert (sooner.charge_usdc, sooner.counted) == (0, late.counted)
    there = look(late.counted, 6 * TB, NOW + 700)
    assert (there.charge_usdc, there.counted.fallen_at) == (1_200_000, None)
    anew = look(late.counted, 1 * TB, NOW + 1 + APART_S)
    assert (anew.charge_usdc, anew.counted.last_outgoing, anew.counted.outgoing_bytes) == (
        1_200_000,
        TB,
        6 * TB,
    )


def test_a_counter_that_was_corrected_begins_nothing_anew() -> None:
    """Neither the one that costs nothing, nor the one that does; what comes after is counted from there."""
    before = traffic.read(traffic.begun(PIN, NOW), counters(19 * TB, GB), PIN, NOW).counted
    for corrected in (counters(19 * TB, GB - 1), counters(18 * TB, GB), counters(18 * TB, 0)):
        late = traffic.read(before, corrected, PIN, NOW + 1)
        there = traffic.read(late.counted, corrected, PIN, NOW + 1 + APART_S)
        assert (there.charge_usdc, there.counted.outgoing_bytes) == (0, 19 * TB)
        more = counters(corrected.outgoing_bytes + TB, corrected.ingoing_bytes)
        assert traffic.read(there.counted, more, PIN, NOW + 1_000).charge_usdc == 1_200_000


def test_a_month_begins_with_all_that_is_included() -> None:
    full = look(traffic.begun(PIN, NOW), 3 * TB).counted
    later = next_month(NOW)
    assert traffic.at(full, PIN, later).outgoing_bytes == 0
    begun = look(full, 4 * TB, later)
    assert (begun.charge_usdc, begun.counted.month, begun.counted.outgoing_bytes) == (0, later, TB)
    assert begun.counted.month_usdc == 0


def test_a_clock_that_is_set_back_a_little_begins_no_month_anew_and_one_set_back_far_does() -> None:
    later = next_month(NOW)
    full = look(traffic.begun(PIN, later), 3 * TB, later).counted
    assert look(full, 4 * TB, later - 3_600).charge_usdc == 1_200_000
    assert look(full, 4 * TB, later - 3_601).counted.month == month_start(NOW)


def test_the_most_that_is_included_in_a_month_holds_all_month() -> None:
    generous = look(traffic.begun(PIN, NOW), TB, included=20 * TB)
    assert generous.counted.included_bytes == 20 * TB
    assert look(generous.counted, 10 * TB, included=0).charge_usdc == 0
    larger = look(traffic.begun(PIN, NOW), 10 * TB, pin=replace(PIN, included_bytes=9 * TB))
    assert (larger.charge_usdc, larger.counted.billed_bytes) == (1_200_000, TB)
    more = look(larger.counted, 11 * TB, pin=replace(PIN, included_bytes=11 * TB))
    assert (more.charge_usdc, more.counted.billed_bytes) == (0, TB)


def test_where_nothing_is_asked_nothing_is_charged_later_either() -> None:
    free = replace(PIN, tb_usdc=None, cost_tb_usdc=None)
    sent = look(traffic.begun(free, NOW), 9 * TB, pin=free)
    assert (sent.charge_usdc, sent.cost_usdc) == (0, 0)
    assert look(sent.counted, 10 * TB).charge_usdc == 1_200_000


sending = st.tuples(
    st.integers(0, 3 * TB),
    st.sampled_from(("sent", "sent", "sent", "period", "late")),
    st.integers(1, 20 * 86_400),
)


@given(
    st.lists(sending, max_size=40),
    st.integers(0, 4 * TB),
    st.integers(0, 9_999_999),
    st.integers(0, 9_999_999),
)
def test_money_is_the_price_of_what_was_sent_beyond_the_included(
    steps: list[tuple[int, str, int]], included: int, price: int, cost: int
) -> None:
    """Whatever the readings: late ones, new periods, months that begin in between."""
    pin = replace(PIN, included_bytes=included, tb_usdc=Usdc(price), cost_tb_usdc=Usdc(cost))
    now, counter, counted = NOW, 0, traffic.begun(pin, NOW)
    sent: dict[int, int] = {}
    charged = costs = 0

    def record(shown: int, at: int) -> None:
        nonlocal counted, charged, costs
        priced = look(counted, shown, at, pin=pin)
        counted, charged, costs = priced.counted, charged + priced.charge_usdc, costs + priced.cost_usdc

    for size, kind, wait_s in steps:
        now += wait_s
        if kind == "late" and counter > 0 and counted.fallen_at is None:
            record(counter - 1, now)  # a list of a moment ago
            continue
        if kind == "period":
            # The counter begins anew: what was sent since the last reading is lost, and no look comes in between.
            counter = 0
        counter += size
        last = counted.last_outgoing
        fell = counter < last
        # What is left of more than half is a correction, and nothing was sent.
        grown = (counter if 2 * counter <= last else 0) if fell else counter - last
        record(counter, now)
        if fell:
            now += APART_S
            record(counter, now)
        month = month_start(now)
        sent[month] = sent.get(month, 0) + grown
    billed = sum(max(0, total - included) for total in sent.values())
    assert charged == floor(Fraction(billed * price, TB))
    assert costs == floor(Fraction(billed * cost, TB))


def debtor(name: str, owed: int, reserve: int, *, renews: bool = True) -> Debtor:
    return Debtor(
        server_id=ServerId(name), owed_usdc=Usdc(owed), reserve_usdc=Usdc(reserve), auto_renew=renews
    )


def test_what_is_owed_is_paid_from_the_reserve_then_from_the_wallet_of_who_renews() -> None:
    found = traffic.paid(
        (debtor("b", 10, 3), debtor("a", 10, 4), debtor("c", 10, 2, renews=False)), available_usdc=Usdc(9)
    )
    assert {name: (paid.from_reserve, paid.from_wallet) for name, paid in found.items()} == {
        "a": (4, 6),
        "b": (3, 3),
        "c": (2, 0),
    }


def test_what_is_never_paid_costs_us_what_the_provider_asks_for_it() -> None:
    assert traffic.unpaid_cost(Usdc(600_000), PIN) == 540_000
    assert traffic.unpaid_cost(Usdc(600_000), replace(PIN, cost_tb_usdc=None)) == 0
    assert traffic.unpaid_cost(Usdc(600_000), replace(PIN, tb_usdc=None)) == 0
