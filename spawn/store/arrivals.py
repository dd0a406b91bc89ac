"""The `arrival` and `watch` tables: USDC that came without saying whose it is, and how far the chain was read.

Invariant: an arrival is recorded once, and claimed once.
"""

from enum import StrEnum
from typing import Any, Final

import msgspec
from spawn_ledger.tx import Row, Tx
from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc


class State(StrEnum):
    SUSPENSE = "suspense"
    """It waits for its sender."""
    CLAIMED = "claimed"
    """It is in its sender's wallet. Final."""


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """A transfer to us that no settled call accounts for; see `spawn.payments.arrivals.Arrived`."""

    id: str
    transaction_hash: str
    sender: Address
    amount: Usdc
    nonce_key: str | None
    state: State
    at: int
    claimed_at: int | None


_COLUMNS: Final = Arrival.__struct_fields__

INSERT_ARRIVAL: Final = """
INSERT INTO arrival (id, transaction_hash, sender, amount, nonce_key, state, at, claimed_at)
VALUES (:id, :transaction_hash, :sender, :amount, :nonce_key, :state, :at, :claimed_at)
"""
SELECT_BY_NONCE: Final = "SELECT * FROM arrival WHERE nonce_key = :nonce_key"
SELECT_WAITING: Final = """
SELECT * FROM arrival WHERE sender = :sender AND state = 'suspense' ORDER BY at, id LIMIT :limit
"""
SUM_WAITING: Final = """
SELECT CAST(COALESCE(SUM(amount), 0) AS BIGINT) AS amount FROM arrival
WHERE sender = :sender AND state = 'suspense'
"""
MARK_CLAIMED: Final = """
UPDATE arrival SET state = 'claimed', claimed_at = :at WHERE id = :id AND state = 'suspense'
"""
SELECT_WATCH: Final = "SELECT cursor FROM watch WHERE name = :name"
KEEP_WATCH: Final = "INSERT INTO watch (name, cursor) VALUES (:name, :cursor) ON CONFLICT (name) DO NOTHING"
MOVE_WATCH: Final = """
INSERT INTO watch (name, cursor) VALUES (:name, :cursor)
ON CONFLICT (name) DO UPDATE SET cursor = excluded.cursor
"""


def arrival_from(row: Row) -> Arrival:
    """Read one row of `SELECT * FROM arrival`."""
    values: dict[str, Any] = {name: row[name] for name in _COLUMNS}
    values["state"] = State(values["state"])
    return Arrival(**values)


def insert_arrival(tx: Tx, arrival: Arrival) -> None:
    tx.execute(INSERT_ARRIVAL, msgspec.structs.asdict(arrival) | {"state": arrival.state.value})


def find_by_nonce(tx: Tx, nonce_key: str) -> Arrival | None:
    row = tx.one(SELECT_BY_NONCE, {"nonce_key": nonce_key})
    return None if row is None else arrival_from(row)


def mark_claimed(tx: Tx, arrival: Arrival, at: int) -> bool:
    """Take it out of suspense; False when that was done before."""
    return tx.execute(MARK_CLAIMED, {"id": arrival.id, "at": at}) == 1
