"""A tick that fails, or is cut short when the service stops, is nobody's failure but its own."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from spawn.jobs.ticker import Every, Job, Ticker
from spawn.services.leader import RENEW_S
from spawn.store.leases import LeaseLost
from tests.harness import START_S, VirtualClock, count_writes, open_world


async def test_a_tick_that_is_cut_short_ends_quietly(caplog: pytest.LogCaptureFixture) -> None:
    begun = asyncio.Event()

    async def wait_for_ever(now: int) -> None:
        assert now == START_S
        begun.set()
        await asyncio.Event().wait()

    job = Job(name="patient", every_s=1, tick=wait_for_ever)
    with caplog.at_level(logging.INFO):
        tick = asyncio.create_task(Ticker((job,), VirtualClock()).run(job))
        await begun.wait()
        tick.cancel()
        await tick
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "job patient was cut short")
    ]


async def test_a_tick_that_stumbles_is_told_and_called_again(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []

    async def stumble(now: int) -> None:
        calls.append(now)
        raise RuntimeError("over a stone")

    job = Job(name="clumsy", every_s=1, tick=stumble)
    ticker = Ticker((job,), VirtualClock())
    for _ in range(2):
        await ticker.run(job)
    assert len(calls) == 2
    assert caplog.messages == ["job clumsy stumbled"] * 2


async def test_a_tick_that_lost_its_lease_ends_quietly(caplog: pytest.LogCaptureFixture) -> None:
    async def too_late(_now: int) -> None:
        raise LeaseLost("another process holds 'ticker' by now")

    job = Job(name="late", every_s=1, tick=too_late)
    await Ticker((job,), VirtualClock()).run(job)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "job late was cut short: another process holds 'ticker' by now")
    ]


def test_what_was_missed_is_one_tick() -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    for missed in (timedelta(0), timedelta(hours=1), timedelta(days=365)):
        planned = Every(timedelta(seconds=1)).get_next_fire_time(now - missed, now)
        assert planned == now + timedelta(seconds=1)


@pytest.mark.parametrize(
    "step", [timedelta(days=-365), timedelta(hours=-1), timedelta(hours=1), timedelta(days=365)]
)
async def test_jobs_go_on_after_the_clock_was_set(step: timedelta) -> None:
    ticks: asyncio.Queue[int] = asyncio.Queue()

    async def tick(now: int) -> None:
        ticks.put_nowait(now)

    job = Job(name="steady", every_s=0.01, tick=tick)
    ticker = Ticker((job,), VirtualClock(), watch_s=0.05)
    ticker.start()
    try:
        await asyncio.wait_for(ticks.get(), 5)
        # What a clock leaves behind when it is set by `step`: everything is planned for that much earlier or later.
        ticker.plan_all(datetime.now(UTC) - step)
        while not ticks.empty():
            ticks.get_nowait()
        for _ in range(3):
            await asyncio.wait_for(ticks.get(), 5)
    finally:
        ticker.stop()


async def test_an_idle_service_writes_twice_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_world(tmp_path) as world:
        await world.tick()
        writes = count_writes(world.parts.db, monkeypatch)
        for _ in range(600):
            world.clock.advance(1)
            await world.tick("operations", "burn", "settlements", "suspense", "incidents")
        assert len(writes) == 600 // RENEW_S
