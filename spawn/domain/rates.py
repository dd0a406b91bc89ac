"""How often somebody may call: the generic cell rate algorithm (ITU-T I.371, annex A), exact in whole numbers.

Invariant: in any t milliseconds at most `burst + per_minute * t / 60000` calls are let through, and whoever is told
to wait is let through after exactly that, however often it asked in between.

What is remembered of a caller is one number: when everything it was let through with will be worked off. It counts
parts of a call: a millisecond works off `per_minute` of them and a call costs 60,000, so nothing is ever rounded.
"""

from typing import Final

import msgspec

FRESH: Final = 0
"""The state of a caller of whom nothing is remembered."""
_CALL: Final = 60_000


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """`burst` calls at once after a quiet time, `per_minute` in the long run. Raises ValueError below 1."""

    per_minute: int
    burst: int

    def __post_init__(self) -> None:
        if self.per_minute < 1 or self.burst < 1:
            raise ValueError("a rate lets at least one call through")


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The call is let through when `wait_ms` is 0. Either way `state` is what to remember."""

    state: int
    wait_ms: int


def decide(rate: Rate, state: int, now_ms: int) -> Decision:
    """Let one call through, or say how long to wait.

    A state further ahead than a whole burst was left by a clock that has since been set back. It counts as a burst
    just used up: nobody waits longer than one call's share of a minute, provided the new state is remembered.
    """
    now = now_ms * rate.per_minute
    full = now + rate.burst * _CALL
    clear_at = min(max(state, now), full)
    excess = clear_at + _CALL - full
    if excess <= 0:
        return Decision(state=clear_at + _CALL, wait_ms=0)
    return Decision(state=clear_at, wait_ms=-(-excess // rate.per_minute))


def give_back(state: int) -> int:
    """The state without one of the calls that were let through."""
    return state - _CALL


def is_worked_off(rate: Rate, state: int, now_ms: int) -> bool:
    """Whether the state says no more than `FRESH` does."""
    return state <= now_ms * rate.per_minute


def whole_seconds(wait_ms: int) -> int:
    """The fewest whole seconds that are long enough: the unit of Retry-After (RFC 9110 section 10.2.3)."""
    return -(-wait_ms // 1000)
