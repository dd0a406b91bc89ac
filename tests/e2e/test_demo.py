"""What `spawn demo` shows: run as a user does, and its words read."""

import subprocess
import sys
from pathlib import Path

TIMEOUT_S = 150


def told(folder: Path, *options: str) -> list[str]:
    """Each chapter and event of the story, and its last line."""
    done = subprocess.run(
        [sys.executable, "-m", "spawn", "demo", *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_a_deposit_lives_and_ends_in_a_minute(tmp_path: Path) -> None:
    lines = told(tmp_path, "--fast-forward")
    events = [line.split()[2] for line in lines if line.startswith("  -> ")]
    # Its webhook may be registered after the machine has come up.
    assert [event for event in events if event != "server.running"] == [
        "deposit.low",
        "deposit.low",
        "deposit.low",
        "deposit.exhausted",
        "server.destroying",
        "server.destroyed",
    ]
    assert "# Six hours are left: pay in $0.05, eight hours more" in lines
    assert "       balance $0.00, reserved $0.00" in lines
    assert lines[-1].startswith("the books are right: ")
