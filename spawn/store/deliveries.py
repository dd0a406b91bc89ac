"""The `delivery` table: each event on its way to each webhook that wants it.

Invariant: of the pending deliveries of one webhook and resource only the oldest, the head, is ever sent, so that order
holds; the others are parked (`next_at` is PARKED) as soon as somebody comes across them, and the head brings the next
one forward when it ends. So what is due is a range of one index, however much waits behind a dead receiver.
"""

from typing import Final

from spawn_ledger.tx import Tx
from spawn_schemas.ids import WebhookId

PARKED: Final = 9_999_999_999

INSERT_DELIVERY: Final = """
INSERT INTO delivery (webhook_id, seq, resource, state, attempts, next_at, claim_until, created_at)
VALUES (:webhook_id, :seq, :resource, 'pending', 0, :now, 0, :now)
"""
FIND_DUE: Final = "SELECT seq FROM delivery WHERE state = 'pending' AND next_at <= :now LIMIT 1"
# Whatever is due, with what is needed to send it, but for the webhooks of the comma list `full`.
SELECT_DUE: Final = """
SELECT d.webhook_id, d.seq, d.resource, d.attempts, d.created_at, w.wallet, w.url, w.enabled, w.failing_since,
  e.type, e.at, e.data,
  (SELECT MIN(o.seq) FROM delivery o
   WHERE o.webhook_id = d.webhook_id AND o.resource = d.resource AND o.state = 'pending') AS head
FROM delivery d JOIN webhook w ON w.id = d.webhook_id JOIN event e ON e.seq = d.seq
WHERE d.state = 'pending' AND d.next_at <= :now
  AND ',' || CAST(:full AS TEXT) || ',' NOT LIKE '%,' || d.webhook_id || ',%'
ORDER BY d.next_at, d.seq LIMIT :limit
"""
CLAIM: Final = """
UPDATE delivery SET claim = :claim, claim_until = :until, next_at = :until, attempts = attempts + 1,
  attempted_at = :now
WHERE webhook_id = :webhook_id AND seq = :seq AND state = 'pending'
"""
MOVE: Final = """
UPDATE delivery SET next_at = :at WHERE webhook_id = :webhook_id AND seq = :seq AND state = 'pending'
"""
RECORD: Final = """
UPDATE delivery SET state = :state, next_at = :next_at, claim = NULL, claim_until = 0, status_code = :status_code,
  error = :error, finished_at = :finished_at
WHERE webhook_id = :webhook_id AND seq = :seq AND claim = :claim AND state = 'pending'
"""
BRING_FORWARD: Final = """
UPDATE delivery SET next_at = :now
WHERE webhook_id = :webhook_id AND state = 'pending' AND next_at > :now AND seq = (
  SELECT MIN(o.seq) FROM delivery o
  WHERE o.webhook_id = :webhook_id AND o.resource = :resource AND o.state = 'pending')
"""
# What waits for another attempt, and is neither parked nor being sent.
HURRY: Final = """
UPDATE delivery SET next_at = :now
WHERE webhook_id = :webhook_id AND seq IN (
  SELECT o.seq FROM delivery o
  WHERE o.webhook_id = :webhook_id AND o.state = 'pending' AND o.claim IS NULL AND o.next_at > :now
    AND o.next_at < :parked
  ORDER BY o.seq LIMIT :limit)
"""
END: Final = """
UPDATE delivery SET state = 'failed', error = :error, finished_at = :now, claim = NULL, claim_until = 0
WHERE webhook_id = :webhook_id AND seq IN (
  SELECT o.seq FROM delivery o WHERE o.webhook_id = :webhook_id AND o.state = 'pending'
  ORDER BY o.resource, o.seq LIMIT :limit)
"""
BRING_ANY_FORWARD: Final = """
UPDATE delivery SET next_at = :now
WHERE webhook_id = :webhook_id AND seq = (
  SELECT MIN(o.seq) FROM delivery o WHERE o.webhook_id = :webhook_id AND o.state = 'pending')
"""
SELECT_PAGE: Final = """
SELECT d.seq, e.type, d.resource, d.state, d.attempts, d.status_code, d.error, d.created_at, d.attempted_at,
  d.next_at, d.finished_at
FROM delivery d JOIN event e ON e.seq = d.seq
WHERE d.webhook_id = :webhook_id AND d.seq < :before ORDER BY d.seq DESC LIMIT :limit
"""
ERASE: Final = """
DELETE FROM delivery WHERE webhook_id = :webhook_id AND seq IN (
  SELECT o.seq FROM delivery o WHERE o.webhook_id = :webhook_id ORDER BY o.seq LIMIT :limit)
"""

AT_ONCE: Final = 500
"""Rows of one webhook that one transaction changes."""


def end_pending(tx: Tx, webhook_id: WebhookId, error: str, now: int) -> bool:
    """End what waits for a webhook that is disabled, AT_ONCE of it now; True when there is more.

    One of the rest becomes due, so that whoever looks for work comes across it and ends the next.
    """
    params = {"webhook_id": webhook_id, "error": error, "now": now, "limit": AT_ONCE}
    if tx.execute(END, params) < AT_ONCE:
        return False
    return tx.execute(BRING_ANY_FORWARD, {"webhook_id": webhook_id, "now": now}) > 0


def hurry(tx: Tx, webhook_id: WebhookId, now: int) -> None:
    """Try again at once what waits for its next attempt: the receiver is back, or its owner says so."""
    params = {"webhook_id": webhook_id, "now": now, "parked": PARKED, "limit": AT_ONCE}
    tx.execute(HURRY, params)
