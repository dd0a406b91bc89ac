"""The price of one euro, read from whoever publishes it each day: the European Central Bank, or a service like it.

Invariant: what is believed is near what the operator set, and of a day that is not in the future; an answer is bounded
in time and bytes. A dollar counts as one USDC.
"""

import asyncio
import re
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import TYPE_CHECKING, Final

import msgspec
from spawn_schemas.money import USDC, Usdc, format_usdc

if TYPE_CHECKING:
    import httpx

TIMEOUT_S: Final = 15.0
ANSWER_MAX_BYTES: Final = 65_536
APART_PERCENT: Final = 25
"""A rate further than this from SPAWN_EUR_PRICE is not believed."""
_DAY_S: Final = 86_400

# By its form and not by a parser of XML: two attributes are wanted, and nothing that stands there is ever expanded.
_XML_RATE: Final = re.compile(rb"currency=['\"]USD['\"]\s+rate=['\"]([0-9.]{1,20})['\"]")
_XML_DAY: Final = re.compile(rb"time=['\"]([0-9-]{10})['\"]")


class RateUnknown(Exception):
    """No rate could be read; the message says why, and what to do."""


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """USDC for one euro, rounded up, and the unix second at which the day began that it is of."""

    usdc: Usdc
    at: int


class _Dollars(msgspec.Struct):
    USD: Decimal


class _Json(msgspec.Struct):
    date: str
    rates: _Dollars
    base: str = "EUR"


_json: Final = msgspec.json.Decoder(_Json)


class Exchange:
    """Reads the rate from `url`; `near_usdc` is what it should be about."""

    def __init__(
        self,
        url: str,
        *,
        near_usdc: Usdc,
        now_s: Callable[[], int],
        transport: "httpx.AsyncBaseTransport | None" = None,
    ) -> None:
        self._url = url
        self._near_usdc = near_usdc
        self._now_s = now_s
        self._transport = transport

    async def read(self) -> Rate:
        """The newest rate. Raises RateUnknown."""
        import httpx  # noqa: PLC0415 - once a day, and it takes as long to import as all the rest of serving

        try:
            async with asyncio.timeout(TIMEOUT_S):
                said = await self._fetch()
        except (TimeoutError, httpx.HTTPError, httpx.InvalidURL) as error:
            raise RateUnknown(f"the euro's price cannot be read ({type(error).__name__})") from error
        return believed(rate_from(said), near_usdc=self._near_usdc, now=self._now_s())

    async def _fetch(self) -> bytes:
        import httpx  # noqa: PLC0415 - as above

        # What is compressed may be far larger than what was read: it is not asked for, nor unpacked.
        headers = {"Accept": "application/json, application/xml, text/xml", "Accept-Encoding": "identity"}
        async with (
            httpx.AsyncClient(trust_env=False, transport=self._transport, timeout=TIMEOUT_S) as client,
            client.stream("GET", self._url, headers=headers) as response,
        ):
            if response.status_code != httpx.codes.OK:
                raise RateUnknown(f"the euro's price cannot be read: its source says {response.status_code}")
            said = bytearray()
            async for chunk in response.aiter_raw():
                said += chunk
                if len(said) > ANSWER_MAX_BYTES:
                    raise RateUnknown(
                        f"the euro's price cannot be read: its source says more than {ANSWER_MAX_BYTES} bytes"
                    )
            return bytes(said)


def rate_from(said: bytes) -> Rate:
    """What stands in `{"date": …, "rates": {"USD": …}}` or in the ECB's XML. Raises RateUnknown."""
    try:
        day, dollars = _parts(said)
        began = datetime.combine(date.fromisoformat(day), datetime.min.time(), UTC)
        usdc = int((dollars * USDC).to_integral_value(rounding=ROUND_CEILING))
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, InvalidOperation, OverflowError) as error:
        raise RateUnknown(
            "the euro's price cannot be read: SPAWN_EUR_SOURCE should answer with the ECB's daily XML, or with JSON "
            'such as {"base": "EUR", "date": "2026-11-20", "rates": {"USD": 1.08}}'
        ) from error
    return Rate(usdc=Usdc(usdc), at=int(began.timestamp()))


def _parts(said: bytes) -> tuple[str, Decimal]:
    if said.lstrip()[:1] == b"<":
        rate, day = _XML_RATE.search(said), _XML_DAY.search(said)
        if rate is None or day is None:
            raise ValueError("no rate of the dollar")
        return day[1].decode(), Decimal(rate[1].decode())
    answer = _json.decode(said)
    if answer.base != "EUR":
        raise ValueError("not the price of a euro")
    return answer.date, answer.rates.USD


def believed(rate: Rate, *, near_usdc: Usdc, now: int) -> Rate:
    """The rate. Raises RateUnknown for one that cannot be meant."""
    if abs(rate.usdc - near_usdc) * 100 > APART_PERCENT * near_usdc:
        raise RateUnknown(
            f"the euro's source says {format_usdc(rate.usdc)} USDC, which is not believed: it is more than "
            f"{APART_PERCENT} % from SPAWN_EUR_PRICE. Set that to what a euro costs by now"
        )
    if rate.at > now + _DAY_S:
        raise RateUnknown("the euro's source gives the rate of a day to come, which is not believed")
    return rate
