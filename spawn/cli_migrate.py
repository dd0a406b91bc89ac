"""`spawn migrate`: brings a database up to this version, or moves the books of a file to a PostgreSQL database."""
# ruff: noqa: PLC0415 - a command imports what it needs: all of it takes seconds, and `--help` answers at once

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from spawn_schemas.money import format_usdc

from spawn.cli_common import process_settings
from spawn.settings import Settings
from spawn.store.migrate import migrate
from spawn.store.places import place_of
from spawn.store.sqlite_place import moved_note

if TYPE_CHECKING:
    from spawn.store.moving import Move

TOLD_EVERY_S: Final = 5.0


@click.command("migrate")
@click.option("--from", "source", metavar="URL", help="Move the books of this file, sqlite:///spawn.db …")
@click.option(
    "--to", "target", metavar="URL", help="… to this empty database, postgresql://user:password@host/db."
)
def migrate_command(source: str | None, target: str | None) -> None:
    """Create the database, or bring it up to this version. Safe to repeat.

    With --from and --to, the books of a file move to an empty PostgreSQL database, which is served once every row is
    there and proven. Stop the service first. The file is only read, and kept. An attempt that ended in whichever way
    goes on where it stopped when the command is repeated.
    """
    settings = process_settings()
    if source is not None and target is not None:
        _move(settings, source, target)
    elif source is not None or target is not None:
        raise click.UsageError(
            "--from and --to go together: the file that is left, and the database to go to."
        )
    else:
        applied = migrate(settings.database_url)
        done = f"applied {', '.join(applied)}" if applied else "up to date already"
        click.echo(f"{place_of(settings.database_url).name}: {done}")


def _move(settings: Settings, source: str, target: str) -> None:
    for name, url in (("--from", source), ("--to", target)):
        try:
            place_of(url)
        except ValueError as error:
            raise click.UsageError(f"{name}: {error}.") from error
    from spawn.store.moving import move

    began = time.monotonic()
    done = move(source, target, Progress().tell)
    if done.copied is None:
        click.echo(f"{done.source} was moved to {done.target} already, and is done with.")
    else:
        click.echo(_told(done, time.monotonic() - began))
    click.echo(f"  next       {_next(settings, done.source)}")
    click.echo(
        f"  the file   {done.source} is as it was, and no service starts on it while {_note(done)} is there"
    )


class Progress:
    """A line for each step on stderr, and one every few seconds of a long one."""

    def __init__(self) -> None:
        self._step: tuple[str, str] | None = None
        self._told_at = 0.0

    def tell(self, what: str, table: str, done: int, total: int) -> None:
        now = time.monotonic()
        if (what, table) == self._step and done < total and now - self._told_at < TOLD_EVERY_S:
            return
        self._step, self._told_at = (what, table), now
        click.echo(f"  {what:11}{table:14}{done:>14,} of {total:,} rows", err=True)


def _told(done: "Move", seconds: float) -> str:
    copied = done.copied or 0
    sooner = "" if copied == done.rows else f", {done.rows - copied:,} of them by an attempt before"
    return (
        f"moved {done.source} to {done.target}: {done.rows:,} rows of {done.tables} tables{sooner}, in {seconds:.1f} s "
        f"({copied / max(seconds, 0.001):,.0f} rows/s)\n"
        f"  proven     every row read again on both sides, and every rule of `spawn ledger verify`; customers have "
        f"{format_usdc(done.balance_usdc)} USDC"
    )


def _next(settings: Settings, source: Path) -> str:
    key = source.with_suffix(".key")
    if settings.secret_key:
        sealed = "keep SPAWN_SECRET_KEY as it is"
    elif key.exists():
        sealed = f"set SPAWN_SECRET_KEY to what {key} holds"
    else:
        sealed = "set SPAWN_SECRET_KEY to the key of that service"
    return f"set SPAWN_DATABASE_URL to where the books are now, {sealed}, and run `spawn serve`"


def _note(done: "Move") -> Path:
    return moved_note(done.source)
