"""Timestamps as text, RFC 3339, and as unix seconds: whole numbers, in UTC, with nothing guessed.

Invariant: `parse_timestamp(format_timestamp(at)) == at` for every second of the years 1 to 9999.
"""

import re
import time
from datetime import date
from typing import Final

_TIMESTAMP: Final = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]([01][0-9]|2[0-3]):([0-5][0-9]):([0-5][0-9])(?:\.[0-9]+)?"
    r"(?:[Zz]|([+-])([01][0-9]|2[0-3]):([0-5][0-9]))"
)
_DAY_S: Final = 86_400
_EPOCH: Final = date(1970, 1, 1).toordinal()


def parse_timestamp(text: str) -> int:
    """The unix second in which the moment lies; raise ValueError for what is no RFC 3339 `date-time`.

    Leap seconds (`:60`) are refused: unix time has no number for them, and the x402 SDKs refuse them too.
    """
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        raise ValueError("a timestamp is written like 2026-02-24T10:00:00Z")
    year, month, day, hour, minute, second, sign, hours_off, minutes_off = match.groups()
    days = date(int(year), int(month), int(day)).toordinal() - _EPOCH
    at = days * _DAY_S + int(hour) * 3600 + int(minute) * 60 + int(second)
    if sign is None:
        return at
    offset_s = int(hours_off) * 3600 + int(minutes_off) * 60
    return at - offset_s if sign == "+" else at + offset_s


def format_timestamp(at: int) -> str:
    """Unix seconds as RFC 3339 in UTC."""
    year, month, day, hour, minute, second, *_ = time.gmtime(at)
    return f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"
