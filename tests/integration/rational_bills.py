"""What a server costs, by fractions and the standard library's calendar: a second opinion that shares no code.

The rule: 24 h cost the daily price; of each UTC month at most so many seconds cost anything, the first of it, whatever
the price was in them; what is charged is the sum, rounded down once.
"""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fractions import Fraction
from math import ceil, floor

DAY = 86_400


def next_month(at: int) -> int:
    """The first second of the next UTC calendar month."""
    day = datetime.fromtimestamp(at, UTC)
    following = day.replace(year=day.year + day.month // 12, month=day.month % 12 + 1, day=1)
    return int(following.replace(hour=0, minute=0, second=0).timestamp())


@dataclass(frozen=True)
class Rate:
    """From the second `since` on, micro-dollars for 24 h, and the seconds of a month that cost anything.

    With `own_month` they are counted from here: it is that of a dearer machine.
    """

    since: int
    daily_usdc: int
    capped_s: int
    own_month: bool = False


@dataclass
class Bill:
    """The rates of one server, the first from when it began to cost. `pending` is announced and not yet begun."""

    rates: list[Rate]
    pending: Rate | None = None
    capped_months: int = field(default=0, init=False)

    def resize(self, rate: Rate) -> bool:
        """Another machine's rate begins; what was announced for later is off. Answers whether it is a dearer one."""
        self._begin_pending(rate.since)
        dearer = rate.daily_usdc > self.rates[-1].daily_usdc
        self.begin(replace(rate, own_month=dearer))
        return dearer

    def begin(self, rate: Rate) -> None:
        self.rates.append(rate)
        self.pending = None

    def owed(self, until: int) -> Fraction:
        """What it costs up to `until`, in micro-dollars. Counts the months that had free seconds."""
        self._begin_pending(until)
        total, used_s, self.capped_months = Fraction(0), 0, 0
        ends = [*(rate.since for rate in self.rates[1:]), until]
        for rate, end in zip(self.rates, ends, strict=True):
            at = rate.since
            used_s = 0 if rate.own_month else used_s
            while at < min(end, until):
                month_end = next_month(at)
                stop = min(end, month_end, until)
                costing_s = max(0, min(used_s + stop - at, rate.capped_s) - min(used_s, rate.capped_s))
                total += Fraction(rate.daily_usdc * costing_s, DAY)
                used_s += stop - at
                if stop == month_end:
                    self.capped_months += used_s > rate.capped_s
                    used_s = 0
                at = stop
        return total

    def charged(self, until: int) -> int:
        """What is charged by `until`: whole micro-dollars."""
        return floor(self.owed(until))

    def least(self) -> int:
        """What a life costs at least: an hour at the dearest of its prices."""
        return max(ceil(Fraction(rate.daily_usdc, 24)) for rate in self.rates)

    def _begin_pending(self, at: int) -> None:
        if self.pending is not None and self.pending.since <= at:
            self.rates.append(self.pending)
            self.pending = None
