"""`spawn serve` as an operator runs it, settling on a real chain: anvil beside it, and perhaps a facilitator.

Invariant: as in `service`, nothing here reaches into the process. Transfers are read from the token's log, credits from
the books, and whether they agree is asked with the operator's own commands.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from spawn_ledger.verify import Violation, verify
from spawn_schemas.ids import Address
from spawn_schemas.money import format_usdc, parse_usdc

from spawn.payments.devnet import Transfer
from spawn.setting_reader import read_settings
from tests.anvil import Chain
from tests.interop.service import RunningService, environment, in_folder, serving
from tests.wallets import Wallet

PAY_TO: Final = Address("0x7e5700000000000000000000000000000000beef")
COMMAND_TIMEOUT_S: Final = 30
SELECT_CREDITS: Final = "SELECT amount FROM transfer WHERE code = 'topup'"


@dataclass(frozen=True, kw_only=True)
class AnvilService(RunningService):
    """A service that settles on `chain`; `ours` are its settings, as the environment has them."""

    chain: Chain
    folder: Path
    ours: Mapping[str, str]

    async def mint(self, wallet: Wallet, amount: str) -> None:
        """This much of the chain's USDC for the wallet."""
        self.chain.fund(wallet.address, parse_usdc(amount))

    async def violations(self) -> list[Violation]:
        """Every invariant of the ledger that does not hold, the chain's included."""
        with self.books() as tx:
            return verify(tx, chain_balance_usdc=self.chain.balance(PAY_TO))

    async def transfers(self) -> list[Transfer]:
        """The token's log, oldest first."""
        return [
            Transfer(
                tx_hash=transfer.transaction,
                sender=transfer.sender,
                recipient=transfer.recipient,
                amount=transfer.amount,
                at=int(
                    self.chain.ask("eth_getBlockByNumber", hex(transfer.block_number), False)["timestamp"], 16
                ),
            )
            for transfer in self.chain.transfers()
        ]

    def command(self, *arguments: str) -> str:
        """What a command says that finds everything in order."""
        return spawn(self.folder, self.ours, *arguments)

    def check_books(self) -> None:
        """Each transfer to us is a credit, and the other way round; and the operator's commands find that books and
        chain agree, to the micro-dollar, with nothing unfinished.
        """
        with self.books() as tx:
            credits = sorted(row["amount"] for row in tx.all(SELECT_CREDITS, {}))
        assert credits == sorted(transfer.amount for transfer in self.chain.transfers(PAY_TO))
        held = format_usdc(self.chain.balance(PAY_TO))
        assert "the books are right" in (verified := self.command("ledger", "verify"))
        assert f"{held} USDC paid in and accounted for" in verified
        told = self.command("treasury")
        assert "they agree" in told
        assert "unfinished  nothing" in told
        shown: dict[str, Any] = json.loads(self.command("treasury", "--json"))
        assert (shown["payments"], shown["pay_to"]) == (self.settings.payments, PAY_TO)
        assert (shown["chain"], shown["books"], shown["difference"]) == (held, held, "0.00")
        assert (shown["short"], shown["suspense"], shown["unfinished"]) == (False, "0.00", [])


def spawn(folder: Path, settings: Mapping[str, str], *arguments: str) -> str:
    """Run a command of `spawn`; it must succeed, and complain about nothing. Return what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "spawn", *arguments],
        cwd=folder,
        env=environment(settings),
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


@contextmanager
def spawn_serve(
    folder: Path, chain: Chain, rail: Mapping[str, str], settings: Mapping[str, str] = MappingProxyType({})
) -> Iterator[AnvilService]:
    """Run `spawn migrate` and `spawn serve`, settling on `chain` by `rail`: `by_ourselves` or `by_facilitators`."""
    ours = {
        **in_folder(folder),
        "SPAWN_RPC_URL": chain.url,
        "SPAWN_X402_PAY_TO": PAY_TO,
        **rail,
        **settings,
    }
    spawn(folder, ours, "migrate")
    with serving(folder, ours, "serve") as listen:
        yield AnvilService(
            url=f"http://{listen}",
            settings=read_settings(ours, listen=listen),
            chain=chain,
            folder=folder,
            ours=ours,
        )


def by_ourselves(chain: Chain) -> dict[str, str]:
    """The rail on which we send and pay for the transactions."""
    return {"SPAWN_PAYMENTS": "self", "SPAWN_RELAYER_KEY": chain.relayer_keys[0]}


def by_facilitators(*urls: str) -> dict[str, str]:
    """The rail on which others do."""
    return {"SPAWN_PAYMENTS": "facilitator", "SPAWN_X402_FACILITATOR_URL": ",".join(urls)}
