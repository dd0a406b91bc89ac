"""Funding against a simulation that pays second by second, in exact fractions, as the rule is written."""

from fractions import Fraction
from math import floor

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from spawn_ledger.accrual import DAY, NO_CAP_S, Meter, accrue, capped_s, paid_until
from spawn_ledger.runway import HORIZON_S, Charge, Funding, Settlement, ends, runways, settle
from spawn_schemas.ids import ServerId
from spawn_schemas.money import Usdc

from tests.unit import months

AUGUST, SEPTEMBER = 1_817_078_400, 1_819_756_800  # 2027
START = AUGUST - 25
A, B, C = ServerId("srv_a"), ServerId("srv_b"), ServerId("srv_c")


def funding(
    server_id: ServerId,
    *,
    per_second: int,
    reserve: int,
    auto_renew: bool = True,
    remainder: int = 0,
    charged_until: int = START,
) -> Funding:
    return Funding(
        server_id=server_id,
        meter=Meter(daily_usdc=Usdc(per_second * DAY), remainder=remainder, charged_until=charged_until),
        reserve_usdc=Usdc(reserve),
        auto_renew=auto_renew,
    )


@st.composite
def wallets(draw: st.DrawFn) -> list[Funding]:
    """Servers a few seconds before a month ends, some of which may cost only seconds of this one and of the next."""
    daily = st.one_of(st.just(0), st.integers(1, DAY), st.integers(DAY, 6 * DAY))
    caps_s = st.one_of(st.just(NO_CAP_S), st.integers(0, 40))
    return [
        Funding(
            server_id=ServerId(f"srv_{number}"),
            meter=Meter(
                daily_usdc=Usdc(draw(daily)),
                remainder=draw(st.integers(0, DAY - 1)),
                charged_until=START + draw(st.integers(0, 10)),
                capped_s=draw(caps_s),
                month_s=draw(st.integers(0, 40)),
            ),
            reserve_usdc=Usdc(draw(st.integers(0, 80))),
            auto_renew=draw(st.booleans()),
        )
        for number in range(draw(st.integers(0, 6)))
    ]


available_amounts = st.integers(0, 250).map(Usdc)
spans_s = st.integers(0, 60)


class Simulated:
    """One server, living a second at a time."""

    def __init__(self, funding: Funding) -> None:
        self.funding = funding
        self.reserve = int(funding.reserve_usdc)
        self.debt = Fraction(funding.meter.remainder, DAY)
        self.from_reserve = 0
        self.from_wallet = 0
        self.month_s = funding.meter.month_s
        self.ended_at: int | None = None

    def rate(self) -> Fraction:
        """What the next second costs: nothing once the month's cap is used up."""
        meter = self.funding.meter
        return Fraction(meter.daily_usdc if self.month_s < meter.capped_s else 0, DAY)

    def price(self) -> int:
        """Whole micro-USDC that the next second brings due."""
        return floor(self.debt + self.rate())

    def need(self) -> int:
        return max(0, self.price() - self.reserve)

    def live(self, second: int) -> None:
        price, need = self.price(), self.need()
        self.debt += self.rate() - price
        self.month_s = 0 if second + 1 == AUGUST else self.month_s + 1
        self.reserve -= price - need
        self.from_reserve += price - need
        self.from_wallet += need


def simulate(fundings: list[Funding], available: int, now: int) -> tuple[list[Simulated], int]:
    servers = [Simulated(f) for f in fundings]
    for second in range(START, now):
        alive = [s for s in servers if s.ended_at is None and s.funding.meter.charged_until <= second]
        needy = [s for s in alive if s.need() > 0]
        wanted = sum(s.need() for s in needy if s.funding.auto_renew)
        for server in needy:
            if not server.funding.auto_renew or wanted > available:
                server.ended_at = second
        for server in alive:
            if server.ended_at is None:
                available -= server.need()
                server.live(second)
    return servers, available


def carry_on(fundings: list[Funding], settled: Settlement) -> list[Funding]:
    """The fundings after a settlement, without the servers that ended in it."""
    return [
        msgspec.structs.replace(
            before, meter=charge.meter, reserve_usdc=Usdc(before.reserve_usdc - charge.from_reserve)
        )
        for before, charge in zip(fundings, settled.charges, strict=True)
        if charge.exhausted_at is None
    ]


@given(wallets(), available_amounts, spans_s)
@settings(max_examples=300)
def test_settling_is_what_paying_every_second_would_be(
    fundings: list[Funding], available: Usdc, span_s: int
) -> None:
    now = START + span_s
    servers, left = simulate(fundings, available, now)
    expected = tuple(
        Charge(
            server_id=s.funding.server_id,
            from_reserve=Usdc(s.from_reserve),
            from_wallet=Usdc(s.from_wallet),
            meter=Meter(
                daily_usdc=s.funding.meter.daily_usdc,
                remainder=int(s.debt * DAY),
                charged_until=max(s.funding.meter.charged_until, now if s.ended_at is None else s.ended_at),
                capped_s=s.funding.meter.capped_s,
                month_s=s.month_s,
            ),
            exhausted_at=s.ended_at,
        )
        for s in servers
    )
    assert settle(fundings, available, now) == Settlement(charges=expected, available_left=Usdc(left))
    ended_at = {s.funding.server_id: s.ended_at for s in servers}
    found = ends(fundings, available, now)
    assert {server_id: end if end < now else None for server_id, end in found.items()} == ended_at
    for server_id, end in runways(fundings, available, START).items():
        assert ended_at[server_id] == (end if end is not None and end < now else None)


