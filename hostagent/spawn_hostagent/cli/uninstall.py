"""`spawn-host uninstall`: takes away what spawn-host brought, and says what it leaves.

Invariant: while anything is rented here nothing is touched, unless the owner insists. Nothing ends before he agreed;
rentals end after the daemon, which could take another one, and before the wall around them. Where nobody can say what
runs, walls and disks stay.
"""
# ruff: noqa: PLC0415 - see cli_common

import asyncio
import errno
import os
import shutil
import sys
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
REMOVALS_MAX: Final = 5
RENTALS_FOLDER: Final = "rentals"
IN_DOCKER: Final = Path("/.dockerenv")


def uninstall(
    path: ConfigOption,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it without being asked.")] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Destroy what is rented here first, with all that is on its disks."),
    ] = False,
) -> None:
    """Remove what spawn-host brought.

    That is state, key, service unit and firewall tables. Refuses while anything is rented here.
    """
    config = open_config(path)
    _refuse_foreign(config.state)
    machines = open_machines(config, open_detector(config))
    rentals = _rented(machines, force=force)
    _consent(config, rentals or (), yes=yes)
    _stop_daemon(config)
    if rentals is not None:
        _end_rentals(machines, force=force)
    _forget_key(config)
    _remove_unit()
    if rentals is not None:
        _remove_walls()
        _remove_state(config.state)
    else:
        say(
            f"left     {config.state} and the walls in nftables: tenants may still run, and nobody ends them now"
        )
        say(
            "         Start Docker and say `spawn-host uninstall --force` again, which ends them and removes the rest"
        )
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
    if _ends_our_container(process.pid, process.ppid()):
        raise Failure(
            "the daemon runs in this container, which ends with it: `docker stop` the container, then run uninstall in "
            "one of its own (docs/hosting.md says how). Nothing was removed."
        )
    process.terminate()
    try:
        process.wait(timeout=30)
    except psutil.TimeoutExpired as error:
        raise Failure(
            f"spawn-host (process {process.pid}) does not stop: see its log, then try again."
        ) from error


def _ends_our_container(pid: int, parent: int) -> bool:
    """Whether this process is in a container that Docker ends with that one: it is in there, and its parent is not."""
    if not IN_DOCKER.exists():
        return False
    ours = _cgroup(os.getpid())
    return ours != "" and _cgroup(pid) == ours and (parent == 0 or _cgroup(parent) != ours)


def _cgroup(pid: int) -> str:
    """Where the kernel counts it; nothing where that process is gone, or there is no such kernel."""
    try:
        return Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return ""


def _forget_key(config: Config) -> None:
    """Keyrings keep what is in them; files go with the state."""
    from spawn_hostagent.joining.identity import load

    try:
        identity = load(config.state, environment())
    except Failure:
        return
    host, place = identity.host_id, identity.kept_in
    identity.forget()
    say(f"removed  the key of {host} from {place}")


def _remove_unit() -> None:
    from spawn_hostagent.preflight.programs import run_program

    if not UNIT.exists():
        return
    run_program(["systemctl", "disable", "--now", UNIT.stem])
    try:
        UNIT.unlink()
    except OSError as error:
        raise Failure(f"{UNIT} cannot be removed ({error.strerror}): run this as root (sudo).") from error
    run_program(["systemctl", "daemon-reload"])
    say(f"removed  {UNIT}")


def _remove_walls() -> None:
    """The tables of nftables, which are ours alone; other tables are not touched."""
    from spawn_hostagent.preflight.programs import run_program
    from spawn_hostagent.walls.firewall import TABLE, counts_of

    for table in (TABLE, counts_of(TABLE)):
        listed = run_program(["nft", "list", "table", "inet", table])
        if listed is None or listed[0] != 0:
            continue
        deleted = run_program(["nft", "delete", "table", "inet", table])
        if deleted is None or deleted[0] != 0:
            raise Failure(f"the table `inet {table}` of nftables cannot be removed: run this as root (sudo).")
        say(f"removed  the table inet {table} of nftables")


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
    # Where Docker could not be asked the last time, what rentals were is all that was left.
    left = any((state_dir / RENTALS_FOLDER).glob("spawn-*"))
    if not left and not any((state_dir / name).exists() for name in ours):
        raise Failure(f"{state_dir} does not look like spawn-host's: look into it, and remove it yourself.")


def _remove_state(state_dir: Path) -> None:
    """A disk of its own, or a folder that a container was given, is emptied and stays."""
    if not state_dir.is_dir():
        return
    for _ in range(REMOVALS_MAX):
        try:
            shutil.rmtree(state_dir)
        except FileNotFoundError:
            pass  # the daemon took its last files away at the same time
        except OSError as error:
            if error.errno == errno.EBUSY and not any(state_dir.iterdir()):
                say(f"removed  everything in {state_dir}, which is mounted there and stays")
                return
            raise Failure(
                f"{error.filename} cannot be removed ({error.strerror}): see what uses it, then run this again."
            ) from error
        if not state_dir.is_dir():
            say(f"removed  {state_dir}")
            return
    raise Failure(f"{state_dir} changes while it is removed: see what uses it, then run this again.")
