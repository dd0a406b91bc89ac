"""Plants bugs into the service and lets the simulation find each: `python -m tests.sim.planted [NAME …]`.

Each bug lives in a process of its own, which loads the one module from the changed text; nothing on disk is changed.
All live the worlds of one seed, which the honest code lives, too, without a violation. Invariant: `found` means that
the service ran, and that a life in it broke one of the promises that the bug breaks.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final

import msgspec

from tests.attacks.runner import Job, Replacing
from tests.sim.life import ENGINES
from tests.sim.planted_bug import Bug
from tests.sim.planted_lives import OF_LIVES, TOLD
from tests.sim.planted_machines import OF_ACCESS, OF_PROVIDERS
from tests.sim.planted_money import IN_MONEY
from tests.sim.planted_payments import IN_PAYMENTS

ROOT: Final = Path(__file__).resolve().parents[2]
BUGS: Final = {
    bug.name: bug for bug in (*IN_MONEY, *IN_PAYMENTS, *OF_PROVIDERS, *OF_ACCESS, *OF_LIVES, *TOLD)
}
HONEST: Final = "no bug"
SEED: Final = "p6"
STEPS: Final = 100_000
TIMEOUT_S: Final = 900


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How long a bug stayed hidden. `promise` is the one that was broken, None when none was; `worlds` were begun."""

    name: str
    steps: int
    worlds: int
    seconds: float
    promise: str | None = None
    text: str = ""

    @property
    def is_found(self) -> bool:
        bug = BUGS.get(self.name)
        return bug is not None and self.promise in bug.promises


def changed(bug: Bug) -> str:
    """The file's text with the bug in it. Raises ValueError unless `before` occurs once."""
    text = (ROOT / bug.file).read_text(encoding="utf-8")
    if text.count(bug.before) != 1:
        raise ValueError(f"{bug.name!r}: {bug.file} has its place {text.count(bug.before)} times, not once")
    return text.replace(bug.before, bug.after)


def plant(bug: Bug) -> Replacing:
    """From here on this process loads the changed text; the answer knows whether it did, or had the module before."""
    planted = Replacing(Job(name=bug.name, attacks=(), file=bug.file, text=changed(bug)), {})
    sys.meta_path.insert(0, planted)
    return planted


def live_until_found(name: str, *, seed: str, engine: str, steps: int, worlds: int | None) -> Outcome:
    """Live world after world, until a promise is broken, or for so many steps, or these worlds."""
    from tests.sim.world import live  # noqa: PLC0415 - only now: the bug was not planted before

    began, taken = time.monotonic(), 0
    for number in count():
        if taken >= steps if worlds is None else number >= worlds:
            break
        life = live(seed, number, engine=engine)
        if life.violation is not None:
            return Outcome(
                name=name,
                steps=taken + life.violation.step,
                worlds=number + 1,
                seconds=time.monotonic() - began,
                promise=life.violation.promise,
                text=life.violation.text,
            )
        taken += life.steps
    return Outcome(name=name, steps=taken, worlds=number, seconds=time.monotonic() - began)


def search(
    names: Iterable[str],
    *,
    seed: str = SEED,
    engine: str = ENGINES[0],
    steps: int = STEPS,
    worlds: int | None = None,
    at_once: int = 1,
) -> Iterable[Outcome]:
    """Look for these bugs, so many at once, each in a process of its own; outcomes in the order of the names."""
    with ThreadPoolExecutor(at_once) as pool:
        alone = partial(_apart, seed=seed, engine=engine, steps=steps, worlds=worlds)
        yield from pool.map(alone, names)


def _apart(name: str, *, seed: str, engine: str, steps: int, worlds: int | None) -> Outcome:
    command = [
        sys.executable,
        "-m",
        "tests.sim.planted",
        "--alone",
        name,
        "--seed",
        seed,
        "--engine",
        engine,
        "--steps",
        str(steps),
    ]
    done = subprocess.run(
        command if worlds is None else [*command, "--worlds", str(worlds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        timeout=TIMEOUT_S,
        check=False,
    )
    last = done.stdout.strip().rpartition(b"\n")[2]
    try:
        return msgspec.json.decode(last, type=Outcome)
    except msgspec.DecodeError:
        said = done.stdout.decode(errors="replace")[-2_000:]
        raise RuntimeError(f"{name!r} could not be lived: {said}") from None


def row(outcome: Outcome) -> str:
    """A line of the table."""
    verdict = "found" if outcome.is_found else "NOT FOUND" if outcome.promise is None else "BROKEN"
    by = f"by {outcome.promise!r}: {outcome.text[:110]}" if outcome.promise is not None else ""
    return (
        f"{verdict:<9}  {outcome.steps:>8,} steps  {outcome.worlds:>3} worlds  {outcome.seconds:>5.0f} s  "
        f"{outcome.name}  {by}"
    )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.planted", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="words of their names [all bugs]")
    parser.add_argument("--steps", type=int, default=STEPS, help="how long to look for each [%(default)s]")
    parser.add_argument("--seed", default=SEED, help="of the worlds that each lives [%(default)s]")
    parser.add_argument(
        "--engine", choices=ENGINES, default=ENGINES[0], help="where their books are kept [%(default)s]"
    )
    parser.add_argument(
        "--at-once", type=int, default=os.cpu_count() or 1, help="[one for each core: %(default)s]"
    )
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--worlds", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.alone is not None:
        print(msgspec.json.encode(_alone(options)).decode(), flush=True)
        return 0
    names = [name for name in BUGS if not options.names or any(word in name for word in options.names)]
    outcomes = []
    engine, at_once = options.engine, options.at_once
    for outcome in search(names, seed=options.seed, engine=engine, steps=options.steps, at_once=at_once):
        outcomes.append(outcome)
        print(row(outcome), flush=True)
    return _judge(outcomes, options)


def _alone(options: argparse.Namespace) -> Outcome:
    """What becomes of one bug in this very process. Raises RuntimeError when it never got in."""
    planted = None if options.alone == HONEST else plant(BUGS[options.alone])
    outcome = live_until_found(
        options.alone, seed=options.seed, engine=options.engine, steps=options.steps, worlds=options.worlds
    )
    if planted is not None and not planted.is_used:
        raise RuntimeError(f"{BUGS[options.alone].file} is never loaded")
    return outcome


def _judge(outcomes: Sequence[Outcome], options: argparse.Namespace) -> int:
    """Say how many were found, and that the honest code has none of them in the same worlds."""
    worlds = max((outcome.worlds for outcome in outcomes), default=0)
    (honest,) = search([HONEST], seed=options.seed, engine=options.engine, worlds=worlds)
    found = sorted(outcome.steps for outcome in outcomes if outcome.is_found)
    if honest.promise is not None:
        print(f"but the honest code breaks {honest.promise!r} in world {honest.worlds - 1}: {honest.text}")
    print(
        f"{len(found)} of {len(outcomes)} found, half of them within {found[len(found) // 2] if found else 0:,} "
        f"steps; the honest code lived the same {worlds} worlds, {honest.steps:,} steps"
    )
    return 0 if len(found) == len(outcomes) and honest.promise is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
