"""Stock clients that name their purchases, set up as the extension's own documentation has it, buy each once."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

import pytest
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
from tests.interop.service import RunningService
from tests.wallets import Wallet

ID: Final = "pay_7d5d747be160e280504c099d984bcfe0"
DEPOSIT: Final = "/v1/balance/deposit"


def name_purchase(extensions: dict[str, Any]) -> None:
    append_payment_identifier_to_extensions(extensions, ID)
    assert validate_payment_identifier(extensions[PAYMENT_IDENTIFIER]).valid


@asynccontextmanager
async def naming_httpx(url: str, wallet: Wallet) -> AsyncIterator[Client]:
    async def name(context: Any) -> None:
        name_purchase(context.payment_required.extensions)

    client = register_exact_evm_client(x402Client(), EthAccountSigner(wallet.account))
    client.on_before_payment_creation(name)
    async with x402_httpx.x402HttpxClient(client, base_url=url, timeout=TIMEOUT_S) as http:
        yield HttpxBuyer(http)


@asynccontextmanager
async def naming_requests(url: str, wallet: Wallet) -> AsyncIterator[Client]:
    def name(context: Any) -> None:
        name_purchase(context.payment_required.extensions)

    client = register_exact_evm_client(x402ClientSync(), EthAccountSigner(wallet.account))
    client.on_before_payment_creation(name)
    session: requests.Session
    with x402_requests.x402_requests(client) as session:
        session.trust_env = False  # a proxy of this machine's environment cannot see our loopback
        yield RequestsBuyer(url, session)


@asynccontextmanager
async def naming_fetch(url: str, wallet: Wallet) -> AsyncIterator[Client]:
    key = f"0x{bytes(wallet.account.key).hex()}"
    async with running("node", str(node_project() / "name.mjs"), url, key, ID) as lines:
        yield ScriptedClient(lines)


NAMING: Final[dict[str, Callable[[str, Wallet], AbstractAsyncContextManager[Client]]]] = {
    "x402[httpx]": naming_httpx,
    "x402[requests]": naming_requests,
    "@x402/fetch": naming_fetch,
}


@pytest.mark.parametrize("name", NAMING)
async def test_a_named_purchase_is_paid_once(service: RunningService, name: str) -> None:
    """The client signs a new payment for each call; all but the first are left unspent."""
    wallet = Wallet.numbered(610 + list(NAMING).index(name))
    await service.mint(wallet, "1.00")
    start = await service.mark()
    async with NAMING[name](service.url, wallet) as client:
        first = await client.call("POST", DEPOSIT, {"amount": "0.25"})
        again = await client.call("POST", DEPOSIT, {"amount": "0.25"})
        other = await client.call("POST", DEPOSIT, {"amount": "0.20"})
    assert (first.status, again.status, again.body) == (200, 200, first.body)
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert (other.status, other.body["error"]["code"]) == (409, "idempotency_conflict")
    moved = await service.moved(wallet.address, start)
    assert [transfer.amount for transfer in moved.on_chain] == [250_000]
    assert moved.paid_in == (250_000,)
    assert await service.violations() == []
