"""`spawn` as anybody runs it: a process of its own, on a free port, with its files in a folder of the test.

Invariant: nothing here reaches into the process. What it did is read where it left it: on the chain and in the
books, each opened beside it.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import httpx
import msgspec
from spawn_ledger.accounts import REV_OPFEE, wallet_account
from spawn_ledger.tx import Tx
from spawn_ledger.verify import Violation, verify
from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc, parse_usdc

from spawn.clock import SystemClock
from spawn.payments.devnet import Transfer
from spawn.rails import open_devnet
from spawn.setting_reader import read_settings
from spawn.settings import Settings
from spawn.store.places import place_of
from tests import databases
from tests.ports import free_address
from tests.wallets import Wallet

START_TIMEOUT_S: Final = 30
STOP_TIMEOUT_S: Final = 15

SELECT_PAID_IN: Final = """
SELECT amount FROM transfer WHERE credit = :wallet AND code = 'topup' AND seq > :after ORDER BY seq
"""
SELECT_FEES: Final = """
SELECT debit, credit, amount FROM transfer
WHERE ((debit = :wallet AND credit = :fees) OR (debit = :fees AND credit = :wallet)) AND seq > :after
"""
SELECT_LAST: Final = "SELECT MAX(seq) AS seq FROM transfer"


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """How far the chain's log and the ledger's had come at some moment."""

    chain: int
    ledger: int


class Movements(msgspec.Struct, frozen=True, kw_only=True):
    """What one wallet moved since a mark, in micro-USDC: `paid_in` by credit, `fee_usdc` net of what came back."""

    on_chain: tuple[Transfer, ...]
    paid_in: tuple[Usdc, ...]
    fee_usdc: Usdc


@dataclass(frozen=True, kw_only=True)
class RunningService:
    """A service that answers at `url`; `settings` are those it read."""

    url: str
    settings: Settings

    async def mint(self, wallet: Wallet, amount: str) -> None:
        """The faucet: this much play USDC for the wallet."""
        chain = open_devnet(self.settings, SystemClock())
        try:
            await chain.mint(wallet.address, parse_usdc(amount))
        finally:
            chain.close()

    async def mark(self) -> Mark:
        """Where both logs end now."""
        with self.books() as tx:
            last = tx.one(SELECT_LAST, {})
        return Mark(chain=len(await self.transfers()), ledger=(last["seq"] or 0) if last else 0)

    async def moved(self, wallet: Address, since: Mark) -> Movements:
        """What the wallet paid on the chain, and what the ledger made of it."""
        log = (await self.transfers())[since.chain :]
        params = {"wallet": wallet_account(wallet), "fees": REV_OPFEE, "after": since.ledger}
        with self.books() as tx:
            paid_in = tuple(Usdc(row["amount"]) for row in tx.all(SELECT_PAID_IN, params))
            fees = [
                row["amount"] if row["credit"] == REV_OPFEE else -row["amount"]
                for row in tx.all(SELECT_FEES, params)
            ]
        return Movements(
            on_chain=tuple(transfer for transfer in log if transfer.sender == wallet),
            paid_in=paid_in,
            fee_usdc=Usdc(sum(fees)),
        )

    async def violations(self) -> list[Violation]:
        """Every invariant of the ledger that does not hold, the chain's included."""
        chain = open_devnet(self.settings, SystemClock())
        try:
            held = await chain.balance_of(self.settings.pay_to)
        finally:
            chain.close()
        with self.books() as tx:
            return verify(tx, chain_balance_usdc=held)

    def books(self) -> AbstractContextManager[Tx]:
        """One look at the books."""
        return place_of(self.settings.database_url).snapshot()

    async def transfers(self) -> list[Transfer]:
        """The token's log, oldest first."""
        chain = open_devnet(self.settings, SystemClock())
        try:
            return await chain.transfers()
        finally:
            chain.close()


@contextmanager
def spawn_dev(folder: Path, settings: Mapping[str, str] = MappingProxyType({})) -> Iterator[RunningService]:
    """Run `spawn dev`, as `serving` does."""
    ours = {**in_folder(folder), **settings}
    with serving(folder, ours, "dev") as listen:
        yield RunningService(url=f"http://{listen}", settings=read_settings(ours, listen=listen))


def in_folder(folder: Path) -> dict[str, str]:
    """The settings of a service that keeps its files in `folder`, and is in a hurry."""
    return {
        **databases.variables(folder),
        "SPAWN_DEVNET_PATH": str(folder / "devnet.db"),
        "SPAWN_SIMULATED_PATH": str(folder / "cloud.db"),
        "SPAWN_SIMULATED_SPEED": "200",
        "SPAWN_TICK_S": "0.2",
    }


@contextmanager
def serving(
    folder: Path, settings: Mapping[str, str], *command: str, stdin: int | None = None
) -> Iterator[str]:
    """Run a command of `spawn` that serves, with these settings and no others; yield the host:port where it answers.

    Afterwards it must have stopped as it was told. What it says is in `folder`, in `service.log`.
    """
    listen = free_address()
    log_path = folder / "service.log"
    with log_path.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "spawn", *command, "--listen", listen],
            env=environment(settings),
            cwd=folder,
            stdin=stdin,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_until_up(f"http://{listen}", process, log_path)
            yield listen
        finally:
            process.terminate()
            ended = process.wait(timeout=STOP_TIMEOUT_S)
    assert ended == 0, log_path.read_text()


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment, with these SPAWN_ settings and no others."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SPAWN_")}
    return {**clean, **settings}


def _wait_until_up(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    with httpx.Client(trust_env=False, timeout=2) as http:
        while time.monotonic() < end and process.poll() is None:
            try:
                if http.get(f"{url}/health").is_success:
                    return
            except httpx.TransportError:
                # Not listening yet; the loop is bounded by the timeout above.
                time.sleep(0.05)
    raise RuntimeError(f"spawn did not start:\n{log.read_text()}")
