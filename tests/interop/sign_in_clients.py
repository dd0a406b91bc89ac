"""The stock clients that sign in, behind the face of those that pay: PyPI `x402`, npm `@x402/extensions`.

Invariant: as in `clients`, an adapter translates and nothing else; no text is written and none signed here.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from x402 import x402Client
from x402.extensions.sign_in_with_x import CreateSIWxClientExtensionOptions, create_siwx_client_extension
from x402.http.clients import httpx as x402_httpx
from x402.mechanisms.evm.exact.register import register_exact_evm_client
from x402.mechanisms.evm.signers import EthAccountSigner

from tests.engines import node_project
from tests.interop.clients import TIMEOUT_S, Client, HttpxBuyer, Opener, ScriptedClient, running
from tests.interop.naming_clients import append_name
from tests.wallets import Wallet


async def _name(context: Any) -> None:
    append_name(context, None)


@asynccontextmanager
async def _open_httpx(url: str, wallet: Wallet, limit: str | None, *, pays: bool) -> AsyncIterator[Client]:
    client = x402Client()
    if pays:
        register_exact_evm_client(client, EthAccountSigner(wallet.account))
    if limit is not None:
        client.set_spend_controls({"max_amount_per_payment": limit})
    client.on_before_payment_creation(_name)
    options = CreateSIWxClientExtensionOptions(signers=[wallet.account])
    client.register_extension(create_siwx_client_extension(options))
    async with x402_httpx.x402HttpxClient(client, base_url=url, timeout=TIMEOUT_S) as http:
        yield HttpxBuyer(http)


@asynccontextmanager
async def _open_fetch(url: str, wallet: Wallet, limit: str | None, *, how: str) -> AsyncIterator[Client]:
    script = str(node_project() / "sign_in.mjs")
    async with running("node", script, url, f"0x{bytes(wallet.account.key).hex()}", how) as lines:
        yield ScriptedClient(lines)


SIGNERS: Final[dict[str, Opener]] = {
    "x402[extensions]": partial(_open_httpx, pays=True),
    "@x402/extensions": partial(_open_fetch, how="hook"),
}
"""The clients that sign in where that will do, and pay, each time under a new name, where it will not."""

PENNILESS: Final[dict[str, Opener]] = {
    "x402[extensions]": partial(_open_httpx, pays=False),
    "@x402/extensions": partial(_open_fetch, how="broke"),
}
"""The same clients without any means to pay."""
