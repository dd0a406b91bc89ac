"""Lives the worlds of a seed, on several cores, until enough has happened or a promise is broken.

Invariant: which worlds count is decided by their numbers and steps, not by who was quick: the first so many, up to the
one that makes the steps full. So a seed and a number of steps have one hash on any machine.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Final

from tests.sim.life import Life
from tests.sim.report import Tally, failure, mix, progress, replay, summary
from tests.sim.shrink import shrink
from tests.sim.world import live

TELL_EVERY_S: Final = 5.0
Lives = Callable[[int], Life]
"""Lives the world of this number, in the same way each time."""
Tell = Callable[[str], None]


class CannotLive(Exception):
    """A world came to no end: that is a defect of the simulation, not of what it simulates."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a run; `failed` is the world of the lowest number that broke a promise, and its life."""

    tally: Tally
    failed: tuple[int, Life] | None
    seconds: float


def run(lives: Lives, *, steps: int, shards: int, tell: Tell) -> Result:
    """Live worlds 0, 1, 2, … until together they have taken so many steps, or one has failed."""
    began, told, lived = time.monotonic(), 0.0, dict[int, Life]()
    with _pool(lives, shards) as finished:
        for number, life in finished(lambda: _is_enough(lived, steps)):
            lived[number] = life
            seconds = time.monotonic() - began
            if seconds - told >= TELL_EVERY_S:
                tell(progress(_tally(lived), seconds))
                told = seconds
    failed = next(((n, life) for n, life in sorted(lived.items()) if life.violation is not None), None)
    counted = _first(lived, steps) | (dict[int, Life]() if failed is None else dict([failed]))
    return Result(tally=_tally(counted), failed=failed, seconds=time.monotonic() - began)


def tell_failure(seed: str, number: int, life: Life, *, is_shrunk: bool, tell: Tell) -> None:
    """Print what failed; then, unless it was handed in as short as it is wanted, make it short and print it again."""
    tell(failure(life, seed=seed, number=number))
    tell(f"to live it again:  {replay(seed=seed, number=number, moves=life.moves)}")
    if is_shrunk:
        return
    tell(f"\nshrinking {len(life.moves)} moves, {life.steps} steps …")
    shortest = shrink(
        lambda moves, steps_max: live(seed, number, moves=moves, steps_max=steps_max), life, tell=tell
    )
    tell(f"\nshrunk to {len(shortest.moves)} moves:")
    tell(failure(shortest, seed=seed, number=number))
    tell(f"to live it again:  {replay(seed=seed, number=number, moves=shortest.moves)}")


def one(
    seed: str, number: int, *, moves: Sequence[int] | None, trace: Tell | None = None, tell: Tell
) -> bool:
    """One life, of these moves where they are given; True when no promise was broken in it."""
    began = time.monotonic()
    life = live(seed, number, moves=moves, on_line=trace)
    if life.violation is not None:
        tell_failure(seed, number, life, is_shrunk=moves is not None, tell=tell)
    tell(summary(_tally({number: life}), time.monotonic() - began))
    return life.violation is None


def main(seed: str, *, steps: int, shards: int, trace: Tell | None = None, tell: Tell) -> bool:
    """A whole run with all that it says, the summary last; True when no promise was broken."""
    lives = partial(live, seed) if trace is None else partial(live, seed, on_line=trace)
    result = run(lives, steps=steps, shards=shards, tell=tell)
    if result.failed is not None:
        number, life = result.failed
        tell_failure(seed, number, life, is_shrunk=False, tell=tell)
    tell(mix(result.tally))
    tell(summary(result.tally, result.seconds))
    return result.failed is None


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
    with ProcessPoolExecutor(shards, mp_context=context) as pool:
        yield lambda is_enough: _there(lives, pool, shards, is_enough)


def _here(lives: Lives, is_enough: Callable[[], bool]) -> Iterator[tuple[int, Life]]:
    for number in count():
        if is_enough():
            return
        yield number, _lived(lives, number)


def _there(
    lives: Lives, pool: ProcessPoolExecutor, shards: int, is_enough: Callable[[], bool]
) -> Iterator[tuple[int, Life]]:
    """As many at once as there are shards. The numbers that are lived have no gap in the end."""
    numbers, running = count(), dict[Future[Life], int]()
    while True:
        while len(running) < shards and not is_enough():
            number = next(numbers)
            running[pool.submit(_lived, lives, number)] = number
        if not running:
            return
        for done in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(done), done.result()


def _lived(lives: Lives, number: int) -> Life:
    try:
        return lives(number)
    except Exception as error:
        raise CannotLive(f"world {number} came to no end: {type(error).__name__}: {error}") from error
