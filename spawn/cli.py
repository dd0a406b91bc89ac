"""The `spawn` command: for developers (dev, demo, wallet, faucet) and operators (serve, migrate, reconcile, ledger).

Invariant: a mistake of the user ends in one sentence that says what to do, never in a traceback; exit 1 is "no",
exit 2 is "I did not understand".
"""
# ruff: noqa: PLC0415 - a command imports what it needs: all of it takes seconds, and `--help` answers at once

import asyncio
import json
import os
import socket
import sqlite3
import sys
from collections.abc import Coroutine, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

import click
from spawn_schemas.ids import Address, parse_address
from spawn_schemas.money import Usdc, format_usdc, parse_usdc

from spawn import __version__
from spawn.cli_admin import admin
from spawn.cli_backup import backup_command, restore_command
from spawn.cli_common import Refusal, require_devnet
from spawn.cli_common import process_settings as _settings
from spawn.cli_economics import economics
from spawn.cli_hosts import hosts
from spawn.cli_ledger import ledger
from spawn.cli_migrate import migrate_command
from spawn.cli_prices import prices
from spawn.cli_reconcile import reconcile_command, unfreeze_command
from spawn.cli_treasury import treasury_command
from spawn.clock import SystemClock, SystemEntropy
from spawn.evm.node import NodeUnavailable, WrongChain
from spawn.settings import InvalidSetting, Settings
from spawn.store.database import StoreError
from spawn.store.migrate import migrate
from spawn.store.places import place_of

CHAIN: Final = click.option(
    "--chain",
    type=click.Choice(["embedded", "anvil"]),
    default="embedded",
    show_default=True,
    help="Where payments settle: in a file of ours, or on a node, which `make anvil` installs.",
)


