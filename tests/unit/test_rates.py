"""The rate algorithm, by its properties: the bound in every window, the exact wait, and a clock that is set back."""

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spawn.domain.rates import FRESH, Rate, decide, is_worked_off, whole_seconds

NOW_MS = 1_790_000_000_000
MINUTE_MS = 60_000

rates = st.builds(Rate, per_minute=st.integers(1, 100_000), burst=st.integers(1, 50))
gaps = st.lists(
    st.one_of(st.just(0), st.integers(0, 50), st.integers(0, 5_000), st.integers(0, 10 * MINUTE_MS)),
    min_size=1,
    max_size=120,
)
steps_ms = st.lists(st.integers(-10 * MINUTE_MS, 10 * MINUTE_MS), min_size=1, max_size=60)


def let_through(rate: Rate, moments: list[int]) -> list[int]:
    """The moments of those calls that are let through."""
    state, passed = FRESH, []
    for now_ms in moments:
        decision = decide(rate, state, now_ms)
        state = decision.state
        if decision.wait_ms == 0:
            passed.append(now_ms)
    return passed


def used_up(rate: Rate, now_ms: int = NOW_MS) -> int:
    """The state of a caller that has just made all the calls it may."""
    state = FRESH
    for _ in range(rate.burst):
        decision = decide(rate, state, now_ms)
        assert decision.wait_ms == 0
        state = decision.state
    assert decide(rate, state, now_ms).wait_ms > 0
    return state


@given(rates, gaps)
def test_no_window_has_more_than_a_burst_and_its_share(rate: Rate, gaps_ms: list[int]) -> None:
    passed = let_through(rate, list(accumulate(gaps_ms, initial=NOW_MS)))
    for first, start_ms in enumerate(passed):
        for count, end_ms in enumerate(passed[first:], start=1):
            assert (count - rate.burst) * MINUTE_MS <= rate.per_minute * (end_ms - start_ms)


@given(rates, st.integers(1, 60))
def test_no_more_is_refused_than_must_be(rate: Rate, more: int) -> None:
    """A caller that always waits just as long as it is told gets all that it is promised, to a millisecond each."""
    state, now_ms = used_up(rate), NOW_MS
    for _ in range(more):
        decision = decide(rate, state, now_ms)
        if decision.wait_ms:
            now_ms += decision.wait_ms
            decision = decide(rate, decision.state, now_ms)
        assert decision.wait_ms == 0
        state = decision.state
    assert (now_ms - NOW_MS - more) * rate.per_minute < more * MINUTE_MS


@given(rates, st.lists(st.integers(0, 5_000), max_size=60))
def test_the_wait_is_enough_and_not_a_second_too_long(rate: Rate, gaps_ms: list[int]) -> None:
    moments = list(accumulate(gaps_ms, initial=NOW_MS))
    state = FRESH
    for now_ms in moments:
        state = decide(rate, state, now_ms).state
    now_ms = moments[-1]
    refused = decide(rate, state, now_ms)
    if refused.wait_ms == 0:
        return
    assert decide(rate, refused.state, now_ms + refused.wait_ms).wait_ms == 0
    assert decide(rate, refused.state, now_ms + refused.wait_ms - 1).wait_ms == 1
    retry_after_s = whole_seconds(refused.wait_ms)
    assert decide(rate, refused.state, now_ms + retry_after_s * 1000).wait_ms == 0
    assert decide(rate, refused.state, now_ms + (retry_after_s - 1) * 1000).wait_ms > 0


@given(rates, st.lists(st.integers(0, 100), max_size=30))
def test_asking_while_one_waits_changes_nothing(rate: Rate, asked_after_ms: list[int]) -> None:
    state = used_up(rate)
    first = decide(rate, state, NOW_MS)
    for after_ms in sorted(asked_after_ms):
        if after_ms < first.wait_ms:
            decision = decide(rate, state, NOW_MS + after_ms)
            assert decision.wait_ms == first.wait_ms - after_ms
            state = decision.state
    assert decide(rate, state, NOW_MS + first.wait_ms).wait_ms == 0


@given(rates, steps_ms)
def test_a_clock_that_steps_back_locks_nobody_out(rate: Rate, steps: list[int]) -> None:
    """However the clock jumps, a refused caller waits at most one call's share of a minute."""
    state = FRESH
    for now_ms in accumulate(steps, initial=NOW_MS):
        decision = decide(rate, state, now_ms)
        state = decision.state
        assert decision.wait_ms * rate.per_minute < MINUTE_MS + rate.per_minute
        if decision.wait_ms:
            assert decide(rate, state, now_ms + decision.wait_ms).wait_ms == 0


@given(rates, st.integers(1, 10 * MINUTE_MS))
def test_a_clock_that_steps_back_forgives_nothing(rate: Rate, back_ms: int) -> None:
    assert decide(rate, used_up(rate), NOW_MS - back_ms).wait_ms > 0


@given(rates, gaps)
def test_a_state_that_is_worked_off_is_as_good_as_none(rate: Rate, gaps_ms: list[int]) -> None:
    state = FRESH
    for now_ms in accumulate(gaps_ms, initial=NOW_MS):
        if is_worked_off(rate, state, now_ms):
            assert decide(rate, state, now_ms) == decide(rate, FRESH, now_ms)
        state = decide(rate, state, now_ms).state
        assert not is_worked_off(rate, state, now_ms)


def test_a_state_is_worked_off_at_an_exact_moment() -> None:
    rate = Rate(per_minute=6, burst=2)
    state = decide(rate, FRESH, NOW_MS).state
    assert not is_worked_off(rate, state, NOW_MS + 9_999)
    assert is_worked_off(rate, state, NOW_MS + 10_000)


@pytest.mark.parametrize(
    ("wait_ms", "seconds"), [(0, 0), (1, 1), (999, 1), (1000, 1), (1001, 2), (60_000, 60)]
)
def test_a_wait_in_whole_seconds_is_rounded_up(wait_ms: int, seconds: int) -> None:
    assert whole_seconds(wait_ms) == seconds


@pytest.mark.parametrize(("per_minute", "burst"), [(0, 1), (1, 0), (-1, 1)])
def test_a_rate_that_lets_nothing_through_is_refused(per_minute: int, burst: int) -> None:
    with pytest.raises(ValueError, match="at least one call"):
        Rate(per_minute=per_minute, burst=burst)
