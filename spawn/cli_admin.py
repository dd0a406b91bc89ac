"""`spawn admin`: what an operator looks at, and what an operator orders.

Invariant: looking reads a snapshot beside the service; what is ordered goes through `cli_orders`.
"""
# ruff: noqa: PLC0415 - a command imports what it needs: all of it takes seconds, and `--help` answers at once

import asyncio
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from spawn_ledger.tx import Tx
from spawn_schemas.ids import Address, parse_address
from spawn_schemas.money import Usdc, parse_usdc

from spawn.cli_common import Refusal, process_settings
from spawn.cli_orders import give_order
from spawn.clock import SystemClock, SystemEntropy
from spawn.domain.barring import Barred, Verb
from spawn.domain.servers import Status
from spawn.store.migrate import require_current
from spawn.store.places import place_of

if TYPE_CHECKING:
    from spawn.services.admin_looks import Trouble

T = TypeVar("T")


class WalletAddress(click.ParamType[Address]):
    """An address, whose capitals are checked where it has any."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        text = str(value)
        try:
            address = parse_address(text)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)
        if text[2:] not in {text[2:].lower(), text[2:].upper()} and text[2:] != _checksummed(address)[2:]:
            self.fail("its capitals say that a digit is wrong (EIP-55): copy it once more.", param, ctx)
        return address


def _checksummed(address: Address) -> str:
    from spawn.payments.curve import checksummed

    return checksummed(address)


class Amount(click.ParamType[Usdc]):
    """More than zero USDC."""

    name = "usdc"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Usdc:
        try:
            amount = parse_usdc(str(value))
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)
        if amount == 0:
            self.fail("an amount is more than zero.", param, ctx)
        return amount


class _Date(click.ParamType[int]):
    """Midnight, UTC, of a day."""

    name = "date"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            day = datetime.strptime(str(value), "%Y-%m-%d").replace(tzinfo=UTC)
        except ValueError:
            self.fail("a date is like 2027-01-31, and begins at midnight UTC.", param, ctx)
        return int(day.timestamp())


class _Piece(click.ParamType[str]):
    """Hex digits of an address, with or without 0x."""

    name = "digits"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value).lower()
        if not re.fullmatch(r"(0x)?[0-9a-f]{0,40}", text):
            self.fail("search for hex digits of an address, such as 0x8ba1 or f109.", param, ctx)
        return text


WALLET: Final = click.argument("wallet", type=WalletAddress(), metavar="ADDRESS")
JSON: Final = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
LIMIT: Final = click.option(
    "--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="Lines at most."
)


@click.group("admin")
def admin() -> None:
    """Look after wallets, servers and prices. Works beside a running service.

    Whoever may read and write the database may do this: there is no other key. docs/admin.md says more.
    """


# --- looking ------------------------------------------------------------------------------------------------------


def look(read: Callable[[Tx, int], T]) -> T:
    """What `read` finds in a snapshot of the books, beside a service that may run."""
    settings = process_settings()
    require_current(settings.database_url)
    with place_of(settings.database_url).snapshot() as tx:
        return read(tx, SystemClock().now_s())


def _print(shown: T, as_text: Callable[[T], str], *, as_json: bool) -> None:
    import msgspec

    click.echo(msgspec.json.encode(shown).decode() if as_json else as_text(shown))


@admin.command("status")
@JSON
def status_command(*, as_json: bool) -> None:
    """Show the whole on one page: wallets, servers, and what waits or fails."""
    from spawn import cli_admin_tables as tables
    from spawn.services import admin_looks

    trouble = _trouble()
    shown = look(lambda tx, now: admin_looks.status(tx, trouble, now))
    _print(shown, tables.status, as_json=as_json)


def _trouble() -> "Trouble":
    from spawn.services import admin_looks

    settings = process_settings()
    require_current(settings.database_url)

    async def look() -> "Trouble":
        db = await place_of(settings.database_url).open_reader()
        try:
            return await admin_looks.trouble(db, SystemClock().now_s())
        finally:
            await db.close()

    return asyncio.run(look())


@admin.command("wallets")
@click.option("--search", type=_Piece(), default="", help="Only addresses that contain these hex digits.")
@click.option("--barred", type=click.Choice([bar.value for bar in Barred]), help="Only those that are.")
@click.option("--after", type=WalletAddress(), help="Go on behind this one.")
@LIMIT
@JSON
def wallets_command(
    *, search: str, barred: str | None, after: Address | None, limit: int, as_json: bool
) -> None:
    """List wallets, their money and their servers."""
    from spawn import cli_admin_tables as tables
    from spawn.services import admin_looks

    only = None if barred is None else Barred(barred)
    page = look(
        lambda tx, now: admin_looks.wallet_page(
            tx, piece=search, only=only, after=after, limit=limit, now=now
        )
    )
    _print(page, tables.wallets, as_json=as_json)


@admin.command("wallet")
@WALLET
@JSON
def wallet_command(*, wallet: Address, as_json: bool) -> None:
    """Show a wallet: its money, its servers, and what was done to it."""
    from spawn import cli_admin_tables as tables
    from spawn.services import admin_looks

    _print(look(lambda tx, now: admin_looks.show_wallet(tx, wallet, now)), tables.wallet, as_json=as_json)


@admin.command("servers")
@click.option("--wallet", type=WalletAddress(), help="Only this wallet's.")
@click.option(
    "--status",
    type=click.Choice([status.value for status in Status]),
    help="Only those in this state  [default: all that have not ended].",
)
@click.option("--after", default="", metavar="SERVER", help="Go on behind this one.")
@LIMIT
@JSON
def servers_command(
    *, wallet: Address | None, status: str | None, after: str, limit: int, as_json: bool
) -> None:
    """List servers with what they earned and cost us, as far as the books are settled."""
    from spawn import cli_admin_tables as tables
    from spawn.services import admin_looks

    page = look(
        lambda tx, _: admin_looks.server_page(tx, wallet=wallet, status=status, after=after, limit=limit)
    )
    _print(page, tables.servers, as_json=as_json)


@admin.command("statement")
@WALLET
@click.option("--before", type=int, metavar="LINE", help="Go on with older lines than this one.")
@LIMIT
@JSON
def statement_command(*, wallet: Address, before: int | None, limit: int, as_json: bool) -> None:
    """Show how a wallet's money moved, the newest first."""
    from spawn import cli_admin_tables as tables
    from spawn.services import admin_looks

    page = look(lambda tx, _: admin_looks.statement(tx, wallet, before=before, limit=limit))
    _print(page, tables.statement, as_json=as_json)


