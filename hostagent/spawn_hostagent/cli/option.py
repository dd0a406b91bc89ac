"""The one option that every command has: where the owner's configuration is."""

import os
from pathlib import Path
from typing import Annotated, Final

import typer

SYSTEM_CONFIG: Final = Path("/etc/spawn-host/agent.yaml")


def default_config() -> Path:
    """Root's is the machine's; anybody else's is his own."""
    if os.name == "posix" and os.geteuid() == 0:
        return SYSTEM_CONFIG
    return Path.home() / ".config" / "spawn-host" / "agent.yaml"


ConfigOption = Annotated[
    Path,
    typer.Option(
        "--config",
        "-c",
        default_factory=default_config,
        envvar="SPAWN_HOST_CONFIG",
        show_default=str(SYSTEM_CONFIG) + ", or ~/.config/spawn-host/agent.yaml",
        help="The owner's configuration.",
    ),
]
