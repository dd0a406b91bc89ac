"""Two facilitators on one development chain, and us: for tests of settling through others."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc

from spawn.payments.cdp import CDP_HOST
from spawn.payments.devnet import DevChain
from spawn.payments.exact import ExactPayment
from spawn.payments.facilitator import Rejected, Settled, SettlementUnclear
from spawn.payments.remote import RemoteFacilitators
from spawn.payments.standings import Standing
from tests.fake_facilitator import DevOnChain, FakeFacilitator
from tests.harness import VirtualClock
from tests.payments import NOW, PAYEE, TERMS, authorize

PAYER: Final[LocalAccount] = Account.from_key("0x" + "33" * 32)
WALLET: Final = Address(PAYER.address.lower())
HASH: Final = "0x" + "ab" * 32
FIRST: Final = "http://first.test/x402"
SECOND: Final = "http://second.test"


@dataclass
class World:
    """Two facilitators on one chain, and us."""

    clock: VirtualClock
    chain: DevChain
    on_chain: DevOnChain
    first: FakeFacilitator
    second: FakeFacilitator
    http: httpx.AsyncClient
    ours: RemoteFacilitators

    def open(self, *urls: str, **options: Any) -> RemoteFacilitators:
        """Ourselves, started anew."""
        defaults: dict[str, Any] = {"timeout_s": 5.0, "wait_s": 0.05, "look_every_s": 0.001}
        return RemoteFacilitators(
            self.http,
            urls or (FIRST, SECOND),
            TERMS,
            self.on_chain,
            now=self.clock.now_s,
            **(defaults | options),
        )

    async def moved(self) -> int:
        return sum(transfer.recipient == PAYEE for transfer in await self.chain.transfers())


@asynccontextmanager
async def open_world(path: Path) -> AsyncIterator[World]:
    """The world, its chain in the file `path`."""
    clock = VirtualClock(NOW)
    chain = DevChain(path, TERMS, now=clock.now_s)
    on_chain = DevOnChain(chain, path)
    first, second = (FakeFacilitator(chain, TERMS, clock.now_s) for _ in range(2))
    mounts = {
        "all://first.test": httpx.ASGITransport(app=_under("/x402", first)),
        "all://second.test": httpx.ASGITransport(app=second),
        f"all://{CDP_HOST}": httpx.ASGITransport(app=_under("/platform/v2/x402", second)),
    }
    async with httpx.AsyncClient(mounts=mounts, trust_env=False) as http:
        ours = RemoteFacilitators(http, (), TERMS, on_chain, now=clock.now_s)
        there = World(clock, chain, on_chain, first, second, http, ours)
        there.ours = there.open()
        await chain.mint(WALLET, Usdc(10_000))
        yield there
    chain.close()


def _under(prefix: str, app: FakeFacilitator) -> Callable[[Any, Any, Any], Awaitable[None]]:
    """The app, if it is asked below this path."""

    async def called(scope: Any, receive: Any, send: Any) -> None:
        assert scope["path"].startswith(prefix + "/")
        await app({**scope, "path": scope["path"].removeprefix(prefix)}, receive, send)

    return called


def signed(nonce: int = 0, **changes: Any) -> ExactPayment:
    return authorize(PAYER, **{"value": 1_000, "nonce": nonce} | changes)


async def unclear(ours: RemoteFacilitators, payment: ExactPayment) -> str | None:
    with pytest.raises(SettlementUnclear) as unclear:
        await ours.settle(payment)
    return unclear.value.transaction


async def settled(ours: RemoteFacilitators, payment: ExactPayment) -> str:
    outcome = await ours.settle(payment)
    assert isinstance(outcome, Settled)
    return outcome.transaction


async def rejected(ours: RemoteFacilitators, payment: ExactPayment) -> str:
    outcome = await ours.settle(payment)
    assert isinstance(outcome, Rejected)
    return outcome.reason


def standing(ours: RemoteFacilitators, index: int = 0) -> Standing:
    return ours.standings()[index]
