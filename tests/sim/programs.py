"""Runs the simulation's programs as somebody at a terminal does, and hands back what they said."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
TIMEOUT_S: Final = 600


def run(*arguments: str, hash_seed: str | None = None) -> tuple[int, str]:
    """The exit status of `python ARGUMENTS…`, and all that it printed.

    `hash_seed` decides in which order this process's sets are; without it each run has another.
    """
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    if hash_seed is not None:
        environ["PYTHONHASHSEED"] = hash_seed
    done = subprocess.run(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        env=environ,
        timeout=TIMEOUT_S,
        check=False,
    )
    return done.returncode, done.stdout.decode(errors="replace")
