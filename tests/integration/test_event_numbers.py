"""Where several write, a number may be visible before a lower one: nobody misses an event of his own for that.

Here one connection writes, so these tests say themselves under which number an event is committed.
"""

import asyncio
from functools import partial
from pathlib import Path

import msgspec
import pytest
from spawn_ledger.tx import Params, Tx

from spawn.domain.event_numbers import LATE_MAX
from spawn.domain.events import Page, Query
from spawn.services.event_watch import Watch
from spawn.services.feed import look
from tests.harness import World, open_world
from tests.integration.event_readers import scene
from tests.integration.event_steps import (
    CountingDatabase,
    ask,
    happen,
    names,
    reached,
    told,
    woken,
)
from tests.integration.raw_connections import on_uvloop
from tests.wallets import Wallet

pytestmark = pytest.mark.gapless

INSERT = (
    "INSERT INTO event (seq, wallet, type, resource, at, data)"
    " VALUES (:seq, :wallet, 'server.running', 'srv_x', :at, :data)"
)
DAY = 86_400

MANY_LOOKS = 10
"""One look is up to two reads, and one is under way when something is committed."""


async def commit(world: World, wallet: Wallet, *numbers: int) -> None:
    """From now on the events with these numbers are visible; each is named by its own."""
    for seq in numbers:
        data = msgspec.json.encode(told(str(seq))).decode()
        params = {"seq": seq, "wallet": wallet.address, "at": world.clock.now_s(), "data": data}
        await world.parts.db.write(partial(insert, params))


def insert(params: Params, tx: Tx) -> int:
    return tx.execute(INSERT, params)


def watching(world: World, *, every_s: float = 0.01) -> tuple[CountingDatabase, Watch]:
    """A watch of one replica among several."""
    counting = CountingDatabase(world.parts.db, exclusive=False)
    return counting, Watch(counting, every_s=every_s)


async def seen_by(world: World, wallet: Wallet, after: int | None = None) -> Page:
    return await look(world.parts.db, wallet.address, Query(after=after))


# --- pages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "&type=server.*", "&type=deposit.*", "&wait=1"])
async def test_the_cursor_of_a_page_is_behind_what_is_not_there_yet(tmp_path: Path, query: str) -> None:
    async with open_world(tmp_path) as world:
        mine, other = await world.wallet("0"), await world.wallet("0")
        await commit(world, mine, 10)
        await commit(world, other, 12)
        first = await ask(world, mine, f"?after=evt_0{query}")
        assert first["next_cursor"] == "evt_10"
        empty = await ask(world, mine, f"?after=evt_10{query}")
        assert (empty["events"], empty["next_cursor"], empty["has_more"]) == ([], "evt_10", False)
        await commit(world, mine, 11)
        assert names(await ask(world, mine, f"?after={empty['next_cursor']}")) == ["11"]


# --- who waits ------------------------------------------------------------------------------------------------


