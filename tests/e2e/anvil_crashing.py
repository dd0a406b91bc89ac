"""The service on a real chain, in this process, that dies at one numbered point and is built anew on what it left.

A point lies on either side of every database write, every question to the node and every order to the cloud.
Invariant: once a life has died nothing of it has an effect any more: whatever it still reaches for is gone, as after
SIGKILL. Chain, cloud and database outlive it.

Run as `python -m tests.e2e.anvil_crashing FD`, it is a nursery of victims (`tests.e2e.victim`) on a real chain.
"""

import asyncio
import re
import socket
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar, cast

import httpx
import msgspec
from spawn_schemas.ids import Address

from spawn.app import Service, build
from spawn.evm.node import Block, Log, Node, Receipt
from spawn.evm.web3_node import Web3Node
from spawn.parts import Parts, open_parts
from spawn.payments.exact import ExactPayment
from spawn.rails import self_rail
from spawn.settings import Settings
from spawn.store.place import Place
from spawn.store.places import place_of
from tests import databases
from tests.anvil import RELAYER_KEYS, Chain
from tests.e2e.anvil_books import is_busy, unfinished
from tests.e2e.crashing import CrashingDatabase, CrashingProvider, Points
from tests.e2e.victim import ANSWER_S, SPEED, Order, nursery
from tests.harness import BASE_URL, SeededEntropy, VirtualClock, bury, settings_in

T = TypeVar("T")

PAY_TO: Final = Address("0x" + "5a" * 20)
OVERRIDES: Final = "settings.json"
"""The file in a victim's folder with what its settings have besides the usual."""
PATIENCE_S: Final = 20.0
"""No step of a life takes seconds of real time; whatever takes this long hangs."""
TURN_S: Final = 2
"""How much of the service's time passes in one turn, and how far a block is from the next."""
EVERY: Final = re.compile("")
"""Every point counts."""
_BRIEF: Final = {"settle_wait_s": 2.0, "in_flight_wait_s": 0.05}
"""A call waits in real time for a lease that runs out in virtual time: where there is one, not for long."""
JOBS: Final = ("operations", "settlements", "suspense")
"""Those that a payment meets."""


class Died(BaseException):
    """The life is over. Not an Exception, so that no handler of the service takes it for something to handle."""


class Deaths(Points):
    """Points at which a life in this process dies; `killed` is the one at which it did.

    Those named by `only` count. `watch` is told each before it is passed: what the world does just then.
    """

    def __init__(self, only: re.Pattern[str], watch: Callable[[str], None]) -> None:
        super().__init__(None, Path())
        self.killed: str | None = None
        self._only = only
        self._watch = watch

    def pass_by(self, label: str) -> None:
        if self.killed is not None:
            raise Died(self.killed)
        self._watch(label)
        if self._only.search(label):
            self.passed.append(label)
        if len(self.passed) == self._die_at:
            self.killed = label
            raise Died(label)


class CrashingNode:
    """Dies before the node is asked, or when it has answered and nobody was told."""

    def __init__(self, inner: Node, points: Points) -> None:
        self._inner = inner
        self._points = points

    async def _around(self, name: str, ask: Callable[[], Awaitable[T]]) -> T:
        return await self._points.around(f"node.{name}", ask)

    async def chain_id(self) -> int:
        return await self._around("chain_id", self._inner.chain_id)

    async def block(self, number: int | None = None) -> Block | None:
        return await self._around("block", lambda: self._inner.block(number))

    async def nonce(self, account: Address) -> int:
        return await self._around("nonce", lambda: self._inner.nonce(account))

    async def balance_wei(self, account: Address) -> int:
        return await self._around("balance_wei", lambda: self._inner.balance_wei(account))

    async def code(self, account: Address) -> bytes:
        return await self._around("code", lambda: self._inner.code(account))

    async def call(
        self,
        to: Address,
        data: bytes,
        *,
        sender: Address | None = None,
        gas: int | None = None,
        block: int | None = None,
    ) -> bytes:
        return await self._around(
            "call", lambda: self._inner.call(to, data, sender=sender, gas=gas, block=block)
        )

    async def priority_fee_wei(self) -> int:
        return await self._around("priority_fee_wei", self._inner.priority_fee_wei)

    async def send(self, raw: bytes) -> None:
        await self._around("send", lambda: self._inner.send(raw))

    async def receipts(self, transactions: tuple[str, ...]) -> tuple[Receipt | None, ...]:
        return await self._around("receipts", lambda: self._inner.receipts(transactions))

    async def logs(
        self,
        address: Address,
        topics: tuple[bytes | tuple[bytes, ...] | None, ...],
        *,
        first_block: int,
        last_block: int,
    ) -> tuple[Log, ...]:
        return await self._around(
            "logs",
            lambda: self._inner.logs(address, topics, first_block=first_block, last_block=last_block),
        )


