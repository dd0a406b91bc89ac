"""The stock clients behind one face: each is its published package, set up as its own documentation has it.

Invariant: an adapter translates arguments and answers and nothing else; no header of a payment is made here.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import httpx
import msgspec
import requests
from spawn_schemas.money import Usdc
from x402 import x402Client, x402ClientSync
from x402.http.clients import httpx as x402_httpx
from x402.http.clients import requests as x402_requests
from x402.http.utils import decode_payment_response_header
from x402.mechanisms.evm.exact.register import register_exact_evm_client
from x402.mechanisms.evm.signers import EthAccountSigner

from tests.engines import ROOT, V1_PROJECT, node_project, x402_v1_python
from tests.wallets import Wallet

TIMEOUT_S: Final = 60
A_DOLLAR: Final = Usdc(1_000_000)
_LINE_MAX: Final = 2**20


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """PAYMENT-RESPONSE, or X-PAYMENT-RESPONSE, as the client's own decoder reads it; version 1 names no amount."""

    success: bool
    transaction: str
    network: str
    payer: str
    amount: str | None = None


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


@dataclass(frozen=True, kw_only=True)
class Buyer:
    """A stock client that pays by x402, in this version. Its default limit, if any, is for one payment."""

    open: Opener
    version: Literal[1, 2]
    default_limit_usdc: Usdc | None


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


class Lines:
    """A script that answers one JSON line for each it is sent."""

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
async def running(*command: str) -> AsyncIterator[Lines]:
    """A script while it runs; afterwards it must have ended as it should, with its input."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        env=_environment(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE_MAX,
    )
    assert process.stdin is not None
    try:
        yield Lines(process)
    finally:
        process.stdin.close()
        async with asyncio.timeout(TIMEOUT_S):
            ended = await process.wait()
    assert ended == 0


def _environment() -> dict[str, str]:
    """Ours, without what would lead a client's requests, or its imports, somewhere else."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy") and not name.startswith("PYTHON")
    }


class ScriptedClient:
    """A client that lives in a script: what it pays or signs with, the script says."""

    def __init__(self, lines: Lines) -> None:
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
    script = str(node_project() / "buy.mjs")
    async with running("node", script, url, *_paying(wallet, limit)) as lines:
        yield ScriptedClient(lines)


@asynccontextmanager
async def open_fetch_v1(url: str, wallet: Wallet, limit: str | None) -> AsyncIterator[Client]:
    script = str(node_project(V1_PROJECT) / "buy.mjs")
    async with running("node", script, url, *_paying(wallet, limit)) as lines:
        yield ScriptedClient(lines)


def _opener_v1(library: str) -> Opener:
    """PyPI `x402` 1.0 in its own environment, with `library` underneath."""

    @asynccontextmanager
    async def open_client(url: str, wallet: Wallet, limit: str | None) -> AsyncIterator[Client]:
        command = (str(x402_v1_python()), "-m", "tests.interop.v1.buy", library, url)
        async with running(*command, *_paying(wallet, limit)) as lines:
            yield ScriptedClient(lines)

    return open_client


def _paying(wallet: Wallet, limit: str | None) -> list[str]:
    """The last arguments of every script that pays."""
    return [_key(wallet), *([] if limit is None else [limit])]


def _key(wallet: Wallet) -> str:
    return f"0x{bytes(wallet.account.key).hex()}"


@asynccontextmanager
async def open_signer(url: str, wallet: Wallet, chain_id: int) -> AsyncIterator[ScriptedClient]:
    script = str(node_project() / "sign.mjs")
    async with running("node", script, url, _key(wallet), str(chain_id)) as lines:
        yield ScriptedClient(lines)


@asynccontextmanager
async def open_schemas_v1() -> AsyncIterator[dict[str, Lines]]:
    """What holds messages against the version 1 SDKs' own schemas, by language."""
    async with (
        running("node", str(node_project(V1_PROJECT) / "check.mjs")) as node,
        running(str(x402_v1_python()), "-m", "tests.interop.v1.check") as python,
    ):
        yield {"TypeScript": node, "Python": python}


BUYERS: Final[dict[str, Buyer]] = {
    "x402[httpx]": Buyer(open=open_httpx, version=2, default_limit_usdc=A_DOLLAR),
    "x402[requests]": Buyer(open=open_requests, version=2, default_limit_usdc=A_DOLLAR),
    "@x402/fetch": Buyer(open=open_fetch, version=2, default_limit_usdc=A_DOLLAR),
    "x402 1.0, httpx": Buyer(open=_opener_v1("httpx"), version=1, default_limit_usdc=None),
    "x402 1.0, requests": Buyer(open=_opener_v1("requests"), version=1, default_limit_usdc=None),
    "x402-fetch 1.2": Buyer(open=open_fetch_v1, version=1, default_limit_usdc=Usdc(100_000)),
}
"""The clients that pay by x402, by the name under which they are installed."""
