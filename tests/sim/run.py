"""Lives the worlds of a seed, on several cores, until enough has happened or a promise is broken.

Invariant: which worlds count is decided by their numbers and steps, not by who was quick: the first so many, up to the
one that makes the steps full. So a seed and a number of steps have one hash on any machine.
"""

import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from itertools import count
from typing import NoReturn

from tests.sim.life import Life
from tests.sim.report import Tally, failure, mix, progress, replay, summary
from tests.sim.shrink import SECONDS_MAX, shrink
from tests.sim.terminal import Terminal
from tests.sim.world import live

Lives = Callable[[int], Life]
"""Lives the world of this number, in the same way each time."""
Trace = Callable[[str], None]


class Status(IntEnum):
    """How a run ended, as its program's exit status; of a program that was interrupted, 128 and the signal's number."""

    HELD = 0
    BROKEN = 1
    STOPPED = 130


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a run; `failed` is the world of the lowest number that broke a promise, and its life."""

    tally: Tally
    failed: tuple[int, Life] | None
    is_stopped: bool
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Runner:
    """Lives what it is asked to, and says so on `terminal`; `program` begins the command that lives it again."""

    seed: str
    terminal: Terminal
    program: str
    engine: str = "sqlite"
    trace: Trace | None = None

    def whole(self, *, steps: int, shards: int) -> Status:
        """A whole run, the summary last."""
        cores = "in this process" if shards == 1 else f"in {shards} processes"
        self.terminal.tell(f"seed {self.seed}: {steps:,} steps and the rest of their world, {cores}")
        lives = (
            partial(live, self.seed, engine=self.engine)
            if self.trace is None
            else partial(self._traced, self.trace)
        )
        result = run(lives, steps=steps, shards=shards, terminal=self.terminal)
        if result.failed is not None:
            self._tell_failure(*result.failed, is_to_be_shrunk=not result.is_stopped)
        if result.is_stopped:
            self.terminal.tell("stopped; what was lived until then:")
        self.terminal.tell(mix(result.tally))
        self.terminal.tell(summary(result.tally, result.seconds))
        held = Status.STOPPED if result.is_stopped else Status.HELD
        return held if result.failed is None else Status.BROKEN

    def one(self, number: int, *, moves: Sequence[int] | None) -> Status:
        """One life, of these moves where they are given; then it is as short as it is wanted."""
        began = time.monotonic()
        life = live(self.seed, number, engine=self.engine, moves=moves, on_line=self.trace)
        if life.violation is not None:
            self._tell_failure(number, life, is_to_be_shrunk=moves is None)
        self.terminal.tell(summary(_tally({number: life}), time.monotonic() - began))
        return Status.HELD if life.violation is None else Status.BROKEN

    def _tell_failure(self, number: int, life: Life, *, is_to_be_shrunk: bool) -> None:
        self._tell_life(number, life)
        if not is_to_be_shrunk:
            return
        self.terminal.tell(
            f"\nshrinking {len(life.moves)} moves, {life.steps} steps: {SECONDS_MAX:.0f} s at most; "
            "Ctrl-C ends it with the shortest so far"
        )
        shortest = shrink(partial(self._lived_again, number), life, tell=self.terminal.progress)
        self.terminal.tell(f"\nshrunk to {len(shortest.moves)} moves, {shortest.steps} steps:")
        self._tell_life(number, shortest)

    def _traced(self, trace: Trace, number: int) -> Life:
        trace(f"== world {number}")
        return live(self.seed, number, engine=self.engine, on_line=trace)

    def _lived_again(self, number: int, moves: Sequence[int], steps_max: int) -> Life:
        return live(self.seed, number, engine=self.engine, moves=moves, steps_max=steps_max)

    def _tell_life(self, number: int, life: Life) -> None:
        self.terminal.tell(failure(life, seed=self.seed, number=number))
        again = replay(self.program, seed=self.seed, number=number, moves=life.moves)
        self.terminal.tell(f"to live it again:  {again}")


def run(lives: Lives, *, steps: int, shards: int, terminal: Terminal) -> Result:
    """Live worlds 0, 1, 2, … until together they have taken so many steps, or one has failed, or we are interrupted."""
    began, lived, so_far = time.monotonic(), dict[int, Life](), Tally()
    is_stopped = False
    try:
        with _pool(lives, shards) as finished:
            for number, life in finished(lambda: _is_enough(lived, steps)):
                lived[number] = life
                so_far.add(number, life)
                terminal.progress(progress(so_far, time.monotonic() - began))
    except KeyboardInterrupt:
        is_stopped = True
    failed = next(((n, life) for n, life in sorted(lived.items()) if life.violation is not None), None)
    counted = lived
    if not is_stopped:
        counted = _first(lived, steps) | (dict[int, Life]() if failed is None else dict([failed]))
    return Result(
        tally=_tally(counted), failed=failed, is_stopped=is_stopped, seconds=time.monotonic() - began
    )


def _is_enough(lived: dict[int, Life], steps: int) -> bool:
    is_broken = any(life.violation is not None for life in lived.values())
    return is_broken or sum(life.steps for life in lived.values()) >= steps


def _first(lived: dict[int, Life], steps: int) -> dict[int, Life]:
    """The worlds that count: what another core had begun beyond them does not."""
    first, taken = dict[int, Life](), 0
    for number in range(len(lived)):
        if taken >= steps or (number and first[number - 1].violation is not None):
            break
        first[number] = lived[number]
        taken += lived[number].steps
    return first


def _tally(lived: dict[int, Life]) -> Tally:
    tally = Tally()
    for number, life in lived.items():
        tally.add(number, life)
    return tally


Finished = Callable[[Callable[[], bool]], Iterator[tuple[int, Life]]]
"""Lives one world after the other until told that it is enough, and what was begun by then to its end."""


@contextmanager
def _pool(lives: Lives, shards: int) -> Iterator[Finished]:
    if shards == 1:
        yield lambda is_enough: _here(lives, is_enough)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(shards, mp_context=context, initializer=_end_when_told) as pool:
        try:
            yield lambda is_enough: _there(lives, pool, shards, is_enough)
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _here(lives: Lives, is_enough: Callable[[], bool]) -> Iterator[tuple[int, Life]]:
    for number in count():
        if is_enough():
            return
        yield number, lives(number)


def _there(
    lives: Lives, pool: ProcessPoolExecutor, shards: int, is_enough: Callable[[], bool]
) -> Iterator[tuple[int, Life]]:
    """As many at once as there are shards. The numbers that are lived have no gap in the end."""
    numbers, running = count(), dict[Future[Life], int]()
    while True:
        while len(running) < shards and not is_enough():
            number = next(numbers)
            with _deaf():
                running[pool.submit(lives, number)] = number
        if not running:
            return
        for done in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(done), done.result()


@contextmanager
def _deaf() -> Iterator[None]:
    """What is started inside does not hear a Ctrl-C, which goes to all processes of a terminal: we tell it to end."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end_when_told() -> None:
    signal.signal(signal.SIGTERM, _end)


def _end(*_: object) -> NoReturn:
    """Ends the life that is lived here by an exception, so that its memory disk is given back."""
    sys.exit()
