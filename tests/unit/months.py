"""Months as the standard library's calendar has them, to hold the ledger's own arithmetic against."""

from datetime import UTC, datetime, timedelta

from spawn_ledger.accrual import Meter


def starts_at(second: int) -> int:
    day = datetime.fromtimestamp(second, UTC).date()
    return int(datetime(day.year, day.month, 1, tzinfo=UTC).timestamp())


def ends_at(second: int) -> int:
    return starts_at(int((datetime.fromtimestamp(starts_at(second), UTC) + timedelta(days=32)).timestamp()))


def billed_s(meter: Meter, until: int) -> int:
    """The seconds that cost anything, month after month, as the rule is written."""
    billed, second, month_s = 0, meter.charged_until, meter.month_s
    while second < until:
        stop = min(until, ends_at(second))
        billed += min(month_s + stop - second, meter.capped_s) - min(month_s, meter.capped_s)
        second, month_s = stop, 0
    return billed
