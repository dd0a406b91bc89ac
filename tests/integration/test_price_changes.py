"""A price that is announced: what new orders pay, who is told, what servers cost afterwards, and taking it back."""

import asyncio
import json
from collections import Counter
from fractions import Fraction
from math import floor
from pathlib import Path

import pytest
from spawn_schemas.errors import Code, SpawnError

from spawn.domain.price_changes import NOTICE_S
from spawn.services import admin_looks, price_changes
from spawn.services.admin import AnnouncePrice, Clerk, WithdrawPrice
from spawn.services.moments import moment
from tests.harness import ORDER, World, open_world
from tests.integration.paid_calls import Barrier
from tests.integration.server_steps import DAY, SMALL, compute_usdc, drive, order, rent

RAISED = 200_000


def clerk(world: World) -> Clerk:
    return Clerk(world.parts.db, world.service.services.shop.prices, world.clock, world.parts.entropy)


async def announce(world: World, daily: int = RAISED, *, type: str = "small", location: str = "nbg1") -> str:
    """Announce a price from the earliest moment on; answers the change's id."""
    said = await clerk(world).carry_out(
        AnnouncePrice(type=type, location=location, daily_usdc=daily, effective_at=None)
    )
    return said[0].partition(":")[0]


async def withdraw(world: World, change: str) -> None:
    await clerk(world).carry_out(WithdrawPrice(id=change))


async def announced(world: World, server: str) -> list[tuple[str, str, str]]:
    """What the server's owner was told: old price, new price, from when."""
    rows = await world.rows(
        "SELECT data FROM event WHERE resource = :id AND type = 'price.announced' ORDER BY seq", id=server
    )
    told = [json.loads(row["data"]) for row in rows]
    return [(one["daily_burn"], one["new_daily_burn"], one["effective_at"]) for one in told]


async def pending(world: World, server: str) -> tuple[int | None, int | None]:
    row = await world.server(server)
    return row.reprice_at, row.reprice_usdc


async def changes(world: World) -> dict[str, str]:
    now = world.clock.now_s()
    lines = await world.parts.db.write(lambda tx: admin_looks.price_lines(tx, limit=20, now=now))
    return {line.id: line.state.value for line in lines}


async def price_now(world: World, location: str = "nbg1") -> str:
    catalog = (await world.ask("GET", "/v1/catalog")).json()
    (price,) = [
        offer["daily_burn"]
        for offer in catalog["offers"]
        if (offer["type"], offer["location"]) == ("small", location)
    ]
    return str(price)


async def settled(world: World, server: str) -> int:
    """Seconds that the server has been charged for."""
    row = await world.server(server)
    assert row.charged_until is not None
    return row.charged_until


# --- new orders ---------------------------------------------------------------------------------------------------


