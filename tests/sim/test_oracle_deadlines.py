"""What the oracle of deadlines says of a job that ticks and does not tell what it has to."""

from types import SimpleNamespace
from typing import Final, cast

import pytest

from spawn.settings import Settings
from tests.sim.made_up_books import DEPOSIT, OWN, RESERVE, SERVER, T0, WALLET, Wrong, metered
from tests.sim.oracle.deadlines import TICKS, Deadlines
from tests.sim.oracle.policy import DAY_S, Policy
from tests.sim.world import World

LATE: Final = T0 + 11 * DAY_S
"""The server's reserve lasts for eleven and a half days; a day's warning is due by then."""
TICK_S: Final = 10


class Town:
    """One process whose burn job ticks, on books in which a server's money comes to its end."""

    def __init__(self) -> None:
        self.now = T0
        self.wrong_by_s = 0
        self.clock = self
        self.process = SimpleNamespace(number=1, ticked={})
        self.twin = None
        self.deadlines = Deadlines(cast("World", self), Policy.of(Settings()))
        accounts = {RESERVE: {"balance": DEPOSIT, "held": 0}, OWN: {"balance": 0, "held": 0}}
        self.deadlines.follow(WALLET, [metered(T0)], accounts)

    def now_s(self) -> int:
        return self.now

    def true_s(self) -> int:
        return self.now

    def violation(self, promise: str, text: str) -> None:
        raise Wrong(text)

    def tick(self, times: int) -> None:
        for _ in range(times):
            self.now += TICK_S
            self.process.ticked["burn"] = float(self.now)
            self.deadlines.look()


def test_what_was_crossed_long_ago_is_told_within_some_ticks() -> None:
    town = Town()
    town.now = LATE
    town.tick(TICKS - 1)
    with pytest.raises(Wrong, match=f"{SERVER} fell to .* and nobody was told"):
        town.tick(1)


def test_a_process_that_starts_anew_waits_for_the_lease_from_its_own_first_tick_on() -> None:
    """docs/sim-findings.md, 28."""
    town = Town()
    town.now = LATE
    town.tick(TICKS - 1)
    town.process = SimpleNamespace(number=2, ticked={})
    town.tick(TICKS - 1)
    with pytest.raises(Wrong, match="nobody was told"):
        town.tick(1)
