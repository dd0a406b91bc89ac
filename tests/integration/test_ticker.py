"""A tick that fails, or is cut short when the service stops, is nobody's failure but its own."""

import asyncio
import logging

import pytest

from spawn.jobs.ticker import Job, Ticker
from tests.harness import START_S, VirtualClock


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
