"""The whole service in one process with lent machines: the books, the link's listener on loopback, and one host.

async with open_hosts(tmp_path) as lent:
    async with obedient(lent.host) as machine:
        server = await lent.rent()
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import httpx
from spawn_providers.community.provider import CommunityProvider
from spawn_providers.simulated import SimulatedProvider
from spawn_providers.simulated_faults import Faults
from spawn_schemas.money import Usdc

from spawn.app import build
from spawn.domain.hosts import Host
from spawn.domain.rentals import Rental
from spawn.linking import OpenLink
from spawn.outbound.outbound import Outbound
from spawn.parts import Parts
from spawn.payments.devnet import DevChain, DevnetFaults
from spawn.rails import devnet_rail, x402_terms
from spawn.services import hosts_admin
from spawn.services.community import goods_of
from spawn.services.hosts import hashed
from spawn.services.rentals import Rentals
from spawn.store import hosts, operations, rentals
from spawn.store.secrets import Vault
from tests import databases
from tests.harness import BASE_URL, Names, SeededEntropy, VirtualClock, World, bury, settings_in
from tests.integration.scripted_host import ScriptedHost
from tests.ports import free_address, free_port, free_range
from tests.wallets import Wallet

DIGEST: Final = "sha256:" + "ab" * 32
OWNER: Final = "0x" + "0d" * 20
PUBLIC_KEY: Final = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMuuTlGtNlKnGGHu0lF0O1ULQdgG3CYVQbh3OVfpEYOT"
DAILY: Final = Usdc(1_200_000)
ORDER: Final[dict[str, Any]] = {"name": "lent", "type": "lent", "image": "debian-12", "location": "attic"}


@dataclass
class Lent:
    """The running service and its one host, registered."""

    world: World
    host: ScriptedHost
    rentals: Rentals
    link: OpenLink

    async def order(self, order: hosts_admin.HostOrder) -> tuple[str, ...]:
        return await self.world.service.workers.clerk.carry_out(order)

    async def register(self, host: ScriptedHost, name: str) -> None:
        token = f"spwn_reg_{name}"
        await self.order(
            hosts_admin.AddHost(name=name, wallet=OWNER, daily_usdc=DAILY, token_hash=hashed(token))
        )
        answer = await host.register(self.world.http, token)
        assert answer.status_code == 200, answer.text

    async def key(self, wallet: Wallet) -> str:
        known = (await self.world.sign(wallet, "GET", "/v1/ssh-keys")).json()["ssh_keys"]
        if known:
            return str(known[0]["id"])
        answer = await self.world.sign(
            wallet, "POST", "/v1/ssh-keys", {"name": "mine", "public_key": PUBLIC_KEY}
        )
        assert answer.status_code == 201, answer.text
        return str(answer.json()["ssh_key"]["id"])

    async def rent(self, wallet: Wallet, **changes: Any) -> dict[str, Any]:
        """Rent from the balance and wait until it runs; answers its view."""
        key = await self.key(wallet)
        created = await self.world.sign(wallet, "POST", "/v1/servers", ORDER | {"ssh_keys": [key]} | changes)
        assert created.status_code == 201, created.text
        server_id = created.json()["server"]["id"]
        await self.until(lambda: self.status_is(server_id, "running"))
        return await self.show(wallet, server_id)

    async def show(self, wallet: Wallet, server_id: str) -> dict[str, Any]:
        answer = await self.world.sign(wallet, "GET", f"/v1/servers/{server_id}")
        view: dict[str, Any] = answer.json()["server"]
        return view

    async def status_is(self, server_id: str, status: str) -> bool:
        """Let the operations go on for a second; whether the server has come there, and the next order may come.

        What a machine is seen to be can be shown a moment before the operation that made it so has ended.
        """
        self.world.clock.advance(1)
        await self.world.tick("operations")
        under_way = await self.world.rows(operations.SELECT_RUNNING, server_id=server_id)
        return not under_way and (await self.world.server(server_id)).status == status

    async def until(self, holds: Callable[[], Any]) -> None:
        """Wait for what another task does; bounded."""
        for _ in range(3_000):
            if await holds():
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it did not come to that")

    async def rental(self, server_id: str) -> Rental:
        found = await self.world.parts.db.read(rentals.SELECT_RENTAL, {"id": server_id})
        return rentals.rental_from(found[0])

    async def host_row(self) -> Host:
        found = await self.world.parts.db.read(hosts.SELECT_HOST, {"id": self.host.host_id})
        return hosts.host_from(found[0])

    async def owed(self) -> int:
        return await self.world.account(f"host:{self.host.host_id}")


def lent_settings(folder: Path, **changes: Any) -> Any:
    """Settings of a service that rents out one host's machine, on loopback."""
    port = free_port()
    wanted: dict[str, Any] = {
        "providers": "community",
        "community_host": "attic",
        "community_images": f"debian-12=registry.test/debian@{DIGEST}",
        "link_listen": f"127.0.0.1:{port}",
        "link_url": f"ws://127.0.0.1:{port}",
        "relay_ports": free_range(4),
        "relay_host": "relay.test",
        "relay_http_listen": free_address(),
        "relay_http_url": "http://apps.test:8404",
    }
    return settings_in(folder, **(wanted | changes))


