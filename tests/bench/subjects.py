"""What is measured: the same paid read of ours by both rails, the peer's, and what each answers to who does not pay.

Invariant: every paid request carries a signature of its own, made just before its round, since a signed request
lives 60 seconds; no server ever sees one twice.
"""

import asyncio
import base64
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec
from signing import SignedRequestAuth
from spawn_schemas.money import Usdc

from spawn.app import open_devnet
from spawn.clock import SystemClock
from spawn.settings import read_settings
from tests.bench.load import get
from tests.bench.peer import PATH
from tests.bench.processes import Process
from tests.harness import CHAIN_ID, ORDER
from tests.wallets import Wallet, encode

WALLETS: Final = 4
_MINTED_USDC: Final = Usdc(1_000_000_000)
_DEPOSIT: Final = "200.00"

Requests = Callable[[int], list[bytes]]
"""Makes this many requests, each to be sent once, soon."""


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of request to a server. Each is answered with `status`; `peer` names what it is compared with."""

    name: str
    server: Process
    requests: Requests
    status: int = 200
    peer: str | None = None


def environ(folder: Path, port: int) -> dict[str, str]:
    """The settings of a spawn service with every file in `folder`."""
    return {
        "SPAWN_LISTEN": f"127.0.0.1:{port}",
        "SPAWN_DATABASE_URL": f"sqlite:///{folder / 'spawn.db'}",
        "SPAWN_DEVNET_PATH": str(folder / "devnet.db"),
        "SPAWN_SIMULATED_PATH": str(folder / "cloud.db"),
        "SPAWN_SECRET_KEY": "5a" * 32,
    }


def mint(settings: dict[str, str]) -> list[Wallet]:
    """Wallets with money on the development chain."""
    chain = open_devnet(read_settings(settings), SystemClock())

    async def work() -> list[Wallet]:
        wallets = [Wallet.numbered(number) for number in range(1, WALLETS + 1)]
        for wallet in wallets:
            await chain.mint(wallet.address, _MINTED_USDC)
        return wallets

    try:
        return asyncio.run(work())
    finally:
        chain.close()


def move_in(server: Process, wallets: list[Wallet]) -> bytes:
    """Give each wallet a balance and a server to list; return what the paid read then answers."""
    with httpx.Client(base_url=server.url, timeout=30) as http:
        for wallet in wallets:
            body = {"amount": _DEPOSIT}
            challenge = http.post("/v1/balance/deposit", json=body).headers["PAYMENT-REQUIRED"]
            payment = wallet.payment(challenge, now=int(time.time()))
            http.post(
                "/v1/balance/deposit", json=body, headers={"PAYMENT-SIGNATURE": payment}
            ).raise_for_status()
            http.post("/v1/servers", json=ORDER, auth=_auth(wallet)).raise_for_status()
        return http.get(PATH, auth=_auth(wallets[0])).raise_for_status().content


def _auth(wallet: Wallet) -> SignedRequestAuth:
    return SignedRequestAuth(wallet.account, CHAIN_ID)


def signed_requests(server: Process, wallets: list[Wallet]) -> Requests:
    """Requests that pay from the balance, the wallets taking turns."""

    def one(index: int) -> bytes:
        request = httpx.Request("GET", f"{server.url}{PATH}")
        headers = next(_auth(wallets[index % len(wallets)]).auth_flow(request)).headers
        names = ("Signature-Input", "Signature")
        return get(PATH, server.authority, {name: headers[name] for name in names})

    return lambda count: [one(index) for index in range(count)]


def payments(server: Process, wallets: list[Wallet]) -> Requests:
    """Requests that pay by x402 v2 what the server's own challenge asks for, the wallets taking turns."""
    challenge = httpx.get(f"{server.url}{PATH}").headers["PAYMENT-REQUIRED"]
    offer: dict[str, Any] = _first_offer(challenge)

    def one(index: int, now: int) -> bytes:
        payload = wallets[index % len(wallets)].payload(offer, now=now)
        return get(PATH, server.authority, {"PAYMENT-SIGNATURE": encode(payload)})

    return lambda count: [one(index, int(time.time())) for index in range(count)]


def _first_offer(challenge: str) -> dict[str, Any]:
    offer: dict[str, Any] = msgspec.json.decode(base64.b64decode(challenge))["accepts"][0]
    return offer


def unpaid_requests(server: Process) -> Requests:
    """Requests that prove nothing."""
    return lambda count: [get(PATH, server.authority, {})] * count


def subjects(spawn: Process, peer: Process, wallets: list[Wallet]) -> tuple[Subject, ...]:
    """Everything that is measured over HTTP, in the order of the table."""
    paid, unpaid = "x402[fastapi]: paid read, facilitator in process", "x402[fastapi]: unpaid 402"
    return (
        Subject(
            name="spawn: paid read, signed request",
            server=spawn,
            requests=signed_requests(spawn, wallets),
            peer=paid,
        ),
        Subject(
            name="spawn: paid read, x402 on devnet",
            server=spawn,
            requests=payments(spawn, wallets),
            peer=paid,
        ),
        Subject(name=paid, server=peer, requests=payments(peer, wallets)),
        Subject(
            name="spawn: unpaid 402", server=spawn, requests=unpaid_requests(spawn), status=402, peer=unpaid
        ),
        Subject(name=unpaid, server=peer, requests=unpaid_requests(peer), status=402),
    )
