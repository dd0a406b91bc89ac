"""What a server costs over its life, against fractions worked out by hand: never a micro-dollar more or less."""

from datetime import UTC, datetime
from math import floor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.harness import World, open_world
from tests.integration.server_steps import (
    DAY,
    LARGE,
    SMALL,
    accepted_at,
    balance,
    burnt,
    code,
    compute_usdc,
    drive,
    hour,
    lasts_s,
    micro,
    order,
    rent,
    show,
)

READ, DESTROY, UPDATE, CREATE = 1_000, 5_000, 1_000, 10_000


def iso(at: int) -> str:
    """A moment as the wire shows it."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def destroyed_at(world: World, server_id: str, second: int) -> None:
    """The burn job leaves the server alone in its last paid second and ends it in the next."""
    await world.burn_until(second)
    await world.tick("burn")
    assert (await world.server(server_id)).status == "running"
    world.clock.advance(1)
    await world.tick("burn")
    server = await world.server(server_id)
    assert (server.status, server.reason) == ("destroying", "deposit_exhausted")


Step = tuple[str, int]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.integers(1, 40_000)),
        st.tuples(st.sampled_from(["burn", "read"]), st.just(0)),
    ),
    max_size=12,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, auto_renew=st.booleans(), deposit=st.integers(SMALL, 2 * SMALL))
async def test_however_it_is_looked_at_the_burn_is_exact(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Step], auto_renew: bool, deposit: int
) -> None:
    async with open_world(tmp_path_factory.mktemp("burn")) as world:
        wallet = await world.customer("1.00")
        text = f"0.{deposit:06d}"
        created = await order(world, wallet, deposit=text, auto_renew=auto_renew)
        server_id = created.json()["server"]["id"]
        since = world.clock.now_s()
        spent = CREATE
        for verb, amount in steps:
            if verb == "wait":
                world.clock.advance(amount)
            elif verb == "burn":
                await world.tick("burn")
            elif verb == "read":
                answer = await world.sign(wallet, "GET", f"/v1/servers/{server_id}")
                assert answer.status_code == 200
                spent += READ
            funds = 1_000_000 - spent if auto_renew else deposit
            seconds = min(world.clock.now_s() - since, lasts_s(SMALL, funds))
            assert (await balance(world, wallet))["balance"] == 1_000_000 - spent - burnt(SMALL, seconds)
        await world.check_books()


@pytest.mark.parametrize("lived_s", [0, 1, 3599, 3600, 3601, 7200, 100_000])
async def test_an_hour_is_the_least_and_is_charged_once(tmp_path: Path, lived_s: int) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("10.00")
        server_id = (await order(world, wallet)).json()["server"]["id"]
        world.clock.advance(lived_s)
        gone = await world.sign(wallet, "DELETE", f"/v1/servers/{server_id}")
        cost = max(hour(SMALL), burnt(SMALL, lived_s))
        assert micro(gone.json()["deposit_refunded"]) == 5_000_000 - cost - DESTROY
        await drive(world)
        world.clock.advance(DAY)
        await world.tick()
        assert await compute_usdc(world, server_id) == cost
        assert await balance(world, wallet) == {
            "balance": 10_000_000 - CREATE - cost - DESTROY,
            "reserved": 0,
            "available": 10_000_000 - CREATE - cost - DESTROY,
        }
        await world.check_books()


async def test_the_reserve_goes_first_and_then_the_wallet(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("1.00")
        server_id = await rent(world, wallet, deposit="0.20")
        since = await accepted_at(world, server_id)
        in_wallet = 1_000_000 - CREATE - 200_000
        reserve_s = lasts_s(SMALL, 200_000)

        world.clock.advance(since + reserve_s - world.clock.now_s())
        assert await balance(world, wallet) == {
            "balance": in_wallet,
            "reserved": 0,
            "available": in_wallet,
        }
        world.clock.advance(1000)
        drawn = burnt(SMALL, reserve_s + 1000) - 200_000
        assert drawn > 0
        assert (await balance(world, wallet))["available"] == in_wallet - drawn
        await world.tick("burn")
        assert await world.available(wallet.address) == in_wallet - drawn
        assert await world.account(f"srv:{server_id}") == 0


async def test_without_renewal_the_reserve_is_the_end(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("9.00")
        server_id = await rent(world, wallet, deposit="0.15", auto_renew=False)
        since = await accepted_at(world, server_id)
        await destroyed_at(world, server_id, since + lasts_s(SMALL, 150_000))
        assert await compute_usdc(world, server_id) == burnt(SMALL, lasts_s(SMALL, 150_000))
        await drive(world)
        assert await world.cloud.find((await world.server(server_id)).id) is None
        shown = await show(world, wallet, server_id)
        assert (shown["status"], shown["reason"]) == ("destroyed", "deposit_exhausted")
        assert (shown["deposit_remaining"], shown["deposit_expires_at"]) == ("0.00", None)
        await world.check_books()


@pytest.mark.parametrize("late_s", [1, 60, 3 * DAY + 7])
async def test_billing_stops_at_the_last_paid_second_however_late_the_job_is(
    tmp_path: Path, late_s: int
) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("5.00")
        server_id = await rent(world, wallet, type="large", deposit="0.400003", auto_renew=False)
        since = await accepted_at(world, server_id)
        paid_s = lasts_s(LARGE, 400_003)
        world.clock.advance(since + paid_s + late_s - world.clock.now_s())
        await world.tick("burn")
        cost = burnt(LARGE, paid_s)
        crumbs = 400_003 - cost
        assert crumbs > 0
        assert await compute_usdc(world, server_id) == cost
        # Nobody could be warned in time, so that the owner has from now on what is left after the last warning.
        await destroyed_at(world, server_id, world.clock.now_s() + 6 * 3600 - 1)
        assert await compute_usdc(world, server_id) == cost
        assert await world.account(f"srv:{server_id}") == 0
        assert await world.available(wallet.address) == 5_000_000 - CREATE - 400_003 + crumbs
        refunds = await world.rows("SELECT at, amount FROM transfer WHERE code = 'deposit_refund'")
        assert [(row["at"], row["amount"]) for row in refunds] == [(since + paid_s, crumbs)]
        await drive(world)
        await world.check_books()


async def test_what_is_shown_as_the_end_is_the_end(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("0.70")
        server_id = await rent(world, wallet, deposit="0.20")
        answer = await world.sign(wallet, "GET", f"/v1/servers/{server_id}")
        shown = answer.json()["server"]
        end = await accepted_at(world, server_id) + lasts_s(SMALL, 700_000 - CREATE - READ)
        assert shown["deposit_expires_at"] == iso(end)
        assert int(answer.headers["Spawn-Runway"]) == end - world.clock.now_s()
        assert micro(answer.headers["Spawn-Balance"]) == 700_000 - CREATE - READ - 200_000
        assert (await balance(world, wallet))["available"] == micro(answer.headers["Spawn-Balance"])
        assert answer.headers["Spawn-Fee"] == "0.001"
        await destroyed_at(world, server_id, end)


async def test_spending_on_reads_brings_the_end_forward_and_nothing_runs_unpaid(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("0.280")
        server_id = await rent(world, wallet, deposit="0.25")
        since = await accepted_at(world, server_id)
        world.clock.advance(DAY)
        await world.tick("burn")
        for _ in range(15):
            assert (await world.sign(wallet, "GET", "/v1/servers")).status_code == 200
        end = since + lasts_s(SMALL, 280_000 - CREATE - 15 * READ)
        await destroyed_at(world, server_id, end)
        assert await compute_usdc(world, server_id) == burnt(SMALL, end - since)
        await drive(world)
        await world.check_books()


async def test_a_wallet_that_its_servers_have_drained_cannot_read(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("0.165")
        server_id = await rent(world, wallet, deposit="0.15")
        world.clock.advance(lasts_s(SMALL, 153_500))
        refused = await world.sign(wallet, "GET", f"/v1/servers/{server_id}")
        assert refused.status_code == 200
        refused = await world.sign(wallet, "GET", "/v1/servers")
        assert refused.status_code == 402
        await world.tick("burn")
        await world.check_books()


async def test_a_top_up_before_the_end_prolongs_it(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("0.17")
        server_id = await rent(world, wallet, deposit="0.15")
        since = await accepted_at(world, server_id)
        await world.burn_until(since + lasts_s(SMALL, 170_000 - CREATE))
        topped = await world.pay(wallet, "POST", "/v1/balance/deposit", {"amount": "0.05"})
        assert topped.status_code == 200, topped.text
        await destroyed_at(world, server_id, since + lasts_s(SMALL, 220_000 - CREATE))
        await world.check_books()


async def test_raising_the_reserve_prolongs_a_server_that_does_not_renew(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("1.00")
        server_id = await rent(world, wallet, deposit="0.15", auto_renew=False)
        since = await accepted_at(world, server_id)
        world.clock.advance(50_000)
        left = burnt(SMALL, world.clock.now_s() - since)
        funded = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/deposit", {"amount": "0.030001"})
        assert funded.status_code == 200, funded.text
        body = funded.json()
        assert micro(body["server"]["deposit_remaining"]) == 180_001 - left
        assert micro(body["available"]) == 1_000_000 - CREATE - 180_001 - UPDATE
        end = since + lasts_s(SMALL, 180_001)
        assert body["server"]["deposit_expires_at"] == iso(end)
        await destroyed_at(world, server_id, end)
        await world.check_books()


async def test_renewal_can_be_switched_off_and_on_while_it_lives(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("1.00")
        server_id = await rent(world, wallet, deposit="0.20")
        since = await accepted_at(world, server_id)

        async def renew(choice: bool) -> str:
            body = {"auto_renew": choice}
            answer = await world.sign(wallet, "PATCH", f"/v1/servers/{server_id}", body)
            assert answer.status_code == 200
            server: dict[str, Any] = answer.json()["server"]
            assert server["auto_renew"] is choice
            return str(server["deposit_expires_at"])

        own_end = since + lasts_s(SMALL, 200_000)
        assert await renew(False) == iso(own_end)
        assert await renew(True) == iso(since + lasts_s(SMALL, 1_000_000 - CREATE - 2 * UPDATE))
        world.clock.advance(lasts_s(SMALL, 200_000) + 3600)
        assert (await show(world, wallet, server_id))["status"] == "running"
        # Without renewal nothing is left that pays the next second, and nobody would have been warned.
        refused = await world.sign(wallet, "PATCH", f"/v1/servers/{server_id}", {"auto_renew": False})
        assert code(refused) == (422, "insufficient_deposit")
        assert refused.json()["error"]["details"] == {"server": server_id, "runway": 0}
        assert (await show(world, wallet, server_id))["auto_renew"] is True
        await world.check_books()


@pytest.mark.parametrize("ticks", [(), (40_000, 90_000, 99_991)])
async def test_two_servers_share_what_the_wallet_has(tmp_path: Path, ticks: tuple[int, ...]) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("0.90")
        first = (await order(world, wallet, name="a", deposit="0.15")).json()["server"]["id"]
        world.clock.advance(5_000)
        second = (await order(world, wallet, name="b", type="large", deposit="0.45")).json()["server"]["id"]
        starts = (await accepted_at(world, first), await accepted_at(world, second))
        shared = 900_000 - 2 * CREATE - 600_000

        def lacking(at: int) -> int:
            return sum(
                max(0, burnt(daily, at - start) - reserve)
                for daily, start, reserve in zip((SMALL, LARGE), starts, (150_000, 450_000), strict=True)
            )

        end = next(at for at in range(starts[1] + DAY, starts[1] + 5 * DAY) if lacking(at + 1) > shared)
        for after_s in ticks:
            world.clock.advance(starts[0] + after_s - world.clock.now_s())
            await world.tick("burn")
        await world.burn_until(end + 1)
        await world.tick("burn")
        assert await compute_usdc(world, first) == burnt(SMALL, end - starts[0])
        assert await compute_usdc(world, second) == burnt(LARGE, end - starts[1])
        assert await world.available(wallet.address) == shared - lacking(end)
        for server_id in (first, second):
            assert (await world.server(server_id)).reason == "deposit_exhausted"
        await drive(world)
        await world.check_books()


async def test_a_broke_wallet_can_always_destroy(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("0.16")
        server_id = await rent(world, wallet, deposit="0.15", auto_renew=False)
        assert code(await world.sign(wallet, "GET", "/v1/servers")) == (402, "payment_required")
        world.clock.advance(floor(DAY * 0.99))
        since = await accepted_at(world, server_id)
        left = 150_000 - burnt(SMALL, world.clock.now_s() - since)
        assert 0 < left < DESTROY
        gone = await world.sign(wallet, "DELETE", f"/v1/servers/{server_id}")
        assert gone.status_code == 200, gone.text
        assert gone.json()["deposit_refunded"] == "0.00"
        assert await world.available(wallet.address) == 0
        await drive(world)
        await world.check_books()
