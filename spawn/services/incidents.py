"""What goes on failing until a person looks: found in the tables, each by one query, and said in words.

Invariant: looking changes nothing, and costs next to nothing while all is well: each query reads from an index that
has only what is late.
"""

from collections.abc import Callable
from typing import Final, Generic, TypeVar

import msgspec
from spawn_ledger.tx import Row
from spawn_schemas.ids import ActionId, Address, ServerId
from spawn_schemas.money import format_usdc

from spawn.services.moments import moment
from spawn.store.database import Database

T = TypeVar("T")

LATE_S: Final = 3600
"""How long something may fail before it is an incident."""
TRIES: Final = 10
"""How many attempts tell as much where the clock was set back since, and its hours say nothing."""
LISTED: Final = 20
"""Of how many of a kind one look tells; it counts them all, up to `COUNTED`."""
COUNTED: Final = 1000
PRICES_LATE_S: Final = 86_400
"""How long the provider's lists may fail: prices that are a day old do no harm."""
EURO_LATE_S: Final = 7 * 86_400
"""How old the euro's price may be: nobody publishes one over long holidays."""

# An operation from the future began before the clock was set back.
SELECT_FAILING_DESTROYS: Final = """
SELECT operation.id, operation.server_id, server.wallet, server.provider, server.provider_ref, operation.created_at,
  operation.attempts, operation.error_message, COUNT(*) OVER () AS found
FROM operation JOIN server ON server.id = operation.server_id
WHERE operation.status = 'running' AND operation.command = 'destroy_server'
  AND (operation.created_at <= :before OR (operation.created_at > :now AND operation.attempts >= :tries))
ORDER BY operation.created_at, operation.id LIMIT :limit
"""
SELECT_ABANDONED: Final = """
SELECT server.id, server.wallet, server.provider, server.provider_ref, COUNT(*) OVER () AS found FROM server
WHERE server.status = 'destroying' AND NOT EXISTS
  (SELECT 1 FROM operation WHERE operation.server_id = server.id AND operation.status = 'running')
ORDER BY server.id LIMIT :limit
"""
# Later events of a resource wait for its first, whose receiver may be down: the first alone can be late by our fault.
SELECT_BACKLOG: Final = """
SELECT COUNT(*) AS found, MIN(next_at) AS since FROM (
  SELECT delivery.next_at FROM delivery JOIN webhook ON webhook.id = delivery.webhook_id
  WHERE delivery.state = 'pending' AND delivery.next_at <= :before AND delivery.claim_until <= :now
    AND webhook.enabled = 1 AND NOT EXISTS (
      SELECT 1 FROM delivery AS earlier
      WHERE earlier.webhook_id = delivery.webhook_id AND earlier.resource = delivery.resource
        AND earlier.state = 'pending' AND earlier.seq < delivery.seq)
  LIMIT :limit) AS late
"""
SELECT_OVERDUE_BURN: Final = """
SELECT COUNT(*) AS found, MIN(due_at) AS since FROM (
  SELECT due_at FROM server WHERE due_at IS NOT NULL AND due_at <= :before ORDER BY due_at LIMIT :limit) AS late
"""
# One row at most: the provider that is used.
SELECT_OLD_PRICES: Final = """
SELECT provider, read_at, failing_since, error, eur_usdc, eur_at FROM price_sheet
WHERE failing_since <= :before OR eur_at <= :old LIMIT 1
"""


