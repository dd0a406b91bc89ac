"""What is true about the world, found out from outside: from the chain, the cloud and the files of the database.

Invariant: nothing here asks the service, so that what the service says can be held against it.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from spawn_ledger.accounts import EXT_USDC, REV_COMPUTE, REV_OPFEE, server_account, wallet_account
from spawn_ledger.transfers import balance_of
from spawn_ledger.tx import Tx
from spawn_ledger.verify import Violation, verify
from spawn_providers.base import Instance
from spawn_providers.simulated import SimulatedProvider
from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc

from spawn.domain.operations import Operation
from spawn.domain.servers import Server
from spawn.payments.devnet import DevChain, Transfer
from spawn.rails import x402_terms
from spawn.store.operations import operation_from
from spawn.store.places import place_of
from spawn.store.reservations import Reservation, reservation_from
from spawn.store.servers import server_from
from tests.e2e.victim import settings_of

MINTED: Final = Usdc(100_000_000)
"""What every payer has on the chain before the first payment."""

# A resize takes its part of the deposit in the second in which the machine has its new size.
_SELECT_RESIZED: Final = """
SELECT hold.resolved_at FROM hold JOIN operation ON operation.id = hold.reference
WHERE operation.command = 'resize_server' AND hold.code = 'deposit' AND hold.state = 'posted'
"""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """One look at everything, at `now_s`. Amounts are micro-USDC."""

    now_s: int
    payments: list[Transfer]
    machines: list[Instance]
    servers: list[Server]
    operations: list[Operation]
    resized_at: int | None
    reservations: list[Reservation]
    violations: list[Violation]
    booked_usdc: Usdc
    fees_usdc: Usdc
    burn_usdc: Usdc
    available_usdc: Usdc
    held_usdc: Usdc
    reserves_usdc: Usdc

    @property
    def paid_usdc(self) -> Usdc:
        """What has left the payer's hands, as the chain has it."""
        return Usdc(sum(transfer.amount for transfer in self.payments))

    @property
    def live(self) -> list[Server]:
        return [server for server in self.servers if server.ended_at is None]


def look(folder: Path, wallet: Address, now_s: int) -> Facts:
    """Look at everything in `folder`."""
    payments, machines, on_chain = asyncio.run(_outside(folder, wallet, now_s))
    with place_of(settings_of(folder, "").database_url).snapshot() as tx:
        return _facts(tx, wallet, now_s, payments, machines, on_chain)


async def _outside(folder: Path, wallet: Address, now_s: int) -> tuple[list[Transfer], list[Instance], Usdc]:
    settings = settings_of(folder, "")
    chain = DevChain(Path(settings.devnet_path), x402_terms(settings), now=lambda: now_s)
    cloud = SimulatedProvider(
        Path(settings.simulated_path),
        now_ms=lambda: now_s * 1000,
        seed=settings.simulated_seed,
        speed=settings.simulated_speed,
    )
    try:
        payments = [transfer for transfer in await chain.transfers() if transfer.sender == wallet]
        assert MINTED - sum(transfer.amount for transfer in payments) == await chain.balance_of(wallet)
        machines = [instance async for instance in cloud.list_owned()]
        return payments, machines, await chain.balance_of(settings.pay_to)
    finally:
        chain.close()
        await cloud.aclose()


def _facts(
    tx: Tx, wallet: Address, now_s: int, payments: list[Transfer], machines: list[Instance], on_chain: Usdc
) -> Facts:
    servers = [server_from(row) for row in tx.all("SELECT * FROM server ORDER BY created_at")]
    resized = tx.one(_SELECT_RESIZED)
    in_wallet = balance_of(tx, wallet_account(wallet))
    return Facts(
        now_s=now_s,
        payments=payments,
        machines=machines,
        servers=servers,
        operations=[operation_from(row) for row in tx.all("SELECT * FROM operation ORDER BY created_at")],
        resized_at=None if resized is None else resized["resolved_at"],
        reservations=[reservation_from(row) for row in tx.all("SELECT * FROM reservation")],
        violations=verify(tx, chain_balance_usdc=on_chain),
        booked_usdc=balance_of(tx, EXT_USDC).balance,
        fees_usdc=balance_of(tx, REV_OPFEE).balance,
        burn_usdc=balance_of(tx, REV_COMPUTE).balance,
        available_usdc=in_wallet.available,
        held_usdc=Usdc(in_wallet.balance - in_wallet.available),
        reserves_usdc=Usdc(sum(balance_of(tx, server_account(s.id)).balance for s in servers)),
    )


def is_busy(folder: Path) -> bool:
    """Whether an operation is under way."""
    with place_of(settings_of(folder, "").database_url).snapshot() as tx:
        return tx.one("SELECT id FROM operation WHERE status = 'running'") is not None
