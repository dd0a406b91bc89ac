"""The whole service in one process, on a virtual clock, with its world at hand: chain, cloud, database.

async with open_world(tmp_path) as world:
    wallet = await world.wallet("25.00")
    answer = await world.pay(wallet, "POST", "/v1/servers", ORDER | {"fund": "6.00"})
    await world.run_for(60)
"""

import hashlib
import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar, cast

import httpx
import msgspec
import pytest
from signing import SignedRequestAuth
from spawn_ledger.transfers import balance_of
from spawn_ledger.tx import Tx
from spawn_ledger.verify import verify
from spawn_providers.base import Provider
from spawn_providers.simulated import SimulatedProvider
from spawn_providers.simulated_faults import Faults
from spawn_schemas.ids import Address, ServerId
from spawn_schemas.money import Usdc, parse_usdc

from spawn.app import Service, build
from spawn.domain.servers import Server
from spawn.domain.targets import Address as NetworkAddress
from spawn.outbound.outbound import Outbound
from spawn.outbound.resolver import Unresolvable
from spawn.parts import Parts, recover
from spawn.payments.devnet import DevChain, DevnetFaults
from spawn.rails import devnet_rail, x402_terms
from spawn.services import funds
from spawn.settings import Settings
from spawn.store import leases, operations, reservations, servers
from spawn.store.database import Database
from tests import databases
from tests.wallets import Wallet

T = TypeVar("T")

ORDER: dict[str, Any] = {"name": "web", "type": "small", "image": "ubuntu-24.04", "location": "nbg1"}
CHAIN_ID = 84532
START_S = 1_790_000_000
BASE_URL = "http://spawn.test"


class VirtualClock:
    """Time that passes only when a test says so."""

    def __init__(self, start_s: int = START_S) -> None:
        self._now_ms = start_s * 1000
        self._elapsed_ms = 0

    def now_s(self) -> int:
        return self._now_ms // 1000

    def now_ms(self) -> int:
        return self._now_ms

    def elapsed_s(self) -> float:
        return self._elapsed_ms / 1000

    def advance(self, seconds: float) -> None:
        self._now_ms += int(seconds * 1000)
        self._elapsed_ms += int(seconds * 1000)

    def step(self, seconds: int) -> None:
        """Set the clock, forwards or backwards, while no time passes."""
        self._now_ms += seconds * 1000


class SeededEntropy:
    """Random bytes that are the same in every run, and never the same twice, whichever threads ask."""

    def __init__(self, seed: str = "spawn") -> None:
        self._seed = seed
        self._numbers = itertools.count(1)

    def bytes(self, count: int, /) -> bytes:
        return hashlib.shake_256(f"{self._seed}|{next(self._numbers)}".encode()).digest(count)


class Names:
    """A resolver that knows what a test tells it: `known["hooks.example.com"] = "127.0.0.1"`."""

    def __init__(self, known: Mapping[str, str] | None = None) -> None:
        self.known = dict(known or {})

    async def resolve(self, host: str) -> tuple[NetworkAddress, ...]:
        """Several addresses are separated by commas."""
        if host not in self.known:
            raise Unresolvable(host)
        return tuple(ip_address(text) for text in self.known[host].split(","))


def settings_in(folder: Path, **changes: Any) -> Settings:
    """Settings with every file in `folder`, and waits short enough for a test that makes something slow."""
    defaults: dict[str, Any] = {
        "database_url": databases.database_url(folder),
        "database_retries": databases.retries(),
        "devnet_path": str(folder / "devnet.db"),
        "simulated_path": str(folder / "cloud.db"),
        "public_url": BASE_URL,
        "secret_key": "5a" * 32,
        "first_answer_s": 0.5,
        "in_flight_wait_s": 5.0,
        "webhook_networks": "127.0.0.0/8",
    }
    return Settings(**(defaults | changes))


