"""Customers of a fleet of replicas, who do one thing after the other, and repeat a call until it is answered.

Invariant: a call is repeated elsewhere as it was, with the same payment or, where it is paid from the balance, the same
idempotency key under a new signature; so whatever was answered was asked for once, and is written down here once.
"""

import asyncio
import json
import random
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import msgspec
from signing import SignedRequestAuth

from spawn.payments.nonces import authorization_key
from tests.anvil import TOKEN
from tests.chaos.fleet import AUTHORITY, Replica
from tests.harness import CHAIN_ID, ORDER
from tests.wallets import Wallet

PATIENCE_S: Final = 120.0
"""How long a call is repeated before its customer gives up."""
ANSWER_S: Final = 5.0
"""How long one attempt may take: a paused replica answers nobody."""
PAUSE_MAX_S: Final = 2.0
SETTLING_IN: Final = "20.00"
SERVERS_MAX: Final = 4
AT_ONCE_MAX: Final = 4
"""Deposits of one wallet at the same time."""
TYPES: Final = ("small", "medium", "large")
AGAIN: Final = frozenset({"in_progress", "overloaded", "settlement_pending", "rate_limited"})
"""Refusals that say: send the very same again."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call with all its attempts. `status` is None when its customer gave up.

    `receipt`: the name of the payment's nonce, and the transaction that we were told has it.
    """

    wallet: str
    what: str
    path: str
    pays: bool
    status: int | None
    body: Any
    receipt: tuple[str, str] | None
    attempts: int
    seconds: float


