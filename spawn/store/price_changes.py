"""The `price_change` table, and the servers that a change concerns.

Invariant: a server is told of a change once: the cursor moves by compare-and-set in the transaction of the telling.
"""

from typing import Final

import msgspec
from spawn_ledger.tx import Row, Tx
from spawn_schemas.ids import Address, ServerId
from spawn_schemas.money import Usdc

from spawn.domain.price_changes import PriceChange, PriceChangeId

_COLUMNS: Final = PriceChange.__struct_fields__

INSERT_CHANGE: Final = """
INSERT INTO price_change (id, type, location, daily_usdc, announced_at, effective_at, told_to)
VALUES (:id, :type, :location, :daily_usdc, :announced_at, :effective_at, :told_to)
"""
SELECT_CHANGE: Final = "SELECT * FROM price_change WHERE id = :id"
SELECT_OF_OFFER: Final = """
SELECT * FROM price_change WHERE type = :type AND location = :location ORDER BY announced_at DESC LIMIT :limit
"""
SELECT_NEWEST: Final = """
SELECT * FROM price_change AS change WHERE NOT EXISTS (
  SELECT 1 FROM price_change AS later
  WHERE later.type = change.type AND later.location = change.location AND later.announced_at > change.announced_at
)
"""
SELECT_ALL: Final = "SELECT * FROM price_change ORDER BY announced_at DESC, id LIMIT :limit"
SELECT_UNTOLD: Final = """
SELECT * FROM price_change WHERE told_to IS NOT NULL ORDER BY announced_at, id LIMIT 1
"""
MOVE_TOLD: Final = "UPDATE price_change SET told_to = :to WHERE id = :id AND told_to = :after"
STOP_TELLING: Final = "UPDATE price_change SET told_to = NULL WHERE id = :id"

# Bounded by the servers it passes, not by those it finds: a rare type must not make a chunk walk through all.
SELECT_CHUNK_END: Final = """
SELECT MAX(id) AS last FROM (
  SELECT id FROM server WHERE ended_at IS NULL AND id > :after ORDER BY id LIMIT :limit
) AS chunk
"""
# Whoever pays the new price has nothing to be told, unless another change was under way. Since when a server has its
# price says nothing: the change before this one may have cut it after this one was announced. A server without money
# keeps what it was promised before: it is cut there only once somebody pays what it owes, which may take weeks.
SELECT_CONCERNED: Final = """
SELECT id, wallet, daily_usdc, reprice_at FROM server
WHERE ended_at IS NULL AND id > :after AND id <= :last AND type = :type AND location = :location
  AND status <> 'destroying'
  AND (daily_usdc <> :daily_usdc OR reprice_at IS NOT NULL)
  AND (exhausted_at IS NULL OR reprice_at IS NULL OR reprice_at > :now)
ORDER BY id
"""
# Whoever looks at a server looks at the moment when its price changes, too.
SET_REPRICE: Final = """
UPDATE server SET reprice_at = :at, reprice_usdc = :daily_usdc,
  due_at = CASE WHEN due_at > :at THEN :at ELSE due_at END
WHERE id = :id
"""
CLEAR_REPRICE: Final = "UPDATE server SET reprice_at = NULL, reprice_usdc = NULL WHERE id = :id"


class Concerned(msgspec.Struct, frozen=True, kw_only=True):
    """A server whose owner is to be told, what it costs now, and when that changes by what was announced before."""

    id: ServerId
    wallet: Address
    daily_usdc: Usdc
    reprice_at: int | None


def change_from(row: Row) -> PriceChange:
    """Read one row of `SELECT * FROM price_change`."""
    return PriceChange(**{name: row[name] for name in _COLUMNS})


def insert_change(tx: Tx, change: PriceChange) -> None:
    tx.execute(INSERT_CHANGE, msgspec.structs.asdict(change))


def find_change(tx: Tx, change_id: PriceChangeId) -> PriceChange | None:
    row = tx.one(SELECT_CHANGE, {"id": change_id})
    return None if row is None else change_from(row)


def list_of_offer(tx: Tx, type: str, location: str, *, limit: int) -> list[PriceChange]:
    """The changes of one offer, the newest first."""
    params = {"type": type, "location": location, "limit": limit}
    return [change_from(row) for row in tx.all(SELECT_OF_OFFER, params)]


def list_newest(tx: Tx) -> list[PriceChange]:
    """The last change of each offer that has any."""
    return [change_from(row) for row in tx.all(SELECT_NEWEST, {})]


def list_changes(tx: Tx, *, limit: int) -> list[PriceChange]:
    """All of them, the newest first."""
    return [change_from(row) for row in tx.all(SELECT_ALL, {"limit": limit})]


def find_untold(tx: Tx) -> PriceChange | None:
    """The oldest change that has not been told to all yet."""
    row = tx.one(SELECT_UNTOLD, {})
    return None if row is None else change_from(row)


def find_chunk_end(tx: Tx, after: str, *, limit: int) -> str | None:
    """The id of the last of the next `limit` living servers; None when there are none left."""
    row = tx.one(SELECT_CHUNK_END, {"after": after, "limit": limit})
    return None if row is None else row["last"]


def list_concerned(tx: Tx, change: PriceChange, *, after: str, last: str, now: int) -> list[Concerned]:
    """The servers from behind `after` up to `last` whose owners the change must be told to."""
    params = {
        "after": after,
        "last": last,
        "type": change.type,
        "location": change.location,
        "daily_usdc": change.daily_usdc,
        "now": now,
    }
    return [
        Concerned(**{name: row[name] for name in Concerned.__struct_fields__})
        for row in tx.all(SELECT_CONCERNED, params)
    ]


def set_reprice(tx: Tx, server_id: ServerId, *, at: int, daily_usdc: Usdc) -> None:
    tx.execute(SET_REPRICE, {"id": server_id, "at": at, "daily_usdc": daily_usdc})


def clear_reprice(tx: Tx, server_id: ServerId) -> None:
    tx.execute(CLEAR_REPRICE, {"id": server_id})


def move_told(tx: Tx, before: PriceChange, after: PriceChange) -> None:
    """Raise RuntimeError if somebody else has moved it since it was read: both would tell the same servers."""
    if tx.execute(MOVE_TOLD, {"id": before.id, "after": before.told_to, "to": after.told_to}) != 1:
        raise RuntimeError(f"the telling of {before.id} moved within one transaction")


def stop_telling(tx: Tx, change_id: PriceChangeId) -> None:
    tx.execute(STOP_TELLING, {"id": change_id})
