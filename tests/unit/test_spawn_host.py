"""`spawn-host` says what it is, and does not pretend to be more."""

import subprocess
import sys
from pathlib import Path

import pytest

SPAWN_HOST = Path(sys.executable).with_name("spawn-host")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SPAWN_HOST), *arguments], capture_output=True, text=True, timeout=30, check=False
    )


def test_it_knows_its_version() -> None:
    answer = run("--version")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "spawn-host 0.1.0\n", "")


@pytest.mark.parametrize("arguments", [(), ("serve",), ("--version", "serve")])
def test_it_refuses_what_it_cannot_do(arguments: tuple[str, ...]) -> None:
    answer = run(*arguments)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "not part of this version" in answer.stderr
