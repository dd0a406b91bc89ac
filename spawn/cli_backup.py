"""`spawn backup` and `spawn restore`: a copy that was proven, and the way back from it."""
# ruff: noqa: PLC0415 - a command imports what it needs: all of it takes seconds, and `--help` answers at once

import asyncio
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
from msgspec.structs import replace
from spawn_schemas.money import format_usdc

from spawn.cli_common import Refusal, process_settings
from spawn.settings import Settings
from spawn.store.migrate import require_current
from spawn.store.places import place_of

if TYPE_CHECKING:
    from spawn.services.restore import Report
    from spawn.store.backup import Contents

FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("backup")
@click.argument("file", type=FILE)
@click.option("--force", is_flag=True, help="Replace the file.")
def backup_command(file: Path, *, force: bool) -> None:
    """Copy the database to FILE, beside the running service, and prove the copy.

    The copy is one moment of the books, in one file that only you can read. Its pages are checked, and every rule of
    `spawn ledger verify`; a copy that fails is not kept, and exit 1 says why.
    """
    from spawn.store.backup import back_up

    settings = process_settings()
    require_current(settings.database_url)
    began = time.monotonic()
    contents = back_up(_file(settings), file, replace=force)
    click.echo(f"wrote {file} in {time.monotonic() - began:.1f} s")
    click.echo(_contents(contents))
    click.echo("  checked    its pages, its references, and every rule of `spawn ledger verify`")
    click.echo(f"  keep with  {_kept_beside(settings)}")


def _contents(contents: "Contents") -> str:
    newest = "" if contents.newest_at is None else f", the newest of {_moment(contents.newest_at)}"
    return (
        f"  holds      {contents.transfers:,} transfers{newest}, {format_usdc(contents.paid_in_usdc)} USDC paid in; "
        f"version {contents.version}, {contents.size_bytes:,} bytes"
    )


def _kept_beside(settings: Settings) -> str:
    """What a copy of the database is worth little without, and what is no part of it."""
    key = (
        "SPAWN_SECRET_KEY"
        if settings.secret_key
        else f"{_key_file(settings)}, and in another place: whoever has both can read what is sealed"
    )
    if settings.payments != "devnet":
        return key
    return (
        f"{key}\n  not in it  {settings.devnet_path} and {settings.simulated_path}: they stand for the world, which "
        "outlives us"
    )


def _file(settings: Settings) -> Path:
    return place_of(settings.database_url).file(
        "this copies the file of an embedded database: with PostgreSQL use its own tools, such as pg_dump."
    )


def _key_file(settings: Settings) -> Path:
    return _file(settings).with_suffix(".key")


@click.command("restore")
@click.argument("file", type=FILE)
@click.option("--force", is_flag=True, help="Take the place of a database that is there; it is kept.")
def restore_command(file: Path, *, force: bool) -> None:
    """Put a backup in the database's place, with what chain and providers know since.

    For when the database is lost, and for practice. Nothing is there to be opened before all of this is done, and an
    attempt that fails changes nothing: repeat it.

    \b
    Payments made since are credited to their payers; what arrived otherwise waits in suspense.
    Machines rented since are servers again, metered since they were ordered.
    Servers whose machine is gone are written off by the service, billed up to the backup.
    Exit 1 where something cannot be decided: it says what to do first.
    """
    settings = process_settings()
    _require_key(settings)
    report = asyncio.run(_restore(file, settings, force=force))
    click.echo(_told(report))
    if report.undecided:
        for sentence in report.undecided:
            click.secho(f"undecided: {sentence}", fg="red" if sys.stdout.isatty() else None)
        click.echo("Nothing was put in place.")
        sys.exit(1)
    click.echo(f"{_file(settings)} is restored: start the service.")


def _require_key(settings: Settings) -> None:
    """The service would make a new key where there is none, and could not open what the old one sealed."""
    if not settings.secret_key and not _key_file(settings).exists():
        raise Refusal(
            f"there is no {_key_file(settings)}: put the key back that belongs to the backup, or set SPAWN_SECRET_KEY."
        )


async def _restore(file: Path, settings: Settings, *, force: bool) -> "Report":
    from spawn.store.backup import restoring

    with restoring(file, _file(settings), replace=force) as place:
        report = await _replay(replace(settings, database_url=_url(place.path)), settings)
        if not report.undecided:
            place.take()
        return report


def _url(path: Path) -> str:
    return f"sqlite:///{path}"


async def _replay(there: Settings, settings: Settings) -> "Report":
    """Open the copy as the service would, and bring it up to the world."""
    from spawn.parts import open_parts
    from spawn.rails import require_same_chain
    from spawn.secret_key import read_secret_key
    from spawn.services.billing import Billing
    from spawn.services.restore import Restore
    from spawn.store.secrets import Vault

    parts = await open_parts(there)
    try:
        await require_same_chain(parts.db, parts.rail)
        now = parts.clock.now_s()
        vault = Vault(read_secret_key(settings), parts.entropy)
        await parts.db.write(lambda tx: vault.prove(tx, now))
        restore = Restore(
            parts.db,
            parts.rail.arrivals,
            parts.rail.holdings,
            parts.providers,
            Billing(parts.entropy, settings.warning_policy),
            settings,
        )
        return await restore.run(now)
    finally:
        await parts.close()


def _told(report: "Report") -> str:
    lines = [
        f"paid since the backup  {format_usdc(report.credited_usdc)} USDC credited to who paid, "
        f"{format_usdc(report.suspended_usdc)} USDC waiting in suspense for who sent it",
        *(
            f"adopted                {one.server} ({one.type} {one.name!r} of {one.wallet}), metered since "
            f"{_moment(one.since)}"
            for one in report.adopted
        ),
        *(f"resized since          {server}: its new price begins now" for server in report.resized),
        *(f"gone                   {server}: billed up to the backup" for server in report.gone),
        *(f"stray                  machine {ref}, as before the backup" for ref in report.strays),
        *(f"note                   {note}" for note in report.notes),
    ]
    if report.treasury is not None:
        compared = report.treasury.compared
        lines += [
            f"unfinished             {line.count} x {line.what}, {format_usdc(line.amount_usdc)} USDC: the service "
            "goes on with it"
            for line in report.treasury.unfinished
        ]
        lines.append(
            f"books and chain        {format_usdc(compared.books_usdc)} and {format_usdc(compared.chain_usdc)} USDC"
        )
    return "\n".join(lines)


def _moment(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
