"""The circuit breaker: when somebody who failed is asked again."""

from hypothesis import given
from hypothesis import strategies as st

from spawn.payments.breaker import (
    FIRST_S,
    LONGEST_S,
    PATIENCE_S,
    THRESHOLD,
    TRIAL_S,
    Breaker,
    admit,
    answered,
    failed,
)

NOW = 1_900_000_000


def _failing(times: int, now: int = NOW) -> Breaker:
    breaker = Breaker()
    for _ in range(times):
        breaker = failed(breaker, now)
    return breaker


def test_a_few_failures_change_nothing() -> None:
    breaker = _failing(THRESHOLD - 1)
    assert breaker.closed
    assert admit(breaker, NOW) == breaker


def test_too_many_in_a_row_open_it() -> None:
    breaker = _failing(THRESHOLD)
    assert not breaker.closed
    assert admit(breaker, NOW + FIRST_S - 1) is None
    assert admit(breaker, NOW + FIRST_S) is not None


def test_an_answer_between_them_starts_the_count_again() -> None:
    assert _failing(THRESHOLD - 1).failures == THRESHOLD - 1
    assert failed(answered(), NOW).closed


def test_half_open_admits_one() -> None:
    at = NOW + FIRST_S
    trying = admit(_failing(THRESHOLD), at)
    assert trying is not None
    assert admit(trying, at) is None
    assert admit(trying, at + TRIAL_S - 1) is None
    # The trial was cut short, and nobody said how it went.
    assert admit(trying, at + TRIAL_S) is not None


def test_a_trial_that_fails_doubles_the_wait() -> None:
    at = NOW + FIRST_S
    trying = admit(_failing(THRESHOLD), at)
    assert trying is not None
    again = failed(trying, at)
    assert admit(again, at + 2 * FIRST_S - 1) is None
    assert admit(again, at + 2 * FIRST_S) is not None


def test_it_stays_away_when_told_to() -> None:
    breaker = failed(Breaker(), NOW, retry_after_s=30)
    assert admit(breaker, NOW + 29) is None
    assert admit(breaker, NOW + 30) is not None


def test_nobody_is_told_to_stay_away_for_ever() -> None:
    breaker = failed(Breaker(), NOW, retry_after_s=10**9)
    assert admit(breaker, NOW + PATIENCE_S) is not None


def test_a_late_failure_does_not_shorten_the_wait() -> None:
    told = failed(Breaker(), NOW, retry_after_s=120)
    assert admit(failed(told, NOW + 1), NOW + 119) is None


@given(
    st.lists(
        st.tuples(
            st.one_of(st.sampled_from(["fail", "ask", "answer"]), st.integers(-5, 10**6)), st.integers(0, 400)
        ),
        max_size=60,
    )
)
def test_it_is_always_asked_again_in_the_end(events: list[tuple[str | int, int]]) -> None:
    breaker, now = Breaker(), NOW
    for event, pause_s in events:
        before = breaker
        if isinstance(event, int):
            breaker = failed(breaker, now, retry_after_s=event)
            assert admit(breaker, now) is None
        elif event == "fail":
            breaker = failed(breaker, now)
            assert breaker.open_until <= max(now + LONGEST_S, before.open_until)
            assert breaker.open_until >= before.open_until
        elif event == "answer":
            breaker = answered()
            assert admit(breaker, now) == breaker
        else:
            admitted = admit(breaker, now)
            assert breaker.closed or admitted is None or admit(admitted, now) is None
            breaker = admitted or breaker
        now += pause_s
    assert admit(breaker, now + PATIENCE_S) is not None
    assert breaker.failures < THRESHOLD or not breaker.closed
