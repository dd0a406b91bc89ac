"""The unit under a real systemd, with all that it takes away: the agent checks, lends, dies, comes back and ends."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

import pytest

from tests.e2e.lending import Lent, lending, tenant
from tests.hostagent.booted import Booted, booted
from tests.hostagent.dist import build_program
from tests.hostagent.docker_engine import Engine
from tests.hostagent.namespaces import inside
from tests.hostagent.test_unit import UNIT

CHECK: Final = "check.service"
AGENT: Final = """#!/bin/bash
# `spawn-host COMMAND --config FILE …` on the booted machine, whose files are where the unit has them.
set -eu
words="$1"
config="$3"
shift 3
case "$words" in
  setup)
    sed -E 's|^state_dir: .*|state_dir: /var/lib/spawn-host|' "$config" |
      {enter} sh -c 'mkdir -p /etc/spawn-host && cat >/etc/spawn-host/agent.yaml'
    {enter} spawn-host setup "$@" ;;
  start)
    trap '{enter} systemctl stop spawn-host; exit 0' TERM
    {enter} systemctl start spawn-host
    sleep infinity &
    wait ;;
  *) {enter} spawn-host "$words" "$@" ;;
esac
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[Booted]:
    """With the unit, and a second one that is the same but for what it runs: a check."""
    unit = UNIT.read_text()
    lines = {"Type=notify": "Type=oneshot", "Restart=on-failure": "Restart=no"}
    check = unit
    for line, other in lines.items():
        assert f"\n{line}\n" in check
        check = check.replace(f"\n{line}\n", f"\n{other}\n")
    start = "ExecStart=/usr/local/bin/spawn-host start --config /etc/spawn-host/agent.yaml"
    assert start in check
    with tempfile.TemporaryDirectory(prefix="spawn-program-") as name:
        told = "/var/lib/spawn-host/check.json"
        run = f"ExecStart=/bin/sh -c '/usr/local/bin/spawn-host check --json >{told} || test $? -eq 1'"
        program = build_program(Path(name)).program
        with booted(program, unit, {CHECK: check.replace(start, run)}) as running:
            yield running


@pytest.fixture
def lent(machine: Booted, tmp_path: Path) -> Iterator[Lent]:
    script = tmp_path / "agent"
    script.write_text(AGENT.format(enter=" ".join(machine.enter())))
    script.chmod(0o755)
    engine = cast("Engine", machine)  # as far as it is asked
    with inside(machine.network), lending(engine, tmp_path, program=(str(script),)) as made:
        yield made


def rows(text: str) -> dict[str, Any]:
    return {check["name"]: check for check in json.loads(text)["checks"]}


async def test_the_unit_lets_the_agent_do_its_work(machine: Booted, lent: Lent) -> None:
    lent.agent.wait(lambda: lent.status()["tier"] == "runc")
    async with tenant(lent) as renter:
        server = await renter.rent()
        assert server["status"] == "running", machine.said()
        assert renter.ssh(server, "hostname; stat -f -c %T /root").splitlines() == ["box", "ext2/ext3"]
        pid = machine.shows("MainPID")["MainPID"]
        machine.systemctl("restart", "spawn-host")
        lent.agent.wait(lent.is_connected)
        assert machine.shows("MainPID")["MainPID"] != pid
        assert renter.ssh(server, "hostname") == "box\n", "a restart of the agent ended a tenant"
        machine.systemctl("kill", "--signal", "KILL", "spawn-host")
        lent.agent.wait(lambda: machine.shows("NRestarts")["NRestarts"] == "1" and lent.is_connected())
        assert renter.ssh(server, "hostname") == "box\n"
        await renter.shopper.buy("DELETE", "/v1/servers/{server_id}", server_id=server["id"])
        lent.agent.wait(lambda: lent.status()["rentals"] == [])
    lent.agent.end()
    assert machine.shows("ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}


def test_nothing_is_seen_worse_from_within_the_unit(machine: Booted) -> None:
    free = machine.run("spawn-host", "check", "--json")
    machine.systemctl("start", CHECK)
    within = machine.run("cat", "/var/lib/spawn-host/check.json")
    told = rows(within.stdout)
    assert told["isolation"]["message"] == "tier runc, disks limited by loop", machine.said()
    differ = {name for name, check in rows(free.stdout).items() if check != told.get(name)}
    assert differ - {"disk"} == set()