async def test_what_a_watch_has_jumped_over_wakes_who_waits_for_it(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        mine, other = await world.wallet("0"), await world.wallet("0")
        await commit(world, other, 10)
        _, watch = watching(world)
        waiting = asyncio.create_task(woken(watch, mine, await seen_by(world, mine)))
        # It is told of 12 before there is an 11.
        others = asyncio.create_task(woken(watch, other, await seen_by(world, other, 10)))
        await commit(world, other, 12)
        await others
        assert not waiting.done()
        await commit(world, mine, 11)
        await waiting


async def test_what_was_not_there_when_a_watch_began_wakes_who_waits_for_it(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        mine, other = await world.wallet("0"), await world.wallet("0")
        for seq in (9, 10, 12):
            await commit(world, mine if seq == 9 else other, seq)
        counting, watch = watching(world)
        waiting = asyncio.create_task(woken(watch, mine, await seen_by(world, mine)))
        await counting.has_read(4)
        assert not waiting.done(), "what it has seen is no news"
        await commit(world, mine, 11)
        await waiting


async def test_what_came_between_a_look_and_waiting_is_not_waited_for(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        mine, other = await world.wallet("0"), await world.wallet("0")
        await commit(world, other, 12)
        counting, watch = watching(world)
        # For somebody else it watches all the while.
        others = asyncio.create_task(
            watch.changed(other.address, await seen_by(world, other), told=0, timeout_s=99)
        )
        await counting.has_read(2)
        before, page = watch.told, await seen_by(world, mine)
        await commit(world, mine, 11)
        while watch.told == before:  # noqa: ASYNC110 - telling sets no event
            await asyncio.sleep(0.01)
        await woken(watch, mine, page, told=before)
        watch.stop()
        await others


async def test_a_watch_that_began_with_more_than_was_seen_waits_for_nothing_that_is_there(
    tmp_path: Path,
) -> None:
    async with open_world(tmp_path) as world:
        mine, other = await world.wallet("0"), await world.wallet("0")
        watch = Watch(world.parts.db)
        before, page = watch.told, await seen_by(world, mine)
        await commit(world, mine, 1)
        others = asyncio.create_task(
            watch.changed(other.address, await seen_by(world, other), told=0, timeout_s=99)
        )
        await asyncio.sleep(0)
        assert watch.is_watching
        await woken(watch, mine, page, told=before)
        watch.stop()
        await others


async def test_where_numbers_come_in_order_nothing_is_read_again(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        mine, other = await world.wallet("0"), await world.wallet("0")
        await happen(world, other, *map(str, range(20)))
        counting = CountingDatabase(world.parts.db)
        watch = Watch(counting, every_s=0.01)
        waiting = asyncio.create_task(woken(watch, mine, await seen_by(world, mine)))
        await counting.has_read(2)
        await happen(world, other, "one", "two")
        await counting.has_read(5)
        await happen(world, mine, "mine")
        await waiting
        assert counting.rows == 3


async def test_what_never_comes_is_not_looked_for_for_ever(tmp_path: Path) -> None:
    """The numbers of transactions that were undone; here they are soon too far behind."""
    async with open_world(tmp_path) as world:
        mine, other = await world.wallet("0"), await world.wallet("0")
        counting = CountingDatabase(world.parts.db)
        watch = Watch(counting, every_s=0.01)
        waiting = asyncio.create_task(woken(watch, mine, await seen_by(world, mine)))
        await counting.has_read(1)
        await commit(world, other, 10)
        await counting.has_read(counting.reads + MANY_LOOKS)
        assert counting.rows > 2, "it looks for what it jumped over, and finds what it knows"
        await commit(world, other, *range(11, 11 + LATE_MAX))
        await counting.has_read(counting.reads + MANY_LOOKS)
        rows = counting.rows
        await counting.has_read(counting.reads + 10)
        assert counting.rows == rows
        watch.stop()
        await waiting


@on_uvloop
async def test_a_stream_says_what_becomes_visible_late(tmp_path: Path) -> None:
    async with scene(tmp_path) as at:
        mine, other = await at.world.wallet("0"), await at.world.wallet("0")
        readers = [await at.follow(mine), await at.follow(other)]
        await commit(at.world, other, 12)
        assert await readers[1].names(1) == ["12"]
        async with asyncio.timeout(at.streams.heartbeat_s / 2):
            await commit(at.world, mine, 11)
            assert await readers[0].names(1) == ["11"]


async def test_a_call_that_waits_is_answered_with_what_becomes_visible_late(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        mine, other = await world.wallet("0"), await world.wallet("0")
        waiting = asyncio.create_task(ask(world, mine, "?wait=60"))
        others = asyncio.create_task(ask(world, other, "?wait=60"))
        await reached(world, lambda watch: watch.waiting == 2)
        await commit(world, other, 12)
        assert names(await others) == ["12"]
        await commit(world, mine, 11)
        assert names(await waiting) == ["11"]


# --- kept -----------------------------------------------------------------------------------------------------


async def test_what_is_forgotten_of_others_is_no_gap(tmp_path: Path) -> None:
    async with open_world(tmp_path, events_keep_s=DAY) as world:
        mine, other, new = [await world.wallet("0") for _ in range(3)]
        await commit(world, mine, 1)
        await commit(world, other, 2, 3)
        world.clock.advance(DAY + 1)
        await commit(world, other, 4)
        await world.tick("sweep")
        heads = await world.rows("SELECT wallet, forgotten FROM event_head")
        assert {row["wallet"]: row["forgotten"] for row in heads} == {mine.address: 1, other.address: 3}
        assert not (await ask(world, mine, "?after=evt_1"))["gap"], "all that was forgotten is the others'"
        assert (await ask(world, mine, "?after=evt_0"))["gap"]
        assert (await ask(world, mine, "?after=evt_0"))["next_cursor"] == "evt_1"
        assert (await ask(world, other, "?after=evt_2"))["gap"]
        assert not (await ask(world, new, "?after=evt_0"))["gap"], "nothing of it is forgotten"


async def test_what_was_forgotten_before_there_were_heads_is_a_gap_for_all(tmp_path: Path) -> None:
    """A database as the migration leaves it: whose the forgotten events were, nobody knows."""
    async with open_world(tmp_path) as world:
        known, unknown = await world.wallet("0"), await world.wallet("0")
        await commit(world, known, 41)
        sql = "INSERT INTO event_head (wallet, forgotten) VALUES ('', 40)"
        await world.parts.db.write(lambda tx: tx.execute(sql))
        for wallet, events in ((known, ["41"]), (unknown, [])):
            page = await ask(world, wallet, "?after=evt_39")
            assert (page["gap"], names(page)) == (True, events)
            assert not (await ask(world, wallet, f"?after={page['next_cursor']}"))["gap"]
            assert not (await ask(world, wallet, "?after=evt_40"))["gap"]
            assert not (await ask(world, wallet))["gap"]
