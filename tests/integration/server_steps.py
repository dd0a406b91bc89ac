"""Steps that the tests of a server's life share, and sums done again by hand, apart from the product's own.

Invariant: nothing here asks the product what something costs; a price is written down or worked out from fractions.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, floor
from pathlib import Path
from typing import Any

import httpx
from spawn_providers.base import Capabilities, Change, Instance, Op, OpState, Provider, Spec, Verb
from spawn_providers.catalog import Catalog
from spawn_schemas.ids import ServerId

from tests import databases
from tests.harness import ORDER, World
from tests.wallets import Wallet

DAY = 86_400
SMALL, MEDIUM, LARGE = 150_000, 220_000, 400_000
"""Micro-dollars a day, from the specification's price table."""


def micro(text: str) -> int:
    """Micro-dollars of an amount on the wire."""
    return int(Fraction(text) * 1_000_000)


def burnt(daily_usdc: int, seconds: int) -> int:
    """What whole micro-dollars a server has cost after so many seconds."""
    return floor(Fraction(daily_usdc, DAY) * seconds)


def hour(daily_usdc: int) -> int:
    return ceil(Fraction(daily_usdc, 24))


def lasts_s(daily_usdc: int, usdc: int) -> int:
    """The most whole seconds this much money pays for: the next one would bring the burn above it."""
    return ceil(Fraction(usdc + 1) / Fraction(daily_usdc, DAY)) - 1


@dataclass
class Recorder:
    """A provider that writes down what it was asked to change, and passes every call on."""

    inner: Provider
    changes: list[str] = field(default_factory=list)
    specs: list[Spec] = field(default_factory=list)
    rebuilds: list[Change] = field(default_factory=list)
    calls: int = 0

    @property
    def name(self) -> str:
        return self.inner.name

    @name.setter
    def name(self, value: str) -> None:
        raise AttributeError("the name is the inner provider's")

    @property
    def capabilities(self) -> Capabilities:
        return self.inner.capabilities

    @capabilities.setter
    def capabilities(self, value: Capabilities) -> None:
        raise AttributeError("the capabilities are the inner provider's")

    async def catalog(self) -> Catalog:
        return await self.inner.catalog()

    async def create(self, key: ServerId, spec: Spec) -> Op:
        self.calls += 1
        self.changes.append("create")
        self.specs.append(spec)
        return await self.inner.create(key, spec)

    async def find(self, key: ServerId, *, to_destroy: bool = False) -> Instance | None:
        self.calls += 1
        return await self.inner.find(key, to_destroy=to_destroy)

    async def get(self, ref: str) -> Instance | None:
        self.calls += 1
        return await self.inner.get(ref)

    async def list_owned(self) -> AsyncIterator[Instance]:
        self.calls += 1
        async for instance in self.inner.list_owned():
            yield instance

    async def act(self, ref: str, verb: Verb, change: Change) -> Op:
        self.calls += 1
        self.changes.append(verb.value)
        if verb is Verb.REBUILD:
            self.rebuilds.append(change)
        return await self.inner.act(ref, verb, change)

    async def delete(self, ref: str) -> Op:
        self.calls += 1
        self.changes.append("delete")
        return await self.inner.delete(ref)

    async def poll(self, handles: Sequence[str]) -> list[OpState]:
        self.calls += 1
        return await self.inner.poll(handles)


def recording() -> tuple[list[Recorder], Callable[[Provider], Provider]]:
    """What to hand to `open_world` as `around`, and where the recorder then is."""
    recorders: list[Recorder] = []

    def around(inner: Provider) -> Provider:
        recorders.append(Recorder(inner))
        return recorders[0]

    return recorders, around


async def drive(world: World, *, limit_s: int = 1_500, step_s: int = 2) -> None:
    """Let time pass until no operation runs; fails if one still does after `limit_s`."""
    waited_s = 0
    while await world.rows("SELECT id FROM operation WHERE status = 'running'"):
        assert waited_s < limit_s, await world.rows("SELECT * FROM operation WHERE status = 'running'")
        world.clock.advance(step_s)
        waited_s += step_s
        await world.tick("operations")


async def order(world: World, wallet: Wallet, **changes: Any) -> httpx.Response:
    return await world.sign(wallet, "POST", "/v1/servers", ORDER | changes)


async def rent(world: World, wallet: Wallet, **changes: Any) -> str:
    """Rent a server from the balance and wait until it runs; answers its id."""
    created = await order(world, wallet, **changes)
    assert created.status_code == 201, created.text
    server_id: str = created.json()["server"]["id"]
    await drive(world)
    assert (await world.server(server_id)).status == "running"
    return server_id


async def show(world: World, wallet: Wallet, server_id: str) -> dict[str, Any]:
    """The server as its owner sees it, for 0.001 USDC."""
    shown = await world.sign(wallet, "GET", f"/v1/servers/{server_id}")
    assert shown.status_code == 200, shown.text
    server: dict[str, Any] = shown.json()["server"]
    return server


async def action(world: World, action_id: str) -> dict[str, Any]:
    """The action, which anybody may ask for."""
    answer = await world.ask("GET", f"/v1/actions/{action_id}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["action"]
    return found


async def balance(world: World, wallet: Wallet) -> dict[str, int]:
    """Balance, reserved and available in micro-dollars, for nothing."""
    answer = await world.sign(wallet, "GET", "/v1/balance")
    assert answer.status_code == 200, answer.text
    return {name: micro(text) for name, text in answer.json().items()}


async def machines(world: World) -> list[str]:
    """What runs in the cloud under our label, by server id."""
    return [str(instance.key) async for instance in world.cloud.list_owned()]


async def accepted_at(world: World, server_id: str) -> int:
    """The second from which the server costs money: that in which its create was accepted."""
    (row,) = await world.rows(
        "SELECT accepted_at FROM operation WHERE server_id = :id AND command = 'create_server'", id=server_id
    )
    return int(row["accepted_at"])


async def compute_usdc(world: World, server_id: str) -> int:
    """What the server has cost its owner, from the transfers themselves."""
    rows = await world.rows("SELECT debit, credit, amount FROM transfer WHERE reference = :id", id=server_id)
    taken: int = sum(row["amount"] for row in rows if row["credit"] == "rev:compute")
    returned: int = sum(row["amount"] for row in rows if row["debit"] == "rev:compute")
    return taken - returned


def code(answer: httpx.Response) -> tuple[int, str]:
    """Status and reason of a refusal."""
    body = answer.json()
    return answer.status_code, body["code"] if answer.status_code == 402 else body["error"]["code"]


def stored_bytes(folder: Path) -> bytes:
    """All that the service has on disk, as whoever steals the disk sees it: database, WAL and the rest."""
    found = b"".join(path.read_bytes() for path in databases.files(folder))
    assert b"ubuntu-24.04" in found, "the bytes of what was rented are to be seen"
    return found
