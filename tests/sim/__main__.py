"""`python -m tests.sim --steps 1000000 --seed 7`, which is `make sim`; one world of it: `--world 12 --moves 3,17`.

Exits with 1 when a promise was broken, or when `--cover` finds too little covered, with 130 when it was interrupted.
The process starts itself anew with a fixed hash seed, so that no order of a set differs from one run to the next.
"""

import argparse
import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Final

from tests.sim import planted
from tests.sim.life import ENGINES
from tests.sim.report import unspell
from tests.sim.terminal import Terminal

STEPS: Final = 100_000
HASH_SEED: Final = "PYTHONHASHSEED"
INTERRUPTED: Final = 130
"""What a shell says of a program that a SIGINT ended."""
Trace = Callable[[str], None]


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    if os.environ.get(HASH_SEED) != "0":
        _start_anew()
    # A run that is told to end by others gives back what it has, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    terminal = Terminal(sys.stdout)
    try:
        return _covered(options, terminal) if options.cover else _run(options, terminal)
    except KeyboardInterrupt:
        terminal.tell("stopped; nothing was lived to its end")
        return INTERRUPTED


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS, help="how much is to happen in all [%(default)s]")
    parser.add_argument(
        "--seed", help="any text; the same one lives the same lives [a fresh one, which is told]"
    )
    parser.add_argument(
        "--engine", choices=ENGINES, default=ENGINES[0], help="where the books are kept [%(default)s]"
    )
    parser.add_argument(
        "--shards", type=int, default=os.cpu_count() or 1, help="processes [one for each core: %(default)s]"
    )
    parser.add_argument("--world", type=int, metavar="NUMBER", help="live this one alone")
    parser.add_argument("--moves", type=_moves, help="of --world only these, such as 3,5-9,17 [all]")
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="write each step of each life to it, from one process"
    )
    parser.add_argument(
        "--plant", metavar="BUG", help="live with this bug of tests.sim.planted, in one process"
    )
    parser.add_argument(
        "--cover",
        action="store_true",
        help="tell how much of our code the lives reach, in one process; three times as slow",
    )
    options = parser.parse_args(arguments)
    if mistake := _mistake(options):
        parser.error(mistake)
    if options.seed is None:
        options.seed = str(secrets.randbelow(10**9))
    return options


def _moves(text: str) -> tuple[int, ...]:
    try:
        return unspell(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _mistake(options: argparse.Namespace) -> str | None:
    """What is wrong with these options, and what to write instead."""
    if options.steps < 1 or options.shards < 1:
        return "--steps and --shards are at least 1"
    if options.world is not None and options.world < 0:
        return "worlds are numbered from 0"
    if options.world is not None and options.seed is None:
        return "--world is one of a --seed: name it as well"
    if options.moves is not None and options.world is None:
        return "--moves are those of one --world: name it as well"
    if options.seed is not None and not options.seed.isprintable():
        return "--seed is a text that can be printed"
    if options.plant is not None and options.plant not in planted.BUGS:
        return f"--plant: there is no bug {options.plant!r}; there are\n  " + "\n  ".join(planted.BUGS)
    if options.trace is not None and (not options.trace.parent.is_dir() or options.trace.is_dir()):
        return f"--trace: {options.trace} is no file in a folder that exists"
    return None


def _start_anew() -> None:
    """This very program, with the same words."""
    command = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, command, os.environ | {HASH_SEED: "0"})  # noqa: S606 - see above


def _run(options: argparse.Namespace, terminal: Terminal) -> int:
    if options.plant is not None:
        planted.plant(planted.BUGS[options.plant])
    # Late, because bugs are planted, and covered lines counted, before our packages are loaded.
    from tests.sim.run import Runner  # noqa: PLC0415 - see above

    with _trace(options.trace) as trace:
        runner = Runner(
            seed=options.seed,
            terminal=terminal,
            program=_program(options),
            engine=options.engine,
            trace=trace,
        )
        if options.world is not None:
            return runner.one(options.world, moves=options.moves)
        is_alone = options.cover or options.plant is not None or trace is not None
        return runner.whole(steps=options.steps, shards=1 if is_alone else options.shards)


def _program(options: argparse.Namespace) -> str:
    """What to type to get the same service again; from here, if it is below."""
    python, here = Path(sys.executable), Path.cwd()
    command = f"{python.relative_to(here) if python.is_relative_to(here) else python} -m tests.sim"
    command += "" if options.engine == ENGINES[0] else f" --engine {options.engine}"
    return command if options.plant is None else f"{command} --plant {quote(options.plant)}"


@contextmanager
def _trace(path: Path | None) -> Iterator[Trace | None]:
    if path is None:
        yield None
        return
    with path.open("w", encoding="utf-8") as file:
        yield lambda line: print(line, file=file)


def _covered(options: argparse.Namespace, terminal: Terminal) -> int:
    from tests.sim import cover  # noqa: PLC0415 - its library is for this alone

    with cover.counting() as covered:
        status = _run(options, terminal)
    is_enough = covered.tell(terminal.tell)
    return status or int(not is_enough)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
