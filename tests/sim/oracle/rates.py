"""What a rate comes to over time, by fractions and the standard library's calendar.

The rule (DESIGN section 4): 24 h cost the daily price; of each UTC month only so many seconds cost anything, the first
of it; a dearer machine begins a month of its own; what is charged is the sum, rounded down once, and in a life at least
the dearest hour. Invariant: no code is shared with the ledger.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from functools import lru_cache
from math import ceil, floor
from typing import Final

DAY: Final = 86_400
_UNITS_S: Final = {"d": DAY, "h": 3_600, "m": 60, "s": 1}


@dataclass(frozen=True)
class Rate:
    """From the second `since` on, micro-USDC for 24 h, and how many seconds of a UTC month cost anything.

    With `own_month` they are counted from here.
    """

    since: int
    daily_usdc: int
    capped_s: int
    own_month: bool = False


@dataclass
class Bill:
    """The rates of one server in their order, and what they come to.

    What came before the first of them, which only a restored row tells: what was owed by then, the seconds of the
    month that were metered, and the least that a life costs.
    """

    rates: list[Rate]
    before_usdc: Fraction = Fraction(0)
    before_s: int = 0
    least_usdc: int = 0
    _at: int = field(default=0, init=False)
    _rate: int = field(default=0, init=False)
    _used_s: int = field(default=0, init=False)
    _owed: Fraction = field(default=Fraction(0), init=False)

    def __post_init__(self) -> None:
        self._rewind()

    def owed(self, until: int) -> Fraction:
        """Micro-USDC from the first second to `until`, exactly."""
        if until < self._at:
            self._rewind()
        while self._at < until:
            self._step(until)
        return self._owed

    def charged(self, until: int) -> int:
        return floor(self.owed(until))

    def begin(self, rate: Rate) -> None:
        """Another rate, from a second on that is not before the last one's."""
        self.rates.append(rate)
        if rate.since < self._at:
            self._rewind()

    def least(self) -> int:
        """A life costs at least an hour at the dearest of its prices."""
        return max(self.least_usdc, *(ceil(Fraction(rate.daily_usdc, 24)) for rate in self.rates))

    def _rewind(self) -> None:
        self._at, self._rate = self.rates[0].since, 0
        self._used_s, self._owed = self.before_s, self.before_usdc

    def _step(self, until: int) -> None:
        """To the end of the month or of the rate, whichever is first, or to `until`."""
        while self._rate + 1 < len(self.rates) and self.rates[self._rate + 1].since <= self._at:
            self._rate += 1
            self._used_s = 0 if self.rates[self._rate].own_month else self._used_s
        rate, month_end = self.rates[self._rate], next_month(self._at)
        end = min(until, month_end)
        if self._rate + 1 < len(self.rates):
            end = min(end, self.rates[self._rate + 1].since)
        used_s = self._used_s + end - self._at
        costing_s = min(used_s, rate.capped_s) - min(self._used_s, rate.capped_s)
        self._owed += Fraction(rate.daily_usdc * costing_s, DAY)
        self._used_s = 0 if end == month_end else used_s
        self._at = end


def next_month(at: int) -> int:
    """The first second of the UTC calendar month after that of `at`."""
    return _month_after(at // DAY)


@lru_cache(maxsize=4_096)
def _month_after(day: int) -> int:
    date = datetime.fromtimestamp(day * DAY, UTC)
    return int(datetime(date.year + date.month // 12, date.month % 12 + 1, 1, tzinfo=UTC).timestamp())


def thresholds_s(warnings: str) -> tuple[int, ...]:
    """The runways that `SPAWN_WARNINGS` names, such as `7d,3d,1d,6h`, in seconds, the longest first."""
    texts = [text.strip() for text in warnings.split(",")]
    return tuple(sorted((int(text[:-1]) * _UNITS_S[text[-1]] for text in texts), reverse=True))
