"""What else a stranger writes into a request: paths, headers, keys, amounts and times."""

from contextlib import suppress
from typing import Final

from spawn_schemas.errors import Code
from spawn_schemas.ids import parse_address
from spawn_schemas.money import MAX_USDC, format_usdc, parse_usdc

from spawn.api import arrivals
from spawn.api.routes import HANDLERS
from spawn.api.routing import Route, Routes
from spawn.payments.timestamps import format_timestamp, parse_timestamp
from tests.fuzz.target import Target, attempt, spoil_bytes

ROUTES: Final = Routes(HANDLERS)
YEAR_10000: Final = 253_402_300_800


def check(data: bytes) -> bool:
    """A method and a path, then header lines; each line's value is read as everything that a value may be."""
    line, *fields = data.split(b"\n")
    method, _, path = line.partition(b" ")
    found = _route(method.decode("latin-1"), path)
    raw = [(name, value) for name, _, value in (field.partition(b": ") for field in fields)]
    headers = attempt(lambda: arrivals.combined(raw), Code.REQUEST_TOO_LARGE, Code.INVALID_REQUEST)
    if headers is None:
        return False
    assert sum(map(len, headers.values())) <= sum(len(value) + 2 for _, value in raw)
    for value in headers.values():
        _read(value)
    return found


def _route(method: str, path: bytes) -> bool:
    """Whether the path leads anywhere; the parameter of it is one segment, as it stands."""
    if not path.startswith(b"/"):
        return False  # no server hands over such a path
    text = attempt(lambda: _spelled(path), Code.NOT_FOUND)
    if text is None:
        return False
    route = ROUTES.find(method, text)
    if route is None:
        return False
    assert route.template.format(**route.arguments(text)) == text
    assert all(value and "/" not in value for value in route.arguments(text).values())
    return True


def _spelled(path: bytes) -> str:
    arrivals.refuse_other_spellings(path)
    return path.decode("latin-1")


def _read(text: str) -> None:
    key = attempt(lambda: arrivals.idempotency_key(text), Code.INVALID_REQUEST)
    assert key in {None, text}
    assert key is None or all(" " <= letter <= "~" for letter in text)
    with suppress(ValueError):
        amount = parse_usdc(text)
        assert 0 <= amount <= MAX_USDC
        assert parse_usdc(format_usdc(amount)) == amount
    with suppress(ValueError):
        assert parse_address(text) == text.lower()
    with suppress(ValueError):
        moment = parse_timestamp(text)
        if 0 <= moment < YEAR_10000:
            assert parse_timestamp(format_timestamp(moment)) == moment


def _line(route: Route) -> str:
    return f"{route.method} {route.template.format(**{route.parameter or '': 'srv_a'})}"


_VALUES: Final = (
    "idempotency-key: 2f0c8a52-9a55-4a7e-a3f6-0d6d8f6c2b1e",
    "a: 5.00",
    "a: 1000000000.000000",
    "b: 0x8ba1f109551bD432803012645Ac136ddd64DBA72",
    "c: 2026-02-24T10:00:00.123456+23:59",
    "c: 0001-01-01T00:00:00Z",
)
TARGET: Final = Target(
    seeds=tuple("\n".join((_line(route), *_VALUES)).encode() for route in ROUTES),
    check=check,
    mutate=spoil_bytes,
)
