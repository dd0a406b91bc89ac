"""RFC 3339 in, whole seconds out, and nothing guessed."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spawn.payments.timestamps import format_timestamp, parse_timestamp

FIRST = -62_135_596_800
"""Midnight of January 1 of the year 1."""
LAST = 253_402_300_799
"""The last second of the year 9999."""


@given(st.integers(FIRST, LAST))
def test_what_is_written_is_read_back(at: int) -> None:
    assert parse_timestamp(format_timestamp(at)) == at


@given(
    moment=st.datetimes(timezones=st.integers(-1439, 1439).map(lambda m: timezone(timedelta(minutes=m)))),
    digits=st.integers(0, 6),
)
def test_every_zone_and_fraction_is_read_as_the_library_reads_it(moment: datetime, digits: int) -> None:
    text = moment.replace(microsecond=0).isoformat()
    if digits:
        text = text[:19] + f".{moment.microsecond:06}"[: digits + 1] + text[19:]
    whole = moment.replace(microsecond=0) - datetime(1970, 1, 1, tzinfo=UTC)
    assert parse_timestamp(text) == whole // timedelta(seconds=1)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t00:00:00z", 0),
        ("1969-12-31T23:59:59Z", -1),
        ("1970-01-01T00:00:00.999999999999Z", 0),
        ("1970-01-01T00:00:00-00:00", 0),
        ("1970-01-01T02:30:00+02:30", 0),
        ("1969-12-31T21:30:00-02:30", 0),
        ("2024-02-29T12:00:00Z", 1_709_208_000),
        ("9999-12-31T23:59:59Z", LAST),
    ],
)
def test_moments_by_name(text: str, at: int) -> None:
    assert parse_timestamp(text) == at


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "1900000000",
        "2026-02-24",
        "2026-02-24T10:00Z",
        "2026-02-24T10:00:00",
        "2026-02-24 10:00:00Z",
        "2026-02-24T10:00:00 Z",
        "2026-02-24T10:00:00,5Z",
        "2026-02-24T10:00:00.Z",
        "2026-02-24T10:00:00+0200",
        "2026-02-24T10:00:00+24:00",
        "2026-02-24T10:00:00+02:60",
        "2026-02-24T24:00:00Z",
        "2026-02-24T10:60:00Z",
        "2026-06-30T23:59:60Z",
        "2026-13-01T00:00:00Z",
        "2026-00-01T00:00:00Z",
        "2026-02-30T00:00:00Z",
        "2025-02-29T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "12026-01-01T00:00:00Z",
        "+2026-01-01T00:00:00Z",
        "2026-W09-2T00:00:00Z",
        "20260224T100000Z",
        "2026-02-24T10:00:00Z\n",
        " 2026-02-24T10:00:00Z",
        "2026-02-24T10:00:00Zulu",
        "\u0662026-02-24T10:00:00Z",
    ],
)
def test_anything_else_is_no_timestamp(text: str) -> None:
    with pytest.raises(ValueError, match=r"is written like|must be in|out of range"):
        parse_timestamp(text)
