"""Two processes on one database and one chain, with the same keys, either of which may stop at any instant.

Invariant: a process that is stopped does nothing until it is woken: what it was about to write or send comes then, and
it finds the time that has passed. One that is killed is never woken.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from spawn_ledger.tx import Params, Row, Tx

from spawn.payments.exact import ExactPayment
from spawn.payments.facilitator import Rejected, Settled
from spawn.services.relayer import Relayer
from spawn.store.database import NO_PARAMS, Database
from tests.fake_node import FakeNode
from tests.harness import VirtualClock
from tests.integration.relayer_scene import PAYERS, wallet
from tests.payments import NOW, TERMS
from tests.relaying import ACCOUNT, ETHER, make_relayer, open_database, settlements

T = TypeVar("T")


class Gate:
    """What a process does, one after the other. `passed` counts the instants at which it could have stopped."""

    def __init__(self) -> None:
        self.passed = 0
        self.stopped = asyncio.Event()
        self._stop_at: int | None = None
        self._awake = asyncio.Event()
        self._awake.set()

    def stop_at(self, instant: int) -> None:
        self._stop_at = instant

    def wake(self) -> None:
        self._stop_at = None
        self.stopped.clear()
        self._awake.set()

    async def through(self) -> None:
        """An instant at which it may stop, before some effect; if it has, this is where it waits."""
        self.passed += 1
        if self.passed == self._stop_at:
            self._awake.clear()
            self.stopped.set()
        await self._awake.wait()

    async def awake(self) -> None:
        await self._awake.wait()


class SharedDatabase:
    """The database as one of several processes has it."""

    exclusive = False

    def __init__(self, db: Database, gate: Gate) -> None:
        self._db = db
        self._gate = gate

    async def read(self, sql: str, params: Params = NO_PARAMS) -> list[Row]:
        await self._gate.awake()
        return await self._db.read(sql, params)

    async def write(self, fn: Callable[[Tx], T]) -> T:
        await self._gate.through()
        return await self._db.write(fn)

    async def close(self) -> None:
        await self._db.close()


class NodePort:
    """The node as one process reaches it. Questions change nothing: only what is sent goes through the gate."""

    def __init__(self, node: FakeNode, gate: Gate, sent: list[bytes]) -> None:
        self._node = node
        self._gate = gate
        self._sent = sent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)

    async def send(self, raw: bytes) -> None:
        await self._gate.through()
        self._sent.append(raw)
        await self._node.send(raw)


class Process:
    """One of them. `sent` has what it handed to the node."""

    def __init__(self, name: str, db: Database, node: FakeNode, clock: VirtualClock, **changes: Any) -> None:
        self.gate = Gate()
        self.sent: list[bytes] = []
        self.clock = clock
        self.calls: dict[str, asyncio.Task[Settled | Rejected]] = {}
        self.relayer: Relayer = make_relayer(
            SharedDatabase(db, self.gate),
            cast("FakeNode", NodePort(node, self.gate, self.sent)),
            clock,
            holder=name,
            **changes,
        )
        self._db = db
        self._round: asyncio.Task[bool] | None = None

    async def step(self) -> None:
        """A round, or what of it happens before it stops; one that has stopped does nothing."""
        if self._round is None:
            self._round = asyncio.create_task(self.relayer.step(self.clock.now_s()))
        await self._until_stopped(self._round)
        if self._round.done():
            done, self._round = self._round, None
            await done

    async def settle(self, *payments: ExactPayment) -> list["asyncio.Task[Settled | Rejected]"]:
        """Calls that have begun: their payments are written down, or it has stopped before that."""
        for payment in payments:
            name = payment.nonce_key(TERMS.chain_id, TERMS.asset)
            self.calls[name] = asyncio.create_task(self.relayer.settle(payment))
        wanted = {payment.nonce_key(TERMS.chain_id, TERMS.asset) for payment in payments}

        async def written() -> None:
            while not wanted <= {row["id"] for row in await settlements(self._db)}:
                pass

        writing = asyncio.create_task(written())
        await self._until_stopped(writing)
        writing.cancel()
        return [self.calls[payment.nonce_key(TERMS.chain_id, TERMS.asset)] for payment in payments]

    async def wake(self) -> None:
        """It goes on where it stopped, and finishes that round."""
        self.gate.wake()
        await self.step()

    async def kill(self) -> None:
        tasks = [*self.calls.values(), *([] if self._round is None else [self._round])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._round = None
        self.calls.clear()

    async def _until_stopped(self, task: "asyncio.Task[Any]") -> None:
        stopped = asyncio.create_task(self.gate.stopped.wait())
        async with asyncio.timeout(60):
            await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()


class Pair:
    """Both, and their world. Nothing moves unless a test says so."""

    def __init__(self, db: Database, **changes: Any) -> None:
        self.db = db
        self.clock = VirtualClock(NOW)
        self.node = FakeNode(TERMS, now=self.clock.now_s, automine=False)
        self.node.give_ether(ACCOUNT, ETHER)
        for number in range(len(PAYERS)):
            self.node.fund(wallet(number), 1_000_000)
        self.first = Process("first", db, self.node, self.clock, **changes)
        self.second = Process("second", db, self.node, self.clock, **changes)

    async def step(self) -> None:
        await self.first.step()
        await self.second.step()

    async def block(self, count: int = 1) -> None:
        """So many blocks, each with a round of both before and after."""
        for _ in range(count):
            await self.step()
            self.clock.advance(2)
            self.node.mine()
            await self.step()

    async def wait(self, seconds: int) -> None:
        """Time passes and no block comes."""
        for _ in range(seconds):
            self.clock.advance(1)
            await self.step()

    async def holder(self) -> str:
        (row,) = await self.db.read("SELECT holder FROM lease WHERE name = 'relayer'")
        return str(row["holder"])


@asynccontextmanager
async def open_pair(folder: Path, **changes: Any) -> AsyncIterator[Pair]:
    """`changes` are to the policy."""
    async with open_database(folder) as db:
        pair = Pair(db, **changes)
        yield pair
        for process in (pair.first, pair.second):
            process.gate.wake()
            await process.kill()
            await process.relayer.stop()
