"""What every facilitator must do, whoever carries the money: the contract of `spawn.payments.facilitator`.

A rail joins by adding its world to `WORLDS`: its facilitator, and the hands of others on its chain.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc
from spawn_schemas.x402 import Reason

from spawn.payments.devnet import DevChain
from spawn.payments.exact import ExactPayment
from spawn.payments.facilitator import Facilitator, Rejected, Settled
from tests.contract.remote_rail import remote_rail
from tests.payments import NOW, PAYEE, TERMS, authorize

PAYER: LocalAccount = Account.from_key("0x" + "33" * 32)
WALLET = Address(PAYER.address.lower())


class World(Protocol):
    """A chain with a facilitator on it, as a test sees it."""

    @property
    def facilitator(self) -> Facilitator: ...

    async def fund(self, wallet: Address, amount: Usdc) -> None: ...

    async def balance(self, wallet: Address) -> Usdc: ...

    async def moved(self) -> int:
        """How many transfers the payee has received."""
        ...

    async def cancel(self, payment: ExactPayment) -> None:
        """The payer cancels the authorization on the chain."""
        ...

    async def submit(self, payment: ExactPayment) -> None:
        """A stranger, not our facilitator, brings the signed authorization to the chain."""
        ...

    async def at(self, now: int) -> None:
        """Move the chain's clock."""
        ...

    async def restart(self) -> None:
        """Our process ends and comes back; the chain stays."""
        ...


class DevWorld:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._now = NOW
        self.facilitator = self._open()

    def _open(self) -> DevChain:
        return DevChain(self._path, TERMS, now=lambda: self._now)

    async def fund(self, wallet: Address, amount: Usdc) -> None:
        await self.facilitator.mint(wallet, amount)

    async def balance(self, wallet: Address) -> Usdc:
        return await self.facilitator.balance_of(wallet)

    async def moved(self) -> int:
        return sum(transfer.recipient == PAYEE for transfer in await self.facilitator.transfers())

    async def cancel(self, payment: ExactPayment) -> None:
        await self.facilitator.cancel(payment.payer, payment.nonce)

    async def submit(self, payment: ExactPayment) -> None:
        stranger = self._open()
        assert isinstance(await stranger.settle(payment), Settled)
        stranger.close()

    async def at(self, now: int) -> None:
        self._now = now

    async def restart(self) -> None:
        self.facilitator.close()
        self.facilitator = self._open()


@asynccontextmanager
async def _devnet(tmp_path: Path) -> AsyncIterator[World]:
    world = DevWorld(tmp_path / "chain.db")
    yield world
    world.facilitator.close()


WORLDS: dict[str, Callable[[Path], AbstractAsyncContextManager[World]]] = {
    "devnet": _devnet,
    "facilitator": remote_rail,
}


@pytest.fixture(params=WORLDS)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    async with WORLDS[request.param](tmp_path) as world:
        await world.fund(WALLET, Usdc(10_000))
        yield world


async def _settled(world: World, payment: ExactPayment) -> str:
    outcome = await world.facilitator.settle(payment)
    assert isinstance(outcome, Settled)
    return outcome.transaction


async def _rejected(world: World, payment: ExactPayment) -> str:
    outcome = await world.facilitator.settle(payment)
    assert isinstance(outcome, Rejected)
    assert outcome.message
    return outcome.reason


async def test_settling_moves_exactly_the_value_to_the_payee(world: World) -> None:
    transaction = await _settled(world, authorize(PAYER, value=1_000))
    assert len(transaction) == 66
    assert int(transaction, 16)
    assert await world.balance(WALLET) == 9_000
    assert await world.balance(PAYEE) == 1_000
    assert await world.moved() == 1


async def test_settling_again_answers_the_same_and_moves_nothing(world: World) -> None:
    payment = authorize(PAYER, value=1_000)
    first = await _settled(world, payment)
    assert await _settled(world, payment) == first
    await world.restart()
    assert await _settled(world, payment) == first
    assert await world.moved() == 1


async def test_settling_at_the_same_time_moves_once(world: World) -> None:
    payment = authorize(PAYER, value=1_000)
    outcomes = await asyncio.gather(*(world.facilitator.settle(payment) for _ in range(8)))
    assert len(set(map(repr, outcomes))) == 1
    assert isinstance(outcomes[0], Settled)
    assert await world.moved() == 1


async def test_different_payments_at_the_same_time_never_overdraw(world: World) -> None:
    payments = [authorize(PAYER, value=3_000, nonce=nonce) for nonce in range(8)]
    outcomes = await asyncio.gather(*(world.facilitator.settle(payment) for payment in payments))
    assert sum(isinstance(outcome, Settled) for outcome in outcomes) == 3
    assert await world.moved() == 3
    assert await world.balance(WALLET) == 1_000
    assert await world.balance(PAYEE) == 9_000