def anvil_settings(folder: Path, chain: Chain, **changes: Any) -> Settings:
    """Settings of a service that settles on `chain` by itself, with one relayer."""
    return settings_in(folder, **(_ours(chain) | changes))


def _ours(chain: Chain) -> dict[str, Any]:
    return {
        "payments": "self",
        "rpc_url": chain.url,
        "x402_pay_to": PAY_TO,
        "relayer_key": RELAYER_KEYS[0],
        "suspense_from_block": 0,
        "suspense_depth": 1,
        "simulated_speed": SPEED,
    }


async def open_on_anvil(settings: Settings, clock: VirtualClock, points: Points) -> Parts:
    """The parts of a service on a real chain, each between its points."""
    parts = await open_parts(settings, clock=clock, entropy=SeededEntropy(str(clock.now_ms())))
    node = Web3Node(settings.rpc_url, timeout_s=settings.rpc_timeout_s)
    parts.opened.push_async_callback(node.close)
    db = CrashingDatabase(parts.db, points)
    return replace(
        parts,
        db=db,
        rail=self_rail(settings, db, clock, CrashingNode(node, points), "the only one"),
        providers={name: CrashingProvider(one, points) for name, one in parts.providers.items()},
    )


# --- a life in this process -------------------------------------------------------------------------------------


class Life:
    """One run of the service, from its start-up to its death; jobs and relayer move when they are told to."""

    def __init__(self, parts: Parts, service: Service, http: httpx.AsyncClient, older: set[Any]) -> None:
        self.parts = parts
        self.http = http
        self._service = service
        self._older = older
        self._last_s = dict.fromkeys(JOBS, parts.clock.now_s())

    @classmethod
    async def begin(cls, settings: Settings, clock: VirtualClock, points: Points) -> "Life":
        """Start on whatever lies there. Raises Died, with everything closed."""
        older = asyncio.all_tasks()
        parts = await open_on_anvil(settings, clock, points)
        try:
            service = await build(settings, parts, ticking=False)
            await bury(parts)
        except BaseException:
            await parts.close()
            raise
        transport = httpx.ASGITransport(app=cast("Any", service.app))
        return cls(parts, service, httpx.AsyncClient(transport=transport, base_url=BASE_URL), older)

    async def turn(self) -> None:
        """The relayer does what can be done now, and so does each job that is due."""
        now = self.parts.clock.now_s()
        relayer = self.parts.rail.relayer
        assert relayer is not None
        while await relayer.step(now):
            pass
        for name in JOBS:
            job = self._service.jobs[name]
            if now - self._last_s[name] >= job.every_s:
                self._last_s[name] = now
                await job.tick(now)
                await self._service.operator.idle()

    async def end(self) -> None:
        """Bury it: the files are closed, and what still runs is cut off where it stands."""
        await self.http.aclose()
        await self.parts.close()
        rest = asyncio.all_tasks() - self._older - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)


