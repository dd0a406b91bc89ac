"""Each fuzz target for a moment, and the proof that a defect would be found. `make fuzz` takes its time."""

import importlib
from pathlib import Path
from random import Random
from typing import Final

import pytest

from tests.engines import require
from tests.fuzz.names import TARGETS
from tests.fuzz.runs import fuzz
from tests.fuzz.target import Target

SECONDS: Final = 1
LONGEST_S: Final = 60
"""What is planted is found within seconds, where nothing else runs."""
MUTATIONS: Final = 300


def load(name: str) -> Target:
    module, attribute = TARGETS[name]
    target: Target = getattr(importlib.import_module(module), attribute)
    return target


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_is_found(name: str, tmp_path: Path) -> None:
    require("atheris")
    run = fuzz(name, seconds=SECONDS, seed=1, folder=tmp_path)
    assert run.finding is None, run.finding
    assert run.executed > len(load(name).seeds)
    assert run.accepted > 0


def test_a_defect_is_found_with_its_input(tmp_path: Path) -> None:
    require("atheris")
    run = fuzz("planted", seconds=LONGEST_S, seed=1, folder=tmp_path)
    assert run.finding is not None
    assert "PlantedDefect" in run.finding
    assert "crash-" in run.finding


def test_an_input_that_takes_too_long_is_found(tmp_path: Path) -> None:
    require("atheris")
    run = fuzz("planted-slow", seconds=LONGEST_S, seed=1, folder=tmp_path)
    assert run.finding is not None
    assert "TooSlow" in run.finding


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_get_past_the_front_door(name: str) -> None:
    """Also where atheris is not installed: seeds, and what a few mutations make of them."""
    target = load(name)
    dice = Random(1)
    assert target.check(target.seeds[0])
    for seed in target.seeds:
        target.check(seed)
    accepted = sum(target.check(target.mutate(target.seeds[0], dice)) for _ in range(MUTATIONS))
    assert 0 < accepted < MUTATIONS
