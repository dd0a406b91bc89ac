"""The simulation lives, breaks no promise, and lives the same again from the same seed, whoever runs it and where."""

import re
from itertools import count
from typing import Final

from tests.sim.moves import kinds
from tests.sim.programs import run
from tests.sim.world import live, opened

STEPS: Final = 20_000
DEATHS: Final = (
    re.compile(r"died \(killed\)"),
    re.compile(r"died \(at a statement: INSERT INTO"),
    re.compile(r"died \(at a statement: UPDATE"),
    re.compile(r"died \(at a statement: COMMIT"),
    re.compile(r"died \(after a commit"),
    re.compile(r"died \(before \w+ \w+"),
    re.compile(r"died \(after \w+ \w+"),
    re.compile(r"died \(the disk failed"),
)
"""Where a process may die: by a kill at any await, between two statements, in a commit, around a call to the world."""
WORLDS_MAX: Final = 20
KILL_EVERY: Final = 30
MOVES: Final = range(1, 120)
ONE_HASH: Final = "from tests.sim.world import live; print(live('again', 1, moves=range(1, 120)).trace_hash)"


def test_lives_of_a_fresh_seed_break_no_promise() -> None:
    status, said = run("-m", "tests.sim", "--steps", str(STEPS))
    print(said)
    assert status == 0, said


def test_a_seed_has_one_trace_however_many_processes_live_it() -> None:
    one = run("-m", "tests.sim", "--steps", "4000", "--seed", "again", "--shards", "1")
    two = run("-m", "tests.sim", "--steps", "4000", "--seed", "again", "--shards", "2")
    assert one[0] == two[0] == 0, (one, two)
    (hash_of_one,) = re.findall(r"trace ([0-9a-f]{16})$", one[1].strip())
    assert two[1].strip().endswith(f"trace {hash_of_one}")


def test_another_seed_has_another_trace() -> None:
    assert live("one", 0, moves=MOVES).trace_hash != live("other", 0, moves=MOVES).trace_hash


def test_a_life_depends_on_no_life_before_it_and_on_no_order_of_a_set() -> None:
    live("again", 0, moves=MOVES)
    lived = live("again", 1, moves=MOVES)
    for hash_seed in ("1", "2"):
        status, said = run("-c", ONE_HASH, hash_seed=hash_seed)
        assert (status, said.strip()) == (0, lived.trace_hash)


def test_a_process_dies_at_every_kind_of_place() -> None:
    left = list(DEATHS)
    (kill,) = (kind for kind in kinds() if kind.name == "crash.soon")

    def look(line: str) -> None:
        left[:] = [death for death in left if death.search(line) is None]

    for number in count():
        assert number < WORLDS_MAX, f"nobody died like {[death.pattern for death in left]}"
        with opened("deaths", number, on_line=look) as world:
            world.climate.crash_at_statement, world.climate.crash_on_the_way = 0.1, 0.03
            world.climate.disk_fault = 0.02
            world.begin()
            for move in MOVES:
                world.play(move, kill if move % KILL_EVERY == 0 else None)
            world.settle()
        assert world.failed is None, str(world.failed)
        if not left:
            break
