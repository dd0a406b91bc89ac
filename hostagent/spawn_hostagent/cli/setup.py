"""`spawn-host setup`: from a token to a registered machine, with the owner's consent in between.

Invariant: nothing leaves this machine before the owner has seen what will be shared and said yes.
"""
# ruff: noqa: PLC0415 - see cli_common

import asyncio
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own

from spawn_hostagent.cli.common import (
    console,
    default_state,
    environment,
    isolation_of,
    open_config,
    open_detector,
    say,
    show_checks,
)
from spawn_hostagent.cli.option import ConfigOption
from spawn_hostagent.config import Config, ConfigError, parse
from spawn_hostagent.failures import Failure

if TYPE_CHECKING:
    from spawn_schemas.inventory import Inventory, Isolation

    from spawn_hostagent.hardware import HardwareDetector
    from spawn_hostagent.joining.identity import Identity

_LIMITS: Final = ("cpus", "memory_gb", "disk_gb", "gpus")


def setup(
    path: ConfigOption,
    service: Annotated[
        str | None, typer.Option(help="The service's address, like https://api.example.org.")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="SPAWN_HOST_TOKEN",
            help="The registration token. Other users see a command line: --token-file, the variable or the "
            "question are better.",
        ),
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="A file that holds the token; - is stdin.")] = None,
    cpus: Annotated[float | None, typer.Option(help="CPUs to lend; all but a reserve by default.")] = None,
    memory_gb: Annotated[float | None, typer.Option(help="Memory to lend, in GiB.")] = None,
    disk_gb: Annotated[float | None, typer.Option(help="Disk to lend, in GiB.")] = None,
    gpus: Annotated[str | None, typer.Option(help="all, none, or numbers and UUIDs with commas.")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="Where the daemon keeps its files.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Consent without being asked.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Register anew a machine that is registered.")
    ] = False,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Only make a new key for a registered machine.")
    ] = False,
    despite_checks: Annotated[
        bool, typer.Option("--despite-checks", help="Go on though the preflight found errors.")
    ] = False,
) -> None:
    """Register this machine.

    Checks it, shows what will be shared, and asks for your consent before anything leaves it.
    """
    limits = {"cpus": cpus, "memory_gb": memory_gb, "disk_gb": disk_gb, "gpus": _gpus(gpus)}
    if rotate:
        _rotate(open_config(path))
        return
    config, text = _config(path, service, limits, state_dir)
    _refuse_registered(config, force=force)
    secret = _token(token, token_file)
    detector = open_detector(config)
    inventory = asyncio.run(_look(config, detector, despite_checks=despite_checks))
    _show_shared(config, inventory)
    _consent(yes=yes)
    made = asyncio.run(_register(config, secret, inventory, detector))
    if text is not None:
        _write_config(path, text)
    say()
    say(f"This machine is {made.name} ({made.host_id}) at {made.service}.")
    say(f"Its private key was made here and is kept in {made.kept_in}.")
    say(f"Your limits are in {path}; the token was not kept.")
    say(f"Next: {_next_step(path)}")


def _config(
    path: Path, service: str | None, limits: dict[str, Any], state_dir: Path | None
) -> tuple[Config, str | None]:
    """The configuration and, if there is no file yet, the text to write into one."""
    from spawn_hostagent.joining.endpoints import service_address

    given = {name: value for name, value in limits.items() if value is not None}
    if path.exists():
        config = open_config(path)
        if given or state_dir is not None:
            raise typer.BadParameter(
                f"{path} is there already: write your limits into it instead of giving options."
            )
        if service is not None and service_address(service) != config.service:
            raise typer.BadParameter(
                f"{path} names the service {config.service}: change it there, or drop --service."
            )
        return config, None
    if service is None:
        if not sys.stdin.isatty():
            raise typer.BadParameter("say which service: --service https://…")
        service = typer.prompt("Address of the service")
    fields: dict[str, Any] = {
        "service": service_address(service),
        "state_dir": str((state_dir or default_state()).absolute()),
    }
    if given:
        fields["limits"] = given
    text = (
        "# What this machine lends. agent.yaml.example in the documentation explains each field.\n"
        + yaml.safe_dump(fields, sort_keys=False)
    )
    return parse(text, "the options"), text


def _gpus(text: str | None) -> str | list[int | str] | None:
    if text is None or text in ("all", "none"):
        return text
    return [
        int(part) if part.isdecimal() else part for part in (word.strip() for word in text.split(",")) if part
    ]


def _refuse_registered(config: Config, *, force: bool) -> None:
    from spawn_hostagent.control.client import find_daemon
    from spawn_hostagent.joining.identity import find_record

    record = find_record(config.state)
    if record is None:
        return
    if not force:
        raise Failure(
            f"this machine is registered: {record.name} ({record.host_id}) at {record.service}. `spawn-host start` "
            "runs it, `spawn-host setup --rotate` makes a new key, `spawn-host setup --force` registers it as another."
        )
    if find_daemon(config.state) is not None:
        raise Failure("spawn-host runs as the host that this would replace: `spawn-host stop` first.")


def _token(token: str | None, path: Path | None) -> str:
    from spawn_hostagent.joining.registration import check_token

    if token is not None and path is not None:
        raise typer.BadParameter("give --token or --token-file, not both.")
    if path is not None:
        try:
            token = sys.stdin.readline() if str(path) == "-" else path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Failure(f"{path} cannot be read: {error}.") from error
    if token is None:
        if not sys.stdin.isatty():
            raise typer.BadParameter("give the registration token: --token-file, or SPAWN_HOST_TOKEN.")
        token = typer.prompt("Registration token", hide_input=True)
    return check_token(token)