@admin.command("notes")
@WALLET
@JSON
def notes_command(*, wallet: Address, as_json: bool) -> None:
    """Show what was done to a wallet, and why, the newest first."""
    from spawn import cli_admin_tables as tables
    from spawn.services import admin_looks

    _print(look(lambda tx, _: admin_looks.notes(tx, wallet)), tables.notes, as_json=as_json)


@admin.command("price-changes")
@LIMIT
@JSON
def price_changes_command(*, limit: int, as_json: bool) -> None:
    """List the prices that were changed, the newest first."""
    from spawn import cli_admin_tables as tables
    from spawn.services import admin_looks

    lines = look(lambda tx, now: admin_looks.price_lines(tx, limit=limit, now=now))
    _print(lines, tables.price_changes, as_json=as_json)


# --- ordering -----------------------------------------------------------------------------------------------------


_WHY: Final = "Why: its owner reads it, and so does the next operator."
REASON: Final = click.option("--reason", required=True, metavar="TEXT", help=_WHY)
MAYBE_REASON: Final = click.option("--reason", default="", metavar="TEXT", help=_WHY)


@admin.command("credit")
@WALLET
@click.argument("amount", type=Amount(), metavar="AMOUNT")
@REASON
@click.option(
    "--id", "credit_id", metavar="NAME", help="The same again gives nothing again  [default: a new one]."
)
def credit_command(*, wallet: Address, amount: Usdc, reason: str, credit_id: str | None) -> None:
    """Give a wallet money of ours, for a reason that is written down."""
    from spawn.desk import DeskSilent
    from spawn.services.admin import Credit

    credit_id = credit_id or SystemEntropy().bytes(6).hex()
    try:
        give_order(Credit(id=credit_id, wallet=wallet, usdc=amount, reason=reason))
    except DeskSilent as error:
        raise Refusal(
            f"{error} With --id {credit_id} it is given once, however often you repeat it."
        ) from error


def _bar(verb: Verb, wallet: Address, reason: str) -> None:
    from spawn.services.admin import Bar

    give_order(Bar(verb=verb, wallet=wallet, reason=reason))


@admin.command("suspend")
@WALLET
@REASON
def suspend_command(*, wallet: Address, reason: str) -> None:
    """Power a wallet's servers off and keep it from renting and changing any.

    It still reads, destroys, pays in and claims; its servers go on costing what they cost. A server that something
    runs on stays on: repeat the command when that is done.
    """
    _bar(Verb.SUSPEND, wallet, reason)


@admin.command("restore")
@WALLET
@MAYBE_REASON
def restore_command(*, wallet: Address, reason: str) -> None:
    """Let a suspended wallet do everything again. Its owner starts its servers."""
    _bar(Verb.RESTORE, wallet, reason)


@admin.command("block")
@WALLET
@REASON
def block_command(*, wallet: Address, reason: str) -> None:
    """Take no payment of a wallet any more, and power its servers off. It reads and destroys."""
    _bar(Verb.BLOCK, wallet, reason)


@admin.command("unblock")
@WALLET
@MAYBE_REASON
def unblock_command(*, wallet: Address, reason: str) -> None:
    """Let a blocked wallet do everything again."""
    _bar(Verb.UNBLOCK, wallet, reason)


@admin.command("price-change")
@click.option("--type", "type_", required=True, help="As the catalog names it, such as small.")
@click.option("--location", required=True, help="Such as nbg1.")
@click.option("--daily", required=True, type=Amount(), help="USDC for 24 hours.")
@click.option(
    "--from",
    "effective_at",
    type=_Date(),
    metavar="YYYY-MM-DD",
    help="From this day on  [default: a rise in 30 days, a fall at once].",
)
def price_change_command(*, type_: str, location: str, daily: Usdc, effective_at: int | None) -> None:
    """Announce a price. New orders pay it at once, servers that run 30 days after their owners are told if it rises."""
    from spawn.services.admin import AnnouncePrice

    give_order(AnnouncePrice(type=type_, location=location, daily_usdc=daily, effective_at=effective_at))


@admin.command("price-withdraw")
@click.argument("change", metavar="ID")
def price_withdraw_command(*, change: str) -> None:
    """Take back a price that is not in force yet; `price-changes` lists them."""
    from spawn.services.admin import WithdrawPrice

    give_order(WithdrawPrice(id=change))
