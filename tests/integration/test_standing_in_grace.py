"""What a wallet is shown while one of its servers has no money and still waits for its end."""

from pathlib import Path

from tests.harness import open_world
from tests.integration.server_steps import DAY, SMALL, accepted_at, balance, lasts_s, rent, show


async def test_a_reserve_that_has_ended_is_not_shown_as_a_debt(tmp_path: Path) -> None:
    async with open_world(tmp_path, grace_s=3 * DAY) as world:
        wallet = await world.customer("9.00")
        server_id = await rent(world, wallet, deposit="0.30", auto_renew=False)
        end = await accepted_at(world, server_id) + lasts_s(SMALL, 300_000)
        await world.burn_until(end + 2 * DAY)
        assert (await world.server(server_id)).exhausted_at == end
        shown = await balance(world, wallet)
        assert shown["reserved"] == await world.account(f"srv:{server_id}")
        assert shown["balance"] == shown["available"] + shown["reserved"]
        assert (await show(world, wallet, server_id))["deposit_remaining"] == "0.00"
        await world.check_books()
