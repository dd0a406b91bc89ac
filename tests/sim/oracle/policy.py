"""When owners must be warned, as the settings say it: `SPAWN_WARNINGS` and `SPAWN_GRACE_S` (docs/settings.md)."""

from dataclasses import dataclass
from typing import Final

from spawn.settings import Settings

DAY_S: Final = 86_400
_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": DAY_S}


@dataclass(frozen=True)
class Policy:
    """`thresholds_s`: the tightest first. `grace_s`: how long a server outlives its money at least."""

    thresholds_s: tuple[int, ...]
    grace_s: int

    @classmethod
    def of(cls, settings: Settings) -> "Policy":
        words = [word.strip() for word in settings.warnings.split(",")]
        return cls(tuple(sorted(int(word[:-1]) * _UNITS[word[-1]] for word in words)), settings.grace_s)

    @property
    def last_s(self) -> int:
        return self.thresholds_s[0]

    def tightest_crossed(self, runway_s: int) -> int | None:
        """The threshold that a runway has fallen to."""
        return next((threshold_s for threshold_s in self.thresholds_s if runway_s <= threshold_s), None)
