"""A disk that takes a millisecond longer to flush: a virtual one may answer in microseconds and flush nothing."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.bench.processes import inherited

_SOURCE: Final = Path(__file__).parent / "slow_sync.c"
_SYNCS: Final = 20
_PROBE: Final = f"""
import os, tempfile, time
with tempfile.TemporaryFile() as file:
    start = time.perf_counter()
    for _ in range({_SYNCS}):
        os.fdatasync(file.fileno())
    print(time.perf_counter() - start)
"""


class NoSlowDisk(Exception):
    """This machine cannot pretend; the message says why."""


def environ(folder: Path) -> dict[str, str]:
    """The environment in which a process finds its disk slow. Raises NoSlowDisk."""
    if shutil.which("cc") is None:
        raise NoSlowDisk("there is no C compiler (cc) here")
    library = folder / "slow_sync.so"
    build = subprocess.run(
        ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(_SOURCE)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if build.returncode != 0:
        raise NoSlowDisk(f"cc could not compile {_SOURCE.name}: {build.stderr}")
    slow = {"LD_PRELOAD": str(library)}
    if (took := _seconds_to_sync(slow)) < _SYNCS / 1000:
        raise NoSlowDisk(f"{_SYNCS} delayed flushes took {took * 1000:.1f} ms: LD_PRELOAD has no effect")
    return slow


def _seconds_to_sync(slow: dict[str, str]) -> float:
    probe = subprocess.run(
        [sys.executable, "-c", _PROBE],
        env=inherited() | slow,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return float(probe.stdout)
