"""What tests of arriving USDC share: transfers, strangers, watchers, and processes that die."""

from collections.abc import Callable
from typing import Any, TypeVar

from spawn_ledger.tx import Params, Row, Tx
from spawn_schemas.money import Usdc, parse_usdc

from spawn.jobs.suspense import Suspense
from spawn.payments import exact
from spawn.payments.arrivals import Arrived
from spawn.store.database import NO_PARAMS, Database, DatabaseFailed
from tests.harness import World
from tests.wallets import Wallet

T = TypeVar("T")

DEPOSIT = ("POST", "/v1/balance/deposit", {"amount": "5.00"})
FIVE = parse_usdc("5.00")
LIST = ("GET", "/v1/suspense")
CLAIM = ("POST", "/v1/suspense/claim")


class Dying:
    """A database whose process dies at one write: before it, or when it is committed and not answered."""

    def __init__(self, inner: Database, at: int, *, is_kept: bool) -> None:
        self._inner = inner
        self._left = at
        self._is_kept = is_kept

    @property
    def exclusive(self) -> bool:
        return self._inner.exclusive

    @property
    def is_dead(self) -> bool:
        return self._left <= 0

    async def read(self, sql: str, params: Params = NO_PARAMS) -> list[Row]:
        self._refuse_if_dead()
        return await self._inner.read(sql, params)

    async def write(self, fn: Callable[[Tx], T]) -> T:
        self._refuse_if_dead()
        self._left -= 1
        if self._left > 0:
            return await self._inner.write(fn)
        if self._is_kept:
            await self._inner.write(fn)
        raise DatabaseFailed("the process is dead")

    async def close(self) -> None:
        await self._inner.close()

    def _refuse_if_dead(self) -> None:
        if self.is_dead:
            raise DatabaseFailed("the process is dead")


class Listed:
    """A log of arrivals that a test writes, in pages of its own."""

    name = "a log of the test's"

    def __init__(self, *pages: tuple[Arrived, ...]) -> None:
        self.pages = pages

    async def page(self, cursor: str) -> tuple[tuple[Arrived, ...], str]:
        read = int(cursor or 0)
        return (self.pages[read], str(read + 1)) if read < len(self.pages) else ((), cursor)


async def watch(world: World, db: Database | None = None) -> None:
    """The watcher of the chain, in a process of its own as far as it can tell."""
    await Suspense(db or world.parts.db, world.chain).tick(world.clock.now_s())


async def send(world: World, wallet: Wallet, amount: str) -> None:
    """An ordinary transfer to us."""
    await world.chain.send(wallet.address, world.settings.pay_to, parse_usdc(amount))


async def front_run(world: World, payment: str) -> None:
    """A stranger carries this authorization to the chain."""
    authorization = exact.identify(exact.decode_payment(payment), world.service.services.terms)
    await world.chain.settle(authorization)


async def waiting(world: World) -> Usdc:
    return await world.account("suspense")


async def balances(world: World, wallet: Wallet) -> tuple[Usdc, Usdc, Usdc]:
    """What the wallet has, what waits in suspense, what the chain shows that we hold."""
    return (
        await world.available(wallet.address),
        await waiting(world),
        await world.chain.balance_of(world.settings.pay_to),
    )


async def claim(world: World, wallet: Wallet) -> dict[str, Any]:
    answer = await world.sign(wallet, *CLAIM)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body
