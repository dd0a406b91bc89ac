"""What several commands need: the settings of this process, and the chain that they name.

Invariant: a setting that cannot be meant ends in InvalidSetting, before anything is opened or created.
"""
# ruff: noqa: PLC0415 - a command imports what it needs: all of it takes seconds, and `--help` answers at once

import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from spawn.clock import SystemClock
from spawn.setting_reader import read_settings
from spawn.settings import InvalidSetting, Settings
from spawn.store.places import place_of

if TYPE_CHECKING:
    from spawn.evm.node import Node
    from spawn.payments.holdings import Holdings


class Refusal(click.ClickException):
    """What was asked for cannot be done; the message says what to do instead."""

    def show(self, file: IO[Any] | None = None) -> None:
        click.secho(f"spawn: {self.message}", err=True, fg="red" if sys.stderr.isatty() else None)


def process_settings(**overrides: object) -> Settings:
    """The settings from the environment; an override that is not None wins. Raises InvalidSetting."""
    settings = read_settings(os.environ, **{k: v for k, v in overrides.items() if v is not None})
    try:
        place_of(settings.database_url)
    except ValueError as error:
        raise InvalidSetting(f"SPAWN_DATABASE_URL: {error}.") from error
    return settings


def require_devnet(settings: Settings) -> None:
    """Raise InvalidSetting where there is no embedded chain: opening it would create one."""
    path = Path(settings.devnet_path)
    if not path.exists():
        raise InvalidSetting(
            f"there is no development chain at {path.resolve()}: start `spawn dev` first, and run this in the same "
            "folder, or set SPAWN_DEVNET_PATH; on anvil, add `--chain anvil`."
        )


@asynccontextmanager
async def open_chain(settings: Settings) -> AsyncIterator[tuple["Holdings", "Node | None"]]:
    """Who tells what we hold: the embedded chain, or the node of a real one, which is asked nothing yet.

    Raises InvalidSetting where there is no embedded chain.
    """
    if settings.payments == "devnet":
        from spawn.rails import open_devnet

        require_devnet(settings)
        chain = open_devnet(settings, SystemClock())
        try:
            yield chain, None
        finally:
            chain.close()
        return
    from spawn_schemas.ids import parse_address

    from spawn.payments.holdings import TokenHoldings
    from spawn.rails import open_node

    async with AsyncExitStack() as opened:
        node = open_node(settings, opened)
        yield TokenHoldings(node, parse_address(settings.x402_asset)), node
