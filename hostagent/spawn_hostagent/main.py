"""The command `spawn-host`, run on a machine that is lent.

This version can say which one it is and nothing more: it talks to nobody and starts nothing.
"""

import sys
from collections.abc import Sequence
from importlib.metadata import version

EXIT_UNAVAILABLE = 2

_NOT_HERE = "spawn-host: lending a machine is not part of this version; only --version is.\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments`, by default the process's own; return its exit status."""
    if list(sys.argv[1:] if arguments is None else arguments) == ["--version"]:
        sys.stdout.write(f"spawn-host {version('spawn-host')}\n")
        return 0
    sys.stderr.write(_NOT_HERE)
    return EXIT_UNAVAILABLE
