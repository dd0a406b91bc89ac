"""The agent in a container, as the owner's guide runs it, on a real engine: it sees and does what it does outside."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from tests.e2e.lending import Lent, lending, tenant
from tests.hostagent.agent_image import (
    build_image,
    command_in_container,
    image_size,
    mended_runc,
    pids_of_container,
)
from tests.hostagent.docker_engine import Engine, engine
from tests.hostagent.namespaces import inside

SIZE_MAX: Final = 320_000_000
ITS_OWN: Final = {"python", "system"}
"""What the agent says of where it is rather than of the machine: its Python, and the release of its files."""


@pytest.fixture(scope="module")
def docker() -> Iterator[Engine]:
    with engine() as running, tempfile.TemporaryDirectory(prefix="spawn-agent-image-") as folder:
        build_image(running, Path(folder))
        yield running


@pytest.fixture
def lent(docker: Engine, tmp_path: Path) -> Iterator[Lent]:
    """A service, and this machine lent to it by an agent in a container."""
    (tmp_path / "agent").mkdir()
    program = command_in_container(
        docker, tmp_path, state=tmp_path / "agent", etc=tmp_path, more=mended_runc(tmp_path)
    )
    with inside(docker.network), lending(docker, tmp_path, program=(str(program),)) as made:
        # Its own canaries come first: those of a check beside them would be taken for what a crash left.
        made.agent.wait(lambda: made.status()["tier"] != "none")
        yield made


def looked(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """The rows of `spawn-host check --json`, by name."""
    assert done.stdout, done.stderr
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


async def test_a_machine_is_lent_from_inside(lent: Lent) -> None:
    """Every check holds; a tenant gets a disk, walls, a tunnel; and all of it goes again."""
    checked = lent.run_agent("check", "--json")
    assert checked.returncode == 0, [check for check in looked(checked).values() if not check["ok"]]
    async with tenant(lent) as renter:
        server = await renter.rent()
        assert server["status"] == "running", lent.agent.said()
        assert renter.ssh(server, "hostname; stat -f -c %T /root").splitlines() == ["box", "ext2/ext3"]
        await renter.shopper.buy("DELETE", "/v1/servers/{server_id}", server_id=server["id"])
        lent.agent.wait(lambda: lent.status()["rentals"] == [])
        assert list((lent.folder / "agent").rglob(f"*{server['id']}*")) == []
    assert "ERROR" not in lent.agent.said(), lent.agent.said()


def test_it_sees_what_is_seen_outside(lent: Lent) -> None:
    """The same checks, in the container and on the machine; only runc's changelog is another one here."""
    inside_it = looked(lent.run_agent("check", "--json"))
    outside = looked(
        subprocess.run(
            [sys.executable, "-m", "spawn_hostagent", "check", "--json", "--config", str(lent.config)],
            env={**os.environ, "PATH": f"{lent.engine.programs}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    )
    assert inside_it.keys() == outside.keys()
    free = {"disk"}  # what is free of a disk changes while we look
    differ = {name for name, check in inside_it.items() if check != outside[name]} - free
    assert differ <= {*ITS_OWN, "runc"}, {name: (inside_it[name], outside[name]) for name in differ}
    assert inside_it["runc"]["ok"]


def test_it_idles_in_few_processes_and_ends_when_told(lent: Lent) -> None:
    (pid,) = pids_of_container(lent.engine)
    process = psutil.Process(pid)
    assert process.name() == "spawn-host" or "spawn-host" in " ".join(process.cmdline())
    lent.agent.end()
    assert not process.is_running()
    assert pids_of_container(lent.engine) == []


def test_it_is_left_as_the_guide_says_and_not_from_inside(lent: Lent) -> None:
    state = lent.folder / "agent"
    command = [
        "docker",
        "--host",
        lent.engine.socket,
        "exec",
        "spawn-host",
        "spawn-host",
        "uninstall",
        "--yes",
    ]
    refused = subprocess.run(
        [*command, "--config", str(lent.config)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (refused.returncode, "docker stop" in refused.stderr) == (1, True), refused
    assert (state / "identity.json").exists()
    assert lent.status()["rentals"] == []
    lent.agent.end()
    left = lent.run_agent("uninstall", "--yes")
    assert left.returncode == 0, left.stderr
    for words in ("the key of host_", "inet spawn of", "inet spawn_counts of", f"everything in {state}"):
        assert words in left.stdout, left.stdout
    assert list(state.iterdir()) == [], "it is a mount there"


def test_a_container_that_is_given_nothing_says_so(docker: Engine) -> None:
    """As the workflow tries the image: it is not fit, and every reason is a row."""
    done = subprocess.run(
        [
            "docker",
            "--host",
            docker.socket,
            "run",
            "--rm",
            "--network",
            "none",
            "spawn-host",
            "check",
            "--json",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    told = looked(done)
    assert "nothing listens at unix:///var/run/docker.sock" in told["docker"]["message"]
    assert not told["nftables"]["ok"]


def test_it_is_small(docker: Engine) -> None:
    assert image_size(docker) < SIZE_MAX, image_size(docker)
