"""The command `spawn-host`, run on a machine that is lent.

Invariant: a mistake ends in one line that says what to do next, never in a traceback: exit 1 is "no", exit 2 is "I did
not understand". What systemd and `install.sh` call is answered without typer and all that the other commands need.
"""
# ruff: noqa: PLC0415 - see above

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from spawn_hostagent import plain
from spawn_hostagent.failures import Failure


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments`, by default the process's own; return its exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        call = _plain(words)
        if call is not None:
            return call()
        from spawn_hostagent.cli.commands import app

        app(words, prog_name="spawn-host")
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except Failure as error:
        _complain(str(error))
        return 1
    except KeyboardInterrupt:
        _complain("interrupted.")
        return 130
    return 0


def _plain(words: list[str]) -> Callable[[], int] | None:
    """What these words call, if it is one of two: `--version`, and `start --config FILE` as systemd says it.

    typer reads options with pydantic: most of what a start takes, and megabytes for as long as the daemon runs.
    """
    if words == ["--version"]:
        return plain.show_version
    if len(words) == 3 and words[0] == "start" and words[1] in ("--config", "-c"):
        return lambda: plain.start(Path(words[2]))
    return None


def _complain(text: str) -> None:
    """The one line of a failure; red for a person, where the terminal is sure to understand that."""
    line = f"spawn-host: {text}"
    if sys.stderr.isatty() and os.name == "posix":
        line = f"\033[31m{line}\033[0m"
    sys.stderr.write(f"{line}\n")
