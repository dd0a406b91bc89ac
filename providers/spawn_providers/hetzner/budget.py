"""How many calls Hetzner allows us, and who may make the next one.

Invariant: pure, with the time passed in. What is left is what Hetzner's last answer said, less what is under way and
plus what has been refilled since. A call of one kind leaves what is kept for the more urgent kinds, so that a destroy
finds calls left, and a thread, however much is polled.
"""

import math
from collections.abc import Mapping
from enum import IntEnum
from typing import Final

import msgspec

LIMIT: Final = 3_600
"""Calls a project may make at once, refilled within an hour, until an answer says otherwise."""
_REFILL_S: Final = 3_600
_PAUSE_MAX_S: Final = 60
_IN_A_ROW: Final = 10


class Priority(IntEnum):
    """The most urgent first."""

    DESTROY = 0
    CREATE = 1
    POWER = 2
    POLL = 3
    RECONCILE = 4


_KEPT: Final[Mapping[Priority, float]] = {
    Priority.DESTROY: 0.0,
    Priority.CREATE: 0.01,
    Priority.POWER: 0.02,
    Priority.POLL: 0.04,
    Priority.RECONCILE: 0.1,
}
"""The share of the limit that each kind leaves to those more urgent: a burst, since what is refilled while no more than
that is left is theirs alone."""


class Quota(msgspec.Struct, frozen=True, kw_only=True):
    """What the headers of an answer say: the most calls there may be, and how many are left."""

    limit: int
    remaining: int


def quota_from(headers: Mapping[str, str]) -> Quota | None:
    """What the headers say, or None where they say nothing that can be meant."""
    try:
        limit, remaining = int(headers["RateLimit-Limit"]), int(headers["RateLimit-Remaining"])
    except (KeyError, ValueError):
        return None
    return Quota(limit=limit, remaining=remaining) if limit > 0 and remaining >= 0 else None


class Budget:
    """The project's calls. Times are seconds of any clock that never runs backwards."""

    def __init__(self, now: float, *, limit: int = LIMIT) -> None:
        self._limit = limit
        self._left = float(limit)
        self._at = now
        self._paused_until = now
        self._refusals = 0

    def left(self, now: float) -> float:
        return min(self._limit, self._left + max(0.0, now - self._at) * self._limit / _REFILL_S)

    def wait_s(self, priority: Priority, now: float) -> float:
        """How long to wait with such a call; 0 for not at all.

        Whoever has to wait does so until several calls are left for its kind: what needs two of them in a row would
        else use up the one that there is, for ever.
        """
        left, kept = self.left(now), math.floor(_KEPT[priority] * self._limit)
        missing = 0.0 if left >= kept + 1 else kept + _IN_A_ROW - left
        return max(0.0, self._paused_until - now, missing * _REFILL_S / self._limit)

    def take(self, now: float) -> None:
        """A call is made."""
        self._left, self._at = self.left(now) - 1, now

    def answered(self, quota: Quota | None, *, under_way: int, now: float) -> None:
        """An answer came while `under_way` other calls had none: they may be counted in it or not, so they are."""
        self._refusals = 0
        self._observe(quota, under_way, now)

    def refused(self, quota: Quota | None, *, under_way: int, now: float) -> None:
        """A call was one too many: everything stops, for twice as long each time in a row."""
        self._refusals += 1
        pause_s = min(_PAUSE_MAX_S, 2**self._refusals)
        self._paused_until = max(self._paused_until, now + pause_s)
        self._observe(quota, under_way, now)

    def _observe(self, quota: Quota | None, under_way: int, now: float) -> None:
        if quota is not None:
            self._limit = quota.limit
            self._left, self._at = float(max(0, quota.remaining - under_way)), now
