"""One target under atheris, in a process of its own, because libFuzzer ends the process that it runs in.

    python -m tests.fuzz.worker NAME SECONDS SEED FOLDER

Leaves in FOLDER the input of a finding, if there is one. Invariant: of what runs here only our own code is
instrumented, so that coverage means ours.
"""

import importlib
import mmap
import sys
import time
from pathlib import Path
from random import Random
from typing import Final

import atheris

from tests.fuzz.names import ACCEPTED, PLANTED, TARGETS
from tests.fuzz.target import Target

INPUT_BYTES_MAX: Final = 20_000
"""More than any of the parsers reads."""
CPU_S_MAX: Final = 0.5
"""Of one input, under instrumentation; all of them take milliseconds, so what takes longer grows too fast."""
PLAIN_SHARE: Final = 0.1
"""How many mutations are libFuzzer's own, which learn from comparisons."""


class TooSlow(Exception):
    """An input took more processor time than any input should."""


class Counter:
    """A number in a file, there even when the process ends without another word: libFuzzer runs no exit handlers."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            self._number = mmap.mmap(file.fileno(), 8)
        self._counted = 0

    def count(self) -> None:
        self._counted += 1
        self._number[:] = self._counted.to_bytes(8, "big")


def load(name: str) -> Target:
    """The target, with our packages instrumented as they are imported."""
    module, attribute = (TARGETS | PLANTED)[name]
    with atheris.instrument_imports(include=["spawn", "spawn_schemas"]):
        target: Target = getattr(importlib.import_module(module), attribute)
    return target


def main(name: str, seconds: str, seed: str, folder: Path) -> None:
    """Fuzz; does not return."""
    target = load(name)
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(target.seeds):
        (corpus / f"{number:04}").write_bytes(data)
    counter = Counter(folder / ACCEPTED)

    def one(data: bytes) -> None:
        start = time.process_time()
        if target.check(data):
            counter.count()
        took_s = time.process_time() - start
        if took_s > CPU_S_MAX:
            raise TooSlow(f"{took_s:.1f} s for {len(data)} bytes")

    def mutate(data: bytes, size_max: int, dice_seed: int) -> bytes:
        dice = Random(dice_seed)
        if dice.random() < PLAIN_SHARE:
            return bytes(atheris.Mutate(data, size_max))
        return target.mutate(data, dice)[:size_max]

    options = {
        "max_total_time": seconds,
        "max_len": INPUT_BYTES_MAX,
        "timeout": 20,
        "seed": seed,
        "print_final_stats": 1,
        "artifact_prefix": f"{folder}/",
    }
    arguments = [f"-{option}={value}" for option, value in options.items()]
    atheris.Setup([sys.argv[0], *arguments, str(corpus)], one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
