"""`spawn-host` says what it is, and how it is called."""

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


@pytest.mark.parametrize("arguments", [(), ("serve",)])
def test_it_says_how_it_is_called(arguments: tuple[str, ...]) -> None:
    answer = run(*arguments)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith("Usage: spawn-host [OPTIONS] COMMAND [ARGS]...\n")
