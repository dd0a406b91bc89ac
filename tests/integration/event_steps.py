"""Steps that the tests of events share: things that happen, told for no reason but the test's."""

import asyncio
from functools import partial
from typing import Any

import httpx
from spawn_ledger.tx import Tx
from spawn_schemas.events import EventType, ServerData
from spawn_schemas.ids import Address

from spawn.services.events import emit
from tests.harness import World
from tests.wallets import Wallet

SERVER = "srv_aaaaaaaaaaaaaaaaaaaaaaaaaa"
OTHER = "srv_bbbbbbbbbbbbbbbbbbbbbbbbbb"
PATIENCE_S = 10.0


def told(name: str) -> ServerData:
    """Data that is told apart by a name."""
    return ServerData(
        server=SERVER,
        name=name,
        type="small",
        status="running",
        previous="off",
        reason=None,
        ipv4=None,
        ipv6=None,
    )


def happens(
    tx: Tx,
    address: Address,
    name: str,
    *,
    type: EventType = EventType.SERVER_RUNNING,
    resource: str = SERVER,
    at: int = 1_790_000_000,
    cause: str | None = None,
) -> bool:
    return emit(tx, address, type, told(name), resource=resource, at=at, cause=cause)


async def happen(world: World, wallet: Wallet, *names: str, **how: Any) -> None:
    """One event for each name, in a transaction of its own."""
    how.setdefault("at", world.clock.now_s())
    for name in names:
        await world.parts.db.write(partial(happens, address=wallet.address, name=name, **how))


async def ask(world: World, wallet: Wallet, query: str = "") -> dict[str, Any]:
    """A list of events, as the wallet sees it."""
    async with asyncio.timeout(PATIENCE_S):
        answer = await world.sign(wallet, "GET", f"/v1/events{query}")
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def names(body: dict[str, Any]) -> list[str]:
    return [event["data"]["name"] for event in body["events"]]


async def session(world: World, wallet: Wallet) -> str:
    """A bearer token of the wallet's."""
    opened: httpx.Response = await world.sign(wallet, "POST", "/v1/sessions")
    assert opened.status_code == 201, opened.text
    token: str = opened.json()["session"]["token"]
    return token
