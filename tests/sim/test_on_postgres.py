"""The same worlds with their books on a PostgreSQL server, two replicas, and transactions that stop among others."""

from collections import Counter
from itertools import count
from typing import Final

import pytest

from tests.engines import require
from tests.sim.planted import row, search
from tests.sim.programs import run
from tests.sim.server import ServerBooks, ServerClimate
from tests.sim.turns import in_turns, wait_for
from tests.sim.world import live, opened

STEPS: Final = 3_000
MOVES: Final = range(1, 120)
WORLDS_MAX: Final = 12
ONE_HASH: Final = (
    "from tests.sim.world import live; "
    "print(live('again', 0, engine='postgresql', moves=range(1, 120)).trace_hash)"
)
STORM: Final = ServerClimate(pause=0.3, collide=0.02, unclear=0.05, away=0.001)
MET: Final = (
    "crashes",
    "database: away",
    "database: collision",
    "database: drawn collision",
    "database: kept COMMIT",
    "database: late COMMIT",
    "database: lock",
    "database: lost COMMIT",
    "database: rested too long",
)
"""Whatever can befall a transaction."""
BUGS: Final = ("double burn", "lost refund", "a replay is accepted", "two processes lead")
ON_POSTGRES: Final = ("-m", "tests.sim", "--engine", "postgresql")


@pytest.fixture(autouse=True)
def _needs_a_server() -> None:
    require("postgresql")


def test_lives_of_a_fresh_seed_break_no_promise() -> None:
    status, said = run(*ON_POSTGRES, "--steps", str(STEPS), "--shards", "1")
    print(said)
    assert status == 0, said


def test_a_life_is_the_same_on_another_server_and_depends_on_no_life_before_it() -> None:
    live("storm", 0, engine="postgresql", moves=range(1, 40))
    lived = live("again", 0, engine="postgresql", moves=MOVES)
    assert lived.violation is None
    status, said = run("-c", ONE_HASH, hash_seed="1")
    assert (status, said.strip()) == (0, lived.trace_hash)


def test_everything_befalls_a_server_and_nothing_comes_of_it() -> None:
    met = Counter[str]()
    for number in count():
        assert number < WORLDS_MAX, f"nobody met {[kind for kind in MET if not met[kind]]}"
        with opened("storm", number, engine="postgresql") as world:
            assert isinstance(world.books, ServerBooks)
            world.books.climate = STORM
            world.climate.twin, world.climate.crash_at_statement, world.climate.freeze = True, 0.02, 0.2
            world.begin()
            for move in MOVES:
                world.play(move)
            world.settle()
        assert world.failed is None, str(world.failed)
        met.update(world.counts)
        if all(met[kind] for kind in MET):
            break


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found_on_a_server(name: str) -> None:
    (outcome,) = search([name], engine="postgresql", steps=60_000)
    assert outcome.is_found, row(outcome)


async def test_what_runs_in_turns_stops_while_the_loop_goes_on() -> None:
    happened: list[str] = []

    async def between(text: str) -> str:
        happened.append(text)
        return text.upper()

    def work() -> str:
        happened.append("begun")
        answer = wait_for(between("asked"))
        happened.append("ended")
        return answer

    assert await in_turns(work) == "ASKED"
    assert happened == ["begun", "asked", "ended"]


@pytest.mark.parametrize("where", ["before", "while it waits"])
async def test_what_goes_wrong_in_turns_reaches_the_caller(where: str) -> None:
    async def fail() -> None:
        raise LookupError(where)

    def work() -> None:
        if where == "before":
            raise LookupError(where)
        wait_for(fail())

    with pytest.raises(LookupError, match=where):
        await in_turns(work)
