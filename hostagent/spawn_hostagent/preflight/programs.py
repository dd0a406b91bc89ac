"""What programs of this machine say of themselves: which version, and what a distribution mended in it.

Invariant: nothing but programs that this package names is run, and what cannot be found out is said to be unknown.
"""

import gzip
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from spawn_hostagent.preflight.versions import RUNC_FIX

TIMEOUT_S: Final = 10
RUNC_CHANGELOG: Final = Path("/usr/share/doc/runc/changelog.Debian.gz")

Run = Callable[[list[str]], "tuple[int, str] | None"]
"""Runs a program; its exit status and what it wrote, None where it is not installed."""


def run_program(command: list[str]) -> tuple[int, str] | None:
    """Run it for `TIMEOUT_S` at most: its exit status and what it wrote, None where it is not installed."""
    path = shutil.which(command[0])
    if path is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603 - programs that this package names, without anything of a stranger's
            [path, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, done.stdout.decode(errors="replace")


def runc_backport(run: Run, changelog: Path = RUNC_CHANGELOG) -> bool:
    """Whether the distribution's package says that it has the fix, in a version that looks too old."""
    try:
        with gzip.open(changelog, "rt", encoding="utf-8", errors="replace") as text:
            if any(RUNC_FIX in line for line in text):
                return True
    except OSError:  # not Debian's runc, or packages without documents
        pass
    told = run(["rpm", "-q", "--changelog", "runc"])
    return told is not None and told[0] == 0 and RUNC_FIX in told[1]


def toolkit_version(run: Run) -> str | None:
    """The version of NVIDIA's container toolkit, by whichever of its programs is there; None where none is."""
    for program in ("nvidia-ctk", "nvidia-container-toolkit", "nvidia-container-cli"):
        told = run([program, "--version"])
        if told is not None and told[0] == 0:
            lines = [line for line in told[1].splitlines() if "version" in line.lower()]
            return _after_version(lines[0] if lines else told[1])
    return None


def _after_version(line: str) -> str:
    """`NVIDIA Container Toolkit CLI version 1.17.8` and `cli-version: 1.17.8` end in it."""
    words = line.replace(":", " ").split()
    return words[-1] if words else line
