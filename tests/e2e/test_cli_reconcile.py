"""`spawn reconcile --rebuild` and `spawn admin unfreeze` as an operator uses them, on the day the database is gone."""

import asyncio
from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e.test_cli import refused, spawn
from tests.harness import open_world
from tests.integration.restoring import lose

pytestmark = pytest.mark.embedded

WORLD: Final = {"devnet_path": "devnet.db", "simulated_path": "cloud.db", "secret_key": "5a" * 32}


@pytest.fixture
def server(tmp_path: Path) -> dict[str, Any]:
    """A server whose machine is in the cloud of `tmp_path`, and whose database is gone and made anew."""

    async def live() -> dict[str, Any]:
        async with open_world(tmp_path) as world:
            return await world.rent(await world.customer("20.00"))

    rented = asyncio.run(live())
    lose(tmp_path)
    assert spawn(tmp_path, "migrate").returncode == 0
    return rented


def test_the_way_back(tmp_path: Path, server: dict[str, Any]) -> None:
    looked = spawn(tmp_path, "reconcile", **WORLD)
    assert (looked.returncode, "strays seen       1" in looked.stdout) == (0, True)
    done = spawn(tmp_path, "reconcile", "--rebuild", **WORLD)
    assert done.returncode == 0, done.stdout + done.stderr
    line, count, following = done.stdout.splitlines()
    assert line.startswith(f"rebuilt   {server['id']} (small 'web' of {server['owner_wallet']}), ordered ")
    assert line.endswith(", frozen")
    assert count == "1 servers of 1 wallets are back; 0 were there already."
    assert "spawn admin credit" in following
    assert "spawn admin unfreeze --all" in following
    again = spawn(tmp_path, "reconcile", "--rebuild", **WORLD)
    assert again.stdout == "0 servers of 0 wallets are back; 1 were there already.\n"
    credited = spawn(
        tmp_path, "admin", "credit", server["owner_wallet"], "5.00", "--reason", "lost books", **WORLD
    )
    assert credited.returncode == 0, credited.stderr
    unfrozen = spawn(tmp_path, "admin", "unfreeze", server["id"], **WORLD)
    assert unfrozen.stdout.splitlines()[0] == "Metered from now on: 1 servers of 1 wallets."
    refused(spawn(tmp_path, "admin", "unfreeze", server["id"], **WORLD), "is not frozen")
    refused(spawn(tmp_path, "admin", "unfreeze", **WORLD), "name one SERVER, or say --all")
