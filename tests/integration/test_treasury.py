"""The books beside the chain: what the operator is shown, and when there is an alarm."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc, parse_usdc

from spawn.evm.node import Block, Node, NodeUnavailable
from spawn.jobs.suspense import Suspense
from spawn.jobs.treasury import Treasury
from spawn.payments.standings import Standing
from spawn.services import treasury
from spawn.services.treasury import PAYMENT_GAS, Unfinished
from tests.harness import World, open_world

DAY = 86_400
SOMEWHERE = Address("0x" + "50" * 20)
DEPOSIT = ("POST", "/v1/balance/deposit", {"amount": "5.00"})
INSERT_SETTLEMENT = """
INSERT INTO settlement (id, payer, amount, payment, valid_before, state, created_at)
VALUES (:id, :payer, :amount, :payment, 0, :state, :created_at)
"""


@dataclass
class Slow:
    """What tells balances, lagging behind by these, or not there at all."""

    world: World
    behind: list[int | None]

    async def balance_of(self, address: Address) -> Usdc:
        behind = self.behind.pop(0) if self.behind else 0
        if behind is None:
            raise NodeUnavailable("no route to the node")
        return Usdc(await self.world.chain.balance_of(address) - behind)


def job(world: World, *behind: int | None) -> Treasury:
    return Treasury(world.parts.db, Slow(world, list(behind)), world.settings.pay_to, every_s=DAY)


async def look(world: World) -> treasury.Treasury:
    return await treasury.look(
        world.parts.db, world.chain, world.settings.pay_to, world.clock.now_s(), gas=None
    )


async def withdraw(world: World, amount: str) -> None:
    """What must not happen: money leaves our account."""
    await world.chain.send(world.settings.pay_to, SOMEWHERE, parse_usdc(amount))


def alarms(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL]


async def test_the_chain_has_what_the_books_say_and_what_nobody_read_yet(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("5.00")
        await world.chain.send(wallet.address, world.settings.pay_to, parse_usdc("0.75"))
        before = await look(world)
        assert (before.compared.books_usdc, before.compared.chain_usdc) == (5_000_000, 5_750_000)
        assert (before.compared.difference_usdc, before.compared.is_short) == (750_000, False)
        await Suspense(world.parts.db, world.chain).tick(world.clock.now_s())
        after = await look(world)
        assert (after.compared.difference_usdc, after.suspense_usdc) == (0, 750_000)
        assert (after.unfinished, after.last) == ((), None)


async def test_an_empty_database_beside_an_empty_chain(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        shown = await look(world)
        assert (shown.compared.books_usdc, shown.compared.chain_usdc, shown.suspense_usdc) == (0, 0, 0)
        assert not shown.compared.is_short


async def test_what_is_unfinished_is_shown_with_its_age(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        for _ in range(2):
            payment = await world.payment(wallet, *DEPOSIT)
            world.chain_faults.lose_request = 1
            assert (await world.send_payment(payment, *DEPOSIT)).status_code == 503
            world.clock.advance(10)
        for number, state in enumerate(("reserved", "broadcast", "broadcast", "confirmed", "failed")):
            params = {
                "id": f"x402_{number}",
                "payer": wallet.address,
                "amount": 1_000,
                "payment": b"",
                "state": state,
                "created_at": world.clock.now_s() - 100 + number,
            }
            await world.parts.db.write(lambda tx, params=params: tx.execute(INSERT_SETTLEMENT, params))  # type: ignore[misc]  # bound now
        assert (await look(world)).unfinished == (
            Unfinished(what="call reserved", count=2, amount_usdc=Usdc(10_000_000), oldest_s=20),
            Unfinished(what="settlement reserved", count=1, amount_usdc=Usdc(1_000), oldest_s=100),
            Unfinished(what="settlement broadcast", count=2, amount_usdc=Usdc(2_000), oldest_s=99),
        )


async def test_a_shortage_is_an_alarm_once_with_the_numbers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world(tmp_path) as world:
        await world.customer("5.00")
        watcher = job(world)
        await watcher.tick(world.clock.now_s())
        assert (await look(world)).last == (await look(world)).compared
        world.clock.advance(DAY - 1)
        await withdraw(world, "1.50")
        for _ in range(10):
            await watcher.tick(world.clock.now_s())
        assert alarms(caplog) == []
        world.clock.advance(1)
        for _ in range(10):
            await watcher.tick(world.clock.now_s())
        (said,) = alarms(caplog)
        assert "the books claim 5.00 USDC and the chain shows 3.50: 1.50 of it is not there" in said
        assert "put it back" in said
        last = (await look(world)).last
        assert last is not None
        assert (last.at, last.difference_usdc) == (world.clock.now_s(), -1_500_000)
        # Another process, on the next day, says it again while it is so.
        world.clock.advance(DAY)
        again = job(world)
        for _ in range(2):
            await again.tick(world.clock.now_s())
        assert len(alarms(caplog)) == 2
        world.clock.advance(DAY)
        await world.chain.mint(world.settings.pay_to, parse_usdc("1.50"))
        await again.tick(world.clock.now_s())
        last = (await look(world)).last
        assert last is not None
        assert (len(alarms(caplog)), last.is_short) == (2, False)


async def test_a_node_that_lags_for_a_moment_is_no_alarm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world(tmp_path) as world:
        await world.customer("5.00")
        watcher = job(world, 1_000_000)
        for _ in range(3):
            await watcher.tick(world.clock.now_s())
        last = (await look(world)).last
        assert last is not None
        assert (last.is_short, alarms(caplog)) == (False, [])


async def test_a_node_that_is_away_puts_the_comparison_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world(tmp_path) as world:
        watcher = job(world, None)
        await watcher.tick(world.clock.now_s())
        assert "cannot be compared with the chain yet: no route to the node" in caplog.text
        assert (await look(world)).last is None
        await watcher.tick(world.clock.now_s())
        assert (await look(world)).last is not None


async def test_how_facilitators_fare_is_kept_for_who_asks(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        fared = Standing(
            name="https://x402.example",
            open_until=0,
            unsupported=False,
            settled=7,
            refused=2,
            disagreed=1,
            unproven=0,
            failed=3,
        )
        watcher = Treasury(
            world.parts.db,
            world.chain,
            world.settings.pay_to,
            every_s=DAY,
            facilitators=lambda: (fared,),
        )
        assert (await look(world)).facilitators == ()
        await watcher.tick(world.clock.now_s())
        assert (await look(world)).facilitators == (fared,)


@dataclass
class Purse:
    """A node that knows its fees and what our keys have."""

    balances: dict[Address, int]
    has_block: bool = True

    async def block(self, number: int | None = None) -> Block | None:
        return Block(number=1, hash="0x1", at=0, base_fee_wei=900) if self.has_block else None

    async def priority_fee_wei(self) -> int:
        return 100

    async def balance_wei(self, account: Address) -> int:
        return self.balances[account]


async def test_gas_money_is_told_in_payments() -> None:
    first, second = Address("0x" + "01" * 20), Address("0x" + "02" * 20)
    node = cast("Node", Purse({first: PAYMENT_GAS * 1_000 * 50, second: PAYMENT_GAS * 1_000 - 1}))
    gas = await treasury.gas_money(node, (first, second), cap_wei=5_000)
    assert (gas.price_wei, gas.cap_wei) == (1_000, 5_000)
    assert [(one.address, one.payments_now, one.payments_at_cap) for one in gas.relayers] == [
        (first, 50, 10),
        (second, 0, 0),
    ]
    with pytest.raises(NodeUnavailable):
        await treasury.gas_money(cast("Node", Purse({}, has_block=False)), (), cap_wei=1)
