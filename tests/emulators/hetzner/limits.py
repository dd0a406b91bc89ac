"""The calls that a project has left: 3,600 at most, one more each second.

Invariant: tokens are between none and the limit, and depend only on the calls taken and the time.
"""

from collections.abc import Callable
from typing import Final

CALLS_PER_HOUR: Final = 3_600
_MS_PER_CALL: Final = 1_000


class Bucket:
    def __init__(self, now_ms: Callable[[], int], *, limit: int = CALLS_PER_HOUR) -> None:
        self.limit = limit
        self._now_ms = now_ms
        self._full_at_ms = now_ms()
        """When it would be full again if nobody called: all there is to remember."""

    def _missing_ms(self) -> int:
        return max(0, self._full_at_ms - self._now_ms())

    @property
    def remaining(self) -> int:
        return self.limit - -(-self._missing_ms() // _MS_PER_CALL)

    def take(self) -> bool:
        """Use up one call; False, and nothing is used up, if none is left."""
        if self.remaining < 1:
            return False
        self._full_at_ms = self._now_ms() + self._missing_ms() + _MS_PER_CALL
        return True

    def drain(self, *, left: int = 0) -> None:
        """Somebody else with a token of this project has called too often."""
        self._full_at_ms = self._now_ms() + (self.limit - left) * _MS_PER_CALL

    def headers(self) -> list[tuple[str, str]]:
        """`RateLimit-Reset` is when the bucket is full, not when the next call may be made."""
        reset_s = -(-max(self._full_at_ms, self._now_ms()) // 1_000)
        return [
            ("RateLimit-Limit", str(self.limit)),
            ("RateLimit-Remaining", str(self.remaining)),
            ("RateLimit-Reset", str(reset_s)),
        ]
