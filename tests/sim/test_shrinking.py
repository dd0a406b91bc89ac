"""A failing life is made short, stays a failing one on the way, and is lived again exactly by what was printed."""

import re
from collections.abc import Sequence
from random import Random
from shlex import split
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sim.life import Life, Violation
from tests.sim.planted import SEED
from tests.sim.programs import run
from tests.sim.report import spell, unspell
from tests.sim.shrink import is_same_failure, shrink

PROMISE: Final = "paid"
MOVES: Final = 600


class Toy:
    """A life that fails at the move that completes a set of moves; `red_herring` makes it fail in another way."""

    def __init__(self, needed: frozenset[int], red_herring: int | None = None) -> None:
        self.needed = needed
        self.red_herring = red_herring
        self.lived = 0

    def live(self, moves: Sequence[int], steps_max: int = MOVES) -> Life:
        self.lived += 1
        played: list[int] = []
        violation: Violation | None = None
        for move in moves:
            if violation is not None or len(played) >= steps_max:
                break
            played.append(move)
            if self.needed <= set(played):
                text = f"wallet 0x{move:04x} lost {move} micro-USDC"
                violation = Violation(PROMISE, text, move=move, step=len(played))
            elif self.red_herring == move and not self.needed & set(played):
                violation = Violation(PROMISE, "the sum of all accounts is off", move=move, step=len(played))
        return Life(
            seed="toy",
            number=0,
            steps=len(played),
            moves=tuple(played),
            violation=violation,
            trace_hash="",
            tail=(),
            lived_s=0,
            counts={},
        )


def a_needed_set(size: int, seed: int) -> frozenset[int]:
    return frozenset(Random(seed).sample(range(MOVES), size))


@given(size=st.integers(1, 5), seed=st.integers(0, 10_000))
def test_nothing_is_left_but_what_is_needed(size: int, seed: int) -> None:
    needed = a_needed_set(size, seed)
    toy = Toy(needed)
    shortest = shrink(toy.live, toy.live(range(MOVES)))
    assert frozenset(shortest.moves) == needed
    assert shortest.violation is not None
    assert toy.lived <= 150


def test_a_life_that_fails_otherwise_is_no_shorter_one() -> None:
    toy = Toy(frozenset({300, 400}), red_herring=500)
    shortest = shrink(toy.live, toy.live(range(MOVES)))
    assert shortest.moves == (300, 400)


def test_the_search_ends_after_so_many_lives() -> None:
    toy = Toy(frozenset(range(0, MOVES, 2)))
    whole = toy.live(range(MOVES))
    shortest = shrink(toy.live, whole, trials_max=20)
    assert toy.lived == 21
    assert shortest.violation is not None
    assert len(shortest.moves) <= len(whole.moves)


def test_only_what_failed_can_be_shrunk() -> None:
    toy = Toy(frozenset({MOVES}))
    with pytest.raises(ValueError, match="failed"):
        shrink(toy.live, toy.live(range(MOVES)))


def test_failures_are_compared_by_promise_and_words() -> None:
    one = Violation("paid", "srv_1a has 17 micro-USDC, and should have 18", move=1, step=1)
    same = Violation("paid", "srv_9 has 9 micro-USDC, and should have 2000", move=7, step=9)
    other = Violation("paid", "a hold outlived its operation", move=1, step=1)
    promise = Violation("books", same.text, move=1, step=1)
    assert is_same_failure(one, same)
    assert not is_same_failure(one, other)
    assert not is_same_failure(one, promise)


@given(st.frozensets(st.integers(0, 700)))
def test_moves_are_spelt_so_that_they_can_be_read(numbers: frozenset[int]) -> None:
    assert unspell(spell(numbers)) == tuple(sorted(numbers))


@pytest.mark.parametrize("text", ["", "1,", "x", "3-", "1;2", "-4"])
def test_other_spellings_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="3,5-9,17"):
        unspell(text)


def test_a_planted_bug_is_shrunk_to_a_few_moves_that_fail_again_exactly() -> None:
    planted = ("--plant", "lost refund", "--seed", SEED)
    status, said = run("-m", "tests.sim", *planted, "--steps", "40000")
    assert status == 1, said
    (whole, short) = re.findall(r"^VIOLATION .*$", said, re.MULTILINE)
    assert whole.partition(":")[0] == short.partition(":")[0]
    (first, second) = map(split, re.findall(r"^to live it again:  (.*)$", said, re.MULTILINE))
    assert len(unspell(second[-1])) <= 20 < len(unspell(first[-1]))
    again = [run(*second[1:]) for _ in range(2)]
    assert [status for status, _ in again] == [1, 1]
    assert re.findall(r"^VIOLATION .*$", again[0][1], re.MULTILINE) == [short]
    hashes = {re.findall(r"trace ([0-9a-f]{16})$", said.strip())[0] for _, said in again}
    assert len(hashes) == 1
