"""What a run says: how far it is, what it came to, and how to live a failing life again.

Invariant: the hash of a run follows from its seed and its steps alone, whoever lived which world and in what order.
"""

import hashlib
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from shlex import quote
from typing import Final

from tests.sim.life import Life

YEAR_S: Final = 365.25 * 86_400
_TOLD: Final = ("calls", "commits", "crashes")
"""What a summary tells of every run, were it none."""
_MOVE: Final = "move "
"""Under `move <kind>` a life counts its moves; what it counts besides, under any other name, are faults."""
TAIL: Final = 25
WIDTH: Final = 110
_NUMBERS: Final = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?", re.ASCII)


@dataclass
class Tally:
    """What all lives of a run come to so far."""

    worlds: dict[int, str] = field(default_factory=dict)
    """Each world's trace hash."""
    steps: int = 0
    lived_s: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    violations: int = 0

    def add(self, number: int, life: Life) -> None:
        self.worlds[number] = life.trace_hash
        self.steps += life.steps
        self.lived_s += life.lived_s
        self.counts.update(life.counts)
        self.violations += life.violation is not None

    @property
    def trace_hash(self) -> str:
        lines = (f"{number} {self.worlds[number]}\n" for number in sorted(self.worlds))
        return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def progress(tally: Tally, seconds: float) -> str:
    """One line of how far a run is."""
    rate = tally.steps / max(seconds, 1e-3)
    return (
        f"{seconds:5.0f} s  {tally.steps:>11,} steps ({rate:,.0f}/s)  {len(tally.worlds):,} worlds  "
        f"{tally.lived_s / YEAR_S:,.2f} years  {_known(tally.counts)}  {_faults(tally.counts).total():,} faults"
    )


def mix(tally: Tally) -> str:
    """How often each kind of move was played, and each kind of fault befell."""
    moves = {name.removeprefix(_MOVE): n for name, n in tally.counts.items() if name.startswith(_MOVE)}
    return _wrapped(f"moves: {_listed(moves)}") + "\n" + _wrapped(f"faults: {_listed(_faults(tally.counts))}")


def summary(tally: Tally, seconds: float) -> str:
    """The last line of a run."""
    kinds = Counter[str]()
    for name, n in _faults(tally.counts).items():
        kinds[name.partition(":")[0]] += n
    broken = f"{tally.violations} violation{'' if tally.violations == 1 else 's'}"
    return (
        f"{tally.steps:,} steps, {len(tally.worlds):,} worlds, {tally.lived_s / YEAR_S:,.2f} virtual years, "
        f"{_known(tally.counts)}, faults: {_listed(kinds)}; "
        f"{broken} in {seconds:.0f} s; trace {tally.trace_hash}"
    )


def failure(life: Life, *, seed: str, number: int) -> str:
    """What was broken, where, and the last that happened before. Raises ValueError for a life without a violation."""
    violation = life.violation
    if violation is None:
        raise ValueError("nothing was broken in this life")
    tail = "".join(f"  {line}\n" for line in life.tail[-TAIL:])
    return (
        f"VIOLATION of {violation.promise!r}: {violation.text}\n"
        f"seed {seed}, world {number}, move {violation.move}, step {violation.step}; the last steps:\n"
        f"{tail}{life.cause}"
    )


def replay(program: str, *, seed: str, number: int, moves: Sequence[int]) -> str:
    """The command that lives this life again, exactly; `program` is what begins it."""
    return f"{program} --seed {quote(seed)} --world {number} --moves {spell(moves)}"


def spell(numbers: Iterable[int]) -> str:
    """Numbers as `--moves` takes them: 3,5-9,17; none of them is `none`."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans) or "none"


def unspell(text: str) -> tuple[int, ...]:
    """The numbers of `spell`, in order. Raises ValueError for anything else."""
    if text == "none":
        return ()
    found: list[int] = []
    for part in text.split(","):
        match = _NUMBERS.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match is not None else (1, 0)
        if first > last:
            raise ValueError(f"{part!r} is no number and no span of numbers: write 3,5-9,17")
        found.extend(range(first, last + 1))
    return tuple(sorted(set(found)))


def _known(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts.get(name, 0):,} {name}" for name in _TOLD)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {counts[name]:,}" for name in sorted(counts)) or "none"


def _wrapped(text: str) -> str:
    """In lines, broken only where one thing ends."""
    lines = textwrap.wrap(text.replace(" ", "\0").replace(",\0", ", "), WIDTH, subsequent_indent="  ")
    return "\n".join(lines).replace("\0", " ")


def _faults(counts: Mapping[str, int]) -> Counter[str]:
    return Counter(
        {name: n for name, n in counts.items() if name not in _TOLD and not name.startswith(_MOVE)}
    )
