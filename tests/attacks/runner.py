"""Makes attacks on a service from which one defence was taken out: `python -m tests.attacks.runner`.

Reads jobs as JSON from standard input (name, file, the text that replaces it, attacks) and writes one outcome for each
attack. Every job runs in a fork of its own that loads our packages anew, the one module from the changed text; nothing
on disk is changed. Invariant: `failed` means that the scene stood, every honest call succeeded, and only then the
attack was not answered, or moved something, against its entry.
"""

import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from itertools import takewhile
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Final

import msgspec
import uvloop

if TYPE_CHECKING:
    from tests.attacks.kit import Attack

ROOT: Final = Path(__file__).resolve().parents[2]
OURS: Final = ("spawn", "spawn_ledger", "spawn_providers", "spawn_schemas", "tests")
WORKERS: Final = 2
JOB_TIMEOUT_S: Final = 120
SHM: Final = "/dev/shm"  # noqa: S108 - a folder of our own is made in it
MEMORY: Final = SHM if os.access(SHM, os.W_OK) else None
"""Where the databases of a scene lie: none of them has to outlive a power cut, and on a disk they would mostly wait."""

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
    def __init__(self, name: str, path: str, code: CodeType) -> None:
        super().__init__(name, path)
        self._code = code

    def get_code(self, fullname: str) -> CodeType:
        """Never the bytecode that is cached for the file."""
        return self._code


class Replacing(MetaPathFinder):
    """Loads our packages from code that was compiled once for all jobs, and one file from another text."""

    def __init__(self, job: Job, compiled: Mapping[str, CodeType]) -> None:
        self._compiled = dict(compiled)
        self._path: str | None = None
        if job.file is not None:
            self._path = str(ROOT / job.file)
            self._compiled[self._path] = compile(job.text, self._path, "exec", dont_inherit=True)
        self.is_used = job.file is None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in OURS:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin not in self._compiled:
            return None
        self.is_used = self.is_used or spec.origin == self._path
        spec.loader = _Loader(fullname, spec.origin, self._compiled[spec.origin])
        return spec


def forget_ours() -> dict[str, CodeType]:
    """Unload our packages and return their code by path. Those of others stay: they take seconds to load."""
    compiled = {}
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS and name != __name__]:
        spec = sys.modules.pop(name).__spec__
        if spec is not None and isinstance(spec.loader, SourceFileLoader) and spec.origin is not None:
            code = spec.loader.get_code(name)
            if code is not None:
                compiled[spec.origin] = code
    return compiled


async def _warm_up(folder: Path) -> None:
    """Load whatever a scene needs, also what is loaded late, so that a fork finds it."""
    from tests.attacks.scene import open_scene  # noqa: PLC0415 - forgotten again before the first fork
    from tests.attacks.table import ATTACKS  # noqa: PLC0415 - as above

    async with open_scene(folder):
        assert ATTACKS


async def _outcomes(names: Sequence[str], folder: Path) -> dict[str, str]:
    from tests.attacks.table import ATTACKS  # noqa: PLC0415 - loaded anew in each fork

    outcomes: dict[str, str] = {}
    left = [next(attack for attack in ATTACKS if attack.name == name) for name in names]
    while left:
        together = [*takewhile(lambda attack: not attack.needs_own_scene, left)] or left[:1]
        place = folder / str(len(left))
        place.mkdir()
        made = await _outcomes_in_one_scene(together, place)
        outcomes |= made
        left = left[len(made) :]
    return outcomes


async def _outcomes_in_one_scene(attacks: "Sequence[Attack]", folder: Path) -> dict[str, str]:
    """What becomes of these attacks, up to the first that succeeds: what it leaves is no scene for another."""
    from tests.attacks.kit import Broke, prepare, strike  # noqa: PLC0415 - loaded anew in each fork
    from tests.attacks.scene import open_scene  # noqa: PLC0415 - as above

    made: dict[str, str] = {}
    name = ""
    try:
        async with open_scene(folder, **attacks[0].settings) as scene:
            for attack in attacks:
                try:
                    wires = await prepare(attack, scene)
                except AssertionError as error:
                    raise RuntimeError(f"{attack.name} could not be made: {error}") from error
                name = attack.name
                await strike(attack, scene, wires)
                made[name] = WITHSTOOD
    except Broke as error:
        made[name] = f"the service broke: {error}"
    except AssertionError:
        if not name:
            raise
        # It was the attack, or the books in the end.
        made[name] = FAILED
    return made


def work(job: Job, compiled: Mapping[str, CodeType]) -> Outcome:
    """Make all attacks of a job. What went wrong before it could be told proves nothing, and is reported."""
    replacing = Replacing(job, compiled)
    sys.meta_path.insert(0, replacing)
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        try:
            outcomes = uvloop.run(_outcomes(job.attacks, Path(folder)))
        except Exception as error:  # noqa: BLE001 - whatever it is
            outcomes = dict.fromkeys(job.attacks, f"{type(error).__name__}: {error}")
    if not replacing.is_used:
        outcomes = dict.fromkeys(job.attacks, f"{job.file} is never loaded")
    return Outcome(name=job.name, attacks=outcomes)


def _fork(job: Job, compiled: Mapping[str, CodeType], result: Path) -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(JOB_TIMEOUT_S)
            logging.disable()
            result.write_bytes(msgspec.json.encode(work(job, compiled)))
            status = 0
        finally:
            os._exit(status)


def run(jobs: Sequence[Job], folder: Path) -> list[Outcome]:
    """The outcomes in the order of the jobs; a job that died has one that says so."""
    uvloop.run(_warm_up(folder))
    compiled = forget_ours()
    # A fork copies one thread: the locks of any other would never be released in it.
    assert threading.active_count() == 1
    running = 0
    for number, job in enumerate(jobs):
        if running == WORKERS:
            os.wait()
            running -= 1
        _fork(job, compiled, folder / f"{number}.json")
        running += 1
    for _ in range(running):
        os.wait()
    return [_read(job, folder / f"{number}.json") for number, job in enumerate(jobs)]


def _read(job: Job, result: Path) -> Outcome:
    if not result.exists():
        return Outcome(name=job.name, attacks=dict.fromkeys(job.attacks, "the process died"))
    return msgspec.json.decode(result.read_bytes(), type=Outcome)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=MEMORY) as scratch:
        read = msgspec.json.decode(sys.stdin.buffer.read(), type=list[Job])
        sys.stdout.buffer.write(msgspec.json.encode(run(read, Path(scratch))))
