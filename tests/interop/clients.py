"""The stock clients behind one face: each is its published package, set up as its own documentation has it.

Invariant: an adapter translates arguments and answers and nothing else; no header of a payment is made here.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import httpx
import msgspec
import requests
from x402 import x402Client, x402ClientSync
from x402.http.clients import httpx as x402_httpx
from x402.http.clients import requests as x402_requests
from x402.http.utils import decode_payment_response_header
from x402.mechanisms.evm.exact.register import register_exact_evm_client
from x402.mechanisms.evm.signers import EthAccountSigner

from tests.engines import node_project
from tests.wallets import Wallet

TIMEOUT_S: Final = 60
_LINE_MAX: Final = 2**20


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """PAYMENT-RESPONSE as the client's own decoder reads it."""

    success: bool
    transaction: str
    network: str
    payer: str
    amount: str


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """An answer; header names are lower-case."""

    status: int
    headers: dict[str, str]
    body: Any
    receipt: Receipt | None = None


class WouldNotPay(Exception):
    """The client itself refused, before any money moved."""


class Client(Protocol):
    """A caller with a wallet."""

    async def call(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send one request and pay for it. Raises WouldNotPay."""
        ...


Opener = Callable[[str, Wallet, str | None], AbstractAsyncContextManager[Client]]
"""Opens a client for the service at a URL; the last is a spend limit such as "$10", or None for its own default."""


def _receipt(header: str | None) -> Receipt | None:
    if header is None:
        return None
    return msgspec.convert(decode_payment_response_header(header).model_dump(), Receipt)


def _reply(status: int, headers: Mapping[str, str], body: Any) -> Reply:
    named = {name.lower(): value for name, value in headers.items()}
    return Reply(status=status, headers=named, body=body, receipt=_receipt(named.get("payment-response")))


class HttpxBuyer:
    """PyPI `x402`, the asynchronous httpx client."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def call(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        try:
            response = await self._http.request(method, path, json=body, headers=headers)
        except x402_httpx.PaymentError as error:
            raise WouldNotPay(str(error)) from error
        return _reply(response.status_code, response.headers, response.json())


@asynccontextmanager
async def open_httpx(url: str, wallet: Wallet, limit: str | None) -> AsyncIterator[Client]:
    client = register_exact_evm_client(x402Client(), EthAccountSigner(wallet.account))
    if limit is not None:
        client.set_spend_controls({"max_amount_per_payment": limit})
    async with x402_httpx.x402HttpxClient(client, base_url=url, timeout=TIMEOUT_S) as http:
        yield HttpxBuyer(http)


class RequestsBuyer:
    """PyPI `x402`, the requests session."""

    def __init__(self, url: str, session: requests.Session) -> None:
        self._url = url
        self._session = session

    async def call(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        def send() -> requests.Response:
            return self._session.request(
                method, f"{self._url}{path}", json=body, headers=headers, timeout=TIMEOUT_S
            )

        try:
            response = await asyncio.to_thread(send)
        except x402_requests.PaymentError as error:
            raise WouldNotPay(str(error)) from error
        return _reply(response.status_code, response.headers, response.json())


@asynccontextmanager
async def open_requests(url: str, wallet: Wallet, limit: str | None) -> AsyncIterator[Client]:
    client = register_exact_evm_client(x402ClientSync(), EthAccountSigner(wallet.account))
    if limit is not None:
        client.set_spend_controls({"max_amount_per_payment": limit})
    with x402_requests.x402_requests(client) as session:
        session.trust_env = False  # a proxy of this machine's environment cannot see our loopback
        yield RequestsBuyer(url, session)


class NodeLines:
    """A Node script that answers one JSON line for each it is sent."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, request: dict[str, object]) -> dict[str, Any]:
        """Raises WouldNotPay with what the client said when it failed."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(request).encode() + b"\n")
        await stdin.drain()
        async with asyncio.timeout(TIMEOUT_S):
            answer: dict[str, Any] = json.loads(await stdout.readline())
        if "error" in answer:
            raise WouldNotPay(answer["error"])
        return answer


@asynccontextmanager
async def _node(project: Path, script: str, *arguments: str) -> AsyncIterator[NodeLines]:
    process = await asyncio.create_subprocess_exec(
        "node",
        str(project / script),
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE_MAX,
    )
    assert process.stdin is not None
    try:
        yield NodeLines(process)
    finally:
        process.stdin.close()
        async with asyncio.timeout(TIMEOUT_S):
            ended = await process.wait()
    assert ended == 0


class NodeClient:
    """npm `@x402/fetch`, which pays, or `@slicekit/erc8128`, which signs: the script says which."""

    def __init__(self, lines: NodeLines) -> None:
        self._lines = lines

    async def call(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        request = {"method": method, "path": path, "body": body, "headers": dict(headers or {}), "send": True}
        return msgspec.convert(await self._lines.ask(request), Reply)

    async def sign(self, method: str, path: str, body: object = None) -> tuple[dict[str, str], bytes]:
        """The headers and the body that would be sent: `@slicekit/erc8128` only."""
        request = {"method": method, "path": path, "body": body, "headers": {}, "send": False}
        signed = await self._lines.ask(request)
        return signed["headers"], signed["text"].encode()


@asynccontextmanager
async def open_fetch(url: str, wallet: Wallet, limit: str | None) -> AsyncIterator[Client]:
    key = f"0x{bytes(wallet.account.key).hex()}"
    async with _node(node_project(), "buy.mjs", url, key, *([] if limit is None else [limit])) as lines:
        yield NodeClient(lines)


@asynccontextmanager
async def open_signer(url: str, wallet: Wallet, chain_id: int) -> AsyncIterator[NodeClient]:
    key = f"0x{bytes(wallet.account.key).hex()}"
    async with _node(node_project(), "sign.mjs", url, key, str(chain_id)) as lines:
        yield NodeClient(lines)


BUYERS: Final[dict[str, Opener]] = {
    "x402[httpx]": open_httpx,
    "x402[requests]": open_requests,
    "@x402/fetch": open_fetch,
}
"""The clients that pay by x402, by the name under which they are installed."""
