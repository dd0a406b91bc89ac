"""`python -m tests.fuzz --seconds 600 [NAME …]`: fuzz all targets in turn, each for its share of the time.

Ends with 1 if anything was found. A finding is printed with its input; put that into the table of bad input that the
target's seeds come from.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.fuzz.names import TARGETS
from tests.fuzz.runs import fuzz


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"targets: {', '.join(TARGETS)}; all by default"
    )
    parser.add_argument("--seconds", type=int, default=600, help="for all targets together (%(default)s)")
    parser.add_argument(
        "--seed", type=int, help="of the random numbers; printed, so that a run can be repeated"
    )
    told = parser.parse_args()
    if unknown := set(told.names) - TARGETS.keys():
        parser.error(f"no target is called {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    names = told.names or list(TARGETS)
    seed = int.from_bytes(os.urandom(4), "big") >> 1 if told.seed is None else told.seed
    seconds = max(1, told.seconds // len(names))
    print(f"{len(names)} targets, {seconds} s each, seed {seed}", flush=True)
    found = 0
    for name in names:
        with tempfile.TemporaryDirectory(prefix="spawn-fuzz-") as folder:
            run = fuzz(name, seconds=seconds, seed=seed, folder=Path(folder))
        found += run.finding is not None
        result = "nothing found" if run.finding is None else f"FOUND\n{run.finding}"
        print(f"{name:12} {run.executed:>9} inputs, {run.accepted:>8} accepted: {result}", flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
