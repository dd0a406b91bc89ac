"""The `event` table: what happened to a wallet's things, in the order in which it was committed; and `event_head`.

Invariants: an event is written in the transaction of what it tells of, with a delivery for each webhook that wants it.
One series numbers the events of all wallets, and those of one wallet are committed in their order: who takes a number
holds the wallet's head until it commits. So whoever has read up to an event of a wallet has read all of the wallet's
below it; of all wallets' together that holds only where a single connection writes. What is forgotten of a wallet is
all up to its head's `forgotten`, and nothing beyond.
"""

from collections.abc import Sequence
from typing import Any, Final

from spawn_ledger.tx import Row, Tx
from spawn_schemas.events import family
from spawn_schemas.ids import Address

from spawn.domain.events import Kept, Page, Query, Seen, page

TAKE_HEAD: Final = """
INSERT INTO event_head (wallet, forgotten) VALUES (:wallet, 0)
ON CONFLICT (wallet) DO UPDATE SET forgotten = event_head.forgotten
"""
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

# One statement, so that what is kept and what is seen are of one moment. The head of no wallet has what was forgotten
# before there were heads.
SELECT_SEEN: Final = """
SELECT kept.forgotten, kept.newest, seen.seq, seen.type, seen.resource, seen.at, seen.data
FROM (SELECT (SELECT MAX(forgotten) FROM event_head WHERE wallet IN (:wallet, '')) AS forgotten,
  (SELECT MAX(seq) FROM event) AS newest) AS kept
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
# Sorted, so that two who forget lock the heads in one order.
MOVE_HEADS: Final = """
INSERT INTO event_head (wallet, forgotten)
SELECT wallet, MAX(seq) FROM event WHERE seq <= :last GROUP BY wallet ORDER BY wallet
ON CONFLICT (wallet) DO UPDATE SET forgotten = excluded.forgotten
"""
DELETE_EVENTS: Final = "DELETE FROM event WHERE seq <= :last"


def insert_event(
    tx: Tx, *, wallet: Address, type: str, resource: str, cause: str | None, at: int, data: str
) -> int | None:
    """The event's number; None when what has this `cause` was told before."""
    params = {"wallet": wallet, "type": type, "resource": resource, "cause": cause, "at": at, "data": data}
    tx.execute(TAKE_HEAD, {"wallet": wallet})
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
    kept = Kept(forgotten=rows[0]["forgotten"] or 0, newest=rows[0]["newest"] or 0)
    seen = [
        Seen(seq=row["seq"], type=row["type"], resource=row["resource"], at=row["at"], data=row["data"])
        for row in rows
        if row["seq"] is not None
    ]
    return page(asked, seen, kept)


def forget(tx: Tx, *, before: int, limit: int) -> int:
    """Forget up to `limit` events that happened before this second; answers how many.

    They go in the order of their numbers, up to the first that is younger or still has to be delivered: what is kept
    of a wallet is all that came after what was forgotten of it, and its head says how far that is.
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
    tx.execute(MOVE_HEADS, {"last": last})
    return tx.execute(DELETE_EVENTS, {"last": last})