@st.composite
def long_lived_wallets(draw: st.DrawFn) -> list[Funding]:
    """Servers whose money lasts for months, so that some have free days while others still draw on the wallet."""
    since = START - draw(st.integers(0, 20 * DAY))
    return [
        Funding(
            server_id=ServerId(f"srv_{number}"),
            meter=Meter(
                daily_usdc=Usdc(draw(st.sampled_from((1, 7_001, 150_000, 220_000, 1_080_000)))),
                remainder=draw(st.integers(0, DAY - 1)),
                charged_until=since,
                capped_s=draw(st.sampled_from((0, 3 * DAY + 1, 20 * DAY, 28 * DAY, 30 * DAY, NO_CAP_S))),
                month_s=draw(st.integers(0, since - months.starts_at(since))),
            ),
            reserve_usdc=Usdc(draw(st.integers(0, 20_000_000))),
            auto_renew=draw(st.integers(0, 3)) > 0,
        )
        for number in range(draw(st.integers(2, 6)))
    ]


@given(long_lived_wallets(), st.integers(0, 60_000_000).map(Usdc))
@settings(max_examples=200)
def test_over_months_the_money_ends_when_the_next_second_cannot_be_paid(
    fundings: list[Funding], available: Usdc
) -> None:
    until = START + 400 * DAY
    ends_at = ends(fundings, available, until)
    for end in sorted({end for end in ends_at.values() if end < until}):
        drawn = {f.server_id: drawn_usdc(f, min(end, ends_at[f.server_id])) for f in fundings}
        living = [f for f in fundings if ends_at[f.server_id] >= end]
        wanted = {f.server_id: drawn_usdc(f, end + 1) - drawn[f.server_id] for f in living}
        left = available - sum(drawn[f.server_id] for f in fundings if f.auto_renew)
        is_short = sum(wanted[f.server_id] for f in living if f.auto_renew) > left
        assert left >= 0
        assert {f.server_id for f in living if ends_at[f.server_id] == end} == {
            f.server_id for f in living if wanted[f.server_id] > 0 and (is_short or not f.auto_renew)
        }
    spent = sum(drawn_usdc(f, min(until, ends_at[f.server_id])) for f in fundings if f.auto_renew)
    assert spent <= available


def drawn_usdc(funding: Funding, second: int) -> int:
    """What the server has cost by `second` beyond its reserve, month after month."""
    meter = funding.meter
    cost = Fraction(meter.daily_usdc * months.billed_s(meter, second) + meter.remainder, DAY)
    return max(0, floor(cost) - funding.reserve_usdc)


@given(wallets(), available_amounts, st.lists(st.integers(0, 20), min_size=1, max_size=6))
def test_settling_in_steps_is_settling_once(
    fundings: list[Funding], available: Usdc, steps_s: list[int]
) -> None:
    once = settle(fundings, available, START + sum(steps_s))

    now, left, current = START, available, fundings
    paid: dict[ServerId, tuple[int, int, Meter, int | None]] = {
        f.server_id: (0, 0, f.meter, None) for f in fundings
    }
    for step_s in steps_s:
        now += step_s
        step = settle(current, left, now)
        for charge in step.charges:
            from_reserve, from_wallet, *_ = paid[charge.server_id]
            paid[charge.server_id] = (
                from_reserve + charge.from_reserve,
                from_wallet + charge.from_wallet,
                charge.meter,
                charge.exhausted_at,
            )
        current, left = carry_on(current, step), step.available_left

    assert left == once.available_left
    assert paid == {
        c.server_id: (c.from_reserve, c.from_wallet, c.meter, c.exhausted_at) for c in once.charges
    }


@given(wallets(), available_amounts, spans_s)
def test_settling_again_changes_nothing(fundings: list[Funding], available: Usdc, span_s: int) -> None:
    now = START + 10 + span_s
    first = settle(fundings, available, now)
    second = settle(carry_on(fundings, first), first.available_left, now)
    assert second.available_left == first.available_left
    assert all(c.from_reserve == c.from_wallet == 0 and c.exhausted_at is None for c in second.charges)


@given(wallets(), st.integers(0, 10**7).map(Usdc), st.integers(0, 5 * 10**6))
def test_money_is_conserved_and_never_overdrawn(
    fundings: list[Funding], available: Usdc, span_s: int
) -> None:
    settled = settle(fundings, available, START + span_s)
    for before, charge in zip(fundings, settled.charges, strict=True):
        assert 0 <= charge.from_reserve <= before.reserve_usdc
        assert charge.from_wallet == 0 or before.auto_renew
        due, meter = accrue(before.meter, charge.meter.charged_until)
        assert (charge.from_reserve + charge.from_wallet, charge.meter) == (due, meter)
    assert settled.available_left >= 0
    assert settled.available_left + sum(c.from_wallet for c in settled.charges) == available


