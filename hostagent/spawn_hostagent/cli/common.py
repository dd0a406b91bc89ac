"""What the commands share: where the files are, how a table looks, and how a failure ends.

Invariant: a mistake ends in one line that says what to do next; exit 1 is "no", exit 2 is "I did not understand".
"""
# ruff: noqa: PLC0415 - a command imports what it needs: rich and Docker take most of a second, `--version` none

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from spawn_hostagent.config import Config, load

if TYPE_CHECKING:
    from rich.console import Console
    from spawn_schemas.inventory import Isolation

    from spawn_hostagent.hardware import HardwareDetector
    from spawn_hostagent.machines import Machines
    from spawn_hostagent.preflight.checks import Check

ISOLATION_S: Final = 90.0
"""The daemon may be in the middle of measuring, which takes seconds for each canary."""
_PIPED_WIDTH: Final = 120
_MARKS: Final = {"error": "red", "warning": "yellow", "info": "cyan"}


def default_state() -> Path:
    """Where the daemon keeps its files, unless agent.yaml says otherwise."""
    if os.name == "posix" and os.geteuid() == 0:
        return Path(Config(service="").state_dir)
    return Path.home() / ".local" / "state" / "spawn-host"


def environment() -> Mapping[str, str]:
    """Of this process: the one place where it is read, beside the options that name a variable."""
    return os.environ


def open_config(path: Path) -> Config:
    """The configuration, with an address that is safe to talk to. Raises ConfigError and Failure."""
    import msgspec

    from spawn_hostagent.joining.endpoints import service_address

    config = load(path)
    return msgspec.structs.replace(config, service=service_address(config.service))


def open_detector(config: Config) -> "HardwareDetector":
    """The machine, with what was measured of its network."""
    from spawn_hostagent.hardware import HardwareDetector, load_network

    return HardwareDetector(config.limits, config.state, network=load_network(config.state))


def open_machines(config: Config, detector: "HardwareDetector") -> "Machines":
    """Docker, as the rest of the daemon sees it, with what is lent now. Blocks for up to a second."""
    from spawn_hostagent.docker_manager import DockerManager
    from spawn_hostagent.hardware import lend, used_by_disks
    from spawn_hostagent.walls.admission import Lent

    gpus = detector.detect_gpus().gpus
    lent = lend(config.limits, detector.detect_system(), gpus, used_by_disks(config.state))
    return DockerManager(
        config,
        Lent(
            cpus=lent.cpus,
            memory_mib=lent.memory_mib,
            disk_mib=lent.disk_mib,
            gpus=lent.gpus,
            rentals=config.limits.rentals,
            up_mbit=config.limits.up_mbit,
        ),
    )


async def isolation_of(config: Config, detector: "HardwareDetector") -> "Isolation":
    """What the running daemon measured; where none runs, what canaries find now, beside the walls that stand.

    Raises MachineError and Failure.
    """
    import asyncio

    import msgspec
    from spawn_schemas.inventory import Isolation

    from spawn_hostagent.control.client import ask, find_daemon
    from spawn_hostagent.hardware import lend
    from spawn_hostagent.walls import trial

    if await asyncio.to_thread(find_daemon, config.state) is not None:
        answer = await asyncio.to_thread(ask, config.state, {"do": "isolation"}, ISOLATION_S)
        return msgspec.convert(answer.get("isolation"), Isolation)
    system, gpus = await asyncio.to_thread(lambda: (detector.detect_system(), detector.detect_gpus().gpus))
    return await trial.measured(config, has_cards=bool(lend(config.limits, system, gpus).gpus))


def console(*, stderr: bool = False) -> "Console":
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else _PIPED_WIDTH)


def say(text: str = "") -> None:
    """A line for the owner."""
    sys.stdout.write(f"{text}\n")


def show_checks(found: "Iterable[Check]", title: str = "") -> None:
    """The table, then what to do about each line that is not fine."""
    from rich.table import Table
    from rich.text import Text

    checks = list(found)
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        word = "ok" if check.ok and check.severity != "info" else "-" if check.ok else check.severity
        style = (
            "green"
            if check.ok and check.severity != "info"
            else "dim"
            if check.ok
            else _MARKS[check.severity]
        )
        table.add_row(Text(word, style=style), Text(check.name), Text(check.message))
    screen = console()
    screen.print(table)
    for check in checks:
        if not check.ok and check.remedy:
            screen.print(Text(f"\n{check.name}: ", style="bold") + Text(check.remedy))