async def test_new_orders_pay_the_announced_price_at_once_and_others_do_not(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        old = await rent(world, wallet)
        await announce(world)
        assert (await price_now(world), await price_now(world, "fsn1")) == ("0.20", "0.15")
        new = await rent(world, wallet, name="new")
        assert ((await world.server(old)).daily_usdc, (await world.server(new)).daily_usdc) == (SMALL, RAISED)
        assert await pending(world, new) == (None, None)
        assert await announced(world, new) == [], "it never cost anything else"


async def test_a_restart_and_another_process_sell_at_it(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        beside = world.service.services.shop.prices
        now, entropy = world.clock.now_s(), world.parts.entropy
        await world.parts.db.write(
            lambda tx: price_changes.announce(
                tx,
                beside,
                type="small",
                location="nbg1",
                daily_usdc=RAISED,  # type: ignore[arg-type]  # any amount
                effective_at=None,
                entropy=entropy,
                now=now,
            )
        )
        assert await price_now(world) == "0.15", "written by somebody else"
        await world.tick("listing")
        assert await price_now(world) == "0.20"
    async with open_world(tmp_path) as world:
        assert await price_now(world) == "0.20"


async def test_a_resize_goes_to_the_newest_price_and_leaves_what_was_announced_behind(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("30.00")
        server = await rent(world, wallet)
        await announce(world)
        await announce(world, 300_000, type="medium")
        assert (await pending(world, server))[1] == RAISED
        resized = await world.sign(wallet, "POST", f"/v1/servers/{server}/resize", {"type": "medium"})
        assert resized.is_success, resized.text
        await drive(world)
        row = await world.server(server)
        assert (row.type, row.daily_usdc, row.reprice_at, row.reprice_usdc) == ("medium", 300_000, None, None)
        await world.burn_until(world.clock.now_s() + NOTICE_S + DAY)
        assert (await world.server(server)).daily_usdc == 300_000
        await world.check_books()


# --- those that run -----------------------------------------------------------------------------------------------


async def test_a_rise_is_told_and_charged_to_the_second(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("60.00")
        server = await rent(world, wallet)
        started = (await world.server(server)).metered_from or 0
        now = world.clock.now_s()
        await announce(world)
        at = now + NOTICE_S
        assert await pending(world, server) == (at, RAISED)
        assert await announced(world, server) == [("0.15", "0.20", moment(at))]
        await world.burn_until(at - 1)
        assert (await world.server(server)).daily_usdc == SMALL
        await world.burn_until(at + 5 * DAY)
        row = await world.server(server)
        assert (row.daily_usdc, row.reprice_at, row.reprice_usdc) == (RAISED, None, None)
        months = await world.rows(
            "SELECT type FROM event WHERE resource = :id AND type = 'price.changed'", id=server
        )
        assert len(months) == 1
        # Two prices on the way; no month cap is reached in the days looked at.
        until = await settled(world, server)
        exact = Fraction(SMALL, DAY) * (at - started) + Fraction(RAISED, DAY) * (until - at)
        assert await compute_usdc(world, server) == floor(exact)
        await world.check_books()


async def test_a_fall_is_in_force_at_once(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server = await rent(world, wallet)
        await announce(world, 130_000)
        assert await pending(world, server) == (world.clock.now_s(), 130_000)
        await world.tick("burn")
        assert (await world.server(server)).daily_usdc == 130_000
        await world.check_books()


async def test_only_those_are_told_whom_it_concerns(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("60.00")
        concerned = await rent(world, wallet)
        bystanders = [
            await rent(world, wallet, name="elsewhere", location="fsn1"),
            await rent(world, wallet, name="larger", type="medium"),
        ]
        gone = await rent(world, wallet, name="gone")
        assert (await world.sign(wallet, "DELETE", f"/v1/servers/{gone}")).is_success
        await announce(world)
        await drive(world)
        await world.tick("prices")
        assert len(await announced(world, concerned)) == 1
        assert [await announced(world, other) for other in (*bystanders, gone)] == [[], [], []]


async def test_a_server_that_is_being_created_is_told_too(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        created = await order(world, wallet)
        server = created.json()["server"]["id"]
        await announce(world)
        assert len(await announced(world, server)) == 1
        await drive(world)
        assert (await world.server(server)).reprice_usdc == RAISED


# --- taking it back -----------------------------------------------------------------------------------------------


async def test_what_is_withdrawn_is_told_and_never_happens(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("60.00")
        server = await rent(world, wallet)
        change = await announce(world)
        between = await rent(world, wallet, name="between")
        await withdraw(world, change)
        assert await pending(world, server) == (None, None)
        assert [told[:2] for told in await announced(world, server)] == [("0.15", "0.20"), ("0.15", "0.15")]
        assert await price_now(world) == "0.15"
        assert [told[:2] for told in await announced(world, between)] == [("0.20", "0.15")]
        await world.tick("burn")
        assert (await world.server(between)).daily_usdc == SMALL, (
            "who ordered meanwhile pays no more than others"
        )
        await world.burn_until(world.clock.now_s() + NOTICE_S + DAY)
        assert (await world.server(server)).daily_usdc == SMALL
        assert sorted((await changes(world)).values()) == ["in force", "withdrawn"]
        await world.check_books()


async def test_after_a_withdrawal_another_can_be_announced(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        server = await rent(world, await world.customer("60.00"))
        await withdraw(world, await announce(world))
        second = await announce(world, 180_000)
        at = world.clock.now_s() + NOTICE_S
        assert await pending(world, server) == (at, 180_000)
        await withdraw(world, second)
        assert await price_now(world) == "0.15"
        assert await pending(world, server) == (None, None)


async def test_an_unknown_or_past_change_cannot_be_withdrawn(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        change = await announce(world)
        for id_, code in (("prc_none", Code.NOT_FOUND), (change, Code.CONFLICT)):
            if id_ == change:
                world.clock.advance(NOTICE_S)
            with pytest.raises(SpawnError) as error:
                await withdraw(world, id_)
            assert error.value.code is code


async def test_one_change_of_an_offer_at_a_time(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await announce(world)
        await announce(world, location="fsn1")
        with pytest.raises(SpawnError) as error:
            await announce(world, 300_000)
        assert error.value.code is Code.CONFLICT
        world.clock.advance(NOTICE_S)
        await announce(world, 300_000)
        assert Counter((await changes(world)).values()) == {"announced": 1, "in force": 1, "replaced": 1}


@pytest.mark.parametrize(("type_", "location"), [("small", "moon"), ("huge", "nbg1"), ("arm-small", "ash")])
async def test_only_what_is_sold_has_a_price(tmp_path: Path, type_: str, location: str) -> None:
    async with open_world(tmp_path) as world:
        with pytest.raises(SpawnError) as error:
            await clerk(world).carry_out(
                AnnouncePrice(type=type_, location=location, daily_usdc=RAISED, effective_at=None)
            )
        assert error.value.code is Code.INVALID_REQUEST


async def test_a_price_below_its_floor_is_refused(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        with pytest.raises(SpawnError, match="floor"):
            await announce(world, 120_000)


async def test_whoever_pays_while_a_price_falls_has_the_lower_price(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        body = ORDER | {"fund": "5.00"}
        payment = await world.payment(wallet, "POST", "/v1/servers", body)
        world.chain_faults.gate = barrier = Barrier()
        paying = asyncio.create_task(world.send_payment(payment, "POST", "/v1/servers", body))
        await barrier.reached.wait()
        await announce(world, SMALL - 10_000)
        barrier.set()
        answer = await paying
        assert answer.status_code == 201, answer.text
        assert (await world.server(answer.json()["server"]["id"])).daily_usdc == SMALL - 10_000