class Weather:
    """What the chain does with transactions while we wait; this one mines them at once.

    `settings` are what the service has to be set to for such a chain.
    """

    settings: Mapping[str, Any] = MappingProxyType({})

    def begin(self, chain: Chain, payments: Sequence[ExactPayment]) -> None:
        """The service was shown nothing yet of these, which are about to be sent to it."""

    def turn(self, chain: Chain, now: int) -> None:
        """Once in each turn, after the relayer's."""
        chain.set_time(now)

    def at_point(self, chain: Chain, label: str) -> None:
        """Just before a point of the service's is passed."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """A request as its client repeats it."""

    method: str
    path: str
    body: object
    payment: str | None = None

    async def send(self, http: httpx.AsyncClient) -> httpx.Response:
        content = msgspec.json.encode(self.body)
        headers = {} if self.payment is None else {"PAYMENT-SIGNATURE": self.payment}
        return await http.request(self.method, self.path, headers=headers, content=content)


@dataclass
class Trial:
    """One world, the calls made in it, and the lives it takes: `deaths` are the points at which these end, in order."""

    chain: Chain
    weather: Weather
    folder: Path
    clock: VirtualClock
    deaths: Sequence[int]
    only: re.Pattern[str]

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.settings = anvil_settings(self.folder, self.chain, **self.weather.settings)
        self.killed: list[str] = []
        self._planned = deque(self.deaths)
        self._life: Life | None = None
        self._points = Deaths(self.only, self._watch)
        databases.make(self.settings.database_url)

    def _watch(self, label: str) -> None:
        self.weather.at_point(self.chain, label)

    @property
    def life(self) -> Life:
        assert self._life is not None
        return self._life

    @property
    def place(self) -> Place:
        return place_of(self.settings.database_url)

    async def start(self) -> None:
        """The first life; its points are counted from `arm` on."""
        self._points = Deaths(self.only, self._watch)
        self._life = await Life.begin(self.settings, self.clock, self._points)

    def arm(self) -> None:
        """Count the points from here; the first death is due."""
        self._points.arm(self._planned.popleft() if self._planned else None)

    def spare(self) -> None:
        """Nobody dies from here on, for what is done now belongs to the test."""
        self._points.arm(None)

    async def outlive(self, step: Callable[[], Awaitable[T]]) -> T:
        """Take a step, from the start again after each death."""
        while True:
            try:
                return await step()
            except Died:
                await self.restart()

    async def restart(self) -> None:
        """Bury the dead and start anew, as often as it takes."""
        await self.close()
        while self._life is None:
            self.clock.advance(1)
            self._points = Deaths(self.only, self._watch)
            self._points.arm(self._planned.popleft() if self._planned else None)
            try:
                self._life = await Life.begin(self.settings, self.clock, self._points)
            except Died:
                self._note_death()

    async def close(self) -> None:
        """End the life that is, dead already or not."""
        self._note_death()
        life, self._life = self._life, None
        if life is not None:
            await life.end()

    def _note_death(self) -> None:
        if self._points.killed is not None:
            self.killed.append(self._points.killed)

    async def turn(self, seconds: int = TURN_S) -> None:
        """Time passes on both clocks. Raises Died."""
        self.clock.advance(seconds)
        await self.life.turn()
        self.weather.turn(self.chain, self.clock.now_s())

    async def ask(self, *calls: Call) -> list[httpx.Response]:
        """Send these at once, with turns for as long as a settlement keeps them waiting. Raises Died."""
        tasks = [asyncio.create_task(call.send(self.life.http)) for call in calls]
        try:
            async with asyncio.timeout(PATIENCE_S):
                while self._points.killed is None and not all(task.done() for task in tasks):
                    if self.unfinished():
                        await self.turn()
                    await asyncio.wait(tasks, timeout=0.002)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._points.killed is not None:
            raise Died(self._points.killed)  # whatever it was about to say, nobody hears it
        return [await task for task in tasks]

    def unfinished(self) -> list[str]:
        """Payments and transactions that are neither done nor given up."""
        return unfinished(self.place)

    def is_busy(self) -> bool:
        """Whether anything at all is under way."""
        return is_busy(self.place)


# --- a life of its own ------------------------------------------------------------------------------------------


def prepare_victim(folder: Path, chain: Chain) -> None:
    """A folder for a victim on `chain`: an empty database, and where the chain is."""
    folder.mkdir()
    (folder / OVERRIDES).write_bytes(msgspec.json.encode(_ours(chain)))
    databases.make(anvil_settings(folder, chain).database_url)


async def victim_parts(order: Order, clock: VirtualClock, points: Points) -> tuple[Settings, Parts]:
    """What a victim on a real chain is built of; its folder says where the chain is."""
    folder = Path(order.folder)
    overrides = msgspec.json.decode((folder / OVERRIDES).read_bytes(), type=dict[str, Any])
    waits = {"first_answer_s": ANSWER_S} | ({} if databases.ALONE else _BRIEF)
    settings = settings_in(folder, public_url=order.url, **waits, **overrides)
    return settings, await open_on_anvil(settings, clock, points)


if __name__ == "__main__":
    nursery(socket.socket(fileno=int(sys.argv[1])), victim_parts)
