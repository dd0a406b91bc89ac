"""`spawn hosts`, as an operator types it, with and without a service on the database."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests import databases
from tests.integration.hosts_world import DIGEST
from tests.integration.scripted_host import ScriptedHost
from tests.ports import free_address, free_range

OWNER = "0x8ba1f109551bd432803012645ac136ddd64dba72"


def variables(folder: Path, **settings: str) -> dict[str, str]:
    clean = {name: text for name, text in os.environ.items() if not name.startswith("SPAWN_")}
    kept = {name: os.environ[name] for name in os.environ if name.startswith("SPAWN_TEST_")}
    return clean | kept | databases.variables(folder) | settings


def spawn(
    folder: Path, *arguments: str, answer: str | None = None, **settings: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "spawn", *arguments],
        cwd=folder,
        env=variables(folder, **settings),
        input=answer,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    done = spawn(tmp_path, "migrate")
    assert done.returncode == 0, done.stderr
    return tmp_path


def added(folder: Path, name: str = "attic") -> str:
    """The token that it printed."""
    done = spawn(folder, "hosts", "add", name, "--wallet", OWNER, "--price", "1.20")
    assert done.returncode == 0, done.stderr
    (token,) = re.findall(r"spwn_reg_[0-9a-f]{64}", done.stdout)
    assert "It is not shown again" in done.stdout
    return str(token)


def test_a_host_is_added_listed_shown_rested_and_revoked(folder: Path) -> None:
    token = added(folder)
    assert token not in (folder / "spawn.db").read_bytes().decode("latin-1")
    listed = spawn(folder, "hosts", "list")
    assert listed.returncode == 0, listed.stderr
    assert re.search(r"attic +new +0 +1\.20 +0\.00 +100\.00% +never", listed.stdout), listed.stdout
    assert spawn(folder, "hosts", "drain", "attic").stdout.startswith("attic takes nothing new")
    (line,) = json.loads(spawn(folder, "hosts", "list", "--json").stdout)
    assert (line["name"], line["draining"], line["wallet"]) == ("attic", True, OWNER)
    assert spawn(folder, "hosts", "undrain", "attic").stdout == "attic takes rentals again.\n"
    assert json.loads(spawn(folder, "hosts", "show", "attic").stdout)["draining"] is False
    assert spawn(folder, "hosts", "revoke", "attic", answer="n\n").returncode == 130
    gone = spawn(folder, "hosts", "revoke", "attic", "--yes")
    assert gone.returncode == 0, gone.stderr
    assert "attic is revoked" in gone.stdout
    again = spawn(folder, "hosts", "token", "attic")
    assert (again.returncode, again.stderr) == (
        1,
        "spawn: attic was revoked. Add the machine again, under another name.\n",
    )


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("add", "Attic", "--wallet", OWNER, "--price", "1.20"), 2, "lower-case letters"),
        (("add", "attic", "--wallet", "0x12", "--price", "1.20"), 2, "40 hex digits"),
        (("add", "attic", "--wallet", OWNER, "--price", "0"), 2, "more than zero"),
        (("add", "attic", "--wallet", OWNER), 2, "--price"),
        (("show", "attic"), 1, "There is no host attic."),
        (("drain", "attic"), 1, "There is no host attic."),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(
    folder: Path, arguments: tuple[str, ...], status: int, said: str
) -> None:
    done = spawn(folder, "hosts", *arguments)
    assert done.returncode == status
    assert said in done.stderr


def test_a_name_is_given_once(folder: Path) -> None:
    added(folder)
    again = spawn(folder, "hosts", "add", "attic", "--wallet", OWNER, "--price", "2.00")
    assert again.returncode == 1
    assert "There is, or was, a host attic." in again.stderr
    assert "spwn_reg_" not in again.stdout


def serving(folder: Path) -> dict[str, str]:
    return {
        "SPAWN_PROVIDERS": "community",
        "SPAWN_COMMUNITY_HOST": "attic",
        "SPAWN_COMMUNITY_IMAGES": f"debian-12=registry.test/debian@{DIGEST}",
        "SPAWN_LISTEN": free_address(),
        "SPAWN_LINK_LISTEN": free_address(),
        "SPAWN_RELAY_HTTP_LISTEN": free_address(),
        "SPAWN_RELAY_PORTS": free_range(2),
    }


def test_a_service_without_its_host_does_not_start(folder: Path) -> None:
    done = spawn(folder, "serve", **serving(folder))
    assert done.returncode == 1
    assert "add it with `spawn hosts add attic --wallet" in done.stderr


async def test_a_running_service_takes_orders_and_lets_the_machine_in(folder: Path) -> None:
    token = added(folder)
    settings = serving(folder)
    log = (folder / "log").open("w")
    process = subprocess.Popen(  # noqa: ASYNC220 - it starts at once
        [sys.executable, "-m", "spawn", "serve"], cwd=folder, env=variables(folder, **settings), stderr=log
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://{settings['SPAWN_LISTEN']}") as http:
            await _until_up(http)
            host = ScriptedHost("attic", lambda: int(time.time()))
            answer = await host.register(http, token)
            assert answer.status_code == 200, answer.text
            assert host.link_url == f"ws://{settings['SPAWN_LINK_LISTEN']}/v1/hosts/link"
            drained = spawn(folder, "hosts", "drain", "attic", **settings)
            assert drained.returncode == 0, drained.stderr
            (command,) = (await host.beat(http)).commands
            assert type(command.order).__name__ == "Drain"
            assert token not in (folder / "log").read_text()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        log.close()


async def _until_up(http: httpx.AsyncClient) -> None:
    for _ in range(300):
        if await _is_up(http):
            return
        await asyncio.sleep(0.2)
    raise AssertionError("the service did not come up")


async def _is_up(http: httpx.AsyncClient) -> bool:
    try:
        return (await http.get("/health")).status_code == 200
    except httpx.TransportError:
        return False
