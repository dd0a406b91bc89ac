"""`spawn-host status`: what the daemon wrote of itself last, as a table that follows it or as JSON.

Invariant: it only reads; a daemon that is gone or stuck is said to be, however fresh its last words look.
"""
# ruff: noqa: PLC0415 - see cli_common

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from spawn_hostagent.cli.common import console, open_config, say
from spawn_hostagent.cli.option import ConfigOption
from spawn_hostagent.config import Config

if TYPE_CHECKING:
    from rich.console import RenderableType
    from spawn_schemas.inventory import Metrics

    from spawn_hostagent.control.client import Status

INTERVAL_S: Final = 2.0


def status(
    path: ConfigOption,
    once: Annotated[bool, typer.Option("--once", help="Show it once instead of following it.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="What the daemon wrote, and how old it is.")
    ] = False,
) -> None:
    """Show what this host does now.

    On a terminal it follows until Ctrl-C. Exit status 1 if the daemon does not run.
    """
    config = open_config(path)
    if as_json:
        _print_json(config.state)
    elif once or not sys.stdout.isatty():
        shown, is_well = render(config)
        console().print(shown)
        if not is_well:
            raise typer.Exit(1)
    else:
        _follow(config)


def _print_json(state_dir: Path) -> None:
    import msgspec

    from spawn_hostagent.control.client import find_daemon, read_status

    found, age_s = read_status(state_dir, time.time())
    running = find_daemon(state_dir) is not None
    told = {**msgspec.to_builtins(found), "running": running, "age_s": round(age_s, 1)}
    say(msgspec.json.format(msgspec.json.encode(told), indent=2).decode())
    if not running:
        raise typer.Exit(1)


def _follow(config: Config) -> None:
    from rich.live import Live

    with Live(render(config)[0], console=console(), refresh_per_second=2) as live:
        try:
            while True:
                time.sleep(INTERVAL_S)
                live.update(render(config)[0])
        except KeyboardInterrupt:
            return


def render(config: Config) -> "tuple[RenderableType, bool]":
    """The table, and whether the daemon runs."""
    from rich.console import Group
    from rich.text import Text

    from spawn_hostagent.control.client import STALE_S, find_daemon, read_status

    now = time.time()
    found, age_s = read_status(config.state, now)
    running = find_daemon(config.state) is not None
    if not running:
        line = Text(f"stopped; its last words are {_span(age_s)} old", style="red")
    elif age_s > STALE_S:
        line = Text(f"running and silent for {_span(age_s)}: see its log", style="red")
    elif found.connected:
        line = Text(f"online{_since(found.since, now)}", style="green")
    else:
        line = Text(f"running, no link to {config.service}{_since(found.since, now)}", style="yellow")
    parts: list[RenderableType] = [line, _facts(found), _rentals(found, now)]
    if found.gpus:
        parts.append(_gpus(found))
    return Group(*parts), running


def _facts(found: "Status") -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("isolation", found.tier)
    table.add_row("rentals", "draining: no new ones are taken" if found.draining else "taken")
    table.add_row("load", _load(found.metrics))
    for image in found.prepulls:
        done = f"{image.percent} %" if image.state == "fetching" else image.problem or image.state
        table.add_row("ahead of time", Text(f"{_short(image.image)}: {done}"))
    if found.last_error:
        table.add_row("last error", Text(found.last_error, style="yellow"))
    return table


def _short(image: str) -> str:
    """Its name and as much of its digest as people compare."""
    name, _, digest = image.partition("@sha256:")
    return f"{name}@{digest[:12]}"


def _load(metrics: "Metrics") -> str:
    told = [
        ("CPU", metrics.cpu_percent, "%"),
        ("at", metrics.cpu_temp_c, "°C"),
        ("memory", metrics.memory_percent, "%"),
        ("disk", metrics.disk_percent, "%"),
    ]
    return (
        ", ".join(f"{name} {value:.0f} {unit}" for name, value, unit in told if value is not None)
        or "unknown"
    )


def _rentals(found: "Status", now: float) -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    if not found.rentals:
        return Text("\nno rentals", style="dim")
    table = Table(box=None, pad_edge=False, title="\nrentals", title_justify="left")
    for name in ("rental", "state", "for", "lease ends in", "disk", "GPUs"):
        table.add_column(name, no_wrap=True)
    for rental in found.rentals:
        lease = rental.lease_expires_at
        table.add_row(
            rental.rental_id,
            rental.state + (f" ({rental.ended_by})" if rental.ended_by else ""),
            _span(now - rental.since),
            "-" if lease is None else "ended" if lease <= now else _span(lease - now),
            "-" if rental.disk_used_mib is None else f"{rental.disk_used_mib / 1024:.1f} GiB",
            ", ".join(uuid[:12] for uuid in rental.gpus) or "-",
        )
    return table


def _gpus(found: "Status") -> "RenderableType":
    from rich.table import Table

    metrics = found.metrics
    table = Table(box=None, pad_edge=False, title="\nGPUs", title_justify="left")
    for name in ("", "GPU", "°C", "busy", "state"):
        table.add_column(name)
    for place, gpu in enumerate(found.gpus):
        heat = metrics.gpu_temp_c[place] if place < len(metrics.gpu_temp_c) else gpu.temperature_c
        use = (
            metrics.gpu_utilization_percent[place]
            if place < len(metrics.gpu_utilization_percent)
            else gpu.utilization_percent
        )
        table.add_row(
            str(gpu.index),
            gpu.name or "unknown",
            "-" if heat is None else str(heat),
            "-" if use is None else f"{use} %",
            gpu.problem or "well",
        )
    return table


def _since(since: int | None, now: float) -> str:
    return "" if since is None else f" for {_span(now - since)}"


def _span(seconds: float) -> str:
    seconds = max(0.0, seconds)
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} d"
