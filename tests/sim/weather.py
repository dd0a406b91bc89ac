"""What goes wrong between the service and its world: answers that are slow or lost, outages, deaths on the way.

Invariant: every port asks here before it does anything and after it did it, so that a process can die, and an answer
be lost, at each of these instants; and whoever was asked by a dead process hears that it is dead.
"""

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from random import Random
from typing import TYPE_CHECKING, Final

from tests.harness import START_S

if TYPE_CHECKING:
    from tests.sim.process import Process
    from tests.sim.world import World

HOUR_S: Final = 3_600
DAY_S: Final = 24 * HOUR_S
OF_PROCESS: Final[ContextVar["Process | None"]] = ContextVar("of_process", default=None)
"""Whose code is running: a process's, or (None) somebody's who lives outside."""


class Fate(StrEnum):
    """What becomes of one call to the world."""

    ARRIVES = "arrives"
    LOST_REQUEST = "lost request"
    """Nothing happened, and the caller is not told."""
    LOST_ANSWER = "lost answer"
    """It is done, and the caller is not told."""
    REFUSED = "refused"
    """The other side says no; what its no looks like is the port's business."""
    DOWN = "down"
    """It does not take the call."""


_FLAWS: Final = (Fate.LOST_REQUEST, Fate.LOST_ANSWER, Fate.REFUSED, Fate.DOWN)


@dataclass(kw_only=True)
class Climate:
    """What a world is like: drawn once, so that worlds differ in what can happen in them at all."""

    rail: str
    twin: bool
    """A second process ticks the same jobs on the same database."""
    restores: bool
    flaws: dict[str, float]
    """Per port: how likely a call to it is flawed."""
    slow: float
    """How likely an answer takes seconds or minutes instead of milliseconds."""
    crash_on_the_way: float
    crash_at_statement: float
    disk_fault: float
    network: float
    """How likely a request to us, or our answer, is lost."""
    overloaded: float
    leap_s: int
    """The longest time that one move lets pass."""
    clock_steps: bool
    events_keep_s: int
    start_s: int
    """When it begins, in unix seconds: often shortly before a month ends."""
    warnings: str
    grace_s: int
    """The operator's policy: when owners are warned, and how long a server outlives its money."""
    freeze: float
    """How likely a process is paused as a whole, as a machine is that is moved, while a call of it is on its way back:
    the other one, where there is one, goes on meanwhile."""
    muted: frozenset[str] = field(default_factory=frozenset)
    """Kinds of moves that never happen here."""


def draw_climate(random: Random, kinds: tuple[str, ...]) -> Climate:
    """Swarm testing: what is possible differs between worlds, so that rare things are not always drowned by others."""

    def rate(often: float, most: float) -> float:
        return random.uniform(0, most) if random.random() < often else 0.0

    rail = random.choice(("devnet", "devnet", "self", "facilitator"))
    mute = random.choice((0.0, 0.0, 0.2, 0.4))
    return Climate(
        rail=rail,
        # Two relayers must not share a key before leases divide them.
        twin=rail != "self" and random.random() < 0.4,
        restores=random.random() < 0.15,
        flaws={port: rate(0.7, 0.15) for port in ("cloud", "chain", "facilitator", "receivers", "resolver")},
        slow=rate(0.6, 0.1),
        crash_on_the_way=rate(0.6, 0.004),
        crash_at_statement=rate(0.6, 0.004),
        disk_fault=rate(0.3, 0.001),
        network=rate(0.6, 0.05),
        overloaded=rate(0.3, 0.005),
        leap_s=random.choice((60, HOUR_S, 24 * HOUR_S, 24 * HOUR_S, 8 * 24 * HOUR_S, 40 * 24 * HOUR_S)),
        clock_steps=random.random() < 0.3,
        events_keep_s=random.choice((1, 2, 8, 30, 90)) * 24 * HOUR_S,
        start_s=_start_s(random),
        # One whose last warning is longer than the least deposit lasts makes lives that are warned late.
        warnings=random.choice(("7d,3d,1d,6h", "7d,3d,1d,6h", "3d,12h,1h", "3d,30h")),
        grace_s=random.choice((0, 0, HOUR_S, DAY_S)),
        freeze=rate(0.9, 0.2),
        muted=frozenset(kind for kind in kinds if random.random() < mute),
    )


def _start_s(random: Random) -> int:
    """Some time within a year; in every other world less than two days before the end of a month (UTC)."""
    begin = datetime.fromtimestamp(START_S + random.randrange(365 * DAY_S), UTC)
    if random.random() < 0.5:
        return int(begin.timestamp())
    year, month = divmod(begin.year * 12 + begin.month, 12)
    return int(datetime(year, month + 1, 1, tzinfo=UTC).timestamp()) - random.randint(60, 2 * DAY_S)


class Weather:
    """The weather of one world."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.outages: dict[str, int] = {}
        """Until when (true seconds) a port takes no calls."""

    def is_down(self, port: str) -> bool:
        return not self._world.calm and self._world.true_s() < self.outages.get(port, 0)

    async def on_the_way(self, port: str, what: str) -> Fate:
        """The way there. Raises CancelledError in a process that is dead, or dies here."""
        self._refuse_the_dead()
        await asyncio.sleep(self._latency_s())
        self._refuse_the_dead()
        self._perhaps_die(f"before {port} {what}")
        if self.is_down(port):
            return Fate.DOWN
        world = self._world
        if not world.calm and world.random.random() < world.climate.flaws.get(port, 0.0):
            fate = world.random.choice(_FLAWS)
            world.count(f"{port}: {fate}")
            return fate
        return Fate.ARRIVES

    async def on_the_way_back(self, port: str, what: str) -> None:
        """The way back, after the deed. Raises CancelledError in a process that is dead, or dies here."""
        self._refuse_the_dead()
        self._perhaps_die(f"after {port} {what}")
        self._perhaps_freeze()
        await asyncio.sleep(self._latency_s())
        self._refuse_the_dead()

    def _refuse_the_dead(self) -> None:
        process = OF_PROCESS.get()
        if process is not None and process.is_dead:
            raise asyncio.CancelledError

    def _perhaps_die(self, where: str) -> None:
        world, process = self._world, OF_PROCESS.get()
        if process is None or world.calm:
            return
        if world.random.random() < world.climate.crash_on_the_way:
            world.kill(process, where)
            raise asyncio.CancelledError

    def _perhaps_freeze(self) -> None:
        world, process = self._world, OF_PROCESS.get()
        if process is None or world.twin is None or world.calm:
            return
        if world.random.random() < world.climate.freeze:
            process.freeze(world.random.uniform(80.0, 240.0))

    def _latency_s(self) -> float:
        world = self._world
        if not world.calm and world.random.random() < world.climate.slow:
            return float(2 ** world.random.uniform(-2, 7))
        return world.random.uniform(0.0, 0.05)
