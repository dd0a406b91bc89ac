"""Where a deposit's life is thin: clocks that go back, prices that change unpaid, machines that vanish.

Invariant: what a server costs is worked out here from when things happened, by fractions; what its owner hears is
only what is so.
"""

from asyncio import wait_for
from pathlib import Path

from spawn_providers.simulated_faults import Outage
from spawn_schemas.ids import ServerId
from spawn_schemas.money import Usdc

from spawn.services.moments import moment
from spawn.store.price_changes import set_reprice
from tests.harness import World, open_world
from tests.integration.server_steps import (
    DAY,
    SMALL,
    accepted_at,
    burnt,
    code,
    compute_usdc,
    drive,
    lasts_s,
    rent,
)
from tests.integration.test_deposit_lives import HOUR, told

DEAR, CHEAP = Usdc(300_000), Usdc(50_000)


async def reprice(world: World, server_id: str, *, at: int, daily_usdc: Usdc) -> None:
    """What an announced price change does to a server."""
    await world.parts.db.write(lambda tx: set_reprice(tx, ServerId(server_id), at=at, daily_usdc=daily_usdc))


async def test_what_is_told_of_a_deposit_is_right_however_far_its_end_is(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        first = await rent(world, wallet, name="first", deposit="3.00")
        await rent(world, wallet, name="second", deposit="3.00")
        answer = await world.sign(wallet, "POST", f"/v1/servers/{first}/deposit", {"amount": "1.00"})
        (funded,) = await told(world, "deposit.funded")
        assert funded["expires_at"] == answer.json()["server"]["deposit_expires_at"]


async def test_a_clock_that_steps_back_tells_nobody_anything_twice(tmp_path: Path) -> None:
    async with open_world(tmp_path, grace_s=DAY) as world:
        wallet = await world.customer("9.00")
        server_id = await rent(world, wallet, deposit="1.50", auto_renew=False)
        end = await accepted_at(world, server_id) + lasts_s(SMALL, 1_500_000)
        for moment in (end - 7 * DAY, end - 6 * HOUR, end + 1):
            await world.burn_until(moment)
            before = await world.rows("SELECT COUNT(*) AS n FROM event")
            world.clock.step(-30)
            await world.parts.db.write(
                lambda tx: world.service.services.billing.settle(tx, wallet.address, world.clock.now_s())
            )
            assert tuple((await world.rows("SELECT COUNT(*) AS n FROM event"))[0]) == tuple(before[0])
            world.clock.step(30)
        assert (await world.server(server_id)).exhausted_at == end


async def test_a_rise_does_not_reach_back_to_what_was_unpaid_before_it(tmp_path: Path) -> None:
    async with open_world(tmp_path, grace_s=2 * DAY) as world:
        wallet = await world.customer("1.00")
        server_id = await rent(world, wallet, deposit="0.30", auto_renew=False)
        since = await accepted_at(world, server_id)
        end = since + lasts_s(SMALL, 300_000)
        rises_at = end + 10 * HOUR
        await reprice(world, server_id, at=rises_at, daily_usdc=DEAR)
        await world.burn_until(end + 20 * HOUR)
        saved = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/deposit", {"amount": "0.50"})
        assert saved.status_code == 200, saved.text
        await world.burn_until(end + 30 * HOUR)
        await world.tick("burn")
        (restored,) = await told(world, "deposit.restored")
        assert restored["server"] == server_id
        charged_until = (await world.server(server_id)).charged_until
        assert charged_until is not None
        owed = SMALL * (rises_at - since) + DEAR * (charged_until - rises_at)
        assert await compute_usdc(world, server_id) == owed // DAY
        await world.check_books()


async def test_a_fall_does_not_pay_for_what_was_unpaid_before_it(tmp_path: Path) -> None:
    async with open_world(tmp_path, grace_s=2 * DAY) as world:
        wallet = await world.customer("1.00")
        server_id = await rent(world, wallet, deposit="0.30", auto_renew=False)
        end = await accepted_at(world, server_id) + lasts_s(SMALL, 300_000)
        await reprice(world, server_id, at=end + HOUR, daily_usdc=Usdc(1))
        await world.burn_until(end + 3 * HOUR)
        await world.tick("burn")
        assert await told(world, "deposit.restored") == []
        assert (await world.server(server_id)).exhausted_at == end


async def test_a_price_that_changes_in_the_second_of_the_last_charge_is_the_price_from_there(
    tmp_path: Path,
) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("9.00")
        server_id = await rent(world, wallet, deposit="5.00")
        world.clock.advance(DAY)
        await world.tick("burn")
        now = world.clock.now_s()
        since = await accepted_at(world, server_id)
        assert (await world.server(server_id)).charged_until == now
        await reprice(world, server_id, at=now, daily_usdc=CHEAP)
        world.clock.advance(DAY)
        await world.tick("burn")
        assert await compute_usdc(world, server_id) == (SMALL * (now - since) + CHEAP * DAY) // DAY


async def test_a_machine_that_vanishes_changes_nothing_that_its_neighbours_were_told(tmp_path: Path) -> None:
    async with open_world(tmp_path, grace_s=DAY) as world:
        wallet = await world.customer("20.00")
        lost = await rent(world, wallet, name="lost", deposit="10.00", auto_renew=False)
        poor = await rent(world, wallet, name="poor", deposit="0.30", auto_renew=False)
        end = await accepted_at(world, poor) + lasts_s(SMALL, 300_000)
        await world.burn_until(end - 100)
        ref = (await world.server(lost)).provider_ref
        assert ref is not None
        await world.service.workers.reconciler.run()
        await world.cloud.vanish(ref)
        await world.service.workers.reconciler.run()
        assert (await world.server(lost)).missing_since == world.clock.now_s()
        await world.burn_until(end + 50)
        assert (await world.server(poor)).exhausted_at == end
        world.clock.advance(250)
        await world.service.workers.reconciler.run()
        assert (await world.server(lost)).status == "destroyed"
        assert await told(world, "deposit.restored") == []
        assert (await world.server(poor)).exhausted_at == end
        await world.check_books()


async def test_what_comes_back_of_a_machine_that_vanished_saves_another_at_once(tmp_path: Path) -> None:
    async with open_world(tmp_path, grace_s=DAY) as world:
        wallet = await world.customer("2.00")
        lost = await rent(world, wallet, name="lost", deposit="1.60", auto_renew=False)
        poor = await rent(world, wallet, name="poor", deposit="0.30")
        await world.burn_until(await accepted_at(world, poor) + lasts_s(SMALL, 380_000) + HOUR)
        assert (await world.server(poor)).exhausted_at is not None
        ref = (await world.server(lost)).provider_ref
        assert ref is not None
        await world.service.workers.reconciler.run()
        await world.cloud.vanish(ref)
        await world.service.workers.reconciler.run()
        world.clock.advance(300)
        await world.service.workers.reconciler.run()
        assert (await world.server(lost)).status == "destroyed"
        (restored,) = await told(world, "deposit.restored")
        assert restored["server"] == poor
        await world.check_books()


async def test_renewing_one_server_does_not_starve_another(tmp_path: Path) -> None:
    async with open_world(tmp_path, grace_s=5 * DAY) as world:
        wallet = await world.customer("1.00")
        thirsty = await rent(world, wallet, name="thirsty", type="large", deposit="0.40", auto_renew=False)
        calm = await rent(world, wallet, name="calm", deposit="0.15")
        await world.burn_until(await accepted_at(world, calm) + 3 * DAY + 12 * HOUR)
        assert (await world.server(thirsty)).exhausted_at is not None
        starving = await world.sign(wallet, "PATCH", f"/v1/servers/{thirsty}", {"auto_renew": True})
        assert code(starving) == (422, "insufficient_deposit")
        assert starving.json()["error"]["details"]["server"] == calm
        assert not (await world.server(thirsty)).auto_renew


async def test_what_a_resize_set_aside_pays_first_for_the_time_that_it_took(tmp_path: Path) -> None:
    async with open_world(tmp_path, grace_s=DAY) as world:
        wallet = await world.customer("3.00")
        server_id = await rent(world, wallet, deposit="0.30", auto_renew=False)
        since = await accepted_at(world, server_id)
        end = since + lasts_s(SMALL, 300_000)
        await world.burn_until(end - 600)
        order = await world.sign(
            wallet, "POST", f"/v1/servers/{server_id}/resize", {"type": "large", "upgrade_disk": False}
        )
        assert order.status_code == 200, order.text
        world.cloud_faults.plan("poll", *(Outage(retry_after_s=300) for _ in range(4)))
        while (await world.server(server_id)).daily_usdc == SMALL:
            assert world.clock.now_s() < end + HOUR
            world.clock.advance(10)
            await world.tick("operations", "burn")
        resized_at = world.clock.now_s()
        assert resized_at > end + 60, "its money ended while it was resized"
        assert await compute_usdc(world, server_id) == burnt(SMALL, resized_at - since)
        await drive(world)
        await world.check_books()


async def test_a_wallet_without_the_fee_is_asked_for_it_at_once(tmp_path: Path) -> None:
    async with open_world(tmp_path, grace_s=DAY) as world:
        wallet = await world.customer("0.321")
        servers = [await rent(world, wallet, name=name, deposit="0.15") for name in ("one", "two")]
        while await world.available(wallet.address) > 0:
            assert (await world.sign(wallet, "GET", f"/v1/servers/{servers[0]}")).status_code == 200
        await world.burn_until(world.clock.now_s() + DAY + HOUR)
        for auto_renew in (False, True):
            asked = world.sign(wallet, "PATCH", f"/v1/servers/{servers[1]}", {"auto_renew": auto_renew})
            assert code(await wait_for(asked, timeout=5)) == (402, "payment_required")


async def test_a_life_that_began_with_less_than_its_last_warning_is_added_to(tmp_path: Path) -> None:
    async with open_world(tmp_path, warnings="7d,2d") as world:
        wallet = await world.customer("1.00")
        server_id = await rent(world, wallet, deposit="0.20", auto_renew=False)
        answer = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/deposit", {"amount": "0.01"})
        assert answer.status_code == 200, answer.text
        end = await accepted_at(world, server_id) + lasts_s(SMALL, 210_000)
        (funded,) = await told(world, "deposit.funded")
        # Its last warning comes when the money has ended, and it has as long as that from then on.
        assert (funded["expires_at"], funded["destroyed_from"]) == (moment(end), moment(end + 1 + 2 * DAY))
