"""`spawn-host uninstall`: takes away what spawn-host brought, and says what it leaves.

Invariant: while anything is rented here nothing is touched, unless the owner insists. Nothing ends before he agreed;
rentals end after the daemon, which could take another one, and before the wall around them.
"""
# ruff: noqa: PLC0415 - see cli_common

import asyncio
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from spawn_hostagent.cli.common import (
    environment,
    open_config,
    open_detector,
    open_machines,
    say,
)
from spawn_hostagent.cli.option import ConfigOption
from spawn_hostagent.config import Config
from spawn_hostagent.failures import Failure

if TYPE_CHECKING:
    from spawn_schemas.orders import RentalReport

    from spawn_hostagent.machines import Machines

UNIT: Final = Path("/etc/systemd/system/spawn-host.service")
NFT_TABLE: Final = ("inet", "spawn")


def uninstall(
    path: ConfigOption,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it without being asked.")] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Destroy what is rented here first, with all that is on its disks."),
    ] = False,
) -> None:
    """Remove what spawn-host brought.

    That is state, key, service unit and firewall table. Refuses while anything is rented here.
    """
    config = open_config(path)
    _refuse_foreign(config.state)
    machines = open_machines(config, open_detector(config))
    rentals = _rented(machines, force=force)
    _consent(config, rentals or (), yes=yes)
    _stop_daemon(config)
    if rentals is not None:
        _end_rentals(machines, force=force)
    done = [*_forget_key(config), *_remove_unit(), *_remove_wall(), *_remove_state(config.state)]
    for line in done:
        say(f"removed  {line}")
    say(f"left     {path}, with your limits")
    say("left     Docker, its images, and this program (`uv tool uninstall spawn-host`, or delete the file)")
    say("Tell the service, too: until its operator revokes the host it is listed as offline.")


def _rented(machines: "Machines", *, force: bool) -> "tuple[RentalReport, ...] | None":
    """What is rented here, None where Docker does not say. Raises Failure for either, unless the owner insists."""
    from spawn_hostagent.machines import MachineError

    try:
        rentals = asyncio.run(machines.list_rentals())
    except MachineError as error:
        if not force:
            raise Failure(
                f"whether anything is rented here cannot be seen: {error} Start Docker, or say --force."
            ) from error
        say(f"Docker was not asked for rentals: {error}")
        return None
    if rentals and not force:
        raise Failure(
            f"{_count(rentals)} of tenants here: {', '.join(sorted(it.rental_id for it in rentals))}. `spawn-host "
            "drain` takes no more of them; come back when they have ended, or destroy them with --force."
        )
    return rentals


def _end_rentals(machines: "Machines", *, force: bool) -> None:
    """Nothing of a tenant may be here afterwards; no daemon runs that would take another one. Raises Failure."""
    try:
        rentals = _rented(machines, force=force)
    except Failure as error:
        raise Failure(f"{error} The daemon has been stopped: start it again meanwhile.") from error
    if rentals:
        asyncio.run(_destroy(machines, rentals))
        say(f"destroyed {_count(rentals)}")


async def _destroy(machines: "Machines", rentals: "tuple[RentalReport, ...]") -> None:
    from spawn_hostagent.machines import MachineError

    for rental in rentals:
        try:
            await machines.destroy(rental.rental_id, rental.generation)
        except MachineError as error:
            raise Failure(f"{rental.rental_id} could not be destroyed: {error}") from error


def _count(rentals: "tuple[RentalReport, ...]") -> str:
    return "1 container" if len(rentals) == 1 else f"{len(rentals)} containers"


def _consent(config: Config, rentals: "tuple[RentalReport, ...]", *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("consent is asked on a terminal: run it there, or say --yes.")
    lost = (
        f"Destroy {_count(rentals)} of tenants with all that is on their disks, and remove"
        if rentals
        else "Remove"
    )
    if not typer.confirm(f"{lost} this host's key and everything in {config.state}?"):
        raise Failure("nothing was removed.")


def _stop_daemon(config: Config) -> None:
    import psutil

    from spawn_hostagent.control.client import find_daemon

    process = find_daemon(config.state)
    if process is None:
        return
    process.terminate()
    try:
        process.wait(timeout=30)
    except psutil.TimeoutExpired as error:
        raise Failure(
            f"spawn-host (process {process.pid}) does not stop: see its log, then try again."
        ) from error


def _forget_key(config: Config) -> list[str]:
    """Keyrings keep what is in them; files go with the state."""
    from spawn_hostagent.joining.identity import load

    try:
        identity = load(config.state, environment())
    except Failure:
        return []
    host, place = identity.host_id, identity.kept_in
    identity.forget()
    return [f"the key of {host} from {place}"]


def _remove_unit() -> list[str]:
    from spawn_hostagent.preflight.programs import run_program

    if not UNIT.exists():
        return []
    run_program(["systemctl", "disable", "--now", UNIT.stem])
    try:
        UNIT.unlink()
    except OSError as error:
        raise Failure(f"{UNIT} cannot be removed ({error.strerror}): run this as root (sudo).") from error
    run_program(["systemctl", "daemon-reload"])
    return [str(UNIT)]


def _remove_wall() -> list[str]:
    """The table of nftables, which is ours alone; other tables are not touched."""
    from spawn_hostagent.preflight.programs import run_program

    listed = run_program(["nft", "list", "table", *NFT_TABLE])
    if listed is None or listed[0] != 0:
        return []
    deleted = run_program(["nft", "delete", "table", *NFT_TABLE])
    if deleted is None or deleted[0] != 0:
        raise Failure("the table `inet spawn` of nftables cannot be removed: run this as root (sudo).")
    return [f"the table {' '.join(NFT_TABLE)} of nftables"]


def _refuse_foreign(state_dir: Path) -> None:
    """A folder without our files is somebody else's, whatever agent.yaml says. Raises Failure."""
    from spawn_hostagent.control import client as control
    from spawn_hostagent.joining import identity, registration

    ours = (
        identity.FILE_NAME,
        identity.KEYS_FOLDER,
        registration.FILE_NAME,
        control.PID_NAME,
        control.STATUS_NAME,
    )
    if not state_dir.is_dir() or not any(state_dir.iterdir()):
        return
    if not any((state_dir / name).exists() for name in ours):
        raise Failure(f"{state_dir} does not look like spawn-host's: look into it, and remove it yourself.")


def _remove_state(state_dir: Path) -> list[str]:
    if not state_dir.is_dir():
        return []
    with suppress(FileNotFoundError):  # the daemon took its last files away at the same time
        shutil.rmtree(state_dir)
    return [str(state_dir)]
