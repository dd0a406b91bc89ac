"""Stock facilitator code finds every priced route in its challenge, and the call it finds is one that we take."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, Protocol

import httpx
import msgspec
import pytest
from x402 import x402Client
from x402.extensions.bazaar import (
    extract_discovery_info,
    validate_discovery_extension,
    validate_discovery_extension_spec,
)
from x402.extensions.bazaar.types import parse_discovery_extension
from x402.http.utils import decode_payment_required_header, encode_payment_signature_header
from x402.mechanisms.evm.exact.register import register_exact_evm_client
from x402.mechanisms.evm.signers import EthAccountSigner
from x402.schemas import PaymentPayload, PaymentRequired

from spawn.api.discovery import SERVICE_NAME, TAGS
from spawn.api.routes import ROUTES
from spawn.api.routing import Route
from spawn.domain.charges import quote
from spawn.payments.header import MAX_HEADER_BYTES
from tests.engines import node_project
from tests.interop.clients import TIMEOUT_S, Lines, running
from tests.interop.service import RunningService
from tests.wallets import Wallet

PRICED: Final[list[Route]] = [route for route in ROUTES if route.is_priced]
WALLET: Final = Wallet.numbered(520)
"""Owns nothing and pays nothing: its payments are made to be read."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What a facilitator would list: `call` is an example of one, `amount` its price in micro-USDC."""

    errors: list[str]
    method: str
    resource_url: str
    description: str
    service_name: str
    tags: list[str]
    call: dict[str, Any]
    amount: int
    header_chars: int


class Facilitator(Protocol):
    """Reads what a payment for a route tells about it."""

    async def read(self, method: str, path: str) -> Entry: ...


class PythonFacilitator:
    """PyPI `x402`."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._client = register_exact_evm_client(x402Client(), EthAccountSigner(WALLET.account))
        self._client.set_spend_controls({"max_amount_per_payment": "$100"})

    async def read(self, method: str, path: str) -> Entry:
        unpaid = await self._http.request(method, path)
        required = decode_payment_required_header(unpaid.headers["PAYMENT-REQUIRED"])
        assert isinstance(required, PaymentRequired)
        payment = await self._client.create_payment_payload(required)
        assert isinstance(payment, PaymentPayload)
        assert payment.extensions is not None
        declared = payment.extensions["bazaar"]
        found = extract_discovery_info(payment, payment.accepted)
        assert found is not None
        described = found.discovery_info.model_dump(by_alias=True, exclude_none=True)
        consistent = validate_discovery_extension(parse_discovery_extension(declared))
        shown = {name: getattr(found, name) for name in Entry.__struct_fields__ if hasattr(found, name)}
        mine = {
            "errors": consistent.errors + validate_discovery_extension_spec(declared).errors,
            "call": described["input"],
            "amount": int(payment.accepted.amount),
            "header_chars": len(encode_payment_signature_header(payment)),
        }
        return msgspec.convert(shown | mine, Entry)


@asynccontextmanager
async def open_python(url: str) -> AsyncIterator[Facilitator]:
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, trust_env=False) as http:
        yield PythonFacilitator(http)


class NodeFacilitator:
    """npm `@x402/extensions`."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    async def read(self, method: str, path: str) -> Entry:
        request: dict[str, object] = {"method": method, "path": path, "body": None, "headers": {}}
        return msgspec.convert(await self._lines.ask(request), Entry)


@asynccontextmanager
async def open_npm(url: str) -> AsyncIterator[Facilitator]:
    key = f"0x{bytes(WALLET.account.key).hex()}"
    async with running("node", str(node_project() / "catalogue.mjs"), url, key) as lines:
        yield NodeFacilitator(lines)


FACILITATORS: Final[dict[str, Callable[[str], AbstractAsyncContextManager[Facilitator]]]] = {
    "x402[extensions]": open_python,
    "@x402/extensions": open_npm,
}
every_facilitator: Final = pytest.mark.parametrize("name", FACILITATORS)


def path_of(route: Route, value: str) -> str:
    return route.template if route.parameter is None else route.template.format(**{route.parameter: value})


@every_facilitator
async def test_every_priced_route_is_listed_once_with_its_price(service: RunningService, name: str) -> None:
    async with FACILITATORS[name](service.url) as facilitator:
        for route in PRICED:
            entry = await facilitator.read(route.method, path_of(route, "a" * 30))
            assert entry.errors == [], route
            listed = service.settings.public_url + route.template.replace("{", ":").replace("}", "")
            assert (entry.method, entry.resource_url) == (route.method, listed)
            assert entry.description == route.summary
            assert (entry.service_name, entry.tags) == (SERVICE_NAME, list(TAGS))
            price = quote(route.charge, fund=None, default_deposit_usdc=service.settings.deposit_default_usdc)
            assert entry.amount == price.payment_usdc, route
            assert entry.header_chars <= MAX_HEADER_BYTES
            assert await facilitator.read(route.method, path_of(route, "b" * 30)) == entry


@every_facilitator
async def test_the_call_in_the_catalogue_is_one_that_we_take(service: RunningService, name: str) -> None:
    """Whoever knows us from the catalogue alone forms a request that only lacks its payment."""
    async with (
        FACILITATORS[name](service.url) as facilitator,
        httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as http,
    ):
        for route in PRICED:
            entry = await facilitator.read(route.method, path_of(route, "a" * 30))
            url = entry.resource_url
            for parameter, value in entry.call.get("pathParams", {}).items():
                url = url.replace(f":{parameter}", value)
            answer = await http.request(
                entry.call["method"],
                url,
                params=entry.call.get("queryParams"),
                json=entry.call.get("body"),
            )
            assert answer.status_code == 402, answer.text
            assert answer.json()["code"] == "payment_required"
