"""Charges many servers at once: those that their own reserve carries for days, so that nothing is to be decided.

Invariants: one set, `burn_due`, drives every leg of a stretch. One look fills it and does the sums, and it is empty
when the transaction ends; so a chunk that runs again, or beside another, charges no second twice. What is booked is
what settling the wallets one by one would book, under the same ids. Whoever may run out, be warned or change its price
within a day is left to that.

Pages follow the index of due servers, so that those which are not due cost nothing.
"""

from typing import Final

import msgspec
from spawn_ledger.accounts import COST_PROVIDER, OWED_PROVIDER, REV_COMPUTE
from spawn_ledger.accrual import DAY, month_start
from spawn_ledger.transfers import Code
from spawn_ledger.tx import Params, Tx
from spawn_schemas.ids import ServerId

CHUNK_ROWS: Final = 400
"""Due servers looked at in one transaction: about 20 ms of the writer, for which a call may wait twice."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A place in the order of due servers."""

    due_at: int
    id: ServerId


START: Final = Place(due_at=-1, id=ServerId(""))
"""Before every due server."""


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """How many servers were settled, and the place to go on from; None when every due server was looked at."""

    settled: int
    next: Place | None


SELECT_LAST: Final = """
SELECT due_at, id FROM server WHERE due_at <= :now AND (due_at, id) > (:after_due_at, :after_id)
ORDER BY due_at, id LIMIT 1 OFFSET :others
"""
# Those who are charged from somewhere in a month, which begins at :since, until :until, its end or before.
# `dearest_usdc` is what a day may cost before anybody looks again, a price that is announced included.
INSERT_BURN_DUE: Final = """
INSERT INTO burn_due (id, charged_until, charge, remainder, cost, cost_remainder)
SELECT id, charged_until, owed / 86400, owed % 86400, cost_owed / 86400, cost_owed % 86400 FROM (
  SELECT server.id, server.charged_until, account.balance - account.held AS reserve,
    CASE WHEN server.reprice_usdc > server.daily_usdc THEN server.reprice_usdc ELSE server.daily_usdc END
      AS dearest_usdc,
    server.remainder + server.daily_usdc * CASE
      WHEN server.month_s >= server.capped_s THEN 0
      WHEN server.month_s + :until - server.charged_until > server.capped_s THEN server.capped_s - server.month_s
      ELSE :until - server.charged_until END AS owed,
    server.cost_remainder + COALESCE(server.cost_daily_usdc, 0) * CASE
      WHEN server.month_s >= server.cost_capped_s THEN 0
      WHEN server.month_s + :until - server.charged_until > server.cost_capped_s
        THEN server.cost_capped_s - server.month_s
      ELSE :until - server.charged_until END AS cost_owed
  FROM server JOIN account ON account.id = 'srv:' || server.id
  WHERE server.due_at IS NOT NULL AND (server.due_at, server.id) > (:after_due_at, :after_id)
    AND (server.due_at, server.id) <= (:last_due_at, :last_id)
    AND server.charged_until >= :since AND server.charged_until < :until
    AND (server.cost_until = server.charged_until
      OR server.cost_until IS NULL AND server.cost_daily_usdc IS NULL)
    AND server.epoch > 0 AND server.warned_s IS NULL AND server.exhausted_at IS NULL
    AND server.owed IS NULL AND server.traffic_owed_usdc = 0
    AND (server.reprice_at IS NULL OR server.reprice_at > :tomorrow)
) AS candidate
WHERE reserve - owed / 86400 > dearest_usdc * :horizon_s / 86400
"""
TAKE_BURN: Final = """
UPDATE account SET balance = balance - due.charge FROM burn_due AS due WHERE account.id = 'srv:' || due.id
"""
INSERT_BURN: Final = """
INSERT INTO transfer (id, debit, credit, amount, code, reference, at)
SELECT 'burn|' || id || '|' || charged_until || '|' || :until_text || '|reserve',
  'srv:' || id, :rev_compute, charge, :code, id, :until
FROM burn_due WHERE charge > 0 ORDER BY id
"""
INSERT_COST: Final = """
INSERT INTO transfer (id, debit, credit, amount, code, reference, at)
SELECT 'cost|' || due.id || '|' || due.charged_until || '|' || :until_text, :cost_provider,
  CASE WHEN server.host_id IS NULL THEN :owed_provider ELSE 'host:' || server.host_id END, due.cost, :code, due.id,
  :until
FROM burn_due AS due JOIN server ON server.id = due.id WHERE due.cost > 0 ORDER BY due.id
"""
# A watermark that is not where the set says it was is left alone, and the count tells. Who was charged from within the
# month before has come to the start of this one, and is still due.
MOVE_METERS: Final = """
UPDATE server SET
  charged_until = :until, remainder = due.remainder, charged_usdc = charged_usdc + due.charge,
  month_s = CASE WHEN due.charged_until < :this_month THEN 0 ELSE month_s + :until - due.charged_until END,
  cost_until = CASE WHEN cost_until IS NULL THEN NULL ELSE :until END,
  cost_remainder = due.cost_remainder, cost_usdc = cost_usdc + due.cost,
  due_at = CASE WHEN due.charged_until < :this_month THEN due_at ELSE :tomorrow END
FROM burn_due AS due WHERE server.id = due.id AND server.charged_until = due.charged_until
"""
EMPTY_BURN_DUE: Final = "DELETE FROM burn_due"


