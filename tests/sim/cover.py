"""How much of the code that has to be right the simulation reaches by itself.

Begins before the code is loaded: what a module does when it is loaded is run as well.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from coverage import Coverage

ROOT: Final = Path(__file__).resolve().parents[2]
COVERED: Final = ("spawn/services", "spawn/jobs", "ledger/spawn_ledger", "spawn/payments")
MIN_PERCENT: Final = 85
_NEVER_RUN: Final = ("if TYPE_CHECKING:", r"^\s*\.\.\.$", r"class .*\(Protocol\):")


class Covered:
    """What was counted."""

    def __init__(self, counted: Coverage) -> None:
        self._counted = counted

    def tell(self, tell: Callable[[str], None]) -> bool:
        """Tell of each file which lines were not reached, and the share of each folder; False when one is too small."""
        is_enough = True
        for folder in COVERED:
            lines = missed = 0
            for path in sorted((ROOT / folder).glob("**/*.py")):
                _, statements, _, missing, spans = self._counted.analysis2(str(path))
                lines, missed = lines + len(statements), missed + len(missing)
                if missing:
                    tell(
                        f"  {path.relative_to(ROOT)}: {len(missing)} of {len(statements)} not reached: {spans}"
                    )
            percent = 100 * (lines - missed) / lines
            is_enough = is_enough and percent >= MIN_PERCENT
            tell(f"{folder}: {percent:.1f} % of {lines} lines (goal {MIN_PERCENT} %)")
        return is_enough


@contextmanager
def counting() -> Iterator[Covered]:
    """Count what is run inside."""
    counted = Coverage(data_file=None, config_file=False, source=[str(ROOT / folder) for folder in COVERED])
    for pattern in _NEVER_RUN:
        counted.exclude(pattern)
    counted.start()
    try:
        yield Covered(counted)
    finally:
        counted.stop()
