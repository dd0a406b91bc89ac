"""After a restore what the lost books may have known is in doubt: orders that were sent, images, and deliveries."""

from pathlib import Path

import pytest
from spawn_providers.simulated_faults import Outage

from spawn.domain.retries import GIVE_UP_AFTER_S
from tests.harness import VirtualClock, open_world
from tests.integration.receivers import receiving
from tests.integration.restoring import backup, lose, restore
from tests.integration.test_deliveries import happen, hook, send, shown

pytestmark = pytest.mark.embedded

REPORTED = (
    "UPDATE boot SET ssh_at = since, cloud_init = 'done', log = 'of the system before', reported_at = since"
)


async def test_a_server_that_was_rebuilt_since_the_backup_shows_the_image_that_it_has(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with open_world(tmp_path, clock=clock) as world:
        owner = await world.customer("20.00")
        server = await world.rent(owner)
        await world.parts.db.write(lambda tx: tx.execute(REPORTED, {}))
        backup(world, tmp_path / "copy.db")
        path = f"/v1/servers/{server['id']}/rebuild"
        answer = await world.sign(owner, "POST", path, {"image": "debian-12"})
        assert answer.status_code == 200, answer.text
        await world.run_for(120)
    lose(tmp_path)
    await restore(tmp_path, tmp_path / "copy.db", clock)
    async with open_world(tmp_path, clock=clock) as world:
        assert (await world.server(server["id"])).image == "debian-12"
        shown = await world.sign(owner, "GET", f"/v1/servers/{server['id']}")
        ready = {"ssh": None, "cloud_init": "pending", "reported_at": None, "log": None}
        assert shown.json()["server"]["ready"] == ready


async def test_a_rebuild_that_was_sent_after_the_backup_wipes_no_disk_again(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with open_world(tmp_path, clock=clock) as world:
        owner = await world.customer("20.00")
        server = await world.rent(owner)
        world.cloud_faults.plan("act", Outage())
        path = f"/v1/servers/{server['id']}/rebuild"
        _ = await world.sign(owner, "POST", path, {"image": "debian-12"})
        (waiting,) = await world.rows("SELECT phase FROM operation WHERE status = 'running'")
        assert waiting["phase"] == "queued"
        backup(world, tmp_path / "copy.db")
        await world.run_for(120)
        assert await world.rows("SELECT id FROM operation WHERE status = 'running'") == []
    clock.advance(3_600)
    lose(tmp_path)
    await restore(tmp_path, tmp_path / "copy.db", clock)
    async with open_world(tmp_path, clock=clock) as world:
        ref = (await world.server(server["id"])).provider_ref
        assert ref is not None
        for _ in range(30):
            await world.run_for(1)
            machine = await world.cloud.get(ref)
            assert machine is not None
            assert machine.status == "running"
        (ended,) = await world.rows("SELECT status FROM operation WHERE command = 'rebuild_server'")
        assert ended["status"] == "success"


async def test_a_resize_that_ended_after_the_backup_ends_at_the_price_of_its_order(tmp_path: Path) -> None:
    """docs/sim-findings.md, 25."""
    clock = VirtualClock()
    async with open_world(tmp_path, clock=clock) as world:
        owner = await world.customer("20.00")
        server = await world.rent(owner)
        path = f"/v1/servers/{server['id']}/resize"
        answer = await world.sign(owner, "POST", path, {"type": "medium"})
        assert answer.status_code == 200, answer.text
        backup(world, tmp_path / "copy.db")
        await world.run_for(300)
        ended = await world.server(server["id"])
        assert ended.type == "medium"
    lose(tmp_path)
    report = await restore(tmp_path, tmp_path / "copy.db", clock)
    assert report.resized == [server["id"]]
    async with open_world(tmp_path, clock=clock) as world:
        await world.run_for(400)
        again = await world.server(server["id"])
        assert (again.type, again.daily_usdc) == ("medium", ended.daily_usdc)
        (order,) = await world.rows("SELECT status FROM operation WHERE command = 'resize_server'")
        assert order["status"] == "success"
        await world.check_books()


async def test_a_receiver_that_was_failing_at_the_backup_is_not_given_up_for_the_time_that_was_lost(
    tmp_path: Path,
) -> None:
    clock = VirtualClock()
    async with open_world(tmp_path, clock=clock) as world, receiving() as receiver:
        receiver.status = 503
        owner = await world.customer("20.00")
        at, _ = await hook(world, owner, receiver.url)
        await happen(world, owner, "srv_1")
        await send(world)
        assert (await shown(world, owner, at))["failing_since"] is not None
        backup(world, tmp_path / "copy.db")
        receiver.status = 200
        clock.advance(GIVE_UP_AFTER_S)
        await send(world)
        assert (await shown(world, owner, at))["failing_since"] is None
        receiver.status = 503
    lose(tmp_path)
    await restore(tmp_path, tmp_path / "copy.db", clock)
    async with open_world(tmp_path, clock=clock) as world:
        assert (await shown(world, owner, at))["failing_since"] is None
