"""The `boot` table: what a living server's machine is trusted by, and how far it says that it has come.

Invariant: the row goes with its server, and what it was found by is only ever the hash of a token.
"""

from typing import Any, Final

from spawn_ledger.tx import Row, Tx
from spawn_schemas.ids import ServerId

from spawn.domain.readiness import CloudInit, Readiness

_COLUMNS: Final = Readiness.__struct_fields__

INSERT_BOOT: Final = """
INSERT INTO boot (server_id, host_key, token_hash, next_hash, since, ssh_at, cloud_init, log, reported_at)
VALUES (:server_id, :host_key, :token_hash, :next_hash, :since, :ssh_at, :cloud_init, :log, :reported_at)
"""
UPDATE_BOOT: Final = """
UPDATE boot SET token_hash = :token_hash, next_hash = :next_hash, since = :since, ssh_at = :ssh_at,
  cloud_init = :cloud_init, log = :log, reported_at = :reported_at
WHERE server_id = :server_id
"""
SELECT_BOOT: Final = "SELECT * FROM boot WHERE server_id = :server_id"
SELECT_BY_HASH: Final = "SELECT * FROM boot WHERE token_hash = :hash OR next_hash = :hash"
DELETE_BOOT: Final = "DELETE FROM boot WHERE server_id = :server_id"


def readiness_from(row: Row) -> Readiness:
    """Read one row of `SELECT * FROM boot`."""
    values: dict[str, Any] = {name: row[name] for name in _COLUMNS}
    values["cloud_init"] = None if values["cloud_init"] is None else CloudInit(values["cloud_init"])
    return Readiness(**values)


def _params(readiness: Readiness) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(readiness, name) for name in _COLUMNS}
    values["cloud_init"] = None if readiness.cloud_init is None else readiness.cloud_init.value
    return values


def insert(tx: Tx, readiness: Readiness) -> None:
    tx.execute(INSERT_BOOT, _params(readiness))


def save(tx: Tx, before: Readiness, after: Readiness) -> None:
    """Write `after` back, where it differs from what this transaction read."""
    if after != before:
        tx.execute(UPDATE_BOOT, _params(after))


def find(tx: Tx, server_id: ServerId) -> Readiness | None:
    row = tx.one(SELECT_BOOT, {"server_id": server_id})
    return None if row is None else readiness_from(row)


def find_by_hash(tx: Tx, token_hash: str) -> Readiness | None:
    row = tx.one(SELECT_BY_HASH, {"hash": token_hash})
    return None if row is None else readiness_from(row)


def delete(tx: Tx, server_id: ServerId) -> None:
    tx.execute(DELETE_BOOT, {"server_id": server_id})
