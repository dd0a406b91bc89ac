"""When a delivery is tried again, and when no more.

Invariant: the same delivery waits the same time after the same attempt, wherever that is worked out; the waits of many
that failed together spread.
"""

import zlib
from typing import Final

RETRIES_S: Final = (
    *(5, 30, 120, 600, 1800),
    *(hours * 3600 for hours in (1, 2, 4, 8, 12, 12, 12, 12, 9)),
)
"""How long it waits after each attempt: three days in all, and an hour of trouble costs half an hour of delay."""
ATTEMPTS_MIN: Final = len(RETRIES_S) + 1
GIVE_UP_AFTER_S: Final = 3 * 86_400
"""A webhook to which nothing could be delivered for so long is disabled."""
RETRY_AFTER_MAX_S: Final = 12 * 3600
"""The longest that a receiver may ask us to wait by `Retry-After` (RFC 9110, 10.2.3)."""
GONE: Final = 410
"""The receiver wants nothing more, as Standard Webhooks has it."""

_SPREAD: Final = 100
"""Thousandths by which a wait is longer or shorter."""


def delay_s(name: str, attempts: int, *, age_s: int, retry_after_s: int | None) -> int | None:
    """How long delivery `name` waits after its so many attempts; None when that was the last.

    The last is the first of at least ATTEMPTS_MIN that comes three days after the event: attempts may have been made
    early, and a delivery that waited for another first still gets all of them. Never less than `retry_after_s`, as
    far as the receiver may ask that.
    """
    if attempts >= ATTEMPTS_MIN and age_s >= GIVE_UP_AFTER_S:
        return None
    spread = zlib.crc32(f"{name}|{attempts}".encode()) % (2 * _SPREAD + 1) - _SPREAD
    wait_s = RETRIES_S[min(attempts, len(RETRIES_S)) - 1] * (1000 + spread) // 1000
    return max(wait_s, min(retry_after_s or 0, RETRY_AFTER_MAX_S))
