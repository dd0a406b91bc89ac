"""Telling every owner of a price: whole by whole chunk, once each, whatever dies and however late it is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
from spawn_ledger.tx import Tx
from spawn_schemas.ids import ServerId, new_server_id
from spawn_schemas.money import Usdc

from spawn.domain.price_changes import NOTICE_S, PriceChange, PriceChangeId
from spawn.jobs.prices import Prices
from spawn.services import price_changes
from spawn.services.admin import AnnouncePrice, Clerk, WithdrawPrice
from spawn.store import price_changes as rows
from spawn.store import servers
from spawn.store.database import Database
from tests.harness import SeededEntropy, World, open_world
from tests.integration.server_steps import DAY, rent

T = TypeVar("T")

RAISED = 200_000
MANY = 1_234
"""Servers in three chunks."""


async def crowd(world: World, count: int = MANY) -> list[ServerId]:
    """A running server, and so many copies of it with ids of their own."""
    wallet = await world.customer("20.00")
    first = await world.server(await rent(world, wallet))
    entropy = SeededEntropy("crowd")
    copies = [
        msgspec.structs.replace(
            first, id=new_server_id(entropy), name=f"web{n}", charged_until=None, due_at=None
        )
        for n in range(count - 1)
    ]

    def insert(tx: Tx) -> None:
        for copy in copies:
            servers.insert_server(tx, copy)

    await world.parts.db.write(insert)
    return sorted([first.id, *(copy.id for copy in copies)])


async def announce(world: World, daily: int = RAISED) -> str:
    clerk = Clerk(world.parts.db, world.service.services.shop.prices, world.clock, world.parts.entropy)
    said = await clerk.carry_out(
        AnnouncePrice(type="small", location="nbg1", daily_usdc=daily, effective_at=None)
    )
    return said[0].partition(":")[0]


async def told(world: World) -> list[str]:
    rows = await world.rows("SELECT resource FROM event WHERE type = 'price.announced' ORDER BY resource")
    return [row["resource"] for row in rows]


class Dying:
    """A database whose process dies at its n-th write, before or after the commit."""

    def __init__(self, db: Database, at: int, *, after_commit: bool) -> None:
        self._db = db
        self._left = at
        self._after_commit = after_commit
        self.exclusive = db.exclusive
        self.read = db.read
        self.close = db.close

    async def write(self, fn: Callable[[Tx], T]) -> T:
        self._left -= 1
        if self._left > 0:
            return await self._db.write(fn)

        def die(tx: Tx) -> T:
            fn(tx)
            raise Died

        if self._after_commit:
            await self._db.write(fn)
            raise Died
        return await self._db.write(die)


class Died(Exception):
    pass


async def test_a_crowd_is_told_chunk_by_chunk(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        everybody = await crowd(world)
        await announce(world)
        assert await told(world) == everybody[: price_changes.CHUNK], "the first with the announcement itself"
        await world.tick("prices")
        assert await told(world) == everybody
        assert await world.rows("SELECT id FROM price_change WHERE told_to IS NOT NULL") == []
        await world.tick("prices")
        assert await told(world) == everybody, "and nobody twice"


@pytest.mark.parametrize("after_commit", [False, True])
@pytest.mark.parametrize("at", [1, 2, 3])
async def test_a_crash_at_any_write_leaves_nobody_out(tmp_path: Path, at: int, after_commit: bool) -> None:
    async with open_world(tmp_path) as world:
        everybody = await crowd(world)
        await announce(world)
        dying = Dying(world.parts.db, at, after_commit=after_commit)
        with pytest.raises(Died):
            await Prices(dying).tick(world.clock.now_s())
    async with open_world(tmp_path, clock=world.clock) as world:
        await world.tick("prices")
        assert await told(world) == everybody


async def test_whoever_is_told_late_has_thirty_days_all_the_same(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        everybody = await crowd(world)
        announced_at = world.clock.now_s()
        await announce(world)
        world.clock.advance(7 * 86_400)
        await world.tick("prices")
        first, last = await world.server(everybody[0]), await world.server(everybody[-1])
        assert first.reprice_at == announced_at + NOTICE_S
        assert last.reprice_at == world.clock.now_s() + NOTICE_S
        rows = await world.rows("SELECT data FROM event WHERE type = 'price.announced' ORDER BY seq")
        assert len({json.loads(row["data"])["effective_at"] for row in rows}) == 2


async def test_a_withdrawal_in_the_middle_of_the_telling(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        everybody = await crowd(world)
        change = await announce(world)
        clerk = Clerk(world.parts.db, world.service.services.shop.prices, world.clock, world.parts.entropy)
        await clerk.carry_out(WithdrawPrice(id=change))
        await world.tick("prices")
        assert await world.rows("SELECT id FROM server WHERE reprice_at IS NOT NULL") == []
        twice = everybody[: price_changes.CHUNK]
        assert await told(world) == sorted(twice + twice), (
            "who heard of it hears that it is off, and nobody else"
        )


async def test_a_server_that_was_not_cut_yet_is_not_passed_over(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        server = await rent(world, await world.customer("60.00"))
        await announce(world)
        world.clock.advance(NOTICE_S + 60)
        # The burn has not looked since: the rise of a minute ago is still ahead of it.
        await announce(world, 130_000)
        await world.tick("prices")
        assert (await world.server(server)).reprice_usdc == RAISED
        await world.tick("burn")
        await world.tick("prices")
        assert (await world.server(server)).reprice_usdc == 130_000
        await world.tick("burn")
        assert (await world.server(server)).daily_usdc == 130_000
        changed = await world.rows("SELECT data FROM event WHERE type = 'price.changed' ORDER BY seq")
        assert len(changed) == 2
        await world.check_books()


async def test_a_chunk_passes_a_bounded_number_of_servers(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        everybody = await crowd(world)
        await world.parts.db.write(
            lambda tx: tx.execute("UPDATE server SET type = 'medium' WHERE id <> :id", {"id": everybody[-1]})
        )
        await announce(world)
        assert await told(world) == []
        (row,) = await world.rows("SELECT told_to FROM price_change")
        assert row["told_to"] == everybody[price_changes.CHUNK - 1]
        await world.tick("prices")
        assert await told(world) == [everybody[-1]]


async def untold(world: World, daily: int, effective_at: int) -> None:
    """A change that the telling has not come to any server with."""
    change = PriceChange(
        id=PriceChangeId(f"prc_{daily}"),
        type="small",
        location="nbg1",
        daily_usdc=Usdc(daily),
        announced_at=world.clock.now_s(),
        effective_at=effective_at,
        told_to="",
    )
    await world.parts.db.write(lambda tx: rows.insert_change(tx, change))


async def test_who_is_cut_late_by_the_change_before_is_told_of_the_next(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        server_id = await rent(world, await world.customer("60.00"), deposit="40.00")
        began = world.clock.now_s()
        await untold(world, RAISED, began + NOTICE_S)
        await world.burn_until(began + 2 * DAY)
        await world.tick("prices")
        await world.burn_until(began + NOTICE_S + DAY)
        await untold(world, 180_000, began + NOTICE_S + DAY)
        await world.burn_until(began + NOTICE_S + 3 * DAY)
        assert (await world.server(server_id)).daily_usdc == RAISED, "only now, since it was told so late"
        await world.tick("prices")
        await world.burn_until(world.clock.now_s() + DAY)
        assert (await world.server(server_id)).daily_usdc == 180_000


async def test_a_server_without_money_holds_nobody_up_and_keeps_what_it_was_promised(tmp_path: Path) -> None:
    async with open_world(tmp_path, grace_s=30 * 86_400) as world:
        poor = await rent(world, await world.customer("4.05"), deposit="4.00")
        rich = await rent(world, await world.customer("60.00"))
        await announce(world)
        await world.burn_until(world.clock.now_s() + NOTICE_S + 5 * 86_400)
        assert (await world.server(poor)).exhausted_at is not None
        assert await pending(world, poor) == RAISED
        await announce(world, 130_000)
        await world.tick("prices")
        assert await pending(world, poor) == RAISED
        assert await pending(world, rich) == 130_000


async def pending(world: World, server: str) -> int | None:
    return (await world.server(server)).reprice_usdc
