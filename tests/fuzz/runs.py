"""Running one target for a while, and reading what came of it."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

from tests.engines import ROOT
from tests.fuzz.names import ACCEPTED

_GRACE_S: Final = 120
"""For imports, seeds and the last input, on a machine that is busy with other things."""
_EXECUTED: Final = re.compile(r"stat::number_of_executed_units:\s+([0-9]+)")
_PROGRESS: Final = re.compile(r"^(?:#[0-9]+|INFO:).*\n", re.MULTILINE)


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What a target's run did. `finding` is None, or the traceback and the input that led to it."""

    name: str
    executed: int
    accepted: int
    finding: str | None


def fuzz(name: str, *, seconds: int, seed: int, folder: Path) -> Run:
    """Fuzz one target for `seconds`; `folder` is empty and is left with what the run wrote."""
    worker = [sys.executable, "-m", "tests.fuzz.worker", name, str(seconds), str(seed), str(folder)]
    done = subprocess.run(
        worker,
        cwd=ROOT,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds + _GRACE_S,
        check=False,
    )
    said = done.stdout + done.stderr
    executed = _EXECUTED.search(said)
    accepted = folder / ACCEPTED
    inputs = [f"{path.name}: {path.read_bytes()!r}" for path in sorted(folder.glob("*-*"))]
    failed = done.returncode != 0 or executed is None
    return Run(
        name=name,
        executed=int(executed[1]) if executed else 0,
        accepted=int.from_bytes(accepted.read_bytes(), "big") if accepted.exists() else 0,
        finding="\n".join([_PROGRESS.sub("", said), *inputs]) if failed else None,
    )
