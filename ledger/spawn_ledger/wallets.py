"""What a wallet's owner sees of how the money moved: a statement, its newest line first.

Invariant: the IN and OUT amounts of a whole statement add up to what the wallet has, reserves and holds included.

It comes as a query, its parameters and a pure function from rows to structs. A wallet's servers are part of it:
moving money into a reserve changes no total.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import msgspec
from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc

from spawn_ledger.accounts import is_customer, wallet_account
from spawn_ledger.transfers import Code
from spawn_ledger.tx import Row

NEWEST: Final = 2**63 - 1
"""The cursor of the first page: above every `seq`."""

# Every branch walks one index from `:before` downwards. A wallet may have many servers with long histories, so
# only the newest `:limit` of each are read: those after the first that is older. Sorting within these branches
# would tempt PostgreSQL to walk all transfers instead. What moves between wallet and server is in two branches,
# and UNION keeps one.
STATEMENT: Final = """
SELECT seq, debit, credit, amount, code, reference, at FROM (
    SELECT * FROM (
        SELECT seq, debit, credit, amount, code, reference, at FROM transfer
        WHERE debit = :account AND seq < :before ORDER BY seq DESC LIMIT :limit
    ) AS from_wallet
    UNION
    SELECT * FROM (
        SELECT seq, debit, credit, amount, code, reference, at FROM transfer
        WHERE credit = :account AND seq < :before ORDER BY seq DESC LIMIT :limit
    ) AS to_wallet
    UNION
    SELECT t.seq, t.debit, t.credit, t.amount, t.code, t.reference, t.at
    FROM server JOIN transfer AS t ON t.debit = 'srv:' || server.id
    WHERE server.wallet = :wallet AND t.seq < :before AND t.seq > COALESCE((
        SELECT older.seq FROM transfer AS older
        WHERE older.debit = 'srv:' || server.id AND older.seq < :before
        ORDER BY older.seq DESC LIMIT 1 OFFSET :limit
    ), 0)
    UNION
    SELECT t.seq, t.debit, t.credit, t.amount, t.code, t.reference, t.at
    FROM server JOIN transfer AS t ON t.credit = 'srv:' || server.id
    WHERE server.wallet = :wallet AND t.seq < :before AND t.seq > COALESCE((
        SELECT older.seq FROM transfer AS older
        WHERE older.credit = 'srv:' || server.id AND older.seq < :before
        ORDER BY older.seq DESC LIMIT 1 OFFSET :limit
    ), 0)
) AS line
ORDER BY seq DESC LIMIT :limit
"""


class Kind(StrEnum):
    """What a line does to the wallet's total."""

    IN = "in"
    OUT = "out"
    INTERNAL = "internal"


class StatementLine(msgspec.Struct, frozen=True, kw_only=True):
    """One movement as its owner sees it; `seq` is the cursor to read on from.

    `amount` is what the total gained (IN) or lost (OUT, negative); an INTERNAL line shows what moved between
    available and reserved, positive, while the total stayed.
    """

    seq: int
    kind: Kind
    code: Code
    amount: Usdc
    reference: str
    at: int


def statement_params(wallet: Address, *, before: int = NEWEST, limit: int) -> dict[str, str | int]:
    """The parameters of `STATEMENT`: at most `limit` lines older than the line `before`."""
    return {"wallet": wallet, "account": wallet_account(wallet), "before": before, "limit": limit}


def statement_from(rows: Sequence[Row]) -> list[StatementLine]:
    """The rows of `STATEMENT`, in their order."""
    return [_line_from(row) for row in rows]


def _line_from(row: Row) -> StatementLine:
    # Nothing moves between wallets, so that every customer account in a wallet's own statement is its own.
    if not is_customer(row["debit"]):
        kind, sign = Kind.IN, 1
    elif not is_customer(row["credit"]):
        kind, sign = Kind.OUT, -1
    else:
        kind, sign = Kind.INTERNAL, 1
    return StatementLine(
        seq=row["seq"],
        kind=kind,
        code=Code(row["code"]),
        amount=Usdc(sign * row["amount"]),
        reference=row["reference"],
        at=row["at"],
    )
