"""The euro's price as its sources give it: what is read, what is not believed, and that an answer is bounded."""

import contextlib
from decimal import Decimal
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from spawn_schemas.money import Usdc

from spawn.outbound.exchange import ANSWER_MAX_BYTES, Exchange, Rate, RateUnknown, believed, rate_from

NOW = 1_790_000_000
TODAY = 1_789_948_800
"""The midnight before, 2026-09-21."""
NEAR = Usdc(1_080_000)
JSON = b'{"amount": 1.0, "base": "EUR", "date": "2026-09-21", "rates": {"AUD": 1.7, "USD": 1.0934}}'
XML = b"""<?xml version="1.0" encoding="UTF-8"?>
<gesmes:Envelope xmlns:gesmes="http://www.gesmes.org/xml/2002-08-01"><Cube><Cube time='2026-09-21'>
<Cube currency='USD' rate='1.0934'/><Cube currency='JPY' rate='160.1'/></Cube></Cube></gesmes:Envelope>"""


@pytest.mark.parametrize("said", [JSON, XML, XML.replace(b"'", b'"')], ids=["JSON", "XML", "XML, quoted"])
def test_both_forms_are_read(said: bytes) -> None:
    assert rate_from(said) == Rate(usdc=Usdc(1_093_400), at=TODAY)


@given(micro=st.integers(1, 10**7), more=st.integers(0, 999))
def test_a_rate_is_rounded_up_to_a_millionth(micro: int, more: int) -> None:
    text = str((Decimal(micro) + Decimal(more) / 1000) / 1_000_000)
    assert rate_from(JSON.replace(b"1.0934", text.encode())).usdc == micro + (more > 0)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"{}",
        b"<html>busy</html>",
        b"1.09",
        JSON.replace(b"USD", b"CHF"),
        JSON.replace(b'"EUR"', b'"GBP"'),
        JSON.replace(b"2026-09-21", b"yesterday"),
        JSON.replace(b"1.0934", b'"NaN"'),
        JSON.replace(b"1.0934", b'"Infinity"'),
        XML.replace(b"2026-09-21", b"2026-13-41"),
        XML.replace(b"1.0934", b"1.0.9"),
        XML.replace(b"USD", b"CHF"),
    ],
)
def test_what_is_no_rate_is_refused(said: bytes) -> None:
    with pytest.raises(RateUnknown, match="SPAWN_EUR_SOURCE"):
        rate_from(said)


@given(said=st.binary(max_size=200))
def test_nothing_that_is_said_breaks_the_reader(said: bytes) -> None:
    with contextlib.suppress(RateUnknown):
        rate_from(said)


@pytest.mark.parametrize("usdc", [0, -1_080_000, 109_340, 809_999, 1_350_001, 10**12])
def test_a_rate_far_from_the_setting_is_not_believed(usdc: int) -> None:
    with pytest.raises(RateUnknown, match="SPAWN_EUR_PRICE"):
        believed(Rate(usdc=Usdc(usdc), at=TODAY), near_usdc=NEAR, now=NOW)


def test_nor_is_one_of_a_day_to_come() -> None:
    with pytest.raises(RateUnknown, match="day to come"):
        believed(Rate(usdc=NEAR, at=NOW + 2 * 86_400), near_usdc=NEAR, now=NOW)
    assert believed(Rate(usdc=Usdc(1_350_000), at=TODAY), near_usdc=NEAR, now=NOW).usdc == 1_350_000


def exchange(answer: Any) -> Exchange:
    return Exchange(
        "https://rates.example/latest",
        near_usdc=NEAR,
        now_s=lambda: NOW,
        transport=httpx.MockTransport(answer),
    )


async def test_it_is_fetched() -> None:
    assert await exchange(lambda _: httpx.Response(200, stream=httpx.ByteStream(XML))).read() == Rate(
        usdc=Usdc(1_093_400), at=TODAY
    )


def _broken(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused", request=request)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (_broken, "ConnectError"),
        (lambda _: httpx.Response(503, content=JSON), "503"),
        (lambda _: httpx.Response(302, headers={"Location": "http://169.254.169.254/"}), "302"),
        (
            lambda _: httpx.Response(200, stream=httpx.ByteStream(b" " * (ANSWER_MAX_BYTES + 1) + JSON)),
            "bytes",
        ),
    ],
    ids=["no connection", "an error", "elsewhere", "too long"],
)
async def test_what_cannot_be_fetched(answer: Any, said: str) -> None:
    with pytest.raises(RateUnknown, match=said):
        await exchange(answer).read()
