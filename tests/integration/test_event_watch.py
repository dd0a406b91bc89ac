"""Who waits for events is woken by each that may concern him, and by no other."""

import asyncio
import gc
from pathlib import Path

import pytest
from spawn_ledger.tx import Params, Row, Tx

from spawn.domain.events import Page
from spawn.services.event_watch import AT_ONCE, Watch
from spawn.store.database import NO_PARAMS, overloaded
from tests.harness import World, open_world
from tests.integration.event_steps import PATIENCE_S, CountingDatabase, happen, happens, woken


def seen(after: int) -> Page:
    """A look that found nothing, when this was the last number of all."""
    return Page(events=(), after=after, newest=after, has_more=False, gap=False)


class AwayDatabase(CountingDatabase):
    """One that is away as long as a test says."""

    is_away = False

    async def read(self, sql: str, params: Params = NO_PARAMS) -> list[Row]:
        if self.is_away:
            raise overloaded()
        return await super().read(sql, params)


def watching(world: World, every_s: float = 0.01) -> tuple[CountingDatabase, Watch]:
    counting = CountingDatabase(world.parts.db)
    return counting, Watch(counting, every_s=every_s)


async def test_what_was_seen_for_others_is_not_missed_by_who_comes_later(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        first, second = await world.wallet("0"), await world.wallet("0")
        _, watch = watching(world)
        waiting = asyncio.create_task(watch.changed(first.address, seen(0), told=0, timeout_s=PATIENCE_S))
        await happen(world, second, "one")
        # By now it may be behind what the watch has seen: it was told nothing, since nobody waited for it.
        for _ in range(20):
            await woken(watch, second, seen(0), told=0)
        await happen(world, first, "two")
        await waiting


async def test_nobody_is_woken_by_what_happens_to_another(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        mine, other = await world.wallet("0"), await world.wallet("0")
        _, watch = watching(world)
        waiting = asyncio.create_task(watch.changed(mine.address, seen(0), told=0, timeout_s=PATIENCE_S))
        await asyncio.sleep(0)
        other_waiting = asyncio.create_task(
            watch.changed(other.address, seen(0), told=1, timeout_s=PATIENCE_S)
        )
        await happen(world, other, "not mine")
        await other_waiting
        assert not waiting.done()
        assert watch.waiting == 1
        await happen(world, mine, "mine")
        await waiting


@pytest.mark.gapless
async def test_only_what_is_new_is_read_and_nothing_while_nobody_waits(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet("0")

        def much(tx: Tx) -> None:
            for _ in range(2 * AT_ONCE):
                happens(tx, wallet.address, "old")

        await world.parts.db.write(much)
        counting, watch = watching(world)
        assert counting.reads == 0
        waiting = asyncio.create_task(
            watch.changed(wallet.address, seen(2 * AT_ONCE), told=0, timeout_s=PATIENCE_S)
        )
        await asyncio.sleep(0)
        await happen(world, wallet, "new")
        await waiting
        assert counting.rows == 1
        async with asyncio.timeout(PATIENCE_S):
            while watch.is_watching:  # noqa: ASYNC110 - it ends by itself, and tells nobody
                await asyncio.sleep(0.01)
        reads = counting.reads
        await happen(world, wallet, "unheard")
        await asyncio.sleep(0.05)
        assert counting.reads == reads


async def test_more_than_it_reads_at_once_is_seen_in_one_go(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet, other = await world.wallet("0"), await world.wallet("0")
        _, watch = watching(world, every_s=3 * PATIENCE_S)

        def much(tx: Tx) -> None:
            for _ in range(AT_ONCE):
                happens(tx, other.address, "noise")
            happens(tx, wallet.address, "mine")

        await world.parts.db.write(much)
        await woken(watch, wallet, seen(0))
        watch.stop()


async def test_a_database_that_fails_keeps_nobody_waiting(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet("0")
        _, watch = watching(world)
        waiting = asyncio.create_task(woken(watch, wallet, seen(0)))
        await asyncio.sleep(0)
        await world.service.operator.stop()
        await world.parts.db.close()
        await waiting
        assert watch.waiting == 0


async def test_whoever_waits_is_woken_when_the_database_cannot_be_reached(tmp_path: Path) -> None:
    """And looks for himself, who is told what is wrong; the next one is waited with again."""
    async with open_world(tmp_path) as world:
        wallet = await world.wallet("0")
        away = AwayDatabase(world.parts.db)
        watch = Watch(away, every_s=0.01)
        unhandled: list[dict[str, object]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: unhandled.append(context))
        away.is_away = True
        await asyncio.wait_for(
            watch.changed(wallet.address, seen(0), told=0, timeout_s=10 * PATIENCE_S), PATIENCE_S
        )
        gc.collect()
        assert unhandled == []
        assert not watch.is_watching
        away.is_away = False
        waiting = asyncio.create_task(
            watch.changed(wallet.address, seen(0), told=watch.told, timeout_s=PATIENCE_S)
        )
        await asyncio.sleep(0)
        await happen(world, wallet, "back")
        await waiting
