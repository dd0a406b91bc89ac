"""The rail `facilitator` for the suite of all rails: an honest facilitator, over HTTP, on the development chain."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc

from spawn.payments.devnet import DevChain
from spawn.payments.exact import ExactPayment
from spawn.payments.facilitator import Settled
from spawn.payments.remote import RemoteFacilitators
from tests.fake_facilitator import DevOnChain, FakeFacilitator
from tests.payments import NOW, PAYEE, TERMS


class RemoteWorld:
    """Everything but the rail goes on when it restarts."""

    def __init__(self, path: Path) -> None:
        self._now = NOW
        self._chain = DevChain(path, TERMS, now=lambda: self._now)
        self._on_chain = DevOnChain(self._chain, path)
        facilitator = FakeFacilitator(self._chain, TERMS, lambda: self._now)
        self._http = httpx.AsyncClient(transport=httpx.ASGITransport(app=facilitator))
        self.facilitator = self._open()

    def _open(self) -> RemoteFacilitators:
        urls = ("http://facilitator.test",)
        return RemoteFacilitators(
            self._http, urls, TERMS, self._on_chain, now=lambda: self._now, wait_s=0, timeout_s=5
        )

    async def close(self) -> None:
        await self._http.aclose()
        self._chain.close()

    async def fund(self, wallet: Address, amount: Usdc) -> None:
        await self._chain.mint(wallet, amount)

    async def balance(self, wallet: Address) -> Usdc:
        return await self._chain.balance_of(wallet)

    async def moved(self) -> int:
        return sum(transfer.recipient == PAYEE for transfer in await self._chain.transfers())

    async def cancel(self, payment: ExactPayment) -> None:
        await self._chain.cancel(payment.payer, payment.nonce)

    async def submit(self, payment: ExactPayment) -> None:
        assert isinstance(await self._chain.settle(payment), Settled)

    async def at(self, now: int) -> None:
        self._now = now

    async def restart(self) -> None:
        self.facilitator = self._open()


@asynccontextmanager
async def remote_rail(tmp_path: Path) -> AsyncIterator[RemoteWorld]:
    world = RemoteWorld(tmp_path / "chain.db")
    try:
        yield world
    finally:
        await world.close()
