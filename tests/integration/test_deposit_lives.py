"""A deposit in public: warned of at each threshold, saved by money that comes in time, ended when it is gone."""

import json
from math import ceil
from pathlib import Path
from typing import Any

import pytest

from tests.harness import World, open_world
from tests.integration.server_steps import (
    DAY,
    LARGE,
    SMALL,
    accepted_at,
    burnt,
    code,
    compute_usdc,
    drive,
    lasts_s,
    order,
    rent,
)

HOUR = 3_600
WARNINGS = (7 * DAY, 3 * DAY, DAY, 6 * HOUR)


async def told(world: World, kind: str) -> list[dict[str, Any]]:
    """The events of a type, oldest first, each with its moment."""
    rows = await world.rows("SELECT at, data FROM event WHERE type = :type ORDER BY seq", type=kind)
    return [json.loads(row["data"]) | {"at": row["at"]} for row in rows]


async def warned(world: World) -> list[tuple[int, int]]:
    """Of which thresholds the owners were warned, and with how much runway left."""
    return [(event["threshold_s"], event["runway_s"]) for event in await told(world, "deposit.low")]


async def test_each_threshold_is_warned_of_once_and_in_its_second(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("9.00")
        server_id = await rent(world, wallet, deposit="1.50", auto_renew=False)
        end = await accepted_at(world, server_id) + lasts_s(SMALL, 1_500_000)
        await world.burn_until(end)
        assert await warned(world) == [(threshold_s, threshold_s) for threshold_s in WARNINGS]
        assert [event["at"] for event in await told(world, "deposit.low")] == [end - s for s in WARNINGS]
        assert (await world.server(server_id)).status == "running"
        assert await told(world, "deposit.exhausted") == []
        await world.burn_until(end + 1)
        (exhausted,) = await told(world, "deposit.exhausted")
        assert (exhausted["server"], exhausted["runway_s"]) == (server_id, 0)
        (ending,) = await told(world, "server.destroying")
        assert (ending["reason"], ending["previous"]) == ("deposit_exhausted", "running")
        await drive(world)
        assert len(await told(world, "server.destroyed")) == 1
        await world.check_books()


async def test_what_is_shorter_from_the_start_is_not_warned_of(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("9.00")
        await rent(world, wallet, deposit="0.30", auto_renew=False)
        await world.burn_until(world.clock.now_s() + 3 * DAY)
        assert await warned(world) == [(DAY, DAY), (6 * HOUR, 6 * HOUR)]


async def test_money_that_comes_in_opens_a_new_epoch(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("9.00")
        server_id = await rent(world, wallet, deposit="0.30", auto_renew=False)
        end = await accepted_at(world, server_id) + lasts_s(SMALL, 300_000)
        await world.burn_until(end - HOUR)
        assert len(await warned(world)) == 2
        funded = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/deposit", {"amount": "0.60"})
        assert funded.status_code == 200, funded.text
        (event,) = await told(world, "deposit.funded")
        assert event["expires_at"] == funded.json()["server"]["deposit_expires_at"]
        await world.burn_until(end + 5 * DAY)
        assert await warned(world) == [
            *((DAY, DAY), (6 * HOUR, 6 * HOUR)),
            *((3 * DAY, 3 * DAY), (DAY, DAY), (6 * HOUR, 6 * HOUR)),
        ]


@pytest.mark.parametrize("down_s", [8 * HOUR, 2 * DAY, 20 * DAY])
async def test_after_downtime_only_the_tightest_is_told_and_there_is_time_left(
    tmp_path: Path, down_s: int
) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("9.00")
        server_id = await rent(world, wallet, deposit="1.50", auto_renew=False)
        end = await accepted_at(world, server_id) + lasts_s(SMALL, 1_500_000)
        await world.burn_until(end - 7 * HOUR)
        world.clock.advance(down_s)
        await world.tick("burn")
        back = world.clock.now_s()
        assert (await warned(world))[-1] == (6 * HOUR, max(0, end - back))
        assert len(await warned(world)) == 4
        await world.burn_until(back + 6 * HOUR - 1)
        assert (await world.server(server_id)).status == "running"
        assert await compute_usdc(world, server_id) == burnt(SMALL, lasts_s(SMALL, 1_500_000))
        await world.burn_until(max(back + 6 * HOUR, end + 1))
        await drive(world)
        assert (await world.server(server_id)).status == "destroyed"
        overrun = await world.account("exp:overrun")
        assert overrun > 0
        await world.check_books()


async def test_a_top_up_in_the_grace_saves_the_server_and_pays_for_it(tmp_path: Path) -> None:
    async with open_world(tmp_path, grace_s=DAY) as world:
        wallet = await world.customer("0.40")
        server_id = await rent(world, wallet, deposit="0.30")
        since = await accepted_at(world, server_id)
        end = since + lasts_s(SMALL, 390_000)
        await world.burn_until(end + HOUR)
        assert (await world.server(server_id)).exhausted_at == end
        refused = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/resize", {"type": "large"})
        assert code(refused)[0] in {402, 422}
        topped = await world.pay(wallet, "POST", "/v1/balance/deposit", {"amount": "0.50"})
        assert topped.status_code == 200, topped.text
        await world.tick("burn")
        (restored,) = await told(world, "deposit.restored")
        assert restored["server"] == server_id
        server = await world.server(server_id)
        assert (server.status, server.exhausted_at) == ("running", None)
        assert await compute_usdc(world, server_id) == burnt(SMALL, world.clock.now_s() - since)
        await world.burn_until(since + lasts_s(SMALL, 890_000) + DAY)
        assert (await world.server(server_id)).status == "running"
        await world.burn_until(since + lasts_s(SMALL, 890_000) + DAY + 1)
        assert (await world.server(server_id)).status == "destroying"
        await drive(world)
        await world.check_books()


async def test_what_a_machine_costs_us_is_booked_beside_what_it_earns(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        server = await world.server(server_id)
        assert server.cost_daily_usdc is not None
        since = await accepted_at(world, server_id)
        world.clock.advance(90_000)
        gone = await world.sign(wallet, "DELETE", f"/v1/servers/{server_id}")
        assert gone.status_code == 200
        ended = world.clock.now_s()
        await drive(world)
        # The provider charges every hour that began.
        hours = ceil(((await world.server(server_id)).ended_at - since) / HOUR)  # type: ignore[operator]  # it ended
        cost = await world.account("cost:provider")
        assert cost == burnt(server.cost_daily_usdc, ended - since)
        assert cost + await world.account("exp:overrun") == burnt(server.cost_daily_usdc, hours * HOUR)
        assert await world.account("owed:provider") == cost + await world.account("exp:overrun")
        assert (await world.server(server_id)).cost_usdc == cost + await world.account("exp:overrun")
        await world.check_books()


async def test_an_owner_is_kept_from_starving_a_server_unwarned(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("3.00")
        first = await rent(world, wallet, name="first", deposit="0.15")
        await world.burn_until(await accepted_at(world, first) + 2 * DAY)
        available = await world.available(wallet.address)
        text = f"{(available - 20_000) / 1_000_000:.6f}"
        starving = await order(world, wallet, name="second", deposit=text)
        assert code(starving) == (422, "insufficient_deposit")
        assert starving.json()["error"]["details"]["server"] == first
        assert (await order(world, wallet, name="second", type="large", deposit="0.60")).status_code == 201
        second = (await world.rows("SELECT id FROM server WHERE name = 'second'"))[0]["id"]
        await drive(world)
        left = await world.available(wallet.address)
        drained = {"amount": f"{(left - 10_000) / 1_000_000:.6f}"}
        starving = await world.sign(wallet, "POST", f"/v1/servers/{second}/deposit", drained)
        assert code(starving) == (422, "insufficient_deposit")
        assert LARGE > SMALL
        await world.check_books()
