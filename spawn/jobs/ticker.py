"""What happens by itself: one ticker calls `tick(now)` of each job; what is due lives in tables.

Invariant: a tick that is missed, late, doubled or cut short changes nothing but the moment at which things happen.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from spawn.clock import Clock

log = logging.getLogger(__name__)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """`tick` does whatever is due at `now` (unix seconds) and is called about every `every_s` seconds."""

    name: str
    every_s: float
    tick: Callable[[int], Awaitable[None]]


class Ticker:
    """Runs jobs on an APScheduler that remembers nothing."""

    def __init__(self, jobs: tuple[Job, ...], clock: Clock) -> None:
        self._jobs = jobs
        self._clock = clock
        self._scheduler = AsyncIOScheduler(timezone="UTC")

    def start(self) -> None:
        for job in self._jobs:
            self._scheduler.add_job(
                self.run,
                "interval",
                seconds=job.every_s,
                args=(job,),
                id=job.name,
                max_instances=1,
                coalesce=True,
                misfire_grace_time=None,
            )
        self._scheduler.start()

    def stop(self) -> None:
        self._scheduler.shutdown(wait=False)

    async def run(self, job: Job) -> None:
        """One tick of this job. It never raises: what stumbled or was cut short is still due in its table."""
        try:
            await job.tick(self._clock.now_s())
        except asyncio.CancelledError:
            # The service stops: the scheduler would log this as a failure. What was due is still due in its table.
            log.info("job %s was cut short", job.name)
        except Exception:
            # A job that stumbles is called again; its work is still due in its table.
            log.exception("job %s stumbled", job.name)
