"""The stock clients that name their purchases, by the payment-identifier extension of PyPI `x402` and of npm.

Invariant: as in `clients`, an adapter translates and nothing else; the extension's own documentation has it this way.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

import requests
from x402 import x402Client, x402ClientSync
from x402.extensions.payment_identifier import (
    PAYMENT_IDENTIFIER,
    append_payment_identifier_to_extensions,
    validate_payment_identifier,
)
from x402.http.clients import httpx as x402_httpx
from x402.http.clients import requests as x402_requests
from x402.mechanisms.evm.exact.register import register_exact_evm_client
from x402.mechanisms.evm.signers import EthAccountSigner

from tests.engines import node_project
from tests.interop.clients import TIMEOUT_S, Client, HttpxBuyer, RequestsBuyer, ScriptedClient, running
from tests.wallets import Wallet

Naming = Callable[[str, Wallet, str | None], AbstractAsyncContextManager[Client]]
"""Opens a client for the service at a URL; the last is the name of all it buys, or None for a new one each time."""


def append_name(context: Any, identifier: str | None) -> None:
    """What a hook does before a payment is made."""
    extensions = context.payment_required.extensions
    append_payment_identifier_to_extensions(extensions, identifier)
    assert validate_payment_identifier(extensions[PAYMENT_IDENTIFIER]).valid


@asynccontextmanager
async def _open_httpx(url: str, wallet: Wallet, identifier: str | None) -> AsyncIterator[Client]:
    async def name(context: Any) -> None:
        append_name(context, identifier)

    client = register_exact_evm_client(x402Client(), EthAccountSigner(wallet.account))
    client.on_before_payment_creation(name)
    async with x402_httpx.x402HttpxClient(client, base_url=url, timeout=TIMEOUT_S) as http:
        yield HttpxBuyer(http)


@asynccontextmanager
async def _open_requests(url: str, wallet: Wallet, identifier: str | None) -> AsyncIterator[Client]:
    def name(context: Any) -> None:
        append_name(context, identifier)

    client = register_exact_evm_client(x402ClientSync(), EthAccountSigner(wallet.account))
    client.on_before_payment_creation(name)
    session: requests.Session
    with x402_requests.x402_requests(client) as session:
        session.trust_env = False  # a proxy of this machine's environment cannot see our loopback
        yield RequestsBuyer(url, session)


@asynccontextmanager
async def _open_fetch(url: str, wallet: Wallet, identifier: str | None) -> AsyncIterator[Client]:
    command = ("node", str(node_project() / "name.mjs"), url, f"0x{bytes(wallet.account.key).hex()}")
    async with running(*command, *([] if identifier is None else [identifier])) as lines:
        yield ScriptedClient(lines)


NAMING: Final[dict[str, Naming]] = {
    "x402[httpx]": _open_httpx,
    "x402[requests]": _open_requests,
    "@x402/fetch": _open_fetch,
}
