"""What the agent is shipped as starts, apart from this tree, and looks at the machine."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines import ROOT, require
from tests.hostagent.dist import VERSION, Shipped, build_program, install_tool, runs

HOSTAGENT = ROOT / "hostagent"


def python_3_10(uv: str) -> str | None:
    """A Python 3.10 of this machine, the oldest that hosts run."""
    found = subprocess.run(
        [uv, "python", "find", "--no-python-downloads", "3.10"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if found.returncode == 0:
        return found.stdout.strip()
    # pyenv has stand-ins on the PATH for what it does not have switched on, which uv takes for the thing itself.
    installed = sorted((Path.home() / ".pyenv" / "versions").glob("3.10.*/bin/python3.10"))
    return str(installed[-1]) if installed else None


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    return build_program(tmp_path_factory.mktemp("program"))


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    require("uv")
    uv = shutil.which("uv", path=Path(sys.executable).parent) or shutil.which("uv")
    assert uv is not None
    oldest = python_3_10(uv)
    return install_tool(tmp_path_factory.mktemp("tool"), uv, oldest or sys.executable, locked=oldest is None)


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


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["--help"], 0, "Remove what spawn-host brought."),
        (["setup", "--help"], 0, "--token-file"),
        (["check"], 1, "nothing listens at"),
        (["status"], 1, "`spawn-host start`"),
        (["drain"], 1, "no spawn-host runs"),
        (["setup", "--service", "https://127.0.0.1:9", "--token-file", "-"], 1, "spwn_reg_"),
        (["start"], 1, "`spawn-host setup`"),
        (["frob"], 2, "No such command 'frob'"),
    ],
)
def test_no_command_misses_what_the_single_file_leaves_out(
    program: Shipped, tmp_path: Path, words: list[str], status: int, says: str
) -> None:
    """Its modules are picked by hand: one that is missing shows only where it is needed."""
    config = tmp_path / "agent.yaml"
    if words[0] != "setup":
        config.write_text(
            f"service: https://127.0.0.1:9\nstate_dir: {tmp_path}\ndocker_socket: unix://{tmp_path}/none.sock\n"
        )
    named = [] if words[0].startswith("-") or "--help" in words or status == 2 else ["--config", str(config)]
    done = runs(program.program, *words, *named)
    told = done.stdout + done.stderr
    assert done.returncode == status, told
    assert says in told
    assert "Traceback" not in told


def test_the_version_is_told_without_what_commands_need() -> None:
    """install.sh asks for it at each run; and what the daemon imports it carries for as long as it runs."""
    code = (
        "import sys; from spawn_hostagent import main; main.main(['--version']); "
        "main.main(['start', '--config', '/no/such/agent.yaml']); "
        "print([m for m in ('typer', 'pydantic', 'rich', 'docker', 'asyncio') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == f"spawn-host {VERSION}\n[]\n", done.stdout + done.stderr


def test_the_single_file_is_small_enough_to_fetch(program: Shipped) -> None:
    assert program.size < 60_000_000


def test_the_spec_is_python() -> None:
    ast.parse((HOSTAGENT / "agent.spec").read_text())
