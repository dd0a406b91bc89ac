"""What we say in version 1 is what the version 1 SDKs' own schemas demand, in both languages.

The TypeScript schemas are zod's: an unknown key is dropped, `null` is no absence, a word outside a list is an error.
The Python model has fewer rules, but demands `error`.
"""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from spawn_schemas.errors import Code
from spawn_schemas.x402 import Reason

from spawn.api.routes import charged_routes
from spawn.domain.charges import Kind
from spawn.payments.version1 import body_error
from tests.interop.clients import BUYERS, TIMEOUT_S, Lines, WouldNotPay, open_schemas_v1
from tests.interop.service import RunningService
from tests.wallets import Wallet

CHALLENGE = "x402ResponseSchema"
LANGUAGES = ("TypeScript", "Python")


@pytest_asyncio.fixture
async def schemas() -> AsyncIterator[dict[str, Lines]]:
    async with open_schemas_v1() as running:
        yield running


@pytest_asyncio.fixture
async def http(service: RunningService) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=service.url, timeout=TIMEOUT_S, trust_env=False) as client:
        yield client


async def read(schemas: dict[str, Lines], message: Any) -> list[dict[str, Any]]:
    """What each language's schema makes of a 402 body. Raises WouldNotPay with what one objects to."""
    asked: dict[str, object] = {"schema": CHALLENGE, "message": message}
    return [(await schemas[language].ask(asked))["read"] for language in LANGUAGES]


async def test_the_challenge_of_every_priced_route_validates(
    service: RunningService, http: httpx.AsyncClient, schemas: dict[str, Lines]
) -> None:
    priced = [(method, path) for method, path, charge, _ in charged_routes() if charge.kind is not Kind.FREE]
    assert len(priced) > 10
    for method, template in priced:
        path = template.format(server_id="srv_x", key_id="key_x", webhook_id="wh_x", command_id="cmd_x")
        answer = await http.request(method, f"{path}?limit=1")
        assert answer.status_code == 402
        body = answer.json()
        (offer,) = body["accepts"]
        for seen in await read(schemas, body):
            assert seen == {"x402Version": 1, "error": "invalid_payment", "accepts": [offer]}
        assert offer["network"] == "base-sepolia"
        assert offer["resource"] == f"{service.url}{path}"
        assert offer["mimeType"] == "application/json"


async def test_every_error_of_a_challenge_is_in_the_list(schemas: dict[str, Lines]) -> None:
    for reason in (*(reason.value for reason in Reason), Code.PAYMENT_REQUIRED.value):
        body = {"x402Version": 1, "accepts": [], "error": body_error(reason)}
        assert await read(schemas, body) == [body, body]


async def test_the_schemas_see_a_fault(schemas: dict[str, Lines]) -> None:
    good = {"x402Version": 1, "accepts": [], "error": "invalid_payment"}
    faults: list[dict[str, Any]] = [
        {"error": "payment_required"},
        {"x402Version": 2},
        {"accepts": [{}]},
        {"accepts": None},
    ]
    for planted in faults:
        with pytest.raises(WouldNotPay):
            await read(schemas, good | planted)


async def test_the_receipt_validates(service: RunningService, schemas: dict[str, Lines]) -> None:
    wallet = Wallet.numbered(450)
    await service.mint(wallet, "1.00")
    async with BUYERS["x402-fetch 1.2"].open(service.url, wallet, None) as client:
        reply = await client.call("GET", "/v1/balance")
    assert reply.receipt is not None
    told = {"success": True, "payer": wallet.account.address, "network": "base-sepolia"}
    message = {**told, "transaction": reply.receipt.transaction}
    asked: dict[str, object] = {"schema": "SettleResponseSchema", "message": message}
    assert (await schemas["TypeScript"].ask(asked))["read"] == message