async def _look(config: Config, detector: "HardwareDetector", *, despite_checks: bool) -> "Inventory":
    """The preflight, shown; then what the service is told. Raises Failure where an error stands in the way."""
    from spawn_hostagent.joining.service import Service
    from spawn_hostagent.preflight.checks import is_fit
    from spawn_hostagent.preflight.gather import preflight

    async def isolate() -> "Isolation":
        return await isolation_of(config, detector)

    with console().status("Looking at this machine; trying its isolation takes a few seconds"):
        looked = await preflight(config, detector, Service(config.service), isolate)
    show_checks(looked.checks)
    if not is_fit(looked.checks) and not despite_checks:
        raise Failure(
            "nothing was registered: repair what is marked error, then run this again. Or, at your own risk, go on "
            "with --despite-checks."
        )
    return await asyncio.to_thread(detector.inventory, looked.isolation, looked.docker.version or None)


def _show_shared(config: Config, inventory: "Inventory") -> None:
    from rich.table import Table

    lent = Table(title="\nLent to tenants", title_justify="left", box=None, pad_edge=False, show_header=False)
    lent.add_row("CPUs", f"{inventory.cpus:g} of {inventory.cpu_threads}")
    lent.add_row(
        "memory", f"{inventory.memory_mib / 1024:.1f} of {inventory.total_memory_mib / 1024:.1f} GiB"
    )
    lent.add_row("disk", f"{inventory.disk_mib / 1024:.0f} of {inventory.total_disk_mib / 1024:.0f} GiB")
    for gpu in inventory.gpus:
        lent.add_row(
            f"GPU {gpu.index}", f"{gpu.name}: {'lent' if gpu.uuid in inventory.lent_gpus else 'not lent'}"
        )
    lent.add_row(
        "network", f"{config.limits.up_mbit} Mbit/s up" if config.limits.up_mbit else "your connection"
    )
    lent.add_row("hours", ", ".join(config.limits.hours) or "all day")
    lent.add_row("rentals", f"{config.limits.rentals} at most")
    screen = console()
    screen.print(lent)
    say("\nTold to the service: the figures above; names and versions of the system,")
    say(
        "kernel, CPU, GPUs (with their UUIDs and serial numbers), driver and Docker; the machine's host name; how fast"
    )
    say("its connection is. While it runs: temperatures and how busy CPU, memory, disk and GPUs are.")
    say(
        "Never: your files, processes, network, or anything else on this machine. Tenants see your public address."
    )
    say(
        "The limits hold here, whatever the service asks. `spawn-host drain` takes no more, `uninstall` ends it.\n"
    )


def _consent(*, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("consent is asked on a terminal: run it there, or say --yes.")
    if not typer.confirm("Lend this machine so?"):
        raise Failure("nothing was registered.")


async def _register(
    config: Config, token: str, inventory: "Inventory", detector: "HardwareDetector"
) -> "Identity":
    from spawn_hostagent.joining.registration import register
    from spawn_hostagent.joining.service import Service

    service = Service(config.service)
    made = await register(config, token, inventory, version("spawn-host"), service, environment())
    await measure_speed(config, made, detector, service.offset_s)
    return made


async def measure_speed(
    config: Config, identity: "Identity", detector: "HardwareDetector", offset_s: float
) -> None:
    """Measure, show and keep; a relay that cannot be reached costs nothing but the figures."""
    import time

    import httpx

    from spawn_hostagent.hardware import save_network
    from spawn_hostagent.preflight.speed import SpeedTest

    async with httpx.AsyncClient(timeout=20) as client:
        test = SpeedTest(
            identity.link_url,
            identity,
            client,
            wall=lambda: time.time() + offset_s,
            nonce=lambda: os.urandom(16).hex(),
        )
        with console().status("Measuring the connection to the relay: 25 MB each way"):
            measured = await test.measure()
    network = detector.detect_network(lambda: measured.network)
    save_network(config.state, network)
    told = {
        "Mbit/s down": network.down_mbit,
        "Mbit/s up": network.up_mbit,
        "ms to the relay": network.latency_ms,
    }
    figures = ", ".join(f"{value:g} {unit}" for unit, value in told.items() if value is not None)
    say(f"Connection: {figures or 'not measured'}.")
    if measured.problem is not None:
        say(f"Not all of it could be measured: {measured.problem}. `spawn-host check --speed` tries again.")


def _rotate(config: Config) -> None:
    from spawn_hostagent.control.client import find_daemon
    from spawn_hostagent.joining.identity import load

    if find_daemon(config.state) is not None:
        raise Failure(
            "spawn-host runs with this key: `spawn-host stop` first; what is rented goes on meanwhile."
        )
    identity = load(config.state, environment())
    asyncio.run(identity.rotate())
    say(f"{identity.name} has a new key, kept in {identity.kept_in}; the old one is worthless now.")


def _write_config(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({error.strerror}); its content should be:\n{text}"
        ) from error


def _next_step(path: Path) -> str:
    if Path("/etc/systemd/system/spawn-host.service").exists():
        return "systemctl enable --now spawn-host"
    return f"spawn-host start --config {path}"
