"""Makes a failing life short: leaves out moves as long as the same promise is broken in the same way.

The search leaves out parts of halving size, as ddmin does (Zeller and Hildebrandt, Simplifying and Isolating
Failure-Inducing Input, 2002), but goes on behind a part that was not needed instead of beginning anew.
Invariant: what is answered was lived, and fails; it is the life that was handed in where nothing shorter was found.
"""

import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from difflib import SequenceMatcher
from typing import Final

from tests.sim.life import Life, Violation

TRIALS_MAX: Final = 400
SECONDS_MAX: Final = 240.0
SIMILAR: Final = 0.6
"""How much alike two texts must be, names and numbers apart, to speak of the same failure."""
STEPS_MORE: Final = 2_000
"""A shorter life that goes on for twice as long as the one before, and for so many steps more, is not waited for."""
_PARTICULAR: Final = re.compile(r"\b\w*\d\w*\b")

Trial = Callable[[Sequence[int], int], Life]
"""Lives a life of these moves, for so many steps at most."""


def shrink(
    trial: Trial,
    failed: Life,
    *,
    trials_max: int = TRIALS_MAX,
    seconds_max: float = SECONDS_MAX,
    tell: Callable[[str], None] = lambda _: None,
) -> Life:
    """The shortest life found that fails as `failed` does; a KeyboardInterrupt ends the search with what it has.

    Raises ValueError for a life that did not fail.
    """
    if failed.violation is None:
        raise ValueError("only a life that failed can be shrunk")
    search = _Search(trial, failed, trials_max, time.monotonic() + seconds_max, tell)
    with suppress(KeyboardInterrupt):
        search.run()
    return search.best


def is_same_failure(one: Violation, other: Violation) -> bool:
    """Whether two violations are of one cause, as far as their words tell."""
    if one.promise != other.promise:
        return False
    first, second = (_PARTICULAR.sub("#", violation.text) for violation in (one, other))
    return SequenceMatcher(None, first, second, autojunk=False).ratio() >= SIMILAR


class _Search:
    def __init__(
        self, trial: Trial, failed: Life, trials_left: int, end: float, tell: Callable[[str], None]
    ) -> None:
        assert failed.violation is not None
        self._trial = trial
        self._wanted = failed.violation
        self._left = trials_left
        self._end = end
        self._tell = tell
        self.best = failed

    def run(self) -> None:
        """Leave out ever smaller parts, and single moves for as long as that helps."""
        size = max(1, len(self.best.moves))
        while self._may_go_on:
            is_shorter = self._sweep(size)
            if size == 1 and not is_shorter:
                return
            size = max(1, size // 2)

    @property
    def _may_go_on(self) -> bool:
        return self._left > 0 and time.monotonic() < self._end

    def _sweep(self, size: int) -> bool:
        """Try without each so many moves, the last first: what came late is rarely what matters."""
        length = stop = len(self.best.moves)
        while stop > 0 and self._may_go_on:
            start = max(0, stop - size)
            moves = self.best.moves
            self._try([*moves[:start], *moves[stop:]])
            stop = min(start, len(self.best.moves))
        return len(self.best.moves) < length

    def _try(self, moves: list[int]) -> None:
        self._left -= 1
        life = self._trial(moves, 2 * self.best.steps + STEPS_MORE)
        if life.violation is None or not is_same_failure(self._wanted, life.violation):
            return
        if len(life.moves) < len(self.best.moves):
            self.best = life
            self._tell(f"{len(life.moves)} moves, {life.steps} steps")
