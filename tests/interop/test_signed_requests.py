"""npm `@slicekit/erc8128`, unchanged, pays from the balance by signing requests of every verb."""

import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import msgspec
import pytest

from tests.interop.clients import TIMEOUT_S, ScriptedClient, open_httpx, open_signer
from tests.interop.service import RunningService
from tests.interop.story import live_a_life, public_key, shopping
from tests.interop.test_every_route import priced_routes
from tests.wallets import Wallet

PAID_BY_X402_ONLY = {("POST", "/v1/balance/deposit")}
KEYS = "/v1/ssh-keys"
SERVERS = "/v1/servers?limit=1"
LAPTOP = {"name": "laptop", "public_key": public_key()}
PHONE = {"name": "phone", "public_key": public_key()}

Ask = tuple[str, str, dict[str, str] | None]
"""Method, path with query, body."""


@asynccontextmanager
async def signer_with_balance(
    service: RunningService, number: int
) -> AsyncIterator[tuple[ScriptedClient, Wallet]]:
    """A wallet that has paid in a dollar, and its signing client."""
    wallet = Wallet.numbered(number)
    await service.mint(wallet, "1.00")
    async with open_httpx(service.url, wallet, None) as buyer:
        paid_in = await buyer.call("POST", "/v1/balance/deposit")
        assert paid_in.status == 200, paid_in.body
    async with open_signer(service.url, wallet, service.settings.chain_id) as signer:
        yield signer, wallet


async def send(
    service: RunningService, method: str, path: str, signed: tuple[dict[str, str], bytes]
) -> httpx.Response:
    """Send what was signed, or something else under its signature."""
    headers, body = signed
    async with httpx.AsyncClient(base_url=service.url, timeout=TIMEOUT_S, trust_env=False) as http:
        return await http.request(method, path, headers=headers, content=body)


async def test_every_verb_is_paid_from_the_balance(service: RunningService) -> None:
    async with (
        signer_with_balance(service, 300) as (signer, wallet),
        shopping(service, signer, wallet, pays_by_x402=None) as shopper,
    ):
        await live_a_life(shopper)
        assert shopper.bought == priced_routes() - PAID_BY_X402_ONLY
    assert await service.violations() == []


async def test_a_signature_cannot_pay_in(service: RunningService) -> None:
    async with signer_with_balance(service, 301) as (signer, wallet):
        before = await service.mark()
        refused = await signer.call("POST", "/v1/balance/deposit", {"amount": "1.00"})
        assert refused.status == 402
        assert "payment-required" in refused.headers
        assert (await service.moved(wallet.address, before)).paid_in == ()


@pytest.mark.parametrize(
    ("signed", "sent"),
    [
        pytest.param(("POST", KEYS, LAPTOP), ("GET", KEYS, LAPTOP), id="another method"),
        pytest.param(("GET", KEYS, None), ("GET", "/v1/servers", None), id="another path"),
        pytest.param(("GET", SERVERS, None), ("GET", f"{SERVERS}0", None), id="another query"),
        pytest.param(("GET", KEYS, None), ("GET", f"{KEYS}?all", None), id="a query added"),
        pytest.param(("POST", KEYS, LAPTOP), ("POST", KEYS, PHONE), id="another body"),
        pytest.param(("POST", KEYS, LAPTOP), ("POST", KEYS, None), id="the body left out"),
        pytest.param(("GET", KEYS, None), ("GET", KEYS, LAPTOP), id="a body added"),
    ],
)
async def test_a_signature_speaks_for_one_request_only(
    service: RunningService, signed: Ask, sent: Ask, request: pytest.FixtureRequest
) -> None:
    # A wallet for each case: a key is registered once per wallet.
    number = 310 + zlib.crc32(request.node.name.encode())
    async with signer_with_balance(service, number) as (signer, wallet):
        headers, body = await signer.sign(*signed)
        before = await service.mark()
        forged = b"" if sent[2] is None else msgspec.json.encode(sent[2])
        refused = await send(service, sent[0], sent[1], (headers, forged))
        assert refused.status_code == 401, refused.text
        assert refused.json()["error"]["code"] == "invalid_signature"
        assert (await service.moved(wallet.address, before)).fee_usdc == 0
        honest = await send(service, signed[0], signed[1], (headers, body))
        assert honest.is_success, "a forged copy must not use the nonce up"


async def test_another_wallet_cannot_be_named(service: RunningService) -> None:
    async with signer_with_balance(service, 302) as (signer, wallet):
        headers, body = await signer.sign("GET", "/v1/balance")
        stranger = Wallet.numbered(303).address
        named = (
            headers["signature-input"]
            .replace(wallet.account.address, stranger)
            .replace(wallet.address, stranger)
        )
        assert named != headers["signature-input"]
        refused = await send(service, "GET", "/v1/balance", (headers | {"signature-input": named}, body))
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_signature"


async def test_a_replayed_request_gets_the_stored_answer(service: RunningService) -> None:
    async with signer_with_balance(service, 304) as (signer, wallet):
        signed = await signer.sign("POST", KEYS, LAPTOP)
        before = await service.mark()
        first = await send(service, "POST", KEYS, signed)
        second = await send(service, "POST", KEYS, signed)
        assert (first.status_code, second.status_code) == (201, 201)
        assert second.json() == first.json()
        assert "Idempotent-Replayed" not in first.headers
        assert second.headers["Idempotent-Replayed"] == "true"
        fee = (await service.moved(wallet.address, before)).fee_usdc
        assert fee == 1_000
        listed = await signer.call("GET", KEYS)
        assert listed.body["ssh_keys"] == [first.json()["ssh_key"]]
