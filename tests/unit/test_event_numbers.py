"""Whoever watches all events sees each once, in whatever order their numbers become visible."""

from hypothesis import given
from hypothesis import strategies as st

from spawn.domain.event_numbers import LATE_MAX, LATE_S, Numbers


@given(st.integers(0, 20), st.permutations(range(1, 30)))
def test_each_number_is_seen_once_in_whatever_order(newest: int, order: list[int]) -> None:
    numbers = Numbers(newest, 0.0, in_order=True)
    coming = [seq for seq in order if seq > newest]
    assert [seq for seq in coming if numbers.see(seq, 0.0)] == coming
    assert not any(numbers.see(seq, 0.0) for seq in range(1, 30))
    assert numbers.awaited == []


@given(st.sets(st.integers(1, 3 * LATE_MAX), min_size=1), st.integers(0, 2 * LATE_MAX), st.booleans())
def test_awaited_is_what_was_jumped_over_and_is_not_too_far_behind(
    there: set[int], newest: int, in_order: bool
) -> None:
    numbers = Numbers(newest, 0.0, in_order=in_order)
    for seq in sorted(there):
        numbers.see(seq, 0.0)
    numbers.give_up(0.0)
    assert numbers.newest == max(newest, *there)
    began = newest if in_order else newest - LATE_MAX
    first = max(0, began, numbers.newest - LATE_MAX) + 1
    assert numbers.awaited == [seq for seq in range(first, numbers.newest + 1) if seq not in there]


def test_nothing_is_awaited_where_numbers_come_in_their_order() -> None:
    numbers = Numbers(5, 0.0, in_order=True)
    for seq in range(6, 2_000):
        assert numbers.see(seq, 0.0)
        assert numbers.awaited == []


def test_what_does_not_come_is_given_up_in_time() -> None:
    numbers = Numbers(0, 0.0, in_order=True)
    numbers.see(2, 100.0)
    numbers.see(4, 101.0)
    numbers.give_up(100.0 + LATE_S - 0.01)
    assert numbers.awaited == [1, 3]
    numbers.give_up(100.0 + LATE_S)
    assert numbers.awaited == [3]
    assert not numbers.see(1, 120.0), "it has been given up"
    assert numbers.see(3, 120.0)


def test_a_jump_of_any_length_costs_no_more_than_a_short_one() -> None:
    numbers = Numbers(7, 0.0, in_order=True)
    assert numbers.see(10**15, 0.0)
    assert len(numbers.awaited) == LATE_MAX
    assert numbers.awaited[-1] == 10**15 - 1