@dataclass
class World:
    """One running service and everything around it."""

    settings: Settings
    clock: VirtualClock
    parts: Parts
    service: Service
    chain: DevChain
    chain_faults: DevnetFaults
    cloud: SimulatedProvider
    cloud_faults: Faults
    names: Names
    http: httpx.AsyncClient
    _wallets: int = 0

    async def wallet(self, funds: str = "100.00") -> Wallet:
        """A new wallet with this much USDC on the chain and nothing in the service."""
        self._wallets += 1
        wallet = Wallet.numbered(self._wallets)
        if parse_usdc(funds) > 0:
            await self.chain.mint(wallet.address, parse_usdc(funds))
        return wallet

    async def customer(self, balance: str = "20.00") -> Wallet:
        """A new wallet with this balance in the service."""
        wallet = await self.wallet()
        paid = await self.pay(wallet, "POST", "/v1/balance/deposit", {"amount": balance})
        assert paid.status_code == 200, paid.text
        return wallet

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> httpx.Response:
        """A call that proves nothing."""
        return await self.http.request(method, path, headers=_named(headers), **_content(body))

    async def payment(self, wallet: Wallet, method: str, path: str, body: object = None) -> str:
        """Meet the 402 and sign it: the value of PAYMENT-SIGNATURE."""
        challenge = await self.ask(method, path, body)
        assert challenge.status_code == 402, challenge.text
        return wallet.payment(challenge.headers["PAYMENT-REQUIRED"], now=self.clock.now_s())

    async def pay(
        self, wallet: Wallet, method: str, path: str, body: object = None, *, key: str | None = None
    ) -> httpx.Response:
        """What a stock client does: ask, pay, ask again."""
        challenge = await self.ask(method, path, body)
        if challenge.status_code != 402:
            return challenge
        payment = wallet.payment(challenge.headers["PAYMENT-REQUIRED"], now=self.clock.now_s())
        return await self.send_payment(payment, method, path, body, key=key)

    async def send_payment(
        self, payment: str, method: str, path: str, body: object = None, *, key: str | None = None
    ) -> httpx.Response:
        headers = {"PAYMENT-SIGNATURE": payment} | ({} if key is None else {"Idempotency-Key": key})
        return await self.http.request(method, path, headers=headers, **_content(body))

    async def sign(
        self, wallet: Wallet, method: str, path: str, body: object = None, *, key: str | None = None
    ) -> httpx.Response:
        """A signed request, paid from the balance."""
        auth = SignedRequestAuth(wallet.account, CHAIN_ID, clock=self.clock.now_s)
        headers = {} if key is None else {"Idempotency-Key": key}
        return await self.http.request(method, path, headers=headers, auth=auth, **_content(body))

    async def rent(self, wallet: Wallet, **changes: Any) -> dict[str, Any]:
        """Rent a server from the balance and wait until it runs; answers its view."""
        created = await self.sign(wallet, "POST", "/v1/servers", ORDER | changes)
        assert created.status_code == 201, created.text
        await self.run_for(60)
        shown = await self.sign(wallet, "GET", f"/v1/servers/{created.json()['server']['id']}")
        server: dict[str, Any] = shown.json()["server"]
        assert server["status"] == "running", server
        return server

    async def run_for(self, seconds: int, step_s: int = 1) -> None:
        """Let time pass, every job ticking each `step_s`."""
        for _ in range(0, seconds, step_s):
            self.clock.advance(step_s)
            await self.tick()

    async def burn_until(self, at: int) -> None:
        """Let time pass up to the second `at`, the burn job ticking whenever something is due, as it does in life."""
        while (due_at := await self._next_due()) is not None and due_at <= at:
            self.clock.advance(max(1, due_at - self.clock.now_s()))
            await self.tick("burn")
        self.clock.advance(max(0, at - self.clock.now_s()))

    async def _next_due(self) -> int | None:
        (row,) = await self.rows("SELECT MIN(due_at) AS at FROM server")
        due_at: int | None = row["at"]
        return due_at

    async def tick(self, *names: str) -> None:
        """Let each job (or these) do what is due now, to its end."""
        for name, job in self.service.jobs.items():
            if not names or name in names:
                await job.tick(self.clock.now_s())
                await self.service.operator.idle()
                await self.service.workers.deliveries.idle()

    async def available(self, address: Address) -> Usdc:
        """The wallet's available balance in the books, not accrued."""
        return await self.parts.db.write(lambda tx: funds.available_usdc(tx, address))

    async def account(self, name: str) -> Usdc:
        """The balance of any account in the books."""
        return await self.parts.db.write(lambda tx: balance_of(tx, name).balance)  # type: ignore[arg-type]  # any text

    async def server(self, server_id: str) -> Server:
        return await self.parts.db.write(lambda tx: servers.get_server(tx, ServerId(server_id)))

    async def rows(self, sql: str, **params: Any) -> list[Any]:
        return list(await self.parts.db.read(sql, params))

    async def check_books(self) -> None:
        """Every invariant of the ledger holds, the chain's included."""
        on_chain = await self.chain.balance_of(self.settings.pay_to)
        violations = await self.parts.db.write(lambda tx: verify(tx, chain_balance_usdc=on_chain))
        assert violations == []


