"""What can happen next: every kind of move, and the kernel's own (time, clocks, crashes, stalls).

Invariant: a move draws only from `world.random`, which is its own, and chooses among what exists when it is played: so
a life without some of its moves still is a life, and the rest of it plays as before.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import log2
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.sim.world import World

HOUR_S: Final = 3_600
MODULES: Final = (
    "cloud_moves",
    "machine_moves",
    "chain_moves",
    "owners",
    "attackers",
    "webhook_moves",
    "operator",
)
"""Who else has moves."""


_SELECT_DUE: Final = """
SELECT due_at FROM server WHERE due_at > :now
ORDER BY exhausted_at IS NULL, warned_s IS NULL, warned_s, due_at, id LIMIT 8
"""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """`play` is quick: it starts what takes time by `world.spawn`. `vital` moves are possible in every world."""

    name: str
    weight: float
    play: Callable[["World"], None]
    vital: bool = False


def _crash(world: "World") -> None:
    if world.process is not None:
        world.crash("killed")


def _crash_soon(world: "World") -> None:
    """At any await: after so many callbacks, whoever's they are."""
    world.loop.run_callbacks(world.random.randint(0, 60))
    _crash(world)


def _crash_twin(world: "World") -> None:
    if world.twin is not None:
        world.kill(world.twin, "killed")


def _stall(world: "World") -> None:
    """The jobs of a process rest, for seconds or days; whoever calls is still answered."""
    process = world.random.choice([one for one in (world.process, world.twin) if one is not None] or [None])
    if process is not None:
        process.stalled_until = world.loop.time() + 2 ** world.random.uniform(3, 20)
        world.step(f"the jobs of process {process.number} stall")


def _freeze(world: "World") -> None:
    """Either of two is paused."""
    if world.twin is not None and world.process is not None:
        world.random.choice((world.process, world.twin)).freeze(world.random.uniform(2.0, 240.0))


def _step_clock(world: "World") -> None:
    if world.climate.clock_steps:
        far = world.random.choice((2, 60, HOUR_S, 6 * HOUR_S))
        world.clock.set_wrong_by(world.random.randint(-far, far))
        world.step(f"the clock is {world.clock.wrong_by_s} s off")


def _mend_clock(world: "World") -> None:
    if world.clock.wrong_by_s:
        world.clock.set_wrong_by(0)
        world.step("the clock is right again")


def _leap(world: "World") -> None:
    world.loop.run_for(2 ** world.random.uniform(0, log2(world.climate.leap_s)))


def _leap_to_the_next_end(world: "World") -> None:
    """To just before something happens to a server by itself: rather to one whose money is about to end, or has."""
    now = world.clock.now_s()
    due = world.rows(_SELECT_DUE, now=now)
    if due:
        ahead_s = world.random.choice(due[:4])["due_at"] - now - world.random.uniform(-5, 60)
        world.loop.run_for(min(max(0.0, ahead_s), float(world.climate.leap_s)))


def _lull(world: "World") -> None:
    """Enough time for what is under way."""
    world.loop.run_for(world.random.uniform(30, 180))


OWN: Final = (
    Kind(name="crash", weight=0.3, play=_crash),
    Kind(name="crash.soon", weight=0.7, play=_crash_soon),
    Kind(name="crash.twin", weight=0.3, play=_crash_twin),
    Kind(name="jobs.stall", weight=0.6, play=_stall),
    Kind(name="process.freeze", weight=1.0, play=_freeze),
    Kind(name="clock.step", weight=0.5, play=_step_clock),
    Kind(name="clock.mend", weight=0.5, play=_mend_clock),
    Kind(name="time.leap", weight=5.0, play=_leap, vital=True),
    Kind(name="time.due", weight=3.0, play=_leap_to_the_next_end),
    Kind(name="time.lull", weight=6.0, play=_lull, vital=True),
)


@cache
def kinds() -> tuple[Kind, ...]:
    """Every kind of move, always in the same order."""
    found = list(OWN)
    for name in MODULES:
        found += importlib.import_module(f"tests.sim.{name}").MOVES
    return tuple(found)
