"""A relayer that moves only when a test says so, on a chain that makes a block only when a test says so."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from spawn_schemas.ids import Address

from spawn.payments.exact import ExactPayment
from spawn.payments.facilitator import Rejected, Settled
from spawn.services.relayer import Relayer
from spawn.store.database import Database
from spawn.store.places import place_of
from tests import databases
from tests.fake_node import FakeNode
from tests.harness import VirtualClock
from tests.payments import NOW, TERMS, authorize
from tests.relaying import ACCOUNT, ETHER, make_relayer, open_database, relays, settlements

PAYERS: list[LocalAccount] = [Account.from_key(f"0x{number:064x}") for number in range(0x100, 0x140)]
OTHER_KEY = "0x" + "6f" * 32
BLOCK_S = 2
PATIENCE_S = 20
"""Whatever takes this long hangs."""

Outcome = Settled | Rejected


def wallet(number: int) -> Address:
    return Address(PAYERS[number].address.lower())


def pay(number: int = 0, **changes: Any) -> ExactPayment:
    """One of the payers authorizes 1,000 micro-USDC, or what `changes` say."""
    return authorize(PAYERS[number], **({"value": 1_000} | changes))


class Scene:
    """A relayer that does nothing by itself, on a chain that makes no block by itself."""

    def __init__(self, folder: Path, db: Database, **changes: Any) -> None:
        self.place = place_of(databases.database_url(folder))
        self.db = db
        self.clock = VirtualClock(NOW)
        self.node = FakeNode(TERMS, now=self.clock.now_s, automine=False)
        self.node.give_ether(ACCOUNT, ETHER)
        for number in range(len(PAYERS)):
            self.node.fund(wallet(number), 1_000_000)
        self._changes = changes
        self._calls: list[asyncio.Task[Outcome]] = []
        self.relayer = self._make()

    def _make(self, **changes: Any) -> Relayer:
        return make_relayer(self.db, self.node, self.clock, **(self._changes | changes))

    async def close(self) -> None:
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        await self.relayer.stop()

    async def restart(self, **changes: Any) -> None:
        """The process dies, and comes back."""
        await self.close()
        self.relayer = self._make(**changes)

    async def settle(self, *payments: ExactPayment) -> list["asyncio.Task[Outcome]"]:
        """Calls that have begun: their payments are written down."""
        calls = [asyncio.create_task(self.relayer.settle(payment)) for payment in payments]
        self._calls += calls
        ids = {payment.nonce_key(TERMS.chain_id, TERMS.asset) for payment in payments}
        async with asyncio.timeout(10):
            while not ids <= {row["id"] for row in await settlements(self.db) if row["state"] != "failed"}:
                pass
        return calls

    async def step(self) -> None:
        """One round, at this second."""
        await self.relayer.step(self.clock.now_s())

    async def block(self, count: int = 1) -> None:
        """So many blocks, each with a round before and after."""
        for _ in range(count):
            await self.step()
            self.clock.advance(BLOCK_S)
            self.node.mine()
            await self.step()

    async def wait(self, seconds: int, step_s: int = 1) -> None:
        """Time passes and no block comes."""
        for _ in range(0, seconds, step_s):
            self.clock.advance(step_s)
            await self.step()

    async def states(self) -> list[str]:
        return [row["state"] for row in await settlements(self.db)]

    async def hashes(self) -> list[str]:
        return [row["hash"] for row in await relays(self.db)]


@asynccontextmanager
async def open_scene(folder: Path, **changes: Any) -> AsyncIterator[Scene]:
    """`changes` are to the policy."""
    async with open_database(folder) as db:
        scene = Scene(folder, db, **changes)
        yield scene
        await scene.close()


def policy(**changes: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("scene", [changes], indirect=True)


async def settled(call: "asyncio.Task[Outcome]") -> str:
    outcome = await asyncio.wait_for(call, PATIENCE_S)
    assert isinstance(outcome, Settled), outcome
    return outcome.transaction


async def rejected(call: "asyncio.Task[Outcome]") -> str:
    outcome = await asyncio.wait_for(call, PATIENCE_S)
    assert isinstance(outcome, Rejected), outcome
    return outcome.reason
