"""Every attack of the table gets the answer it is due and moves nothing that it may not move."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.attacks.kit import Attack, prepare, strike
from tests.attacks.scene import Scene, open_scene
from tests.attacks.table import ATTACKS


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """One scene for all attacks that leave nothing behind; the books are checked when all have been made."""
    async with open_scene(tmp_path_factory.mktemp("scene")) as scene:
        yield scene


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("attack", [pytest.param(attack, id=attack.name) for attack in ATTACKS])
async def test_an_attack_fails(attack: Attack, shared_scene: Scene, tmp_path: Path) -> None:
    if attack.needs_own_scene:
        async with open_scene(tmp_path, **attack.settings) as scene:
            await strike(attack, scene, await prepare(attack, scene))
    else:
        await strike(attack, shared_scene, await prepare(attack, shared_scene))


def test_the_table_is_long_and_says_why() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) >= 120
    assert all(attack.why for attack in ATTACKS)
