"""The commands of `spawn-host` and their options, as typer reads them.

Invariant: a command imports what it needs when it runs; `main` says how a mistake ends.
"""
# ruff: noqa: PLC0415 - see above

import asyncio
import signal
import sys
from typing import Annotated, Any, Final

import typer

from spawn_hostagent import plain
from spawn_hostagent.cli.common import (
    environment,
    open_config,
    open_detector,
    say,
    show_checks,
)
from spawn_hostagent.cli.option import ConfigOption
from spawn_hostagent.cli.setup import measure_speed, setup
from spawn_hostagent.cli.status import status
from spawn_hostagent.cli.uninstall import uninstall
from spawn_hostagent.config import Config
from spawn_hostagent.failures import Failure

WAIT_S: Final = 60

app = typer.Typer(
    name="spawn-host",
    help="Lend this machine: tenants rent containers on it, within the limits that you set.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show which one it is.")
    ] = False,
) -> None:
    """Lend this machine: tenants rent containers on it, within the limits that you set.

    New here? `spawn-host check` says whether the machine is fit, `spawn-host setup` registers it, `spawn-host start`
    runs it.
    """


@app.command()
def check(
    path: ConfigOption,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    speed: Annotated[
        bool, typer.Option("--speed", help="Also measure the connection: 25 MB each way.")
    ] = False,
) -> None:
    """Say whether this machine is fit for tenants.

    And what to do where it is not; then the exit status is 1.
    """
    from spawn_hostagent.cli.check import look
    from spawn_hostagent.preflight.checks import is_fit

    config, looked = look(path)
    if as_json:
        import msgspec

        told = {"fit": is_fit(looked), "checks": looked}
        say(msgspec.json.format(msgspec.json.encode(told), indent=2).decode())
    else:
        show_checks(looked)
    if speed:
        _measure(config)
    raise typer.Exit(0 if is_fit(looked) else 1)


app.command()(setup)


@app.command()
def start(path: ConfigOption) -> None:
    """Run the daemon in the foreground.

    systemd, Ctrl-C or `spawn-host stop` ends it. Tenants go on until their leases end.
    """
    raise typer.Exit(plain.start(path))


app.command()(status)


@app.command()
def drain(path: ConfigOption) -> None:
    """Take no new rentals; what runs goes on. It stays so over restarts, until undrain."""
    _order(open_config(path), "drain")
    say(
        "draining: nothing new starts here; `spawn-host status` shows what still runs, `spawn-host undrain` ends it"
    )


@app.command()
def undrain(path: ConfigOption) -> None:
    """Take rentals again."""
    _order(open_config(path), "undrain")
    say("rentals are taken again")


@app.command()
def stop(
    path: ConfigOption,
    wait: Annotated[
        bool, typer.Option("--wait", help=f"Return when it has ended, {WAIT_S} s at most.")
    ] = False,
) -> None:
    """End the daemon. Tenants go on until their leases end: drain first to have none."""
    import psutil

    from spawn_hostagent.control.client import find_daemon

    process = find_daemon(open_config(path).state)
    if process is None:
        say("spawn-host does not run")
        return
    try:
        process.send_signal(signal.SIGTERM)
        if wait:
            process.wait(timeout=WAIT_S)
    except psutil.NoSuchProcess:
        pass  # it ended by itself, which is what was wanted
    except psutil.AccessDenied as error:
        raise Failure(
            "spawn-host belongs to another user: run this as root (sudo) or as its owner."
        ) from error
    except psutil.TimeoutExpired as error:
        raise Failure(
            f"spawn-host (process {process.pid}) has not ended within {WAIT_S} s: see its log."
        ) from error
    say("spawn-host has stopped" if wait else "spawn-host was told to stop")


@app.command()
def logs(
    rental: Annotated[str, typer.Argument(help="As `spawn-host status` shows it.")],
    path: ConfigOption,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=1, max=1000, help="How many of the last lines.")
    ] = 100,
) -> None:
    """Show what a tenant's container wrote."""
    answer = _order(open_config(path), "logs", rental_id=rental, lines=lines)
    sys.stdout.write(_harmless(str(answer.get("text", ""))))


app.command()(uninstall)


@app.command()
def version() -> None:
    """Show which version this is."""
    plain.show_version()


def _order(config: Config, what: str, **details: Any) -> dict[str, Any]:
    from spawn_hostagent.control.client import ask

    return ask(config.state, {"do": what, **details})


def _measure(config: Config) -> None:
    from spawn_hostagent.joining.identity import load
    from spawn_hostagent.joining.service import Service

    async def work() -> None:
        service = Service(config.service)
        offset_s = await service.clock_offset()
        await measure_speed(config, load(config.state, environment()), open_detector(config), offset_s)

    asyncio.run(work())


def _harmless(text: str) -> str:
    """A tenant's output may hold sequences that steer the owner's terminal: only lines and tabs pass."""
    return "".join(
        char if char in "\n\t" or char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text
    )
