"""The `event` table: what happened to a wallet's things, in the order in which it was committed.

Invariants: an event is written in the transaction of what it tells of, with a delivery for each webhook that wants it;
and numbers are committed in their order, because one connection writes, so that whoever has read up to a number has
read everything below it.
"""

from typing import Final

from spawn_ledger.tx import Tx
from spawn_schemas.ids import Address

INSERT_EVENT: Final = """
INSERT INTO event (wallet, type, resource, cause, at, data)
VALUES (:wallet, :type, :resource, :cause, :at, :data)
ON CONFLICT (cause) DO NOTHING
RETURNING seq
"""
# `webhook.types` is a comma list of patterns, such as `server.*,deposit.low`; a type's family is what precedes its dot.
INSERT_DELIVERIES: Final = """
INSERT INTO delivery (webhook_id, seq, resource, state, attempts, next_at, claim_until, created_at)
SELECT id, :seq, :resource, 'pending', 0, :now, 0, :now
FROM webhook
WHERE wallet = :wallet AND enabled = 1
  AND (',' || types || ',' LIKE '%,*,%'
    OR ',' || types || ',' LIKE '%,' || :family || ',%'
    OR ',' || types || ',' LIKE '%,' || :type || ',%')
"""


def insert_event(
    tx: Tx, *, wallet: Address, type: str, resource: str, cause: str | None, at: int, data: str
) -> int | None:
    """The event's number; None when what has this `cause` was told before."""
    params = {"wallet": wallet, "type": type, "resource": resource, "cause": cause, "at": at, "data": data}
    row = tx.one(INSERT_EVENT, params)
    return None if row is None else row["seq"]


def insert_deliveries(tx: Tx, seq: int, *, wallet: Address, type: str, resource: str, now: int) -> None:
    """Order one delivery of the event for each webhook of the wallet that wants its type."""
    params = {
        "seq": seq,
        "wallet": wallet,
        "type": type,
        "family": f"{type.partition('.')[0]}.*",
        "resource": resource,
        "now": now,
    }
    tx.execute(INSERT_DELIVERIES, params)
