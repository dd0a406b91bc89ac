"""What lost answers, restores and lost machines leave behind is mended without being told what to look for."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from spawn_providers.base import Change, Instance, InstanceStatus, Provider, Verb
from spawn_providers.simulated_faults import LostAnswer, Outage
from spawn_schemas.ids import ServerId

from tests.harness import World, open_world
from tests.integration.server_steps import (
    DAY,
    SMALL,
    Recorder,
    accepted_at,
    burnt,
    compute_usdc,
    drive,
    hour,
    machines,
    order,
    rent,
    show,
)

CREATE, READ = 10_000, 1_000
GRACE_S = 300


async def look(world: World, after_s: int = 0) -> None:
    world.clock.advance(after_s)
    await world.service.workers.reconciler.run()


async def everything(world: World) -> list[dict[str, object]]:
    """Every row that a pass could change."""
    found: list[dict[str, object]] = []
    for table in ("server", "operation", "transfer", "hold", "account", "stray"):
        found += [dict(row) for row in await world.rows(f"SELECT * FROM {table} ORDER BY 1")]
    return found


async def test_an_orphan_is_destroyed_when_it_was_seen_twice(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        await world.cloud.plant_orphan(ServerId("srv_unknown"))
        await look(world)
        for _ in range(5):
            await look(world, 59)
        assert sorted(await machines(world)) == sorted([server_id, "srv_unknown"])
        await look(world, GRACE_S - 5 * 59)
        world.clock.advance(10)
        assert await machines(world) == [server_id]
        assert (await world.server(server_id)).status == "running"


async def test_one_look_destroys_nothing_however_late_it_comes(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        ref = await world.cloud.plant_orphan(ServerId("srv_unknown"))
        await look(world, 30 * DAY)
        world.clock.advance(60)
        machine = await world.cloud.get(ref)
        assert machine is not None
        assert machine.status == "running"


async def test_a_machine_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        ref = await world.cloud.plant_stray()
        for _ in range(5):
            await look(world, GRACE_S)
        machine = await world.cloud.get(ref)
        assert machine is not None
        assert machine.status == "running"
        assert await world.rows("SELECT ref FROM stray") == []


class Copying(Recorder):
    """Whose inventory has each machine a second time: somebody copied its labels."""

    async def list_owned(self) -> AsyncIterator[Instance]:
        async for instance in self.inner.list_owned():
            yield instance
            self.copy = replace(instance, ref="copy", ipv4="198.18.9.9", status=InstanceStatus.OFF)
        if self.copy is not None:
            yield self.copy

    copy: Instance | None = None


async def test_a_machine_that_only_says_that_it_is_a_server_is_left_alone_and_not_shown(
    tmp_path: Path,
) -> None:
    """The server is the machine that was made for it, also when that one is gone."""
    clouds: list[Copying] = []

    def around(inner: Provider) -> Provider:
        clouds.append(Copying(inner))
        return clouds[0]

    async with open_world(tmp_path, around=around) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        before = await world.server(server_id)
        clouds[0].changes.clear()
        await look(world)
        after = await world.server(server_id)
        assert (after.ipv4, after.status) == (before.ipv4, "running")
        assert before.provider_ref is not None
        await world.cloud.vanish(before.provider_ref)
        for _ in range(2):
            await look(world, GRACE_S)
        assert (await world.server(server_id)).status == "destroyed"
        assert clouds[0].changes == []


async def test_a_machine_that_outlived_its_server_is_an_orphan(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        await world.sign(wallet, "DELETE", f"/v1/servers/{server_id}")
        await drive(world)
        assert await machines(world) == []
        await world.cloud.plant_orphan(ServerId("srv_came_back"))
        await look(world)
        await look(world, GRACE_S)
        world.clock.advance(10)
        assert await machines(world) == []


async def test_a_server_that_is_still_being_made_or_destroyed_is_no_orphan(tmp_path: Path) -> None:
    async with open_world(tmp_path, first_answer_s=0.05) as world:
        wallet = await world.customer("20.00")
        world.cloud_faults.plan("create", LostAnswer())
        server_id = (await order(world, wallet)).json()["server"]["id"]
        assert await machines(world) == [server_id]
        await look(world)
        await look(world, GRACE_S)
        assert await machines(world) == [server_id]
        assert await world.rows("SELECT ref FROM stray") == []
        await drive(world)
        assert (await world.server(server_id)).status == "running"


async def test_a_server_that_vanished_is_written_off_and_refunded(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet, ssh_keys=[])
        world.clock.advance(40_000)
        before = await world.server(server_id)
        assert before.provider_ref is not None
        await look(world)
        await world.cloud.vanish(before.provider_ref)
        missed_at = world.clock.now_s() + 20
        await look(world, 20)
        for _ in range(4):
            await look(world, 60)
            assert (await world.server(server_id)).status == "running"
        await look(world, 60)
        after = await world.server(server_id)
        assert (after.status, after.reason) == ("destroyed", "vanished")
        cost = burnt(SMALL, missed_at - await accepted_at(world, server_id))
        assert await compute_usdc(world, server_id) == cost
        assert await world.available(wallet.address) == 20_000_000 - CREATE - cost
        world.clock.advance(10 * DAY)
        await world.tick()
        assert await world.available(wallet.address) == 20_000_000 - CREATE - cost
        shown = await show(world, wallet, server_id)
        assert (shown["status"], shown["reason"], shown["deposit_remaining"]) == (
            "destroyed",
            "vanished",
            "0.00",
        )
        assert shown["public_net"] == {"ipv4": None, "ipv6": None}
        await world.check_books()


@pytest.mark.parametrize("deposit", ["0.20", "5.00"])
async def test_what_was_charged_while_the_provider_could_not_confirm_the_loss_comes_back(
    tmp_path: Path, deposit: str
) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet, deposit=deposit)
        world.clock.advance(50_001)
        ref = (await world.server(server_id)).provider_ref
        assert ref is not None
        await look(world)
        await world.cloud.vanish(ref)
        missed_at = world.clock.now_s()
        await look(world)
        for _ in range(3):
            world.clock.advance(DAY + 7)
            await world.tick("burn")
            world.cloud_faults.plan("list_owned", Outage())
            await look(world)
        cost = burnt(SMALL, missed_at - await accepted_at(world, server_id))
        assert await compute_usdc(world, server_id) > cost
        await look(world)
        assert (await world.server(server_id)).reason == "vanished"
        assert await compute_usdc(world, server_id) == cost
        assert await world.available(wallet.address) == 20_000_000 - CREATE - cost
        await world.check_books()


async def test_a_server_that_vanished_takes_its_secrets_with_it(tmp_path: Path) -> None:
    async with open_world(tmp_path, first_answer_s=0.02) as world:
        wallet = await world.customer("20.00")
        world.cloud_faults.plan("create", Outage())
        server_id = await rent(world, wallet)
        assert len(await world.rows("SELECT owner FROM secret WHERE kind = 'root_password'")) == 1
        ref = (await world.server(server_id)).provider_ref
        assert ref is not None
        await look(world)
        await world.cloud.vanish(ref)
        await look(world)
        await look(world, GRACE_S)
        assert (await world.server(server_id)).reason == "vanished"
        assert await world.rows("SELECT owner FROM secret WHERE owner <> 'spawn'") == []


async def test_the_hour_is_due_even_for_what_vanished_early(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        ref = (await world.server(server_id)).provider_ref
        assert ref is not None
        await look(world)
        await world.cloud.vanish(ref)
        await look(world)
        await look(world, GRACE_S)
        assert await compute_usdc(world, server_id) == hour(SMALL)
        await world.check_books()


@pytest.mark.parametrize("method", ["list_owned", "get"])
async def test_a_provider_that_is_down_proves_nothing(tmp_path: Path, method: str) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        server = await world.server(server_id)
        assert server.provider_ref is not None
        await world.cloud.vanish(server.provider_ref)
        for _ in range(5):
            world.cloud_faults.plan(method, Outage())  # type: ignore[arg-type]  # a literal, parametrized
            await look(world, GRACE_S)
        assert await world.server(server_id) == server
        assert await world.rows("SELECT ref FROM stray") == []


async def test_a_change_from_outside_is_adopted(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        server = await world.server(server_id)
        assert server.provider_ref is not None
        await world.cloud.act(server.provider_ref, Verb.POWEROFF, Change())
        await look(world, 10)
        assert (await show(world, wallet, server_id))["status"] == "off"
        started = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/start")
        assert started.status_code == 200, started.text
        await drive(world)
        assert (await show(world, wallet, server_id))["status"] == "running"
        await world.check_books()


async def test_a_server_missing_for_a_moment_is_forgiven(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        await world.parts.db.write(
            lambda tx: tx.execute("UPDATE server SET missing_since = :at", {"at": world.clock.now_s()})
        )
        await look(world, GRACE_S + 1)
        server = await world.server(server_id)
        assert (server.status, server.missing_since) == ("running", None)


async def test_running_it_ten_times_changes_nothing_more(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("40.00")
        kept = await rent(world, wallet, name="kept")
        lost = await rent(world, wallet, name="lost")
        ref = (await world.server(lost)).provider_ref
        assert ref is not None
        await look(world)
        await world.cloud.vanish(ref)
        await world.cloud.plant_orphan(ServerId("srv_unknown"))
        await look(world)
        await look(world, GRACE_S)
        await look(world, 10)
        after = await everything(world)
        assert await machines(world) == [kept]
        for _ in range(10):
            await look(world)
        assert await everything(world) == after
        await world.check_books()
