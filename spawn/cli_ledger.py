"""`spawn ledger`: the books checked by ourselves, and handed to programs that check them without us."""
# ruff: noqa: PLC0415 - a command imports what it needs: all of it takes seconds, and `--help` answers at once

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TextIO

import click
from spawn_ledger.accounts import EXT_USDC
from spawn_ledger.accrual import FAR_FUTURE
from spawn_ledger.journal import Format, export
from spawn_ledger.transfers import balance_of
from spawn_ledger.verify import Violation, verify
from spawn_schemas.money import Usdc, format_usdc

from spawn.cli_common import open_chain, process_settings
from spawn.settings import Settings
from spawn.store.migrate import require_current
from spawn.store.place import Place
from spawn.store.places import place_of

COUNT_TRANSFERS: Final = "SELECT COUNT(*) AS n FROM transfer"
DAY: Final = click.DateTime(["%Y-%m-%d"])


@click.group("ledger")
def ledger() -> None:
    """Look at the books."""


@ledger.command("verify")
def ledger_verify() -> None:
    """Check every invariant of the books, and compare them with the chain.

    Exit 1 if one is broken. Only reads, so it may run beside the service.
    """
    settings = process_settings()
    require_current(settings.database_url)
    with_chain = settings.payments != "devnet" or Path(settings.devnet_path).exists()
    if not with_chain:
        click.echo(f"there is no chain at {settings.devnet_path}: only the books are checked", err=True)
    violations, transfers, held = asyncio.run(_verify(settings, with_chain=with_chain))
    for violation in violations:
        click.secho(
            f"broken: {violation.rule}: {violation.sentence}", fg="red" if sys.stdout.isatty() else None
        )
    if violations:
        sys.exit(1)
    click.echo(
        f"the books are right: {transfers} transfers, {format_usdc(held)} USDC paid in and accounted for"
    )


async def _verify(settings: Settings, *, with_chain: bool) -> tuple[list[Violation], int, Usdc]:
    on_chain = None
    if with_chain:
        async with open_chain(settings) as (holdings, _):
            on_chain = await holdings.balance_of(settings.pay_to)
    return await asyncio.to_thread(_verify_books, place_of(settings.database_url), on_chain)


def _verify_books(place: Place, on_chain: Usdc | None) -> tuple[list[Violation], int, Usdc]:
    with place.snapshot() as tx:
        counted = tx.one(COUNT_TRANSFERS, {})
        paid_in = balance_of(tx, EXT_USDC).balance
        return verify(tx, chain_balance_usdc=on_chain), 0 if counted is None else counted["n"], paid_in


@ledger.command("export")
@click.option(
    "--format",
    "format_",
    type=click.Choice([one.value for one in Format]),
    required=True,
    help="Whose language.",
)
@click.option("--from", "since", type=DAY, help="The first day (UTC); what was before is opening balances.")
@click.option("--to", "until", type=DAY, help="The first day that is not exported any more.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to a file instead.")
@click.option("--force", is_flag=True, help="Replace the file.")
def ledger_export(
    format_: str, since: datetime | None, until: datetime | None, output: Path | None, *, force: bool
) -> None:
    """Write the books as a journal of hledger or beancount, with every balance asserted.

    Then let that program add up: `hledger -f books.journal check --strict`, `bean-check books.beancount`. Only reads,
    so it may run beside the service; a long export of large books is better made from a backup.
    """
    if since is not None and until is not None and since >= until:
        raise click.UsageError("--from must be before --to, which is the first day left out.")
    settings = process_settings()
    require_current(settings.database_url)
    first, behind = _second(since, 0), _second(until, FAR_FUTURE)
    with (
        _destination(output, force=force) as file,
        place_of(settings.database_url).snapshot() as tx,
    ):
        for piece in export(tx, Format(format_), since=first, until=behind):
            file.write(piece)
    if output is not None:
        click.echo(f"wrote {output}")


def _second(day: datetime | None, default: int) -> int:
    return default if day is None else max(0, int(day.replace(tzinfo=UTC).timestamp()))


@contextmanager
def _destination(output: Path | None, *, force: bool) -> Iterator[TextIO]:
    if output is None:
        yield sys.stdout
        return
    from spawn.store.whole_files import whole

    with whole(output, replace=force) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        yield file
