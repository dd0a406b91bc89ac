"""Each defence is needed: without it, the attacks that it stands against succeed, and the suite says so."""

import os
import subprocess
import sys

import msgspec
import pytest

from tests.attacks.defence import Defence
from tests.attacks.defences import DEFENCES
from tests.attacks.runner import FAILED, ROOT, WITHSTOOD, Job, Outcome
from tests.attacks.table import ATTACKS

TIMEOUT_S = 300
UNCHANGED = "unchanged"


def source(defence: Defence) -> str:
    return (ROOT / defence.file).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, str]]:
    """What became of the attacks, by the defence that was missing."""
    control = tuple(sorted({defence.attacks[0] for defence in DEFENCES}))
    jobs = [
        Job(name=UNCHANGED, attacks=control),
        *(
            Job(
                name=defence.name,
                attacks=defence.attacks,
                file=defence.file,
                text=source(defence).replace(defence.before, defence.after),
            )
            for defence in DEFENCES
        ),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tests.attacks.runner"],
        input=msgspec.json.encode(jobs),
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        timeout=TIMEOUT_S,
        check=True,
    )
    return {made.name: made.attacks for made in msgspec.json.decode(done.stdout, type=list[Outcome])}


def test_with_all_defences_the_attacks_are_withstood(outcomes: dict[str, dict[str, str]]) -> None:
    made = outcomes[UNCHANGED]
    assert made == dict.fromkeys(made, WITHSTOOD)


@pytest.mark.parametrize("defence", DEFENCES, ids=lambda defence: defence.name)
def test_without_this_defence_its_attacks_succeed(
    defence: Defence, outcomes: dict[str, dict[str, str]]
) -> None:
    assert outcomes[defence.name] == dict.fromkeys(defence.attacks, FAILED)


@pytest.mark.parametrize("defence", DEFENCES, ids=lambda defence: defence.name)
def test_the_defence_is_where_the_table_says(defence: Defence) -> None:
    assert source(defence).count(defence.before) == 1
    assert defence.before != defence.after


def test_the_table_names_attacks_that_are_made() -> None:
    named = {name for defence in DEFENCES for name in defence.attacks}
    assert named <= {attack.name for attack in ATTACKS}
    assert all(defence.attacks for defence in DEFENCES)
    assert len({defence.name for defence in DEFENCES}) == len(DEFENCES) >= 20