@asynccontextmanager
async def open_hosts(
    folder: Path, *, clock: VirtualClock | None = None, registered: bool = True, **changes: Any
) -> AsyncIterator[Lent]:
    """Start the service on what is in `folder`, listen for hosts, and close everything afterwards."""
    settings = lent_settings(folder, **changes)
    clock = clock or VirtualClock()
    databases.make(settings.database_url)
    chain_faults = DevnetFaults()
    chain = DevChain(Path(settings.devnet_path), x402_terms(settings), now=clock.now_s, faults=chain_faults)
    cloud = SimulatedProvider(Path(settings.simulated_path), now_ms=clock.now_ms, seed=1)
    db = await databases.open_database(settings.database_url)
    entropy = SeededEntropy(str(clock.now_ms()))
    lending = Rentals(
        db, Vault(bytes.fromhex(settings.secret_key), entropy), clock, entropy, goods_of(settings)
    )
    await _known(db, entropy, clock)
    parts = Parts(
        db=db,
        rail=devnet_rail(chain),
        providers={"community": CommunityProvider(lending)},
        outbound=Outbound(settings.outbound_rules, Names()),
        hosts=lending,
        clock=clock,
        entropy=entropy,
    )
    try:
        service = await build(settings, parts, ticking=False)
        await bury(parts)
        link = cast("OpenLink", service.workers.link)
        transport = httpx.ASGITransport(app=cast("Any", service.app))
        async with httpx.AsyncClient(transport=transport, base_url=BASE_URL) as http, link.running():
            world = World(
                settings, clock, parts, service, chain, chain_faults, cloud, Faults(seed=1), Names(), http
            )
            lent = Lent(world, ScriptedHost("attic", clock.now_s), lending, link)
            if registered:
                await _registered(lent)
            yield lent
        await service.workers.deliveries.stop()
        await service.operator.stop()
    finally:
        await db.close()
        chain.close()
        await cloud.aclose()


async def _known(db: Any, entropy: SeededEntropy, clock: VirtualClock) -> None:
    """The host is added before a service starts that sells its machine."""
    order = hosts_admin.AddHost(name="attic", wallet=OWNER, daily_usdc=DAILY, token_hash=hashed(TOKEN))
    if not await db.read(hosts.SELECT_BY_NAME, {"name": "attic"}):
        await db.write(lambda tx: hosts_admin.carry_out(tx, order, entropy, clock.now_s()))


TOKEN: Final = "spwn_reg_0123456789abcdef"


async def _registered(lent: Lent) -> None:
    answer = await lent.host.register(lent.world.http, TOKEN)
    assert answer.status_code == 200, answer.text
