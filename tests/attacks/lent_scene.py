"""A scene where machines are lent: the owner's server is a container on one host, and the thief lends another.

Invariant: as of `tests.attacks.scene`; hosts speak by plain calls only, so that everything hostile is one request.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
from spawn_schemas import hosts as wire
from spawn_schemas import orders

from spawn.services import hosts_admin
from spawn.services.hosts import hashed
from tests.integration.hosts_world import DAILY, OWNER, Lent, open_hosts
from tests.integration.hosts_world import ORDER as LENT_ORDER
from tests.integration.scripted_host import ScriptedHost
from tests.wallets import Wallet

SETTINGS: Final[dict[str, Any]] = {"providers": "community"}
"""What makes a scene one of these."""


@asynccontextmanager
async def open_lent(folder: Path, **changes: Any) -> AsyncIterator[tuple[Lent, ScriptedHost]]:
    """The service and its host, and the host of a thief."""
    async with open_hosts(folder, **changes) as lent:
        thief = ScriptedHost("cellar", lent.world.clock.now_s)
        await lent.register(thief, "cellar")
        await thief.beat(lent.world.http)
        yield lent, thief


async def rented(lent: Lent, owner: Wallet) -> str:
    """A server of the owner's that runs; answers its id."""
    key = await lent.key(owner)
    created = await lent.world.sign(owner, "POST", "/v1/servers", LENT_ORDER | {"ssh_keys": [key]})
    assert created.status_code == 201, created.text
    server_id = str(created.json()["server"]["id"])
    await obey(lent)
    await lent.until(lambda: lent.status_is(server_id, "running"))
    return server_id


async def obey(lent: Lent) -> None:
    """The host does all that it is told."""
    told = await lent.host.beat(lent.world.http)
    done = tuple(orders.Ack(command_id=one.command_id, state="succeeded") for one in told.commands)
    await lent.host.beat(lent.world.http, wire.Beat(acks=done))


async def new_token(lent: Lent, name: str, token: str) -> None:
    """The operator adds a machine that is to register with this."""
    await lent.order(hosts_admin.AddHost(name=name, wallet=OWNER, daily_usdc=DAILY, token_hash=hashed(token)))


def encoded(body: object) -> bytes:
    return msgspec.json.encode(body)
