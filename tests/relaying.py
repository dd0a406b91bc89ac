"""A relayer on a chain in memory and a database file, as tests use it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace
from spawn_ledger.tx import Row
from spawn_schemas.money import parse_usdc

from spawn.domain.settlements import RelayPolicy
from spawn.evm.transactions import address_of
from spawn.payments.exact import Terms
from spawn.payments.onchain import OnChain
from spawn.services.relayer import Relayer
from spawn.store.database import Database
from tests import databases
from tests.fake_node import GWEI, MULTICALL, FakeNode
from tests.harness import VirtualClock
from tests.payments import TERMS

KEY: Final = "0x" + "5e" * 32
ACCOUNT: Final = address_of(KEY)
ETHER: Final = 10**18

POLICY: Final = RelayPolicy(
    multicall=MULTICALL,
    batch_max=50,
    alone_from_usdc=parse_usdc("100.00"),
    bump_after_s=15,
    fee_cap_wei=5 * GWEI,
    confirmations=1,
    settle_wait_s=20.0,
    eth_price_usdc=parse_usdc("3000.00"),
)


def make_relayer(
    db: Database,
    node: FakeNode,
    clock: VirtualClock,
    *,
    keys: tuple[str, ...] = (KEY,),
    terms: Terms = TERMS,
    holder: str = "the only process",
    **changes: Any,
) -> Relayer:
    """A relayer that was not started; `changes` are to the policy."""
    policy = replace(POLICY, **changes)
    on_chain = OnChain(node, terms, confirmations=policy.confirmations)
    return Relayer(db, node, on_chain, terms, policy, keys, clock, holder)


@asynccontextmanager
async def open_database(folder: Path) -> AsyncIterator[Database]:
    """The database in `folder`, migrated."""
    url = databases.database_url(folder)
    databases.make(url)
    db = await databases.open_database(url)
    try:
        yield db
    finally:
        await db.close()


async def relays(db: Database) -> list[Row]:
    """Every transaction that was signed, by nonce and attempt."""
    return await db.read("SELECT * FROM relay ORDER BY relayer, nonce, attempt")


async def settlements(db: Database) -> list[Row]:
    return await db.read("SELECT * FROM settlement ORDER BY created_at, id")
