"""`spawn reconcile` and `spawn admin unfreeze`: books and machines compared, and brought together after a loss."""
# ruff: noqa: PLC0415 - a command imports what it needs: all of it takes seconds, and `--help` answers at once

import asyncio
import sys
from typing import TYPE_CHECKING

import click

from spawn.cli_common import Refusal, process_settings
from spawn.cli_orders import give_order

if TYPE_CHECKING:
    from spawn.services import rebuilding, reconcile


@click.command("reconcile")
@click.option(
    "--rebuild", is_flag=True, help="The database is lost: make servers of machines that it never had."
)
def reconcile_command(*, rebuild: bool) -> None:
    """Compare providers, books and billing once; mend what differs.

    Runs by itself while the service is up, each SPAWN_RECONCILE_EVERY_S; this is for when it is not. A machine that
    nobody owns must be seen in two runs, five minutes apart, before anything is done, and a server that its provider
    lost must be missed a day apart: another token may look into another project. A machine that is older than the
    database, and was never in it, is left alone.

    With --rebuild, such machines are servers of the wallets in their labels again. They are frozen: they cost nothing,
    and none ends for want of money, until `spawn admin unfreeze`. Give the wallets their balances first, with `spawn
    admin credit`. A backup is better: `spawn restore`.
    """
    if not rebuild:
        click.echo(_compared(asyncio.run(_reconcile())))
        return
    report = asyncio.run(_rebuild())
    click.echo(_told(report))
    if report.undecided:
        for sentence in report.undecided:
            click.secho(f"undecided: {sentence}", fg="red" if sys.stdout.isatty() else None)
        sys.exit(1)


async def _reconcile() -> "reconcile.Report":
    from spawn.app import build
    from spawn.parts import open_parts

    settings = process_settings()
    parts = await open_parts(settings)
    try:
        service = await build(settings, parts, ticking=False)
        return await service.workers.reconciler.run()
    finally:
        await parts.close()


def _compared(report: "reconcile.Report") -> str:
    return "\n".join(
        f"{name.replace('_', ' '):18}{getattr(report, name)}" for name in report.__struct_fields__
    )


async def _rebuild() -> "rebuilding.Report":
    from spawn.app import build
    from spawn.parts import open_parts
    from spawn.services.rebuilding import Rebuilding

    settings = process_settings()
    parts = await open_parts(settings)
    try:
        await build(settings, parts, ticking=False)  # its checks: this key, this chain
        return await Rebuilding(parts.db, parts.providers, settings).run(parts.clock.now_s())
    finally:
        await parts.close()


def _told(report: "rebuilding.Report") -> str:
    from spawn.services.moments import moment

    wallets = {one.wallet for one in report.rebuilt}
    return "\n".join(
        (
            *(
                f"rebuilt   {one.server} ({one.type} {one.name!r} of {one.wallet}), ordered {moment(one.since)}, frozen"
                for one in report.rebuilt
            ),
            *(f"note      {note}" for note in report.notes),
            f"{len(report.rebuilt)} servers of {len(wallets)} wallets are back; {report.known} were there already.",
            *(
                ("Next: `spawn admin credit` for each wallet, and then `spawn admin unfreeze --all`.",)
                if report.rebuilt
                else ()
            ),
        )
    )


@click.command("unfreeze")
@click.argument("server", required=False)
@click.option("--all", "all_", is_flag=True, help="Every server that is frozen.")
def unfreeze_command(*, server: str | None, all_: bool) -> None:
    """Start the meter of a server that `spawn reconcile --rebuild` brought back: it costs money from now on.

    The time before stays unpaid. Set its wallet's balance first: whoever has none is warned, and the server ends after
    the last warning.
    """
    from spawn.services.admin import Unfreeze

    if (server is None) != all_:
        raise Refusal("name one SERVER, or say --all.")
    give_order(Unfreeze(server=server))
