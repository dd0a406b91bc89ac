"""The simulation finds what is wrong: a planted bug breaks a promise, and the honest code none.

A choice is looked for in each run; `SPAWN_TEST_PLANTED=all` looks for every one, as `python -m tests.sim.planted` does.
"""

import os
from typing import Final

import pytest

from tests.sim.planted import BUGS, HONEST, Outcome, changed, row, search
from tests.sim.planted_bug import Bug

CHOICE: Final = (
    "double burn",
    "the burn's remainder is dropped",
    "lost refund",
    "what a server sent is charged twice",
    "a counter that began anew counts as a fall below zero",
    "a fee is refunded twice over",
    "a transfer does not reach the account",
    "a hold is never released after a refusal",
    "the deposit of a failed resize stays where it was to go",
    "the fee of an operation that failed later is kept",
    "a replay is accepted",
    "an idempotency key crosses wallets",
    "credit before the settlement is known",
    "orphan on a lost answer: given up, with refund",
    "orphan on a lost answer: asked again without looking",
    "strays are left alone",
    "a vanished machine is billed on",
    "a stale claim's outcome is applied",
    "claims are not released at the start",
    "whose server it is, is not looked at",
    "a root password is handed out twice",
    "early destroy: an hour that is paid",
    "nobody is warned",
    "the last warning is not told",
    "a warning is not remembered",
    "a price rises without notice",
)
"""Such as are found soon, of every kind."""
NAMES: Final = tuple(BUGS) if os.environ.get("SPAWN_TEST_PLANTED") == "all" else CHOICE
STEPS: Final = 60_000
AT_ONCE: Final = 2


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    found = {outcome.name: outcome for outcome in search(NAMES, steps=STEPS, at_once=AT_ONCE)}
    for outcome in found.values():
        print(row(outcome))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_planted_bug_is_found(name: str, outcomes: dict[str, Outcome]) -> None:
    assert outcomes[name].is_found, row(outcomes[name])


def test_the_honest_code_lives_the_same_worlds_without_a_violation(outcomes: dict[str, Outcome]) -> None:
    worlds = max(outcome.worlds for outcome in outcomes.values())
    (honest,) = search([HONEST], worlds=worlds)
    assert honest.promise is None, row(honest)
    assert honest.worlds == worlds


def test_no_bug_breaks_the_service_as_such(outcomes: dict[str, Outcome]) -> None:
    """What every world shows at its first step is no bug that has to be looked for."""
    assert all(outcome.steps > 20 for outcome in outcomes.values())


@pytest.mark.parametrize("bug", BUGS.values(), ids=lambda bug: bug.name)
def test_the_bug_is_where_the_table_says(bug: Bug) -> None:
    assert changed(bug) != ""
    assert bug.before != bug.after
    assert bug.promises


def test_there_are_bugs_of_every_kind() -> None:
    assert len(BUGS) >= 25
    assert len(CHOICE) >= 15
