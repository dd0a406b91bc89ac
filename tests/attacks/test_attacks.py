"""Every attack of the table gets the answer it is due and moves nothing that it may not move."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from tests.attacks.kit import Attack, prepare, strike
from tests.attacks.scene import Scene, open_scene
from tests.attacks.table import ATTACKS


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """The loop that the service runs on."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield runner


@pytest.fixture(scope="module")
def shared_scene(runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """One scene for all attacks that leave nothing behind; the books are checked when all have been made."""
    opened = open_scene(tmp_path_factory.mktemp("scene"))
    yield runner.run(opened.__aenter__())
    runner.run(opened.__aexit__(None, None, None))


async def make(attack: Attack, scene: Scene) -> None:
    await strike(attack, scene, await prepare(attack, scene))


async def make_apart(attack: Attack, folder: Path) -> None:
    """In a scene of its own."""
    async with open_scene(folder, **attack.settings) as scene:
        await make(attack, scene)


@pytest.mark.parametrize("attack", [pytest.param(attack, id=attack.name) for attack in ATTACKS])
def test_an_attack_fails(attack: Attack, runner: asyncio.Runner, shared_scene: Scene, tmp_path: Path) -> None:
    if attack.needs_own_scene:
        runner.run(make_apart(attack, tmp_path))
    else:
        runner.run(make(attack, shared_scene))


def test_the_table_is_long_and_says_why() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) >= 120
    assert all(attack.why for attack in ATTACKS)
