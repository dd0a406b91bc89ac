"""What we hold, what we owe, and what is on its way: the chain beside the books.

Invariant: the books are read before the chain, which only gains by what is credited meanwhile: what looks short is
short, or was paid out of the account, or a node lags behind.
"""

from typing import Final

import msgspec
from spawn_ledger.accounts import EXT_USDC, SUSPENSE
from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc, format_usdc

from spawn.evm.node import Node, NodeUnavailable
from spawn.payments.holdings import Holdings
from spawn.payments.standings import Standing
from spawn.store.arrivals import SELECT_WATCH
from spawn.store.database import Database

PAYMENT_GAS: Final = 90_000
"""What a USDC payment alone takes at most (60,000 to 90,000 are seen); in a batch it takes less."""

COMPARED: Final = "treasury"
"""Under which name the last comparison of the daily job is kept in `watch`."""
FACILITATORS: Final = "facilitators"
"""Under which name the job keeps how the remote facilitators fare."""

# Sums over all transfers: for a reader's connection, not for the writer's.
SELECT_BOOKS: Final = """
SELECT
  CAST(COALESCE((SELECT SUM(amount) FROM transfer WHERE debit = :ext), 0)
    - COALESCE((SELECT SUM(amount) FROM transfer WHERE credit = :ext), 0) AS BIGINT) AS held,
  CAST(COALESCE((SELECT SUM(amount) FROM transfer WHERE credit = :suspense), 0)
    - COALESCE((SELECT SUM(amount) FROM transfer WHERE debit = :suspense), 0) AS BIGINT) AS suspense
"""
SELECT_UNFINISHED_SETTLEMENTS: Final = """
SELECT 'settlement ' || state AS what, COUNT(*) AS count, CAST(SUM(amount) AS BIGINT) AS amount,
  MIN(created_at) AS oldest
FROM settlement WHERE state IN ('reserved', 'signed', 'broadcast') GROUP BY state ORDER BY MIN(created_at), state
"""
# What a call waits for is the same whoever settles it; with relayers of our own it has a settlement besides.
SELECT_UNFINISHED_CALLS: Final = """
SELECT 'call ' || state AS what, COUNT(*) AS count, CAST(SUM(amount) AS BIGINT) AS amount,
  MIN(created_ms) / 1000 AS oldest
FROM reservation WHERE rail = 'x402' AND state IN ('reserved', 'settled') GROUP BY state ORDER BY state
"""


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """What the books claim and what the chain showed a moment later, at `at` (unix seconds), in micro-USDC."""

    at: int
    books_usdc: Usdc
    chain_usdc: Usdc

    @property
    def difference_usdc(self) -> Usdc:
        """What the chain has beyond the books; below zero when it has less."""
        return Usdc(self.chain_usdc - self.books_usdc)

    @property
    def is_short(self) -> bool:
        return self.chain_usdc < self.books_usdc


class RelayerGas(msgspec.Struct, frozen=True, kw_only=True):
    """What one of our keys has for gas, and how many payments that brings to the chain, one by one."""

    address: Address
    balance_wei: int
    payments_now: int
    payments_at_cap: int


class GasMoney(msgspec.Struct, frozen=True, kw_only=True):
    """The relayers, with the price of gas now and the most that we pay for it, in wei."""

    price_wei: int
    cap_wei: int
    relayers: tuple[RelayerGas, ...]


class Unfinished(msgspec.Struct, frozen=True, kw_only=True):
    """Payments in one state that is not final; `oldest_s` is how long the oldest has been on its way.

    `what`: `call reserved` (its payment's outcome is not known), `call settled` (paid and not done yet), or
    `settlement` and its state, where we bring payments to the chain ourselves.
    """

    what: str
    count: int
    amount_usdc: Usdc
    oldest_s: int


