"""Whether to ask somebody again who has failed: a circuit breaker, as arithmetic on states and times.

Invariant: whoever has failed too often is asked by one call at a time, less and less often, until it answers; it is
asked again at the latest `LONGEST_S` later, or when it said itself, but within `PATIENCE_S`.
"""

from typing import Final

import msgspec

THRESHOLD: Final = 3
"""Failures in a row after which it is left alone."""
FIRST_S: Final = 5
"""How long it is left alone then; twice as long after each trial that fails."""
LONGEST_S: Final = 300
PATIENCE_S: Final = 3600
"""The longest that we stay away because we were told to."""
TRIAL_S: Final = 60
"""How long one trial keeps the others waiting: one that was cut short never tells how it ended."""


class Breaker(msgspec.Struct, frozen=True, kw_only=True):
    """How somebody has fared: `failures` in a row, and until when nobody may ask, in unix seconds.

    A new one is closed: everybody may ask. It is open until `open_until`, then half open: one may, who has until
    `trial_until` to report.
    """

    failures: int = 0
    open_until: int = 0
    trial_until: int = 0

    @property
    def closed(self) -> bool:
        return self.open_until == 0


def admit(breaker: Breaker, now: int) -> Breaker | None:
    """The state in which a call may be made now, or None: not now. The caller reports with `failed` or `answered`."""
    if breaker.closed:
        return breaker
    if now < max(breaker.open_until, breaker.trial_until):
        return None
    return msgspec.structs.replace(breaker, trial_until=now + TRIAL_S)


def answered() -> Breaker:
    """It answered, whatever it said."""
    return Breaker()


def failed(breaker: Breaker, now: int, *, retry_after_s: int | None = None) -> Breaker:
    """It gave no answer that can be used; `retry_after_s` is how long it asked to be left alone (RFC 9110, 10.2.3)."""
    failures = breaker.failures + 1
    if retry_after_s is not None:
        open_until = now + min(max(retry_after_s, 1), PATIENCE_S)
    elif failures < THRESHOLD:
        open_until = 0
    else:
        # The exponent is bounded because the failures are not.
        open_until = now + min(FIRST_S * 2 ** min(failures - THRESHOLD, 16), LONGEST_S)
    # A call that began earlier may fail later: it takes nothing back of how long the others were told to wait.
    return Breaker(failures=failures, open_until=max(open_until, breaker.open_until))