@given(wallets(), available_amounts)
def test_the_runway_is_the_second_at_which_settling_ends_a_server(
    fundings: list[Funding], available: Usdc
) -> None:
    ends = runways(fundings, available, START)
    assert list(ends) == [f.server_id for f in fundings]
    for server_id, end in ends.items():
        if end is None:
            late = settle(fundings, available, START + HORIZON_S)
            assert {c.server_id: c.exhausted_at for c in late.charges}[server_id] is None
        else:
            on_time, after = (settle(fundings, available, moment) for moment in (end, end + 1))
            assert {c.server_id: c.exhausted_at for c in on_time.charges}[server_id] is None
            assert {c.server_id: c.exhausted_at for c in after.charges}[server_id] == end


@given(wallets(), available_amounts, spans_s)
def test_a_runway_does_not_depend_on_when_it_was_settled(
    fundings: list[Funding], available: Usdc, span_s: int
) -> None:
    now = START + span_s
    unsettled = runways(fundings, available, now)
    settled = settle(fundings, available, now)
    ended = {c.server_id: c.exhausted_at for c in settled.charges if c.exhausted_at is not None}
    assert unsettled == {f.server_id: ended.get(f.server_id) for f in fundings} | runways(
        carry_on(fundings, settled), settled.available_left, now
    )


def test_runway_solves_the_equation_of_the_shared_balance() -> None:
    """e_A = 10, e_B = 30, and 2·(T − 10) + 3·(T − 30) = 90 at T = 40; C's reserve outlasts that."""
    fundings = [
        funding(A, per_second=2, reserve=20),
        funding(B, per_second=3, reserve=90),
        funding(C, per_second=1, reserve=70),
    ]
    assert runways(fundings, Usdc(90), START) == {A: START + 40, B: START + 40, C: START + 70}


def test_a_server_that_does_not_renew_leaves_the_wallet_alone() -> None:
    settled = settle([funding(A, per_second=2, reserve=21, auto_renew=False)], Usdc(1000), START + 60)
    (charge,) = settled.charges
    assert (charge.from_reserve, charge.from_wallet, charge.exhausted_at) == (20, 0, START + 10)
    assert settled.available_left == 1000


def test_a_second_the_wallet_cannot_pay_for_all_is_paid_for_none_and_the_rest_serves_the_next() -> None:
    """10 micro are left when A and B want 7 each; C outlasts its reserve on them for 10 more seconds."""
    fundings = [
        funding(A, per_second=7, reserve=0),
        funding(B, per_second=7, reserve=0),
        funding(C, per_second=1, reserve=5),
    ]
    settled = settle(fundings, Usdc(24), START + 100)
    assert [c.exhausted_at for c in settled.charges] == [START + 1, START + 1, START + 15]
    assert settled.available_left == 0


def test_long_downtime_charges_to_the_second_the_money_ended() -> None:
    meter = Meter(daily_usdc=Usdc(220_000), remainder=0, charged_until=START)
    year = START + 365 * DAY
    own = Funding(server_id=A, meter=meter, reserve_usdc=Usdc(7_500_000), auto_renew=True)
    settled = settle([own], Usdc(1_000_000), year)
    (charge,) = settled.charges
    assert charge.exhausted_at == paid_until(meter, Usdc(8_500_000))
    assert settled.available_left == 1_000_000 - charge.from_wallet < 3


def test_no_end_is_named_beyond_the_horizon() -> None:
    meter = Meter(daily_usdc=Usdc(150_000), remainder=0, charged_until=START)
    rich = Funding(server_id=A, meter=meter, reserve_usdc=Usdc(150_000 * 3_650), auto_renew=False)
    assert runways([rich], Usdc(0), START) == {A: None}
    assert runways([rich], Usdc(0), START + 1) == {A: START + HORIZON_S}


def test_a_server_that_used_up_its_month_lives_on_without_money_until_the_next() -> None:
    """A and B share 10 micro-USDC from the last day of August on; A's cap was reached, B pays every second."""
    end_of_august = SEPTEMBER - DAY
    a, b = (
        Funding(
            server_id=server_id,
            meter=Meter(
                daily_usdc=Usdc(DAY),
                remainder=0,
                charged_until=end_of_august,
                capped_s=cap_s,
                month_s=30 * DAY,
            ),
            reserve_usdc=Usdc(0),
            auto_renew=True,
        )
        for server_id, cap_s in ((A, capped_s(Usdc(30 * DAY), Usdc(DAY))), (B, NO_CAP_S))
    )
    assert runways([a, b], Usdc(10), end_of_august) == {A: SEPTEMBER, B: end_of_august + 10}
    settled = settle([a, b], Usdc(10), SEPTEMBER + 1)
    assert [(c.from_wallet, c.exhausted_at) for c in settled.charges] == [
        (0, SEPTEMBER), (10, end_of_august + 10)
    ]  # fmt: skip