def main() -> None:
    """Run the command line."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("stopped", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (InvalidSetting, StoreError) as error:
        _refuse(str(error))
    except WrongChain as error:
        _refuse(f"{error}.")
    except NodeUnavailable as error:
        _refuse(f"{error}. Try again later, or name another node with SPAWN_RPC_URL.")
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in {
            sqlite3.SQLITE_CORRUPT,
            sqlite3.SQLITE_NOTADB,
        }:
            raise
        _refuse(f"the database cannot be read ({error}): stop the service and restore it from a backup.")


def _refuse(sentence: str) -> NoReturn:
    refusal = Refusal(sentence)
    refusal.show()
    sys.exit(refusal.exit_code)


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="spawn")
def cli() -> None:
    """Rent computers over HTTP: the wallet that pays owns the server.

    \b
    New here?          spawn demo        one agent's whole journey, in half a minute
    Building a client? spawn dev         a service to call, with play money and simulated servers
    Running it?        spawn migrate, then spawn serve

    Settings are SPAWN_* environment variables; an unknown one is refused with a suggestion.
    """


@cli.command()
@click.option("--listen", metavar="HOST:PORT", help="Where to listen  [default: 127.0.0.1:8402].")
@click.option("--speed", type=float, help="How fast simulated servers boot; 1 is real time  [default: 20].")
@click.option(
    "--fast-forward", is_flag=True, help="Let time pass by typing how much of it: 6h and Enter, or 3d."
)
@CHAIN
def dev(listen: str | None, speed: float | None, chain: str, fast_forward: bool) -> None:
    """Run a service for development: play money, simulated servers.

    It creates what is missing in this folder (spawn.db and its companions) and keeps it for the next run. With
    --chain anvil, payments are transactions of a relayer on a chain of this machine (SPAWN_PAYMENTS=self).

    \b
    Then, elsewhere:
      spawn wallet new                     an address and its key
      spawn faucet 0xYOUR_ADDRESS          play USDC for it
      curl http://127.0.0.1:8402/          what can be called
    """
    from spawn import server

    if speed is None and "SPAWN_SIMULATED_SPEED" not in os.environ:
        speed = 20.0
    nearby = None if "SPAWN_WEBHOOK_NETWORKS" in os.environ else "127.0.0.0/8,::1"
    here = _chain_settings(chain)
    settings = _settings(listen=listen, simulated_speed=speed, webhook_networks=nearby, **here)
    listener = _listen(settings)
    with _chain(settings, chain) as where:
        migrate(settings.database_url)
        click.echo(f"spawn {__version__}, for development: play money, simulated servers")
        click.echo(
            f"  listening on  http://{settings.listen}   (API reference: http://{settings.listen}/docs)"
        )
        click.echo(f"  network       {settings.x402_network}, USDC {settings.x402_asset}, {where}")
        click.echo(f"  paid to       {settings.x402_pay_to}")
        click.echo(f"  database      {place_of(settings.database_url).name}")
        if here:
            unusual = {name: value for name, value in here.items() if value != getattr(Settings(), name)}
            exports = " ".join(f"SPAWN_{name.upper()}={value}" for name, value in unusual.items())
            click.echo(f"  for treasury, ledger and others elsewhere: export {exports}")
        faucet_options = "" if chain == "embedded" else f"--chain {chain} "
        click.echo(
            f"  next          spawn wallet new; spawn faucet {faucet_options}0xYOUR_ADDRESS   (Ctrl-C stops)"
        )
        if fast_forward:
            click.echo("  time          type how much of it shall pass, such as 6h or 3d, and Enter")
        server.serve(settings, listener, log_requests=True, fast_forward=fast_forward)


def _chain_settings(chain: str) -> dict[str, str]:
    if chain == "embedded":
        return {}
    from spawn import devchain

    return devchain.settings_here(os.environ)


@contextmanager
def _chain(settings: Settings, chain: str) -> Iterator[str]:
    """Run the chain that `spawn dev` settles on, if it is a program of its own; tell where it is."""
    if chain == "embedded":
        yield f"embedded ({settings.devnet_path})"
        return
    from spawn import devchain

    try:
        with devchain.for_developers(settings, Path(devchain.STATE)):
            yield f"anvil at {settings.rpc_url} ({devchain.STATE})"
    except devchain.DevChainUnavailable as error:
        raise Refusal(str(error)) from error


def _listen(settings: Settings) -> socket.socket:
    from spawn import server

    try:
        return server.listen(settings)
    except server.CannotListen as error:
        raise Refusal(str(error)) from error


@cli.command()
@click.option(
    "--listen", metavar="HOST:PORT", help="Where to listen  [default: SPAWN_LISTEN, 127.0.0.1:8402]."
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    envvar="WEB_CONCURRENCY",
    show_envvar=True,
    help="Processes, several of them on PostgreSQL only.",
)
@click.option(
    "--worker", type=int, nargs=2, hidden=True, help="Listener and line that a supervisor hands down."
)
def serve(listen: str | None, workers: int, worker: tuple[int, int] | None) -> None:
    """Run the service, on a database that is up to date.

    `spawn migrate` brings it there. One process per SQLite file: a second one is refused. On PostgreSQL there may be
    many, here by --workers and on other machines. Set SPAWN_PUBLIC_URL to how callers reach you, because signed
    requests are bound to it.
    """
    from spawn import server

    settings = _settings(listen=listen)
    if worker is not None:
        listener, line = (socket.socket(fileno=number) for number in worker)
        server.serve(settings, listener, line=line)
    elif workers == 1:
        server.serve(settings, _listen(settings))
    else:
        _serve_with(workers, settings)


def _serve_with(workers: int, settings: Settings) -> NoReturn:
    from spawn.supervisor import Supervisor

    if not place_of(settings.database_url).is_shared:
        raise Refusal(
            f"{workers} workers cannot share a SQLite database, which has one writing process. Run one (--workers 1 or "
            "WEB_CONCURRENCY=1), and leave TLS to a reverse proxy in front of it; or move to PostgreSQL: spawn migrate "
            "--from sqlite:///spawn.db --to postgresql://user:password@host/database."
        )
    if settings.providers == "community":
        raise Refusal(
            f"{workers} workers cannot all listen for lent machines at SPAWN_LINK_LISTEN: run one (--workers 1 or "
            "WEB_CONCURRENCY=1)."
        )
    command = [sys.executable, "-m", "spawn", "serve", "--listen", settings.listen, "--worker"]
    sys.exit(Supervisor(command, workers, _listen(settings)).run())


admin.add_command(unfreeze_command)
cli.add_command(reconcile_command)
cli.add_command(migrate_command)
cli.add_command(admin)
cli.add_command(hosts)
cli.add_command(ledger)
cli.add_command(backup_command)
cli.add_command(restore_command)
cli.add_command(treasury_command)
cli.add_command(economics)
cli.add_command(prices)


@cli.group()
def wallet() -> None:
    """Wallets for development."""


@wallet.command("new")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def wallet_new(as_json: bool) -> None:
    """Make a wallet and print its address and private key. Nothing is stored.

    For the development chain; keep real money out of keys that were printed on a screen.
    """
    from eth_account import Account

    secret = SystemEntropy().bytes(32)
    address, key = Account.from_key(secret).address, f"0x{secret.hex()}"
    if as_json:
        click.echo(json.dumps({"address": address, "private_key": key}))
        return
    click.echo(f"address      {address}")
    click.echo(f"private key  {key}")


@cli.command()
@click.argument("address")
@click.option("--amount", default="100.00", show_default=True, help="USDC to give.")
@CHAIN
def faucet(address: str, amount: str, chain: str) -> None:
    """Give a wallet play USDC on the development chain. Works while the service runs."""
    try:
        receiver, usdc = parse_address(address), parse_usdc(amount)
    except ValueError as error:
        raise click.UsageError(f"{error}.") from error
    if usdc == 0:
        raise click.UsageError("an amount to give is more than zero.")
    settings = _settings(**_chain_settings(chain))
    if settings.payments == "devnet":
        require_devnet(settings)
        balance = _run(_mint(settings, receiver, usdc))
    else:
        balance = _mint_on_anvil(settings, receiver, usdc)
    click.echo(f"{address} has {format_usdc(balance)} USDC on {settings.x402_network} (play money)")


async def _mint(settings: Settings, receiver: Address, usdc: Usdc) -> Usdc:
    from spawn.rails import open_devnet

    chain = open_devnet(settings, SystemClock())
    try:
        return await chain.mint(receiver, usdc)
    finally:
        chain.close()


def _mint_on_anvil(settings: Settings, receiver: Address, usdc: Usdc) -> Usdc:
    from spawn import devchain

    try:
        with closing(devchain.Anvil(settings.rpc_url)) as anvil:
            anvil.require_ours()
            return anvil.mint(receiver, usdc)
    except devchain.DevChainUnavailable as error:
        raise Refusal(str(error)) from error


@cli.command("demo")
@click.option("--keep", is_flag=True, help="Keep the demo's databases, and say where they are.")
@click.option("--fast-forward", is_flag=True, help="A deposit's whole life instead: warning, top-up, end.")
def demo_command(keep: bool, fast_forward: bool) -> None:
    """Run the main job: an agent pays, gets a server, is refunded.

    Starts a service of its own on a free port with play money and simulated servers, and stops it again.
    """
    from spawn import demo

    try:
        demo.run(os.environ, keep=keep, fast_forward=fast_forward)
    except demo.DemoFailed as error:
        raise Refusal(str(error)) from error


@cli.command("openapi")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to a file instead.")
def openapi_command(output: Path | None) -> None:
    """Print the API's description (OpenAPI 3.1)."""
    from spawn.api import description

    text = description.encoded().decode()
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Refusal(f"cannot write {output}: {error.strerror}.") from error
    click.echo(f"wrote {output}")
