"""`python -m tests.sim --steps 1000000 --seed 7`, which is `make sim`; one world of it: `--world 12 --moves 3,17`.

Exits with 1 when a promise was broken, or when `--cover` finds too little covered. The process starts itself anew with
a fixed hash seed, so that no order of a set differs from one run to the next.
"""

import argparse
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.sim import planted
from tests.sim.report import unspell

STEPS: Final = 100_000
HASH_SEED: Final = "PYTHONHASHSEED"
Trace = Callable[[str], None]


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    seed = options.seed or str(secrets.randbelow(10**9))
    if options.seed is None:
        tell(f"seed {seed}")
    if os.environ.get(HASH_SEED) != "0":
        _start_anew([*arguments, "--seed", seed])
    if options.cover:
        return _covered(seed, options)
    return 0 if _run(seed, options) else 1


def tell(line: str) -> None:
    print(line, flush=True)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS, help="how much is to happen in all [%(default)s]")
    parser.add_argument(
        "--seed", help="any text; the same one lives the same lives [a fresh one, which is told]"
    )
    parser.add_argument(
        "--shards", type=int, default=os.cpu_count() or 1, help="processes [one for each core: %(default)s]"
    )
    parser.add_argument("--world", type=int, help="live this one alone")
    parser.add_argument("--moves", type=unspell, help="of --world only these, such as 3,5-9,17 [all]")
    parser.add_argument(
        "--trace", type=Path, help="write each step of each life to this file, from one process"
    )
    parser.add_argument(
        "--plant", metavar="BUG", help="live with this bug of tests.sim.planted, in one process"
    )
    parser.add_argument(
        "--cover", action="store_true", help="tell how much of our code the lives reach; slow"
    )
    options = parser.parse_args(arguments)
    if options.moves is not None and options.world is None:
        parser.error("--moves are those of one --world")
    if options.plant is not None and options.plant not in planted.BUGS:
        parser.error(f"there is no bug {options.plant!r}: {', '.join(planted.BUGS)}")
    if options.steps < 1 or options.shards < 1:
        parser.error("--steps and --shards are at least 1")
    return options


def _start_anew(arguments: Sequence[str]) -> None:
    """The last --seed counts, should there be two."""
    command = [sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1], *arguments]
    os.execve(sys.executable, command, os.environ | {HASH_SEED: "0"})  # noqa: S606 - this very program


def _run(seed: str, options: argparse.Namespace) -> bool:
    """Whether no promise was broken."""
    if options.plant is not None:
        planted.plant(planted.BUGS[options.plant])
    # Late, because bugs are planted, and covered lines counted, before our packages are loaded.
    from tests.sim import run  # noqa: PLC0415 - see above

    with _trace(options.trace) as trace:
        if options.world is not None:
            return run.one(seed, options.world, moves=options.moves, trace=trace, tell=tell)
        is_alone = options.cover or options.plant is not None or trace is not None
        return run.main(
            seed, steps=options.steps, shards=1 if is_alone else options.shards, trace=trace, tell=tell
        )


@contextmanager
def _trace(path: Path | None) -> Iterator[Trace | None]:
    if path is None:
        yield None
        return
    with path.open("w", encoding="utf-8") as file:
        yield lambda line: print(line, file=file)


def _covered(seed: str, options: argparse.Namespace) -> int:
    from tests.sim import cover  # noqa: PLC0415 - its library is for this alone

    with cover.counting() as covered:
        holds = _run(seed, options)
    is_enough = covered.tell(tell)
    return 0 if holds and is_enough else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
