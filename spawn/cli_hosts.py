"""`spawn hosts`: whose machines are lent, and how they are.

Invariant: a registration token is made and shown here, once; the service keeps its hash.
"""
# ruff: noqa: PLC0415 - a command imports what it needs: all of it takes seconds, and `--help` answers at once

from typing import TYPE_CHECKING, Any, Final

import click
from spawn_ledger.tx import Tx
from spawn_schemas.errors import SpawnError
from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc

from spawn.cli_admin import Amount, WalletAddress, look
from spawn.cli_common import Refusal
from spawn.cli_orders import give_order
from spawn.clock import SystemEntropy
from spawn.setting_forms import is_host_name

if TYPE_CHECKING:
    from spawn.services.hosts_admin import HostLine

_TOKEN_BYTES: Final = 32


class _Name(click.ParamType[str]):
    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if not is_host_name(text):
            self.fail("a host's name is lower-case letters, digits and hyphens, 32 at most.", param, ctx)
        return text


NAME: Final = click.argument("name", type=_Name())
JSON: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("hosts")
def hosts() -> None:
    """Look after lent machines. docs/operating.md says how one is added."""


def _new_token() -> str:
    from spawn_schemas.hosts import TOKEN_PREFIX

    return TOKEN_PREFIX + SystemEntropy().bytes(_TOKEN_BYTES).hex()


def _show_token(token: str) -> None:
    click.echo(
        f"\n  {token}\n\nGive it to the machine's owner, for `spawn-host setup`. It is not shown again."
    )


@hosts.command("add")
@NAME
@click.option("--wallet", required=True, type=WalletAddress(), help="Where its owner's share is paid out.")
@click.option("--price", required=True, type=Amount(), help="USDC for 24 hours of what it is sold as.")
def add_command(*, name: str, wallet: Address, price: Usdc) -> None:
    """Add a machine, and print the token that it registers with: once, within a day."""
    from spawn.services.hosts import hashed
    from spawn.services.hosts_admin import AddHost

    token = _new_token()
    give_order(AddHost(name=name, wallet=wallet, daily_usdc=price, token_hash=hashed(token)))
    _show_token(token)


@hosts.command("token")
@NAME
def token_command(*, name: str) -> None:
    """Print another token for a machine that is to register, or to register anew with another key."""
    from spawn.services.hosts import hashed
    from spawn.services.hosts_admin import NewHostToken

    token = _new_token()
    give_order(NewHostToken(name=name, token_hash=hashed(token)))
    _show_token(token)


@hosts.command("list")
@JSON
def list_command(*, as_json: bool) -> None:
    """List the machines, what runs there, and what their owners are owed."""
    import msgspec

    from spawn.services import hosts_admin

    lines = look(hosts_admin.lines)
    if as_json:
        click.echo(msgspec.json.encode(lines).decode())
        return
    head = ("NAME", "STATE", "RENTALS", "USDC/DAY", "OWED", "UPTIME", "LAST SEEN")
    rows = [head, *(_cells(line) for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cells(line: "HostLine") -> tuple[str, ...]:
    state = f"{line.state}, draining" if line.draining else line.state
    return (
        line.name,
        state,
        str(line.rentals),
        line.daily,
        line.owed,
        f"{line.uptime:.2%}",
        line.last_seen or "never",
    )


@hosts.command("show")
@NAME
def show_command(*, name: str) -> None:
    """Show a machine, and what it says of itself, as JSON."""
    import msgspec

    from spawn.services import hosts_admin

    def read(tx: Tx, now: int) -> "HostLine":
        try:
            return hosts_admin.line(tx, name, now)
        except SpawnError as error:
            raise Refusal(f"{error.message} {error.next or ''}".strip()) from error

    click.echo(msgspec.json.format(msgspec.json.encode(look(read)), indent=2).decode())


@hosts.command("revoke")
@NAME
@click.confirmation_option(prompt="What runs there is lost to its tenants. Go on?")
def revoke_command(*, name: str) -> None:
    """Never hear a machine again: its key is good for nothing any more, and what runs there ends."""
    from spawn.services.hosts_admin import RevokeHost

    give_order(RevokeHost(name=name))


@hosts.command("drain")
@NAME
def drain_command(*, name: str) -> None:
    """Place nothing new on a machine; what runs there goes on."""
    from spawn.services.hosts_admin import RestHost

    give_order(RestHost(name=name, draining=True))


@hosts.command("undrain")
@NAME
def undrain_command(*, name: str) -> None:
    """Place rentals on a machine again."""
    from spawn.services.hosts_admin import RestHost

    give_order(RestHost(name=name, draining=False))
