"""Wallets as the operator sees them: pages of accounts, who is barred, and why.

Invariant: a bar is a column of the wallet's account, so that it can be set before the wallet ever pays.
"""

from typing import Final

import msgspec
from spawn_ledger.accounts import wallet_account
from spawn_ledger.tx import Row, Tx
from spawn_schemas.ids import Address

from spawn.domain.barring import Barred

SELECT_BARRED: Final = "SELECT barred FROM account WHERE id = :account"
SET_BARRED: Final = """
INSERT INTO account (id, balance, held, barred) VALUES (:account, 0, 0, :barred)
ON CONFLICT (id) DO UPDATE SET barred = excluded.barred
"""
INSERT_NOTE: Final = """
INSERT INTO wallet_note (wallet, at, kind, reason) VALUES (:wallet, :at, :kind, :reason)
"""
SELECT_NOTES: Final = """
SELECT at, kind, reason FROM wallet_note WHERE wallet = :wallet ORDER BY seq DESC LIMIT :limit
"""
SELECT_WALLETS: Final = """
SELECT id, barred FROM account
WHERE id > :after AND id LIKE :pattern AND (:barred = '' OR barred = :barred)
ORDER BY id LIMIT :limit
"""
# Whoever is given money is looked at by the next burn, which settles with it, warns anew, and takes the end back.
LOOK_AT_ONCE: Final = "UPDATE server SET due_at = :now WHERE wallet = :wallet AND due_at > :now"


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator did to a wallet at `at` (unix seconds), and why."""

    at: int
    kind: str
    reason: str


def barred(tx: Tx, wallet: Address) -> Barred | None:
    """How far the wallet is barred; None for nearly all, and for one that nobody has heard of."""
    row = tx.one(SELECT_BARRED, {"account": wallet_account(wallet)})
    return None if row is None or row["barred"] is None else Barred(row["barred"])


def set_barred(tx: Tx, wallet: Address, to: Barred | None) -> None:
    tx.execute(SET_BARRED, {"account": wallet_account(wallet), "barred": None if to is None else to.value})


def insert_note(tx: Tx, wallet: Address, *, at: int, kind: str, reason: str) -> None:
    tx.execute(INSERT_NOTE, {"wallet": wallet, "at": at, "kind": kind, "reason": reason})


def list_notes(tx: Tx, wallet: Address, *, limit: int) -> list[Note]:
    """The newest first."""
    return [
        Note(at=row["at"], kind=row["kind"], reason=row["reason"])
        for row in tx.all(SELECT_NOTES, {"wallet": wallet, "limit": limit})
    ]


def list_wallets(
    tx: Tx, *, piece: str, only: Barred | None, after: Address | None, limit: int
) -> list[tuple[Address, Barred | None]]:
    """Wallets in the order of their addresses, from the one behind `after` on.

    `piece` is hex digits that the address contains; they are no pattern, since a digit is none.
    """
    rows = tx.all(
        SELECT_WALLETS,
        {
            "after": wallet_account(after or Address("")),
            "pattern": wallet_account(Address(f"%{piece}%")),
            "barred": "" if only is None else only.value,
            "limit": limit,
        },
    )
    return [_wallet_from(row) for row in rows]


def _wallet_from(row: Row) -> tuple[Address, Barred | None]:
    address = Address(row["id"].removeprefix(wallet_account(Address(""))))
    return address, None if row["barred"] is None else Barred(row["barred"])