def settle_chunk(tx: Tx, *, now: int, horizon_s: int, after: Place = START, limit: int = CHUNK_ROWS) -> Chunk:
    """Charge up to `now` whoever needs no decision among the next `limit` due servers after `after`.

    A server that is settled here is looked at again a day later; `horizon_s` is how long its reserve must last from now
    on: a day, and the longest warning. Who was last settled before the month that preceded this one is left alone.
    Raises RuntimeError, and nothing may be kept, when another transaction settled one of them meanwhile.
    """
    place: dict[str, int | str] = {"now": now, "after_due_at": after.due_at, "after_id": after.id}
    row = tx.one(SELECT_LAST, {**place, "others": limit - 1})
    last = None if row is None else Place(due_at=row["due_at"], id=ServerId(row["id"]))
    end = last or Place(due_at=now + 1, id=ServerId(""))  # after all that are due
    page = place | {
        "last_due_at": end.due_at,
        "last_id": end.id,
        "horizon_s": horizon_s,
        "tomorrow": now + DAY,
    }
    this_month = month_start(now)
    _settle(tx, page, since=month_start(this_month - 1), until=this_month, this_month=this_month)
    settled = _settle(tx, page, since=this_month, until=now, this_month=this_month)
    return Chunk(settled=settled, next=last)


def _settle(tx: Tx, page: Params, *, since: int, until: int, this_month: int) -> int:
    """Charge the page's servers whose watermark lies between `since` and `until`, within one month, up to `until`."""
    settled = tx.execute(INSERT_BURN_DUE, {**page, "since": since, "until": until})
    if settled == 0:
        return 0
    # Money first, as every settlement locks it first.
    tx.execute(TAKE_BURN)
    stretch = {"until": until, "until_text": str(until)}
    tx.execute(INSERT_BURN, {**stretch, "rev_compute": REV_COMPUTE, "code": Code.BURN.value})
    providers = {"cost_provider": COST_PROVIDER, "owed_provider": OWED_PROVIDER}
    tx.execute(INSERT_COST, {**stretch, **providers, "code": Code.COST.value})
    meters = {"until": until, "this_month": this_month, "tomorrow": page["tomorrow"]}
    if tx.execute(MOVE_METERS, meters) != settled:
        raise RuntimeError("a meter moved within the transaction that settles it")
    tx.execute(EMPTY_BURN_DUE)
    return settled
