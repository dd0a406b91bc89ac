"""Steps that the tests of events share: things that happen, told for no reason but the test's."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import httpx
from spawn_ledger.tx import Params, Row, Tx
from spawn_schemas.events import EventType, ServerData
from spawn_schemas.ids import Address

from spawn.domain.events import Page
from spawn.services.event_watch import Watch
from spawn.services.events import emit
from spawn.store.database import NO_PARAMS, Database
from tests.harness import World
from tests.wallets import Wallet

T = TypeVar("T")

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


# --- waiting --------------------------------------------------------------------------------------------------


class CountingDatabase:
    """A database that counts the rows that are read from it; and that may be one of several that write."""

    def __init__(self, inner: Database, *, exclusive: bool = True) -> None:
        self._inner = inner
        self.exclusive = exclusive
        self.reads = 0
        self.rows = 0

    async def read(self, sql: str, params: Params = NO_PARAMS) -> list[Row]:
        found = await self._inner.read(sql, params)
        self.reads += 1
        self.rows += len(found)
        return found

    async def write(self, fn: Callable[[Tx], T]) -> T:
        return await self._inner.write(fn)

    async def close(self) -> None:
        await self._inner.close()

    async def has_read(self, times: int) -> None:
        """Until so many looks are over."""
        async with asyncio.timeout(PATIENCE_S):
            while self.reads < times:  # noqa: ASYNC110 - reading sets no event
                await asyncio.sleep(0.01)


async def woken(watch: Watch, wallet: Wallet, seen: Page, *, told: int | None = None) -> None:
    """Fails where nothing wakes who waits."""
    told = watch.told if told is None else told
    async with asyncio.timeout(PATIENCE_S):
        await watch.changed(wallet.address, seen, told=told, timeout_s=3 * PATIENCE_S)


async def reached(world: World, true: Callable[[Watch], bool]) -> None:
    """Until this is true of the service's watch."""
    async with asyncio.timeout(PATIENCE_S):
        while not true(world.service.services.streams.watch):  # noqa: ASYNC110 - waiting sets no event
            await asyncio.sleep(0.01)