def count_writes(db: Database, patch: pytest.MonkeyPatch) -> list[str]:
    """The name of each function that is handed to `db.write` from now on."""
    names: list[str] = []
    write = db.write

    async def counted(fn: Callable[[Tx], T]) -> T:
        names.append(fn.__qualname__)
        return await write(fn)

    patch.setattr(db, "write", counted)
    return names


async def bury(parts: Parts) -> None:
    """Whoever worked on this database before is dead, and what it had claimed is free.

    Where others may be alive claims only run out; to a test that is not about that, they have.
    """
    await recover(parts)
    if not parts.db.exclusive:
        for release in (operations.RELEASE_CLAIMS, reservations.RELEASE_CLAIMS, leases.RELEASE_LEASES):
            await parts.db.write(_executing(release))


def _executing(sql: str) -> Callable[[Tx], int]:
    return lambda tx: tx.execute(sql)


def _named(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def _content(body: object) -> dict[str, Any]:
    if body is None:
        return {}
    return {"content": body if isinstance(body, bytes) else msgspec.json.encode(body)}


@asynccontextmanager
async def open_world(
    folder: Path,
    *,
    clock: VirtualClock | None = None,
    around: Callable[[Provider], Provider] | None = None,
    receiver_timeout_s: float = 2.0,
    **changes: Any,
) -> AsyncIterator[World]:
    """Migrate what is new in `folder`, start the service on it, and close everything afterwards.

    Opening the same folder again is a restart: chain and cloud are as they were. `around` may put something
    between the service and its cloud.
    """
    settings = settings_in(folder, **changes)
    clock = clock or VirtualClock()
    databases.make(settings.database_url)
    chain_faults, cloud_faults = DevnetFaults(), Faults()
    chain = DevChain(Path(settings.devnet_path), x402_terms(settings), now=clock.now_s, faults=chain_faults)
    cloud = SimulatedProvider(Path(settings.simulated_path), now_ms=clock.now_ms, seed=1, faults=cloud_faults)
    provider = cloud if around is None else around(cloud)
    db = await databases.open_database(settings.database_url)
    names = Names()
    parts = Parts(
        db=db,
        rail=devnet_rail(chain),
        providers={provider.name: provider},
        outbound=Outbound(settings.outbound_rules, names, timeout_s=receiver_timeout_s),
        clock=clock,
        entropy=SeededEntropy(str(clock.now_ms())),
    )
    try:
        service = await build(settings, parts, ticking=False)
        await bury(parts)
        transport = httpx.ASGITransport(app=cast("Any", service.app))
        async with httpx.AsyncClient(transport=transport, base_url=BASE_URL) as http:
            yield World(
                settings, clock, parts, service, chain, chain_faults, cloud, cloud_faults, names, http
            )
        await service.workers.deliveries.stop()
        await service.operator.stop()
    finally:
        await db.close()
        chain.close()
        await cloud.aclose()
