"""A resize that the provider takes its time for: what happens meanwhile takes no warned hour from any server."""

from pathlib import Path

from tests.harness import World, open_world
from tests.integration.server_steps import (
    DAY,
    LARGE,
    SMALL,
    accepted_at,
    balance,
    code,
    drive,
    lasts_s,
    order,
    rent,
)
from tests.wallets import Wallet

HOUR = 3_600


async def resize(world: World, wallet: Wallet, server_id: str, type: str) -> None:
    answer = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/resize", {"type": type})
    assert answer.status_code == 200, answer.text


async def reserve(world: World, server_id: str) -> int:
    return await world.account(f"srv:{server_id}")


async def test_a_slow_downgrade_leaves_the_server_what_it_had_left(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("9.00")
        server_id = await rent(world, wallet, deposit="0.40", auto_renew=False)
        await resize(world, wallet, server_id, "large")
        await drive(world)
        server = await world.server(server_id)
        end = (server.charged_until or 0) + lasts_s(LARGE, await reserve(world, server_id))
        await world.burn_until(end - 7 * HOUR)
        await resize(world, wallet, server_id, "small")
        world.clock.advance(4 * HOUR)
        await drive(world)
        server = await world.server(server_id)
        assert server.type == "small"
        left_s = end - (server.charged_until or 0)
        assert 2 * HOUR < left_s < 3 * HOUR + 60
        assert lasts_s(SMALL, await reserve(world, server_id)) >= left_s - 1
        await world.check_books()


async def test_what_is_spent_while_a_resize_runs_counts_at_its_new_price(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("9.00")
        server_id = await rent(world, wallet, name="a", deposit="0.15", auto_renew=True)
        await world.burn_until(await accepted_at(world, server_id) + DAY + HOUR)
        await resize(world, wallet, server_id, "large")
        have = (await balance(world, wallet))["available"]
        # What lasts a small for more than six hours lasts a large for less than three.
        deposit = f"{(have - SMALL * 62 // 240 - 20_000) / 1_000_000:.6f}"
        refused = await order(world, wallet, name="b", deposit=deposit)
        assert code(refused) == (422, "insufficient_deposit"), refused.text
        await drive(world)
        assert (await world.server(server_id)).last_warned_at is None
        await world.check_books()
