"""What the agent is shipped as starts, apart from this tree, and looks at the machine."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own

from tests.engines import ROOT, require
from tests.hostagent.dist import VERSION, Shipped, build_program, install_tool, runs

HOSTAGENT = ROOT / "hostagent"
UNIT = HOSTAGENT / "systemd" / "spawn-host.service"
EXPOSURE_MAX = 4.0
"""Of `systemd-analyze security`, 10 being bare; what it holds against the unit is what the unit says it needs."""


def python_3_10(uv: str) -> str | None:
    """A Python 3.10 of this machine, the oldest that hosts run."""
    found = subprocess.run(
        [uv, "python", "find", "--no-python-downloads", "3.10"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return found.stdout.strip() if found.returncode == 0 else None


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    return build_program(tmp_path_factory.mktemp("program"))


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    require("uv")
    uv = shutil.which("uv", path=Path(sys.executable).parent) or shutil.which("uv")
    assert uv is not None
    return install_tool(tmp_path_factory.mktemp("tool"), uv, python_3_10(uv) or sys.executable)


@pytest.mark.parametrize("form", ["program", "tool"])
def test_it_starts_and_checks_this_machine(form: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """A test machine is hardly fit for tenants; that is an answer, and a program that does not work is none."""
    shipped: Shipped = request.getfixturevalue(form)
    assert runs(shipped.program, "--version").stdout == f"spawn-host {VERSION}\n"
    config = tmp_path / "agent.yaml"
    config.write_text(
        f"service: https://127.0.0.1:9\nstate_dir: {tmp_path}/state\ndocker_socket: unix://{tmp_path}/none.sock\n"
    )
    done = runs(shipped.program, "check", "--json", "--config", str(config))
    assert done.returncode == 1, done.stdout + done.stderr
    told = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert told["python"]["ok"]
    assert told["system"]["message"]
    assert "nothing listens" in told["docker"]["message"]
    assert "127.0.0.1:9 does not answer" in told["service"]["message"]


@pytest.mark.parametrize("form", ["program", "tool"])
def test_its_mistakes_end_in_one_line(form: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    shipped: Shipped = request.getfixturevalue(form)
    done = runs(shipped.program, "start", "--config", str(tmp_path / "none.yaml"))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "`spawn-host setup` writes one" in done.stderr


def test_the_single_file_is_small_enough_to_fetch(program: Shipped) -> None:
    assert program.size < 60_000_000


def test_the_unit_is_sound_and_hardened() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run(
        [
            "systemd-analyze",
            "security",
            "--offline=yes",
            "--no-pager",
            f"--threshold={EXPOSURE_MAX * 10:.0f}",
            UNIT,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


def test_the_unit_starts_the_program_that_install_puts_there() -> None:
    lines = UNIT.read_text().splitlines()
    assert "ExecStart=/usr/local/bin/spawn-host start --config /etc/spawn-host/agent.yaml" in lines
    assert "StateDirectory=spawn-host" in lines, "which is the default of state_dir, /var/lib/spawn-host"


def test_the_workflow_builds_for_all_three_systems() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "build.yml").read_text())
    systems = {
        entry["os"].split("-")[0] for entry in workflow["jobs"]["program"]["strategy"]["matrix"]["include"]
    }
    assert systems == {"ubuntu", "macos", "windows"}


def test_the_spec_is_python() -> None:
    ast.parse((HOSTAGENT / "agent.spec").read_text())