class Treasury(msgspec.Struct, frozen=True, kw_only=True):
    """Everything `spawn treasury` shows. `last` is what the daily job found, None before its first run."""

    compared: Compared
    suspense_usdc: Usdc
    unfinished: tuple[Unfinished, ...]
    gas: GasMoney | None
    facilitators: tuple[Standing, ...]
    last: Compared | None


# Made at import, as every decoder here: two threads that make the first one of a type at once crash the process.
_compared: Final = msgspec.json.Decoder(Compared)
_standings: Final = msgspec.json.Decoder(tuple[Standing, ...])


async def compare(db: Database, holdings: Holdings, pay_to: Address, now: int) -> Compared:
    """Compare the books with the chain. Raises NodeUnavailable."""
    held, _ = await _books(db)
    return Compared(at=now, books_usdc=held, chain_usdc=await holdings.balance_of(pay_to))


async def look(
    db: Database, holdings: Holdings, pay_to: Address, now: int, *, gas: GasMoney | None
) -> Treasury:
    """Everything at this moment; `gas` as `gas_money` tells it. Raises NodeUnavailable."""
    held, suspense = await _books(db)
    compared = Compared(at=now, books_usdc=held, chain_usdc=await holdings.balance_of(pay_to))
    return Treasury(
        compared=compared,
        suspense_usdc=suspense,
        unfinished=await _unfinished(db, now),
        gas=gas,
        facilitators=await _facilitators(db),
        last=await last_comparison(db),
    )


async def gas_money(node: Node, relayers: tuple[Address, ...], *, cap_wei: int) -> GasMoney:
    """What our keys have for gas. Raises NodeUnavailable."""
    head = await node.block()
    if head is None:
        raise NodeUnavailable("the node shows no block")
    price = head.base_fee_wei + await node.priority_fee_wei()
    balances = [(address, await node.balance_wei(address)) for address in relayers]
    return GasMoney(
        price_wei=price,
        cap_wei=cap_wei,
        relayers=tuple(
            RelayerGas(
                address=address,
                balance_wei=balance,
                payments_now=balance // (PAYMENT_GAS * max(1, price)),
                payments_at_cap=balance // (PAYMENT_GAS * cap_wei),
            )
            for address, balance in balances
        ),
    )


async def last_comparison(db: Database) -> Compared | None:
    """What the daily job found last."""
    found = await db.read(SELECT_WATCH, {"name": COMPARED})
    return _compared.decode(found[0]["cursor"]) if found else None


def shortage(compared: Compared) -> str:
    """What is wrong when the books claim more than the chain shows, and what to do."""
    short = format_usdc(Usdc(-compared.difference_usdc))
    return (
        f"the books claim {format_usdc(compared.books_usdc)} USDC and the chain shows "
        f"{format_usdc(compared.chain_usdc)}: {short} of it is not there. "
        "If USDC was paid out of SPAWN_X402_PAY_TO, put it back; if not, stop the service, run "
        "`spawn ledger verify`, and look on the chain for each top-up since the last comparison that was right."
    )


async def _books(db: Database) -> tuple[Usdc, Usdc]:
    """What the books say is on the chain, and how much of that waits for whoever sent it."""
    (row,) = await db.read(SELECT_BOOKS, {"ext": EXT_USDC, "suspense": SUSPENSE})
    return Usdc(row["held"]), Usdc(row["suspense"])


async def _unfinished(db: Database, now: int) -> tuple[Unfinished, ...]:
    calls = await db.read(SELECT_UNFINISHED_CALLS)
    settlements = await db.read(SELECT_UNFINISHED_SETTLEMENTS)
    return tuple(
        Unfinished(
            what=row["what"],
            count=row["count"],
            amount_usdc=Usdc(row["amount"]),
            oldest_s=max(0, now - row["oldest"]),
        )
        for row in [*calls, *settlements]
    )


async def _facilitators(db: Database) -> tuple[Standing, ...]:
    found = await db.read(SELECT_WATCH, {"name": FACILITATORS})
    return _standings.decode(found[0]["cursor"]) if found else ()
