"""When a delivery is tried again."""

from hypothesis import given
from hypothesis import strategies as st

from spawn.domain.retries import ATTEMPTS_MIN, GIVE_UP_AFTER_S, RETRIES_S, RETRY_AFTER_MAX_S, delay_s


def life_s(name: str, *, born_s: int) -> tuple[int, int]:
    """Attempts of a delivery that always fails, first made at this age, and its age at the last."""
    attempts, age_s = 1, born_s
    while (wait_s := delay_s(name, attempts, age_s=age_s, retry_after_s=None)) is not None:
        attempts, age_s = attempts + 1, age_s + wait_s
        assert attempts < 100
    return attempts, age_s


@given(st.text(max_size=40))
def test_it_is_tried_for_three_days_and_then_no_more(name: str) -> None:
    attempts, age_s = life_s(name, born_s=0)
    assert ATTEMPTS_MIN <= attempts <= ATTEMPTS_MIN + 1
    assert GIVE_UP_AFTER_S <= age_s <= GIVE_UP_AFTER_S + 14 * 3600


@given(st.text(max_size=40), st.integers(0, 10 * GIVE_UP_AFTER_S))
def test_what_waited_for_another_gets_its_attempts_all_the_same(name: str, born_s: int) -> None:
    attempts, _ = life_s(name, born_s=born_s)
    assert attempts >= ATTEMPTS_MIN


@given(st.text(max_size=40), st.integers(1, len(RETRIES_S)))
def test_a_wait_is_near_its_place_in_the_schedule_and_always_the_same(name: str, attempts: int) -> None:
    wait_s = delay_s(name, attempts, age_s=0, retry_after_s=None)
    assert wait_s is not None
    assert wait_s == delay_s(name, attempts, age_s=100, retry_after_s=None)
    assert 0.9 * RETRIES_S[attempts - 1] - 1 <= wait_s <= 1.1 * RETRIES_S[attempts - 1]


def test_what_was_tried_early_is_tried_on() -> None:
    assert delay_s("wh_a|1", 500, age_s=GIVE_UP_AFTER_S - 1, retry_after_s=None) is not None


def test_what_failed_together_is_spread() -> None:
    assert len({delay_s(f"wh_a|{seq}", 5, age_s=0, retry_after_s=None) for seq in range(100)}) > 50


@given(st.integers(1, len(RETRIES_S)), st.integers(0, 10**9))
def test_a_receiver_may_ask_for_more_time_within_bounds(attempts: int, retry_after_s: int) -> None:
    plain_s = delay_s("wh_a|1", attempts, age_s=0, retry_after_s=None)
    asked_s = delay_s("wh_a|1", attempts, age_s=0, retry_after_s=retry_after_s)
    assert plain_s is not None
    assert asked_s == max(plain_s, min(retry_after_s, RETRY_AFTER_MAX_S))
