"""The moves as rules of a hypothesis state machine: it chooses them by its own lights, and shrinks what fails.

Beside the lives of the simulation, which are long and random, these are short and searched: hypothesis varies what it
found to matter, and leaves out what does not. Each run searches anew.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from math import ceil
from typing import Final

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.sim.life import Violation
from tests.sim.moves import Kind, kinds
from tests.sim.world import World, opened

WORLDS: Final = st.integers(0, 99)
NUMBERS: Final = st.integers(0, 999)
"""Of a move: what its own random choices are."""
FAMILIES: Final = {
    "customers": frozenset({"owner", "webhook", "feed", "machine"}),
    "strangers": frozenset({"attack"}),
    "operator": frozenset({"operator"}),
    "weather": frozenset({"cloud", "chain", "receiver", "crash", "jobs", "clock", "process"}),
    "time": frozenset({"time"}),
}
"""The first words of the names of moves."""


def family(name: str) -> st.SearchStrategy[Kind]:
    """Its kinds of moves by their weights, the most frequent first: that is what hypothesis shrinks towards."""
    ours = [kind for kind in kinds() if kind.name.partition(".")[0] in FAMILIES[name]]
    ours.sort(key=lambda kind: -kind.weight)
    return st.sampled_from([kind for kind in ours for _ in range(ceil(kind.weight))])


class Lives(RuleBasedStateMachine):
    """One world, in which hypothesis decides what happens next."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self._open = ExitStack()
        self._played: set[int] = set()

    @initialize(number=WORLDS)
    def begin(self, number: int) -> None:
        self.world = self._open.enter_context(opened("machine", number))
        self.world.begin()

    @rule(kind=family("customers"), number=NUMBERS)
    def a_customer_calls(self, kind: Kind, number: int) -> None:
        self._play(kind, number)

    @rule(kind=family("strangers"), number=NUMBERS)
    def a_stranger_calls(self, kind: Kind, number: int) -> None:
        self._play(kind, number)

    @rule(kind=family("operator"), number=NUMBERS)
    def the_operator_gives_an_order(self, kind: Kind, number: int) -> None:
        self._play(kind, number)

    @rule(kind=family("weather"), number=NUMBERS)
    def something_goes_wrong(self, kind: Kind, number: int) -> None:
        self._play(kind, number)

    @rule(kind=family("time"), number=NUMBERS)
    def time_passes(self, kind: Kind, number: int) -> None:
        self._play(kind, number)

    def _play(self, kind: Kind, number: int) -> None:
        """Once in a life: the same choices again would be the same nonces and names, which nobody draws twice."""
        if number not in self._played:
            self._played.add(number)
            with _as_exception():
                self.world.play(number, kind)

    @invariant()
    def no_promise_is_broken(self) -> None:
        if self.world.failed is not None:
            raise AssertionError(str(self.world.failed))

    def teardown(self) -> None:
        with self._open, _as_exception():
            if self.world.failed is None:
                self.world.settle()
            self.no_promise_is_broken()


@contextmanager
def _as_exception() -> Iterator[None]:
    """Hypothesis shrinks what raises an Exception; a violation is none, so that no code of the service catches it."""
    try:
        yield
    except Violation as broken:
        raise AssertionError(str(broken)) from broken


def test_every_move_belongs_to_a_rule() -> None:
    families = [family for families in FAMILIES.values() for family in families]
    assert {kind.name.partition(".")[0] for kind in kinds()} == set(families)
    assert len(families) == len(set(families))


TestLives = Lives.TestCase
TestLives.settings = settings(
    max_examples=50,
    stateful_step_count=40,
    deadline=None,
    derandomize=False,
    report_multiple_bugs=False,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
