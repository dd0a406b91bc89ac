"""Two processes on one database, each with a clock of its own, either of which may stop in the middle of a job.

Invariant: real time is the world's clock. A process has a clock that runs with it and may be set wrong, and is asleep
while it is paused: what it was about to write is written when it wakes, if at all.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeVar

from spawn_ledger.tx import Params, Row, Tx

from spawn.app import Service, build
from spawn.jobs.ticker import Job, leased
from spawn.services.leader import Fenced
from spawn.store.database import NO_PARAMS, Database
from spawn.store.leases import LeaseLost
from tests.harness import SeededEntropy, VirtualClock, World, open_world

T = TypeVar("T")


class SkewedClock:
    """Real time, and how far this machine's clock is from it."""

    def __init__(self, real: VirtualClock) -> None:
        self._real = real
        self.skew_s = 0

    def now_s(self) -> int:
        return self._real.now_s() + self.skew_s

    def now_ms(self) -> int:
        return self._real.now_ms() + self.skew_s * 1000

    def elapsed_s(self) -> float:
        return self._real.elapsed_s()


class Pausing:
    """A database whose process can be stopped just before a write reaches it."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._let_through = 0
        self._awake = asyncio.Event()
        self._awake.set()
        self.stopped = asyncio.Event()

    def stop_after(self, writes: int) -> None:
        """Let this many writes through, and stop before the next."""
        self._let_through = writes
        self._awake.clear()
        self.stopped.clear()

    def wake(self) -> None:
        self._awake.set()

    @property
    def exclusive(self) -> bool:
        return self._db.exclusive

    async def read(self, sql: str, params: Params = NO_PARAMS) -> list[Row]:
        return await self._db.read(sql, params)

    async def write(self, fn: Callable[[Tx], T]) -> T:
        if not self._awake.is_set():
            if self._let_through == 0:
                self.stopped.set()
                await self._awake.wait()
            self._let_through -= 1
        return await self._db.write(fn)

    async def close(self) -> None:
        await self._db.close()


SELECT_COUNT: Final = "SELECT COUNT(*) AS n FROM stray WHERE provider = 'count'"
INSERT_NUMBER: Final = "INSERT INTO stray (provider, ref, first_seen_at) VALUES ('count', :ref, 0)"


def counting(db: Database) -> Job:
    """A job that nothing but the fence keeps right: it writes what follows from what it read a while ago."""

    async def tick(_now: int) -> None:
        (row,) = await db.read(SELECT_COUNT)
        await db.write(lambda tx: tx.execute(INSERT_NUMBER, {"ref": str(row["n"] + 1)}))

    return Job(name="count", every_s=1, tick=tick)


@dataclass
class Process:
    """One of them. `lost` counts the ticks that ended because another process had taken over."""

    clock: SkewedClock
    db: Pausing
    service: Service
    jobs: dict[str, Job]
    lost: int = 0
    _ticks: list[asyncio.Task[None]] = field(default_factory=list)

    async def tick(self, *names: str) -> None:
        """Let these jobs do what is due by this process's clock; a paused process does nothing."""
        if self._ticks:
            return
        try:
            for name in names:
                await self.jobs[name].tick(self.clock.now_s())
                await self.service.operator.idle()
        except LeaseLost:
            self.lost += 1

    async def pause_in(self, *names: str, after_writes: int) -> bool:
        """Tick, and stop before the write after so many; False when it came to its end before that."""
        if self._ticks:
            return True
        self.db.stop_after(after_writes)
        tick = asyncio.create_task(self.tick(*names))
        stopped = asyncio.create_task(self.db.stopped.wait())
        await asyncio.wait({tick, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if tick.done():
            stopped.cancel()
            self.db.wake()
            await tick
            return False
        self._ticks.append(tick)
        return True

    async def resume(self) -> None:
        """Wake up, and finish what was begun."""
        self.db.wake()
        for tick in self._ticks:
            await tick
        self._ticks.clear()


@asynccontextmanager
async def two_processes(world: World) -> AsyncIterator[tuple[Process, Process]]:
    """Two more processes on the world's database; its own has let go of the lease."""
    await world.service.workers.leader.resign()
    first, second = await _process(world, "first"), await _process(world, "second")
    yield first, second
    for process in (first, second):
        await process.resume()
        await process.service.operator.stop()


async def _process(world: World, name: str) -> Process:
    clock, db = SkewedClock(world.clock), Pausing(world.parts.db)
    parts = replace(world.parts, clock=clock, db=db, entropy=SeededEntropy(name))
    service = await build(world.settings, parts, ticking=False)
    count = leased(counting(Fenced(db, service.workers.leader)), service.workers.leader)
    return Process(clock=clock, db=db, service=service, jobs={**service.jobs, "count": count})


@asynccontextmanager
async def open_two(folder: Path) -> AsyncIterator[tuple[World, Process, Process]]:
    """A world with two processes in it."""
    async with open_world(folder) as world, two_processes(world) as (first, second):
        yield world, first, second