class Found(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """`count` of them in all, of which `oldest` are shown."""

    count: int
    oldest: tuple[T, ...]


class FailingDestroy(msgspec.Struct, frozen=True, kw_only=True):
    """A machine that should be gone. `since` is when its destruction was ordered, in unix seconds.

    `says` is the provider's last word, None when it has not answered anything that we could keep.
    """

    action: ActionId
    server: ServerId
    wallet: Address
    provider: str
    provider_ref: str | None
    since: int
    attempts: int
    says: str | None


class Abandoned(msgspec.Struct, frozen=True, kw_only=True):
    """A server that should be destroyed and that nothing destroys: a defect of ours."""

    server: ServerId
    wallet: Address
    provider: str
    provider_ref: str | None


class Backlog(msgspec.Struct, frozen=True, kw_only=True):
    """Work that has been due since `since` (unix seconds, None when there is none); `count` is `COUNTED` at most."""

    count: int
    since: int | None


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """`key` names it from one look to the next; `text` is one line for an operator."""

    key: str
    text: str


async def failing_destroys(db: Database, now: int, *, limit: int = LISTED) -> Found[FailingDestroy]:
    """The destructions that have not succeeded within an hour, the oldest first."""
    params = {"now": now, "before": now - LATE_S, "tries": TRIES, "limit": limit}
    return _found(await db.read(SELECT_FAILING_DESTROYS, params), _failing_from)


async def abandoned(db: Database, *, limit: int = LISTED) -> Found[Abandoned]:
    """The servers that wait for a destruction nobody carries out."""
    return _found(await db.read(SELECT_ABANDONED, {"limit": limit}), _abandoned_from)


async def delivery_backlog(db: Database, now: int) -> Backlog:
    """The webhook deliveries that we could have tried for an hour, and have not."""
    params = {"now": now, "before": now - LATE_S, "limit": COUNTED}
    return _backlog(await db.read(SELECT_BACKLOG, params))


async def overdue_burn(db: Database, now: int) -> Backlog:
    """The servers that should have been charged an hour ago."""
    return _backlog(await db.read(SELECT_OVERDUE_BURN, {"before": now - LATE_S, "limit": COUNTED}))


async def look(db: Database, now: int) -> tuple[Incident, ...]:
    """Everything that goes on failing at `now` (unix seconds)."""
    destroys, lost = await failing_destroys(db, now), await abandoned(db)
    deliveries, burn = await delivery_backlog(db, now), await overdue_burn(db, now)
    return (
        *(Incident(key=f"destroy {one.action}", text=_say_failing(one)) for one in destroys.oldest),
        *_rest("destroys", destroys, "destructions that fail"),
        *(Incident(key=f"abandoned {one.server}", text=_say_abandoned(one)) for one in lost.oldest),
        *_rest("abandoned", lost, "servers that nothing destroys"),
        *_late("deliveries", deliveries, "webhook deliveries are due and not tried", _DELIVERIES),
        *_late("burn", burn, "servers are due and not charged", _BURN),
        *await _old_prices(db, now),
    )


_DELIVERIES: Final = "Look in the log for `job deliveries`, or for receivers that time out"
_BURN: Final = (
    "Look for `the burn of` and `job burn` in the log, which name the wallets and why; `spawn ledger verify` says "
    "whether the books agree with themselves. Nothing is lost: what is due is charged when the cause is gone"
)


async def _old_prices(db: Database, now: int) -> tuple[Incident, ...]:
    """The prices that we sell at, where what they are made from has become old."""
    params = {"before": now - PRICES_LATE_S, "old": now - EURO_LATE_S}
    found: tuple[Incident, ...] = ()
    for row in await db.read(SELECT_OLD_PRICES, params):
        if row["failing_since"] is not None and row["failing_since"] <= params["before"]:
            found += (Incident(key="prices", text=_say_unread(row)),)
        if row["eur_at"] is not None and row["eur_at"] <= params["old"]:
            found += (Incident(key="euro", text=_say_old_euro(row)),)
    return found


def _found(rows: list[Row], read: Callable[[Row], T]) -> Found[T]:
    return Found(count=rows[0]["found"] if rows else 0, oldest=tuple(map(read, rows)))


def _failing_from(row: Row) -> FailingDestroy:
    return FailingDestroy(
        action=row["id"],
        server=row["server_id"],
        wallet=row["wallet"],
        provider=row["provider"],
        provider_ref=row["provider_ref"],
        since=row["created_at"],
        attempts=row["attempts"],
        says=row["error_message"],
    )


def _abandoned_from(row: Row) -> Abandoned:
    return Abandoned(
        server=row["id"], wallet=row["wallet"], provider=row["provider"], provider_ref=row["provider_ref"]
    )


def _backlog(rows: list[Row]) -> Backlog:
    return Backlog(count=rows[0]["found"], since=rows[0]["since"])


def _say_failing(one: FailingDestroy) -> str:
    says = "nothing that we could keep" if one.says is None else f"{one.says!r}"
    return (
        f"{one.server} is not destroyed since {moment(one.since)}: {one.provider} says {says} of its machine "
        f"{_machine(one.provider_ref)} (action {one.action}). What it costs is ours: unlock or delete the machine at "
        f"{one.provider}, or mend what it complains of; we go on trying"
    )


def _say_abandoned(one: Abandoned) -> str:
    return (
        f"{one.server} is being destroyed, and no operation does it. Delete its machine {_machine(one.provider_ref)} "
        f"at {one.provider} and report this: it is a defect of the service"
    )


def _say_unread(row: Row) -> str:
    return (
        f"the lists of {row['provider']} cannot be read since {moment(row['failing_since'])}: {row['error']!r}. "
        f"Machines are sold at the prices of {moment(row['read_at'])}; `spawn prices refresh` tries it at once"
    )


def _say_old_euro(row: Row) -> str:
    return (
        f"the euro's price, {format_usdc(row['eur_usdc'])} USDC, is of {moment(row['eur_at'])}: look in the log for "
        "what SPAWN_EUR_SOURCE says, or take that out and set SPAWN_EUR_PRICE"
    )


def _machine(ref: str | None) -> str:
    return "(ordered, never seen)" if ref is None else ref


def _rest(kind: str, found: Found[T], what: str) -> tuple[Incident, ...]:
    more = found.count - len(found.oldest)
    if more == 0:
        return ()
    return (Incident(key=kind, text=f"{more} more {what}; `spawn admin status` has their number"),)


def _late(kind: str, backlog: Backlog, what: str, advice: str) -> tuple[Incident, ...]:
    if backlog.since is None:
        return ()
    count = f"{backlog.count} or more" if backlog.count == COUNTED else str(backlog.count)
    return (Incident(key=kind, text=f"{count} {what} since {moment(backlog.since)}. {advice}"),)
