"""What has to be there before a paid read of ours can be measured: settings, wallets with money, servers to list."""

import asyncio
import time
from pathlib import Path
from typing import Final

import httpx
from signing import SignedRequestAuth
from spawn_ledger.accounts import REV_OPFEE
from spawn_ledger.transfers import balance_of
from spawn_schemas.ids import parse_address
from spawn_schemas.money import Usdc

from spawn.clock import SystemClock
from spawn.rails import open_devnet
from spawn.setting_reader import read_settings
from spawn.store.snapshot import snapshot
from tests.bench.peer import PATH
from tests.bench.processes import Process
from tests.bench.signatures import Key, Offer
from tests.harness import CHAIN_ID, ORDER
from tests.wallets import Wallet

WALLETS: Final = 32
FEE_USDC: Final = Usdc(1_000)
"""What the paid read costs."""
_DATABASE: Final = "spawn.db"
_MINTED_USDC: Final = Usdc(1_000_000_000)
_DEPOSIT: Final = "200.00"


def wallets() -> list[Key]:
    """The same in every run."""
    return [Key(number) for number in range(1, WALLETS + 1)]


def settings(folder: Path, port: int) -> dict[str, str]:
    """The environment of a spawn service with every file in `folder`, which lets one caller call without end."""
    return {
        "SPAWN_LISTEN": f"127.0.0.1:{port}",
        "SPAWN_DATABASE_URL": f"sqlite:///{folder / _DATABASE}",
        "SPAWN_DEVNET_PATH": str(folder / "devnet.db"),
        "SPAWN_SIMULATED_PATH": str(folder / "cloud.db"),
        "SPAWN_SIMULATED_SPEED": "200",
        "SPAWN_SECRET_KEY": "5a" * 32,
        "SPAWN_RATE_ADDRESS_PER_MINUTE": "0",
        "SPAWN_RATE_WALLET_PER_MINUTE": "0",
    }


def mint(environ: dict[str, str]) -> None:
    """Give every wallet money on the development chain."""
    chain = open_devnet(read_settings(environ), SystemClock())

    async def work() -> None:
        for wallet in wallets():
            await chain.mint(parse_address(wallet.address), _MINTED_USDC)

    try:
        asyncio.run(work())
    finally:
        chain.close()


def move_in(server: Process) -> None:
    """Give each wallet a balance and a server to list."""
    body = {"amount": _DEPOSIT}
    with httpx.Client(base_url=server.url, trust_env=False, timeout=30) as http:
        offer = Offer(http.post("/v1/balance/deposit", json=body).headers["PAYMENT-REQUIRED"])
        for wallet in wallets():
            payment = offer.pay(wallet, int(time.time()))
            http.post(
                "/v1/balance/deposit", json=body, headers={"PAYMENT-SIGNATURE": payment}
            ).raise_for_status()
        for number in range(1, WALLETS + 1):
            http.post("/v1/servers", json=ORDER, auth=_auth(number)).raise_for_status()


def what_is_read(server: Process) -> bytes:
    """What the paid read answers to the first wallet."""
    answer = httpx.get(f"{server.url}{PATH}", auth=_auth(1), timeout=30, trust_env=False)
    return answer.raise_for_status().content


def fees_usdc(folder: Path) -> Usdc:
    """All that the books in `folder` say was earned with fees so far."""
    with snapshot(folder / _DATABASE) as tx:
        return balance_of(tx, REV_OPFEE).balance


def _auth(number: int) -> SignedRequestAuth:
    return SignedRequestAuth(Wallet.numbered(number).account, CHAIN_ID)
