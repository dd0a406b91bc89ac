"""The two calls that machines make, systemd's and `install.sh`'s: the daemon, and the version.

Invariant: neither imports what only the other commands need.
"""
# ruff: noqa: PLC0415 - see above

import os
import sys
from pathlib import Path

from spawn_hostagent.failures import Failure


def show_version() -> int:
    """Print which version this is; the exit status."""
    from importlib.metadata import version

    sys.stdout.write(f"spawn-host {version('spawn-host')}\n")
    return 0


def start(path: Path) -> int:
    """Be the daemon; the exit status. Raises Failure."""
    if os.name != "posix":
        raise Failure(
            "the daemon runs on Linux, and on macOS for an owner who is his own tenant; on Windows use WSL 2."
        )
    from spawn_hostagent.cli.common import environment, open_config, open_detector, open_machines
    from spawn_hostagent.joining.identity import load

    config = open_config(path)
    identity = load(config.state, environment())
    if identity.service != config.service:
        raise Failure(
            f"this machine is registered at {identity.service}, and {path} names {config.service}: correct it there, "
            "or register with `spawn-host setup --force`."
        )
    import asyncio

    from spawn_hostagent import daemon
    from spawn_hostagent.control.instance import CannotStart

    _log_to_stderr()
    detector = open_detector(config)
    try:
        return asyncio.run(daemon.run(config, identity, open_machines(config, detector), detector))
    except CannotStart as error:
        raise Failure(str(error)) from error


def _log_to_stderr() -> None:
    """With the time, unless systemd's journal adds its own."""
    import logging

    from spawn_hostagent.cli.common import environment

    stamp = "" if "JOURNAL_STREAM" in environment() else "%(asctime)s "
    logging.basicConfig(level=logging.INFO, format=f"{stamp}%(levelname)s %(name)s: %(message)s")
    # Each request of the fallback heartbeat would be a line.
    logging.getLogger("httpx").setLevel(logging.WARNING)
