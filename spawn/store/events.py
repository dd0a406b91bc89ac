"""The `event` table: what happened to a wallet's things, in the order in which it was committed.

Invariants: an event is written in the transaction of what it tells of, with a delivery for each webhook that wants it;
and numbers are committed in their order, because one connection writes, so that whoever has read up to a number has
read everything below it.
"""

from collections.abc import Sequence
from typing import Any, Final

from spawn_ledger.tx import Row, Tx
from spawn_schemas.events import family
from spawn_schemas.ids import Address

from spawn.domain.events import Kept, Page, Query, Seen, page

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

# One statement, so that what is kept and what is seen are of one moment.
SELECT_SEEN: Final = """
SELECT kept.oldest, kept.newest, seen.seq, seen.type, seen.resource, seen.at, seen.data
FROM (SELECT (SELECT MIN(seq) FROM event) AS oldest, (SELECT MAX(seq) FROM event) AS newest) AS kept
LEFT JOIN (
  SELECT seq, type, resource, at, data FROM event
  WHERE wallet = :wallet AND seq > :after ORDER BY seq LIMIT :window
) AS seen ON 1 = 1
ORDER BY seen.seq
"""
SELECT_NEWS: Final = "SELECT seq, wallet FROM event WHERE seq > :after ORDER BY seq LIMIT :limit"
# The newest stays whatever its age, because it says how far the numbers have come.
SELECT_OLDEST: Final = """
SELECT seq, at FROM event WHERE seq < (SELECT MAX(seq) FROM event) ORDER BY seq LIMIT :limit
"""
SELECT_FIRST_PENDING: Final = """
SELECT MIN(seq) AS seq FROM delivery WHERE seq <= :last AND state = 'pending'
"""
DELETE_EVENTS: Final = "DELETE FROM event WHERE seq <= :last"


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
        "family": family(type),
        "resource": resource,
        "now": now,
    }
    tx.execute(INSERT_DELIVERIES, params)


def seen_params(wallet: Address, asked: Query) -> dict[str, Any]:
    """What `SELECT_SEEN` needs."""
    return {"wallet": wallet, "after": asked.after or 0, "window": asked.window}


def page_from(rows: Sequence[Row], asked: Query) -> Page:
    """Read the rows of `SELECT_SEEN`."""
    kept = Kept(oldest=rows[0]["oldest"] or 1, newest=rows[0]["newest"] or 0)
    seen = [
        Seen(seq=row["seq"], type=row["type"], resource=row["resource"], at=row["at"], data=row["data"])
        for row in rows
        if row["seq"] is not None
    ]
    return page(asked, seen, kept)


def forget(tx: Tx, *, before: int, limit: int) -> int:
    """Forget up to `limit` events that happened before this second; answers how many.

    They go in the order of their numbers, up to the first that is younger or still has to be delivered: what is kept
    is all that came after what was forgotten.
    """
    old = []
    for row in tx.all(SELECT_OLDEST, {"limit": limit}):
        if row["at"] >= before:
            break
        old.append(row["seq"])
    if not old:
        return 0
    pending = tx.one(SELECT_FIRST_PENDING, {"last": old[-1]})
    last = old[-1] if pending is None or pending["seq"] is None else pending["seq"] - 1
    return tx.execute(DELETE_EVENTS, {"last": last})
