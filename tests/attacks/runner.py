"""Makes attacks on a service from which one defence was taken out: `python -m tests.attacks.runner`.

Reads jobs as JSON from standard input (name, file, the text that replaces it, attacks) and writes one outcome for each
attack. Every job runs in a fork of its own that loads our packages anew, the one module from the changed text; nothing
on disk is changed. Invariant: `failed` means that the scene stood, every honest call succeeded, and only then the
attack was not answered, or moved something, against its entry.
"""

import asyncio
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Final

import msgspec

ROOT: Final = Path(__file__).resolve().parents[2]
OURS: Final = ("spawn", "spawn_ledger", "spawn_providers", "spawn_schemas", "tests")
WORKERS: Final = 2
JOB_TIMEOUT_S: Final = 120

WITHSTOOD: Final = "withstood"
FAILED: Final = "failed"


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Attacks to make on a service whose `file` (below the root) reads `text`, or on the service as it is."""

    name: str
    attacks: tuple[str, ...]
    file: str | None = None
    text: str = ""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of each attack of a job: `withstood`, `failed`, or what went wrong before it could be told."""

    name: str
    attacks: dict[str, str]


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, text: str) -> None:
        super().__init__(name, path)
        self._text = text

    def get_code(self, fullname: str) -> CodeType:
        """Never the bytecode that is cached for the file."""
        return compile(self._text, self.path, "exec", dont_inherit=True)


class Replacing(MetaPathFinder):
    """Loads one file from another text."""

    def __init__(self, job: Job) -> None:
        self._path = str(ROOT / (job.file or ""))
        self._text = job.text
        self.is_used = job.file is None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin != self._path:
            return None
        self.is_used = True
        spec.loader = _Loader(fullname, self._path, self._text)
        return spec


def forget_ours() -> None:
    """Unload our packages, and keep those of others: they take seconds to load, ours a moment."""
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS and name != __name__]:
        del sys.modules[name]


async def _warm_up(folder: Path) -> None:
    """Load whatever a scene needs, also what is loaded late, so that a fork finds it."""
    from tests.attacks.scene import open_scene  # noqa: PLC0415 - forgotten again before the first fork

    async with open_scene(folder):
        pass


async def _outcome(name: str, folder: Path) -> str:
    from tests.attacks.kit import prepare, strike  # noqa: PLC0415 - loaded anew in each fork
    from tests.attacks.scene import open_scene  # noqa: PLC0415 - as above
    from tests.attacks.table import ATTACKS  # noqa: PLC0415 - as above

    (attack,) = (attack for attack in ATTACKS if attack.name == name)
    is_struck = False
    try:
        async with open_scene(folder, **attack.settings) as scene:
            wires = await prepare(attack, scene)
            is_struck = True
            await strike(attack, scene, wires)
    except AssertionError:
        if not is_struck:
            raise
        return FAILED
    return WITHSTOOD


def work(job: Job) -> Outcome:
    """All attacks of a job, each in a scene of its own."""
    replacing = Replacing(job)
    sys.meta_path.insert(0, replacing)
    outcomes = {}
    for name in job.attacks:
        with tempfile.TemporaryDirectory() as folder:
            try:
                outcomes[name] = asyncio.run(_outcome(name, Path(folder)))
            except Exception as error:  # noqa: BLE001 - whatever it is, it proves nothing, and is reported
                outcomes[name] = f"{type(error).__name__}: {error}"
    if not replacing.is_used:
        outcomes = dict.fromkeys(job.attacks, f"{job.file} is never loaded")
    return Outcome(name=job.name, attacks=outcomes)


def _fork(job: Job, result: Path) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(JOB_TIMEOUT_S)
            logging.disable()
            result.write_bytes(msgspec.json.encode(work(job)))
            status = 0
        finally:
            os._exit(status)
    return child


def run(jobs: Sequence[Job], folder: Path) -> list[Outcome]:
    """The outcomes in the order of the jobs; a job that died has one that says so."""
    asyncio.run(_warm_up(folder))
    forget_ours()
    # A fork copies one thread: the locks of any other would never be released in it.
    assert threading.active_count() == 1
    running = 0
    for number, job in enumerate(jobs):
        if running == WORKERS:
            os.wait()
            running -= 1
        _fork(job, folder / f"{number}.json")
        running += 1
    for _ in range(running):
        os.wait()
    return [_read(job, folder / f"{number}.json") for number, job in enumerate(jobs)]


def _read(job: Job, result: Path) -> Outcome:
    if not result.exists():
        return Outcome(name=job.name, attacks=dict.fromkeys(job.attacks, "the process died"))
    return msgspec.json.decode(result.read_bytes(), type=Outcome)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        read = msgspec.json.decode(sys.stdin.buffer.read(), type=list[Job])
        sys.stdout.buffer.write(msgspec.json.encode(run(read, Path(scratch))))