class _To(httpx.AsyncBaseTransport):
    """Takes requests that are addressed to the service to one replica."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._inner = httpx.AsyncHTTPTransport(retries=0)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.url = request.url.copy_with(host="127.0.0.1", port=self._port)
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


@dataclass
class Balancer:
    """Sends a call to any replica, and the next attempt to another."""

    clients: Sequence[httpx.AsyncClient]
    chance: random.Random
    calls: list[Call] = field(default_factory=list)

    async def call(
        self,
        wallet: Wallet,
        what: str,
        path: str,
        body: object = None,
        *,
        key: str | None = None,
        pays: bool = False,
    ) -> Call:
        """Until it is answered, or for `PATIENCE_S`."""
        method = what.partition(" ")[0]
        began, attempts = time.monotonic(), 0
        payment: str | None = None
        at = self.chance.randrange(len(self.clients))
        answer: httpx.Response | None = None
        while time.monotonic() - began < PATIENCE_S:
            attempts += 1
            client = self.clients[at]
            try:
                if pays and payment is None:
                    payment = await _payment(client, wallet, method, path, body)
                if payment is not None or not pays:
                    answer = await _send(client, wallet, method, path, body, key, payment)
            except httpx.TransportError:
                answer = None
            if answer is not None and not _is_again(answer):
                break
            at = (at + 1) % len(self.clients)
            await asyncio.sleep(self.chance.uniform(0.05, min(PAUSE_MAX_S, 0.1 * 2**attempts)))
        final = answer if answer is not None and not _is_again(answer) else None
        call = Call(
            wallet=wallet.address,
            what=what,
            path=path,
            pays=pays,
            status=None if final is None else final.status_code,
            body=None if final is None else final.json(),
            receipt=None if final is None or payment is None else _receipt(final, wallet, payment),
            attempts=attempts,
            seconds=time.monotonic() - began,
        )
        self.calls.append(call)
        return call


def _is_again(answer: httpx.Response) -> bool:
    if answer.status_code >= 500 and answer.status_code != 503:
        raise AssertionError(f"{answer.status_code}: {answer.text}")
    return answer.is_error and answer.json().get("error", {}).get("code") in AGAIN


async def _payment(
    client: httpx.AsyncClient, wallet: Wallet, method: str, path: str, body: object
) -> str | None:
    """What the service asks for, signed; None if it asks for nothing now."""
    challenge = await client.request(method, path, content=msgspec.json.encode(body))
    if challenge.status_code != 402:
        return None
    return wallet.payment(challenge.headers["PAYMENT-REQUIRED"], now=int(time.time()))


def _receipt(answer: httpx.Response, wallet: Wallet, payment: str) -> tuple[str, str] | None:
    """What the answer says became of the payment; None unless it says that it settled."""
    told = json.loads(b64decode(answer.headers.get("PAYMENT-RESPONSE", "e30=")))
    if not told.get("success"):
        return None
    nonce = json.loads(b64decode(payment))["payload"]["authorization"]["nonce"]
    return authorization_key(CHAIN_ID, TOKEN, wallet.address, nonce), told["transaction"]


async def _send(
    client: httpx.AsyncClient,
    wallet: Wallet,
    method: str,
    path: str,
    body: object,
    key: str | None,
    payment: str | None,
) -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    content = None if body is None else msgspec.json.encode(body)
    if payment is not None:
        return await client.request(
            method, path, content=content, headers=headers | {"PAYMENT-SIGNATURE": payment}
        )
    auth = SignedRequestAuth(wallet.account, CHAIN_ID)
    return await client.request(method, path, content=content, headers=headers, auth=auth)


@asynccontextmanager
async def balancing(replicas: Sequence[Replica], chance: random.Random) -> AsyncIterator[Balancer]:
    clients = [
        httpx.AsyncClient(base_url=f"http://{AUTHORITY}", transport=_To(replica.port), timeout=ANSWER_S)
        for replica in replicas
    ]
    try:
        yield Balancer(clients, chance)
    finally:
        for client in clients:
            await client.aclose()


@dataclass
class Customer:
    """One wallet, and what it has of us as far as it was told."""

    wallet: Wallet
    balancer: Balancer
    hook_url: str
    is_over: Callable[[], bool]
    servers: dict[str, str] = field(default_factory=dict)
    """The type of each server that it was told it has."""
    _count: int = 0

    async def live(self) -> None:
        """Settle in, and go on until it is over."""
        await self._pay_in(SETTLING_IN)
        await self._do("POST webhook", "/v1/webhooks", {"url": self.hook_url, "types": ["*"]})
        while not self.is_over():
            await self._wish()
            await asyncio.sleep(self.balancer.chance.uniform(0.0, 0.3))

    async def _wish(self) -> None:
        chance = self.balancer.chance
        idle = [*self.servers]
        kind = chance.choices(("read", "pay in", "rent", "resize", "destroy"), (8, 2, 4, 2, 3))[0]
        match kind:
            case "pay in":
                await asyncio.gather(*(self._pay_in("1.00") for _ in range(chance.randint(1, AT_ONCE_MAX))))
            case "rent" if len(idle) < SERVERS_MAX:
                await self._rent(pays=chance.random() < 0.5)
            case "resize" if idle:
                await self._resize(chance.choice(idle))
            case "destroy" if idle:
                await self._destroy(chance.choice(idle))
            case _:
                path = chance.choice(("/v1/servers", "/v1/balance", "/v1/events"))
                await self.balancer.call(self.wallet, f"GET {path}", path)

    async def _do(self, what: str, path: str, body: object = None, *, pays: bool = False) -> Call:
        self._count += 1
        key = f"{self.wallet.address[2:10]}-{self._count}"
        return await self.balancer.call(self.wallet, what, path, body, key=key, pays=pays)

    async def _pay_in(self, amount: str) -> None:
        await self._do("POST deposit", "/v1/balance/deposit", {"amount": amount}, pays=True)

    async def _rent(self, *, pays: bool) -> None:
        order = ORDER | {"name": f"s{self._count}", "deposit": "0.30"}
        rented = await self._do(
            "POST server", "/v1/servers", order | ({"fund": "0.40"} if pays else {}), pays=pays
        )
        if rented.status == 201:
            self.servers[rented.body["server"]["id"]] = "small"

    async def _resize(self, server: str) -> None:
        wanted = self.balancer.chance.choice([name for name in TYPES if name != self.servers[server]])
        resized = await self._do("POST resize", f"/v1/servers/{server}/resize", {"type": wanted})
        if resized.status == 200:
            self.servers[server] = wanted

    async def _destroy(self, server: str) -> None:
        gone = await self._do("DELETE server", f"/v1/servers/{server}")
        if gone.status == 200:
            del self.servers[server]
