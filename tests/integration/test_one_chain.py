"""A database is about one chain: what was paid with play money is worth nothing on another."""

from dataclasses import replace
from pathlib import Path

import pytest

from spawn.app import build
from spawn.rails import devnet_rail, require_same_chain
from spawn.store.database import StoreError
from tests.harness import open_world


async def test_a_database_opens_again_on_its_chain_and_on_no_other(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        ours = devnet_rail(world.chain)
        for _ in range(2):
            await require_same_chain(world.parts.db, ours)
        with pytest.raises(StoreError, match=r"about play money.*SPAWN_DATABASE_URL"):
            await require_same_chain(world.parts.db, replace(ours, chain="0x1 on eip155:8453"))


async def test_a_service_is_not_built_on_the_books_of_another_chain(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        elsewhere = replace(world.parts.rail, chain="0x1 on eip155:8453")
        with pytest.raises(StoreError, match="another database"):
            await build(world.settings, replace(world.parts, rail=elsewhere), ticking=False)
