"""What happens by itself: one ticker calls `tick(now)` of each job; what is due lives in tables.

Invariant: a tick that is missed, late, doubled or cut short changes nothing but the moment at which things happen.
Which process ticks is decided elsewhere (`services.leader`). The scheduler plans by the machine's clock, so that a
clock step needs care: one forwards, of whatever length, is one tick; after one backwards the jobs go on within
`WATCH_S`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger
from msgspec.structs import replace

from spawn.clock import Clock
from spawn.services.leader import Leader
from spawn.store.leases import LeaseLost

log = logging.getLogger(__name__)

WATCH_S: Final = 15
"""How often it is looked whether the clock was set back."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """`tick` does whatever is due at `now` (unix seconds) and is called about every `every_s` seconds."""

    name: str
    every_s: float
    tick: Callable[[int], Awaitable[None]]


def leased(job: Job, leader: Leader) -> Job:
    """The same job, which does nothing while another process runs the jobs.

    Its tick raises LeaseLost when the lease is lost on the way: what it has not done is still due for the next holder.
    """

    async def tick(now: int) -> None:
        token = await leader.token()
        if token is not None:
            with leader.term(token):
                await job.tick(now)

    return replace(job, tick=tick)


class Every(BaseTrigger):  # type: ignore[misc]  # the library ships no types
    """Fires an interval after now. The library's own counts from the last time, and makes a list of all it missed:
    31 million of them, with the event loop waiting, when a clock jumps by a year."""

    def __init__(self, interval: timedelta) -> None:
        self.interval = interval

    def get_next_fire_time(self, _previous: datetime | None, now: datetime) -> datetime:
        return now + self.interval


class Ticker:
    """Runs jobs on an APScheduler that remembers nothing."""

    def __init__(self, jobs: tuple[Job, ...], clock: Clock, *, watch_s: float = WATCH_S) -> None:
        self._jobs = jobs
        self._clock = clock
        self._watch_s = watch_s
        self._watch: asyncio.Task[None] | None = None
        self._scheduler = AsyncIOScheduler(timezone="UTC")

    def start(self) -> None:
        for job in self._jobs:
            self._scheduler.add_job(
                self.run,
                Every(timedelta(seconds=job.every_s)),
                args=(job,),
                id=job.name,
                max_instances=1,
                coalesce=True,
                misfire_grace_time=None,
            )
        self._scheduler.start()
        self._watch = asyncio.create_task(self._watch_clock(), name="clock watch")

    def stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._scheduler.shutdown(wait=False)

    async def run(self, job: Job) -> None:
        """One tick of this job. It never raises: what stumbled or was cut short is still due in its table."""
        try:
            await job.tick(self._clock.now_s())
        except asyncio.CancelledError:
            # The service stops: the scheduler would log this as a failure. What was due is still due in its table.
            log.info("job %s was cut short", job.name)
        except LeaseLost as lost:
            log.warning("job %s was cut short: %s", job.name, lost)
        except Exception:
            # A job that stumbles is called again; its work is still due in its table.
            log.exception("job %s stumbled", job.name)

    def plan_all(self, at: datetime) -> None:
        """Let every job tick next at this moment."""
        for planned in self._scheduler.get_jobs():
            planned.modify(next_run_time=at)

    async def _watch_clock(self) -> None:
        """The scheduler sleeps until a moment, which a clock that is set back moves away by as much."""
        while True:
            await asyncio.sleep(self._watch_s)
            now = datetime.now(UTC)
            if any(job.next_run_time > now + job.trigger.interval for job in self._scheduler.get_jobs()):
                log.warning("the clock was set back: the jobs go on")
                self.plan_all(now)
