"""A month's cap is no day for nothing on a larger machine."""

from datetime import UTC, datetime
from pathlib import Path

from tests.harness import open_world
from tests.integration.server_steps import DAY, LARGE, SMALL, burnt, compute_usdc, drive, rent

HOUR = 3_600


async def test_the_free_day_of_a_small_server_is_not_a_large_one_s(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("90.00")
        january = int(datetime(2027, 1, 1, tzinfo=UTC).timestamp())
        world.clock.advance(january - world.clock.now_s())
        server_id = await rent(world, wallet, deposit="10.00")
        await world.burn_until(january + 30 * DAY + HOUR)
        assert await compute_usdc(world, server_id) == burnt(SMALL, 30 * DAY)
        answer = await world.sign(
            wallet, "POST", f"/v1/servers/{server_id}/resize", {"type": "large", "upgrade_disk": False}
        )
        assert answer.status_code == 200, answer.text
        await drive(world)
        since = (await world.server(server_id)).priced_at
        await world.burn_until(january + 31 * DAY - HOUR)
        answer = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/resize", {"type": "small"})
        assert answer.status_code == 200, answer.text
        await drive(world)
        large_s = (await world.server(server_id)).priced_at - since
        assert large_s > 20 * HOUR
        charged = await compute_usdc(world, server_id) - burnt(SMALL, 30 * DAY)
        assert 0 <= charged - burnt(LARGE, large_s) <= burnt(SMALL, HOUR)
        await world.check_books()
