"""The command `spawn-host`, run on a machine that is lent.

Invariant: a mistake ends in one line that says what to do next, never in a traceback: exit 1 is "no", exit 2 is "I did
not understand". A command imports what it needs when it runs, so that the daemon carries only its own weight.
"""
# ruff: noqa: PLC0415 - see above

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from spawn_hostagent.cli_common import (
    ConfigOption,
    complain,
    environment,
    open_config,
    open_detector,
    open_machines,
    say,
    show_checks,
)
from spawn_hostagent.cli_setup import measure_speed, setup
from spawn_hostagent.cli_status import status
from spawn_hostagent.cli_uninstall import uninstall
from spawn_hostagent.config import Config, ConfigError
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments`, by default the process's own; return its exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if (path := _plain_start(words)) is not None:
            return _run(path)
        app(words, prog_name="spawn-host")
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except (Failure, ConfigError) as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        complain("interrupted.")
        return 130
    return 0


def _plain_start(words: list[str]) -> Path | None:
    """The configuration of `start --config FILE`, which is how systemd calls it; None for any other call.

    typer reads options with pydantic, whose megabytes the daemon would carry for as long as it runs.
    """
    if len(words) == 3 and words[0] == "start" and words[1] in ("--config", "-c"):
        return Path(words[2])
    return None


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
    from spawn_hostagent.checks import is_fit
    from spawn_hostagent.cli_check import look

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
    raise typer.Exit(_run(path))


def _run(path: Path) -> int:
    """Be the daemon; the exit status. Raises Failure and ConfigError."""
    if os.name != "posix":
        raise Failure(
            "the daemon runs on Linux, and on macOS for an owner who is his own tenant; on Windows use WSL 2."
        )
    from spawn_hostagent.identity import load

    config = open_config(path)
    identity = load(config.state, environment())
    if identity.service != config.service:
        raise Failure(
            f"this machine is registered at {identity.service}, and {path} names {config.service}: correct it there, "
            "or register with `spawn-host setup --force`."
        )
    from spawn_hostagent import daemon
    from spawn_hostagent.instance import CannotStart

    _log_to_stderr()
    detector = open_detector(config)
    try:
        return asyncio.run(daemon.run(config, identity, open_machines(config, detector), detector))
    except CannotStart as error:
        raise Failure(str(error)) from error


def _log_to_stderr() -> None:
    """With the time, unless systemd's journal adds its own."""
    import logging

    stamp = "" if "JOURNAL_STREAM" in environment() else "%(asctime)s "
    logging.basicConfig(level=logging.INFO, format=f"{stamp}%(levelname)s %(name)s: %(message)s")
    # Each request of the fallback heartbeat would be a line.
    logging.getLogger("httpx").setLevel(logging.WARNING)


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

    from spawn_hostagent.control import find_daemon

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
    say(f"spawn-host {version_of('spawn-host')}")


def _order(config: Config, what: str, **details: Any) -> dict[str, Any]:
    from spawn_hostagent.control import ask

    return ask(config.state, {"do": what, **details})


def _measure(config: Config) -> None:
    from spawn_hostagent.identity import load
    from spawn_hostagent.service import Service

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