async def test_find_shows_what_the_chain_shows(world: World) -> None:
    payment = authorize(PAYER, value=1_000)
    assert await world.facilitator.find(payment) is None
    transaction = await _settled(world, payment)
    assert await world.facilitator.find(payment) == Settled(transaction=transaction)
    await world.restart()
    assert await world.facilitator.find(payment) == Settled(transaction=transaction)
    assert await world.facilitator.find(authorize(PAYER, value=1_000, nonce=9)) is None


async def test_what_moved_stays_settled_after_it_has_expired(world: World) -> None:
    payment = authorize(PAYER, value=1_000)
    transaction = await _settled(world, payment)
    await world.at(payment.valid_before + 3600)
    assert await _settled(world, payment) == transaction
    assert await world.facilitator.find(payment) == Settled(transaction=transaction)


async def test_what_a_stranger_submitted_is_ours_all_the_same(world: World) -> None:
    payment = authorize(PAYER, value=1_000)
    await world.submit(payment)
    found = await world.facilitator.find(payment)
    assert isinstance(found, Settled)
    assert await _settled(world, payment) == found.transaction
    assert await world.moved() == 1


async def test_a_cancelled_authorization_is_not_a_payment(world: World) -> None:
    payment = authorize(PAYER, value=1_000)
    await world.cancel(payment)
    assert await _rejected(world, payment) == Reason.NONCE_USED
    assert await world.facilitator.find(payment) is None
    assert await world.moved() == 0


async def test_cancelling_too_late_takes_nothing_back(world: World) -> None:
    payment = authorize(PAYER, value=1_000)
    transaction = await _settled(world, payment)
    await world.cancel(payment)
    assert await _settled(world, payment) == transaction


async def test_a_nonce_spent_by_another_authorization_is_not_this_payment(world: World) -> None:
    small, large = authorize(PAYER, value=1), authorize(PAYER, value=5_000)
    assert small.nonce == large.nonce
    await _settled(world, small)
    assert await _rejected(world, large) == Reason.NONCE_USED
    assert await world.facilitator.find(large) is None
    assert await world.balance(PAYEE) == 1


async def test_nonces_belong_to_their_payer(world: World) -> None:
    other: LocalAccount = Account.from_key("0x" + "44" * 32)
    await world.fund(Address(other.address.lower()), Usdc(1_000))
    mine = await _settled(world, authorize(PAYER, value=1_000))
    assert await _settled(world, authorize(other, value=1_000)) != mine
    assert await world.moved() == 2


async def test_an_uncovered_payment_is_refused_and_may_be_tried_again(world: World) -> None:
    payment = authorize(PAYER, value=10_001)
    assert await _rejected(world, payment) == Reason.INSUFFICIENT_FUNDS
    assert await world.facilitator.find(payment) is None
    assert await world.balance(WALLET) == 10_000
    await world.fund(WALLET, Usdc(1))
    await _settled(world, payment)
    assert await world.balance(WALLET) == 0


@pytest.mark.parametrize("value", [2**63, 2**256 - 1])
async def test_a_value_beyond_all_money_is_just_not_covered(world: World, value: int) -> None:
    payment = authorize(PAYER, value=value)
    assert await _rejected(world, payment) == Reason.INSUFFICIENT_FUNDS
    assert await world.facilitator.find(payment) is None


@pytest.mark.parametrize(
    ("valid_after", "valid_before", "reason"),
    [
        (NOW - 1, NOW + 1, None),
        (NOW, NOW + 300, Reason.VALID_AFTER),
        (0, NOW, Reason.VALID_BEFORE),
    ],
)
async def test_the_token_is_strict_about_time(
    world: World, valid_after: int, valid_before: int, reason: Reason | None
) -> None:
    payment = authorize(PAYER, value=1_000, valid_after=valid_after, valid_before=valid_before)
    if reason is None:
        await _settled(world, payment)
    else:
        assert await _rejected(world, payment) == reason
        assert await world.facilitator.find(payment) is None


async def test_a_forged_payment_moves_nothing_and_burns_no_nonce(world: World) -> None:
    honest = authorize(PAYER, value=1_000)
    forged = authorize(Account.from_key("0x" + "a7" * 32), value=1_000, payer=WALLET)
    assert await _rejected(world, forged) == Reason.SIGNATURE
    assert await world.balance(WALLET) == 10_000
    await _settled(world, honest)
