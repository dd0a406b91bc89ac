"""Billing bugs that others had in public, each asked of this service: time zones, summer time, jobs that run again.

A docstring names where it happened. The bugs of payments and refunds are in `test_bugs_of_others`.
"""

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from tests.harness import VirtualClock, World, open_world
from tests.integration.server_steps import DAY, SMALL, accepted_at, burnt, compute_usdc, drive, rent
from tests.wallets import Wallet

ZONES: Final = ("UTC", "America/Los_Angeles", "Pacific/Kiritimati", "Pacific/Pago_Pago", "Europe/Berlin")
"""The one we bill by, two with summer time, and the two that are furthest ahead and behind."""

Stretches = list[tuple[int, int, int]]


def utc(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


@contextmanager
def living_in(zone: str) -> Iterator[None]:
    """This process's local time is that of `zone`."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = zone
    time.tzset()
    try:
        yield
    finally:
        if before is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = before
        time.tzset()


async def stretches(world: World, server_id: str) -> Stretches:
    """The burn of a server: from when to when, and how much; in order."""
    rows = await world.rows(
        "SELECT id, amount FROM transfer WHERE reference = :id AND code = 'burn' ORDER BY at, id",
        id=server_id,
    )
    named = [(row["id"].split("|"), row["amount"]) for row in rows]
    return [(int(parts[2]), int(parts[3]), amount) for parts, amount in named]


async def charged_over(folder: Path, since: int, days: int, *, tick_s: int) -> Stretches:
    """Rent a server at this moment, let the burn job tick for so many days, and see what was charged for when."""
    async with open_world(folder, clock=VirtualClock(since)) as world:
        wallet = await world.customer("90.00")
        server_id = await rent(world, wallet, deposit="60.00")
        accepted = await accepted_at(world, server_id)
        end = world.clock.now_s() + days * DAY
        while world.clock.now_s() < end:
            world.clock.advance(tick_s)
            await world.tick("burn")
        found = await stretches(world, server_id)
        last = found[-1][1]
        assert await compute_usdc(world, server_id) == burnt(SMALL, last - accepted)
        assert [since for since, _, _ in found] == [accepted, *(until for _, until, _ in found[:-1])]
        await world.check_books()
        return found


SUMMER_TIME_ENDS: Final = "2026-10-23T22:30"
"""Berlin's clocks go back two days later, Los Angeles's in the night after the month has ended."""
SUMMER_TIME_BEGINS: Final = "2027-03-12T23:59:30"
"""Los Angeles's clocks go forward two days later, Berlin's two weeks after that."""


@pytest.mark.parametrize(
    ("began", "days"), [(SUMMER_TIME_ENDS, 11), (SUMMER_TIME_BEGINS, 21)], ids=["hour twice", "hour missing"]
)
async def test_summer_time_makes_no_hour_longer_or_free(tmp_path: Path, began: str, days: int) -> None:
    """Kill Bill #743 and #1934: a bill that was reckoned over the change of the clocks was off by an hour, or a day.

    The same life is lived in five time zones, and charged the same seconds at the same moments.
    """
    seen: dict[str, Stretches] = {}
    for zone in ZONES:
        folder = tmp_path / zone.replace("/", "-")
        folder.mkdir()
        with living_in(zone):
            seen[zone] = await charged_over(folder, utc(began), days, tick_s=5 * 3_600 + 1)
    assert len(seen["UTC"]) >= days - 1
    assert all(found == seen["UTC"] for found in seen.values())


@pytest.mark.parametrize("zone", ZONES)
async def test_a_month_begins_once_wherever_we_are(tmp_path: Path, zone: str) -> None:
    """Lago #879 and Kill Bill #1856: whoever lives ahead of UTC was billed twice on the day on which a month began.

    The job looks every hour around the start of November: it is cut once, at midnight UTC, and no second is in two.
    """
    with living_in(zone):
        found = await charged_over(tmp_path, utc("2026-10-31T06:00"), 2, tick_s=3_600)
    november = utc("2026-11-01T00:00")
    assert [until for _, until, _ in found].count(november) == 1
    assert [since for since, _, _ in found].count(november) == 1
    assert not [stretch for stretch in found if stretch[0] < november < stretch[1]]


async def a_day_later(world: World, wallet: Wallet, deposit: str) -> tuple[str, int]:
    """A server whose first day has just been charged: its id, and the second from which it costs money."""
    server_id = await rent(world, wallet, deposit=deposit)
    since = await accepted_at(world, server_id)
    world.clock.advance(DAY)
    await world.tick("burn")
    return server_id, since


@pytest.mark.parametrize("deposit", ["5.00", "0.60"], ids=["with many at once", "with its wallet"])
async def test_an_hour_that_was_billed_is_not_billed_again(tmp_path: Path, deposit: str) -> None:
    """CloudStack #2058 and #13399: a usage job went over the same hours in every run, and wrote each of them again.

    Here it runs again in the same second, from a clock that was set back, twice at once, and after a restart.
    """
    clock = VirtualClock()
    async with open_world(tmp_path, clock=clock) as world:
        wallet = await world.customer("20.00")
        server_id, since = await a_day_later(world, wallet, deposit)
        charged = await stretches(world, server_id)
        assert len(charged) == 1
        await world.tick("burn")
        clock.advance(-10 * 3_600)
        await asyncio.gather(*(world.tick("burn") for _ in range(5)))
        assert await stretches(world, server_id) == charged
    async with open_world(tmp_path, clock=clock) as world:
        await world.tick()
        assert await stretches(world, server_id) == charged
        clock.advance(10 * 3_600 + DAY)
        await asyncio.gather(*(world.tick("burn") for _ in range(5)))
        first, second = await stretches(world, server_id)
        assert (first[1], second[1]) == (second[0], clock.now_s())
        assert await compute_usdc(world, server_id) == burnt(SMALL, clock.now_s() - since)
        await world.check_books()


async def cut_short(world: World, now: int) -> int:
    """Let the burn job run for a little longer each time until it comes to its end; how often it did not."""
    for turns in range(1, 1_000):
        job = asyncio.ensure_future(world.service.jobs["burn"].tick(now))
        for _ in range(turns):
            await asyncio.sleep(0)
        if job.done():
            await job
            return turns - 1
        job.cancel()
        await asyncio.wait((job,))
    raise AssertionError("the job never came to its end")


async def test_a_job_that_was_cut_short_goes_on_where_it_was(tmp_path: Path) -> None:
    """CloudStack #13112: a run that failed left its mark at the beginning, and the next did all of it again.

    Ten servers are due when the job is stopped in the middle, as often as it takes to settle them all.
    """
    async with open_world(tmp_path) as world:
        wallets = [await world.customer("9.00") for _ in range(10)]
        server_ids = [await rent(world, wallet, deposit="0.30", auto_renew=False) for wallet in wallets]
        world.clock.advance(DAY + 3_600)
        now = world.clock.now_s()
        assert await cut_short(world, now) > 1
        for server_id in server_ids:
            since = await accepted_at(world, server_id)
            assert await compute_usdc(world, server_id) == burnt(SMALL, now - since)
        assert len(await world.rows("SELECT id FROM transfer WHERE code = 'burn'")) == 10
        await world.check_books()


async def test_what_is_late_by_a_month_is_charged_as_if_it_had_been_in_time(tmp_path: Path) -> None:
    """CloudStack #13399 as well: what a job had missed came into the bill of the day on which it ran again."""
    folders = [tmp_path / name for name in ("in-time", "late")]
    bills = []
    for folder, tick_s in zip(folders, (3_600, 40 * DAY), strict=True):
        folder.mkdir()
        async with open_world(folder) as world:
            wallet = await world.customer("20.00")
            server_id = await rent(world, wallet, deposit="9.00")
            for _ in range(40 * DAY // tick_s):
                world.clock.advance(tick_s)
                await world.tick("burn")
            await drive(world)
            gone = await world.sign(wallet, "DELETE", f"/v1/servers/{server_id}")
            assert gone.status_code == 200
            by_month: dict[str, int] = {}
            for since, _, amount in await stretches(world, server_id):
                month = datetime.fromtimestamp(since, UTC).strftime("%Y-%m")
                by_month[month] = by_month.get(month, 0) + amount
            bills.append((by_month, await compute_usdc(world, server_id), gone.json()["deposit_refunded"]))
    assert bills[0] == bills[1]
    assert set(bills[0][0]) == {"2026-09", "2026-10"}
