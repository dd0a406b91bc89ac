"""A page in a browser may pay: it is let through by the preflight, and may read what the payment headers say.

The rules are those of the Fetch standard: a header in a request needs a preflight that names it (`*` names every one
but Authorization, when no credentials are sent), a header of an answer is hidden unless the answer exposes it.
"""

from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from spawn.api.routes import charged_routes
from tests.interop.clients import BUYERS, TIMEOUT_S
from tests.interop.service import RunningService
from tests.wallets import Wallet

ORIGIN = "https://shop.example"
SENT_BY_CLIENTS = (
    "Access-Control-Expose-Headers",  # every x402 client sends this one, although it belongs in an answer
    "PAYMENT-SIGNATURE",
    "X-PAYMENT",
    "Idempotency-Key",
    "Content-Type",
    "Content-Digest",
    "Signature",
    "Signature-Input",
)
READ_BY_CLIENTS = {
    "payment-required",
    "payment-response",
    "x-payment-response",
    "spawn-fee",
    "spawn-balance",
    "spawn-runway",
    "idempotent-replayed",
    "retry-after",
    "x-request-id",
}


@pytest_asyncio.fixture
async def browser(service: RunningService) -> AsyncIterator[httpx.AsyncClient]:
    """A page of another origin."""
    async with httpx.AsyncClient(
        base_url=service.url, headers={"Origin": ORIGIN}, timeout=TIMEOUT_S, trust_env=False
    ) as http:
        yield http


def listed(response: httpx.Response, header: str) -> set[str]:
    """A comma list in an answer's header, lower-case."""
    return {name.strip().lower() for name in response.headers.get(header, "").split(",")}


def lets_in(response: httpx.Response) -> bool:
    return response.headers.get("Access-Control-Allow-Origin") in {"*", ORIGIN}


@pytest.mark.parametrize(("method", "template"), [(method, path) for method, path, *_ in charged_routes()])
async def test_the_preflight_of_every_route_lets_the_clients_headers_through(
    browser: httpx.AsyncClient, method: str, template: str
) -> None:
    path = template.format(
        server_id="srv_x",
        key_id="key_x",
        action_id="act_x",
        webhook_id="wh_x",
        command_id="cmd_x",
        token="0" * 64,
    )
    asked = {
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": ",".join(sorted(name.lower() for name in SENT_BY_CLIENTS)),
    }
    preflight = await browser.options(path, headers=asked)
    assert preflight.is_success
    assert lets_in(preflight)
    assert {method.lower(), "*"} & listed(preflight, "Access-Control-Allow-Methods")
    allowed = listed(preflight, "Access-Control-Allow-Headers")
    assert "*" in allowed or {name.lower() for name in SENT_BY_CLIENTS} <= allowed


async def test_a_page_may_read_the_challenge(browser: httpx.AsyncClient) -> None:
    challenge = await browser.get("/v1/servers")
    assert challenge.status_code == 402
    assert lets_in(challenge)
    assert "PAYMENT-REQUIRED" in challenge.headers
    assert listed(challenge, "Access-Control-Expose-Headers") >= READ_BY_CLIENTS


async def test_a_page_may_read_a_refusal(browser: httpx.AsyncClient) -> None:
    refused = await browser.post("/v1/servers", json={"no such field": 1})
    assert refused.status_code == 400
    assert lets_in(refused)
    assert listed(refused, "Access-Control-Expose-Headers") >= READ_BY_CLIENTS


@pytest.mark.parametrize("name", BUYERS)
async def test_a_page_may_read_the_receipt(service: RunningService, name: str) -> None:
    wallet = Wallet.numbered(400 + list(BUYERS).index(name))
    await service.mint(wallet, "1.00")
    async with BUYERS[name].open(service.url, wallet, None) as client:
        reply = await client.call("GET", "/v1/balance", headers={"Origin": ORIGIN})
    assert reply.status == 200
    assert reply.receipt is not None
    assert reply.headers["access-control-allow-origin"] in {"*", ORIGIN}
    exposed = {name.strip().lower() for name in reply.headers["access-control-expose-headers"].split(",")}
    assert exposed >= READ_BY_CLIENTS
