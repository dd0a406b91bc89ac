"""Which numbers of events somebody has seen who watches them all, where they become visible in any order.

A number is given out before its transaction commits: with several writers 12 may be there before 11, and a number whose
transaction was undone never comes. Invariant: each number is seen once; one that was jumped over is awaited for a
bounded time, among a bounded range, and then given up.
"""

from typing import Final

LATE_S: Final = 15.0
"""For how long a number is awaited: a transaction takes milliseconds, and a stream looks by itself as often."""
LATE_MAX: Final = 500
"""How far behind the newest a number is awaited: bounds what is read again."""


class Numbers:
    """All are seen up to `newest`, but for those that are awaited. The moments are seconds of any one clock."""

    def __init__(self, newest: int, now: float, *, in_order: bool) -> None:
        """Whoever has just come knows of the last numbers only that they may not all be there, unless `in_order`."""
        self.newest = newest
        self._awaited: dict[int, float] = {}
        if not in_order:
            self._await(newest + 1, now)

    @property
    def awaited(self) -> list[int]:
        """The numbers that may still come, the lowest first; each within LATE_MAX of the newest."""
        return [*self._awaited]

    def see(self, seq: int, now: float) -> bool:
        """Note that this number is visible; False when it was seen before, or given up."""
        if seq <= self.newest:
            return self._awaited.pop(seq, None) is not None
        self._await(seq, now, since=self.newest)
        self.newest = seq
        return True

    def give_up(self, now: float) -> None:
        """Await no more what has had its time, or is too far behind."""
        first = self.newest - LATE_MAX
        self._awaited = {seq: until for seq, until in self._awaited.items() if seq > first and until > now}

    def _await(self, before: int, now: float, *, since: int = 0) -> None:
        for seq in range(max(since + 1, before - LATE_MAX), before):
            self._awaited[seq] = now + LATE_S
