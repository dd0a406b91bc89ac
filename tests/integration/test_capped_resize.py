"""A month's cap is no day for nothing on a larger machine."""

from datetime import UTC, datetime
from pathlib import Path

from spawn.domain.servers import Reason
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


async def test_what_is_lost_over_the_end_of_a_month_costs_nothing_after_it_was_missed(tmp_path: Path) -> None:
    """The larger machine began a month of its own, so that its cap has not bitten when the calendar's would have."""
    async with open_world(tmp_path) as world:
        wallet = await world.customer("90.00")
        january = int(datetime(2027, 1, 1, tzinfo=UTC).timestamp())
        world.clock.advance(january - world.clock.now_s())
        server_id = await rent(world, wallet, deposit="10.00")
        await world.burn_until(january + 19 * DAY)
        answer = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/resize", {"type": "large"})
        assert answer.status_code == 200, answer.text
        await drive(world)
        server = await world.server(server_id)
        assert server.charged_until == server.priced_at, "a resize settles what was before it"
        small_usdc = await compute_usdc(world, server_id)
        await world.burn_until(january + 31 * DAY - 120)
        assert server.provider_ref is not None
        await world.tick("reconcile")
        await world.cloud.vanish(server.provider_ref)
        await world.tick("reconcile")
        missed_at = world.clock.now_s()
        await world.burn_until(missed_at + 320)
        await world.tick("burn", "reconcile")
        lost = await world.server(server_id)
        assert (lost.reason, lost.missing_since) == (Reason.VANISHED, missed_at)
        charged = await compute_usdc(world, server_id) - small_usdc
        assert abs(charged - burnt(LARGE, missed_at - server.priced_at)) <= 1
        await world.check_books()
