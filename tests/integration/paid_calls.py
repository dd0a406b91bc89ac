"""Short words for tests of paid calls: what a refusal must look like, and that nothing was changed by it."""

import asyncio
import json
from base64 import b64decode
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
from signing import SignedRequestAuth
from spawn_schemas.money import Usdc, parse_usdc

from spawn.payments.devnet import Transfer
from spawn.payments.version1 import body_error
from tests import databases
from tests.harness import CHAIN_ID, World
from tests.wallets import Wallet

PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f laptop"


class Barrier(asyncio.Event):
    """Holds up whoever waits for it, and tells when somebody does."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = asyncio.Event()

    async def wait(self) -> Any:
        self.reached.set()
        return await super().wait()


async def everything(world: World) -> dict[str, list[Any]]:
    """Every row of the database, and every transfer on the chain."""
    tables = [row["name"] for row in await world.rows(databases.TABLES[databases.engine()])]
    content: dict[str, list[Any]] = {
        name: sorted((dict(row) for row in await world.rows(f"SELECT * FROM {name}")), key=repr)
        for name in tables
    }
    assert {"reservation", "idempotency", "transfer", "hold", "account", "server"} <= content.keys()
    return content | {"the chain": await world.chain.transfers()}


@asynccontextmanager
async def nothing_changes(world: World) -> AsyncIterator[None]:
    """What happens inside leaves no trace in the database and moves nothing on the chain."""
    before = await everything(world)
    yield
    assert await everything(world) == before


async def paid_in(world: World, wallet: Wallet) -> list[Transfer]:
    """The transfers that this wallet has made on the chain."""
    return [transfer for transfer in await world.chain.transfers() if transfer.sender == wallet.address]


async def machines(world: World) -> int:
    """How many machines the cloud runs for us."""
    return len([instance async for instance in world.cloud.list_owned()])


def refusal(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error of an answer that must be this refusal, in the one envelope there is, asking for no money."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    assert "PAYMENT-REQUIRED" not in answer.headers
    error: dict[str, Any] = answer.json()["error"]
    assert error["code"] == code, answer.text
    assert error["status"] == status
    assert error["message"]
    assert error["request_id"] == answer.headers["X-Request-Id"]
    assert error["retryable"] == (status in {429, 503})
    if error["retry_after"] is not None:
        assert answer.headers["Retry-After"] == str(error["retry_after"])
    return error


def challenge(answer: httpx.Response, reason: str = "payment_required") -> dict[str, Any]:
    """The decoded PAYMENT-REQUIRED of an answer that must ask for money for this reason."""
    assert answer.status_code == 402, answer.text
    body = answer.json()
    assert (body["error"], body["code"], body["status"]) == (body_error(reason), "payment_required", 402), (
        body
    )
    assert body["request_id"] == answer.headers["X-Request-Id"]
    assert body["message"]
    assert body["next"]
    required: dict[str, Any] = json.loads(b64decode(answer.headers["PAYMENT-REQUIRED"]))
    assert required["error"] == reason
    assert required["accepts"]
    return required


def settlement(answer: httpx.Response) -> dict[str, Any]:
    """The decoded PAYMENT-RESPONSE."""
    decoded: dict[str, Any] = json.loads(b64decode(answer.headers["PAYMENT-RESPONSE"]))
    return decoded


def signed(
    world: World, wallet: Wallet, method: str, path: str, body: object = None, *, key: str | None = None
) -> httpx.Request:
    """One signed request, to be sent as often as a test likes."""
    content = None if body is None else body if isinstance(body, bytes) else msgspec.json.encode(body)
    headers = {} if key is None else {"Idempotency-Key": key}
    request = world.http.build_request(method, path, content=content, headers=headers)
    return next(SignedRequestAuth(wallet.account, CHAIN_ID, clock=world.clock.now_s).auth_flow(request))


def usdc(text: str) -> Usdc:
    """Micro-USDC of an amount as the API writes it, of either sign."""
    return Usdc(-parse_usdc(text[1:])) if text.startswith("-") else parse_usdc(text)


RETRIES = "SELECT id FROM operation WHERE status = 'running' AND claim IS NULL AND next_at > :now"


async def while_time_passes(world: World, answer: Awaitable[httpx.Response]) -> httpx.Response:
    """Await an answer for which time must pass: a second whenever an operation waits for its next try."""
    waiting = asyncio.ensure_future(answer)
    while not waiting.done():
        if await world.rows(RETRIES, now=world.clock.now_s()):
            world.clock.advance(1)
        await world.tick("operations")
    return await waiting
