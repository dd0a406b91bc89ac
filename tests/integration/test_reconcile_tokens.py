"""A process that was started with a token of another project finds none of its machines, and gives none of them up."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
from spawn_providers.base import Instance, Provider
from spawn_providers.simulated_faults import LostAnswer
from spawn_schemas.ids import ServerId

from tests.harness import START_S, VirtualClock, World, open_world
from tests.integration.server_steps import (
    DAY,
    SMALL,
    Recorder,
    accepted_at,
    burnt,
    compute_usdc,
    drive,
    machines,
    order,
    rent,
)

MINUTE: Final = 60
GRACE_S: Final = 300


class Elsewhere(Recorder):
    """Another project: the machines that were made before are not in it, and new ones are."""

    hidden: frozenset[str] = frozenset()

    async def list_owned(self) -> AsyncIterator[Instance]:
        async for instance in self.inner.list_owned():
            if instance.ref not in self.hidden:
                yield instance

    async def get(self, ref: str) -> Instance | None:
        return None if ref in self.hidden else await self.inner.get(ref)


async def pass_by(world: World, seconds: int, every_s: int = MINUTE) -> None:
    """Time passes, with an inventory each minute."""
    for _ in range(seconds // every_s):
        world.clock.advance(every_s)
        await world.service.workers.reconciler.run()


async def rented(folder: Path, clock: VirtualClock, *names: str) -> tuple[list[ServerId], frozenset[str]]:
    """The life before: servers, and the machines that the service saw."""
    async with open_world(folder, clock=clock) as world:
        wallet = await world.customer("40.00")
        ids = [ServerId(await rent(world, wallet, name=name)) for name in names]
        await pass_by(world, 2 * 3_600, every_s=3_600)
        refs = [(await world.server(id_)).provider_ref for id_ in ids]
    return ids, frozenset(ref for ref in refs if ref is not None)


async def test_another_projects_token_ends_no_server_before_its_operator_could_see_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also when the same process has ordered machines there, which it sees."""
    clock = VirtualClock(START_S)
    (first, second), hidden = await rented(tmp_path, clock, "first", "second")

    def around(inner: Provider) -> Provider:
        other = Elsewhere(inner)
        other.hidden = hidden
        return other

    async with open_world(tmp_path, clock=clock, around=around) as world:
        await world.wallet()  # the one of the life before
        newer = await rent(world, await world.customer("20.00"), name="newer")
        await pass_by(world, 2 * 3_600)
        report = await world.service.workers.reconciler.run()
        assert (report.missing, report.doubted, report.vanished) == (2, 2, 0)
        with caplog.at_level(logging.ERROR, "spawn.services.reconcile"):
            await world.tick("reconcile")
        assert "incident: 2 machines are not there for our token" in caplog.text
    async with open_world(tmp_path, clock=clock) as world:  # with the right one
        await pass_by(world, 3 * GRACE_S)
        for id_ in (first, second):
            server = await world.server(id_)
            assert (server.status, server.missing_since) == ("running", None)
        assert sorted(await machines(world)) == sorted([first, second, newer])
        report = await world.service.workers.reconciler.run()
        assert (report.missing, report.doubted) == (0, 0)
        await world.check_books()


async def test_who_goes_back_to_the_right_token_keeps_what_was_made_with_the_wrong_one(
    tmp_path: Path,
) -> None:
    """That the right token shows the old machines says nothing about the new ones."""
    clock = VirtualClock(START_S)
    clouds: list[Elsewhere] = []

    def around(inner: Provider) -> Provider:
        clouds.append(Elsewhere(inner))
        return clouds[-1]

    (old, strayed), _ = await rented(tmp_path, clock, "old", "strayed")
    async with open_world(tmp_path, clock=clock, around=around) as world:
        ref = (await world.server(strayed)).provider_ref
        assert ref is not None
        clouds[-1].hidden = frozenset({ref})
        await pass_by(world, 10 * GRACE_S)
        assert (await world.server(strayed)).status == "running"
        clouds[-1].hidden = frozenset()
        await pass_by(world, MINUTE)
        assert (await world.server(strayed)).missing_since is None
        # Now that it was seen, its loss is believed as ever.
        await world.cloud.vanish(ref)
        await pass_by(world, GRACE_S + MINUTE)
        assert (await world.server(strayed)).reason == "vanished"
        assert (await world.server(old)).status == "running"


async def test_what_was_lost_before_this_process_is_written_off_after_a_day_and_paid_until_it_was_missed(
    tmp_path: Path,
) -> None:
    clock = VirtualClock(START_S)
    (lost, kept), _ = await rented(tmp_path, clock, "lost", "kept")
    async with open_world(tmp_path, clock=clock) as world:
        ref = (await world.server(lost)).provider_ref
        assert ref is not None
        await world.cloud.vanish(ref)
        missed_at = clock.now_s() + MINUTE
        await pass_by(world, MINUTE)
        for _ in range(23):
            await pass_by(world, 3_600, every_s=1_800)
            await world.tick("burn")
        assert (await world.server(lost)).status == "running"
        await pass_by(world, 3_600, every_s=1_800)
        ended = await world.server(lost)
        assert (ended.status, ended.reason, ended.missing_since) == ("destroyed", "vanished", missed_at)
        assert clock.now_s() - missed_at == DAY
        assert await compute_usdc(world, lost) == burnt(SMALL, missed_at - await accepted_at(world, lost))
        assert (await world.server(kept)).status == "running"
        await world.check_books()


async def test_a_machine_that_only_the_list_leaves_out_was_seen(tmp_path: Path) -> None:
    clouds: list[Elsewhere] = []

    class Lagging(Elsewhere):
        """Its list lags, and it says the truth of the machine itself."""

        async def get(self, ref: str) -> Instance | None:
            return await self.inner.get(ref)

    def around(inner: Provider) -> Provider:
        clouds.append(Lagging(inner))
        return clouds[-1]

    async with open_world(tmp_path, around=around) as world:
        server_id = await rent(world, await world.customer("20.00"))
        ref = (await world.server(server_id)).provider_ref
        assert ref is not None
        clouds[-1].hidden = frozenset({ref})
        await pass_by(world, MINUTE)
        await world.cloud.vanish(ref)
        await pass_by(world, GRACE_S + MINUTE)
        assert (await world.server(server_id)).reason == "vanished"


async def test_what_is_on_its_way_in_or_out_is_not_doubted(tmp_path: Path) -> None:
    async with open_world(tmp_path, first_answer_s=0.05) as world:
        wallet = await world.customer("20.00")
        going = await rent(world, wallet)
        await world.sign(wallet, "DELETE", f"/v1/servers/{going}")
        world.cloud_faults.plan("create", LostAnswer())
        await order(world, wallet, name="coming")
        ref = (await world.server(going)).provider_ref
        assert ref is not None
        await world.cloud.vanish(ref)
        report = await world.service.workers.reconciler.run()
        assert (report.servers, report.doubted) == (2, 0)
        await drive(world)
