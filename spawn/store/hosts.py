"""The tables of lent machines: `host`, `host_token`, `host_call`, `host_outage`.

Invariant: a token is found by its hash alone and is used once; a host's epoch only grows, by compare-and-set.
"""

from typing import Any, Final

from spawn_ledger.tx import Row, Tx
from spawn_schemas.ids import HostId

from spawn.domain.hosts import Host, HostState

_COLUMNS: Final = Host.__struct_fields__

INSERT_HOST: Final = """
INSERT INTO host (
  id, name, wallet, daily_usdc, public_key, state, epoch, last_seen, beat_s, draining, agent_status, agent_version,
  inventory, metrics, desired_generation, created_at, registered_at, revoked_at
) VALUES (
  :id, :name, :wallet, :daily_usdc, :public_key, :state, :epoch, :last_seen, :beat_s, :draining, :agent_status,
  :agent_version, :inventory, :metrics, :desired_generation, :created_at, :registered_at, :revoked_at
)
"""
UPDATE_HOST: Final = """
UPDATE host SET wallet = :wallet, daily_usdc = :daily_usdc, public_key = :public_key, state = :state,
  last_seen = :last_seen, beat_s = :beat_s, draining = :draining, agent_status = :agent_status,
  agent_version = :agent_version, inventory = :inventory, metrics = :metrics, registered_at = :registered_at,
  revoked_at = :revoked_at
WHERE id = :id
"""
SELECT_HOST: Final = "SELECT * FROM host WHERE id = :id"
SELECT_BY_NAME: Final = "SELECT * FROM host WHERE name = :name"
SELECT_HOSTS: Final = "SELECT * FROM host WHERE id > :after ORDER BY id LIMIT :limit"
SELECT_KEY_TAKEN: Final = "SELECT id FROM host WHERE public_key = :public_key AND id <> :id"
# The newest session wins: who saw an older epoch than there is by now must look again.
RAISE_EPOCH: Final = """
UPDATE host SET epoch = epoch + 1 WHERE id = :id AND epoch = :seen AND revoked_at IS NULL RETURNING epoch
"""
# What was seen later than this stays: flushes of two sessions may come in any order.
TOUCH_HOST: Final = """
UPDATE host SET last_seen = :at, beat_s = :beat_s
WHERE id = :id AND revoked_at IS NULL AND (last_seen IS NULL OR last_seen < :at)
"""
RAISE_DESIRED: Final = """
UPDATE host SET desired_generation = desired_generation + 1 WHERE id = :id RETURNING desired_generation
"""
INSERT_TOKEN: Final = """
INSERT INTO host_token (hash, host_id, expires_at, used_at) VALUES (:hash, :host_id, :expires_at, NULL)
"""  # noqa: S105 - a query
SELECT_TOKEN: Final = "SELECT host_id, expires_at, used_at FROM host_token WHERE hash = :hash"  # noqa: S105 - a query
USE_TOKEN: Final = "UPDATE host_token SET used_at = :now WHERE hash = :hash AND used_at IS NULL"  # noqa: S105 - a query
END_TOKENS: Final = "UPDATE host_token SET used_at = :now WHERE host_id = :host_id AND used_at IS NULL"
INSERT_CALL: Final = """
INSERT INTO host_call (host_id, nonce, at) VALUES (:host_id, :nonce, :at) ON CONFLICT (host_id, nonce) DO NOTHING
"""
COUNT_CALLS: Final = "SELECT COUNT(*) AS calls FROM host_call WHERE host_id = :host_id"
DELETE_CALLS: Final = "DELETE FROM host_call WHERE host_id = :host_id AND at < :before"
BEGIN_OUTAGE: Final = """
INSERT INTO host_outage (host_id, began_at, ended_at) VALUES (:host_id, :began_at, NULL)
ON CONFLICT (host_id, began_at) DO UPDATE SET ended_at = NULL
"""
END_OUTAGES: Final = "UPDATE host_outage SET ended_at = :now WHERE host_id = :host_id AND ended_at IS NULL"
SELECT_OUTAGES: Final = """
SELECT began_at, ended_at FROM host_outage
WHERE host_id = :host_id AND (ended_at IS NULL OR ended_at > :since) ORDER BY began_at LIMIT 1000
"""


def host_from(row: Row) -> Host:
    """Read one row of `SELECT * FROM host`."""
    values: dict[str, Any] = {name: row[name] for name in _COLUMNS}
    values["state"] = HostState(values["state"])
    values["draining"] = bool(values["draining"])
    return Host(**values)


def _params(host: Host) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(host, name) for name in _COLUMNS}
    values["state"] = host.state.value
    values["draining"] = int(host.draining)
    return values


def insert(tx: Tx, host: Host) -> None:
    tx.execute(INSERT_HOST, _params(host))


def save(tx: Tx, before: Host, after: Host) -> None:
    """Write `after` back, where it differs from what this transaction read. Neither epoch nor generation moves so."""
    if after != before:
        tx.execute(UPDATE_HOST, _params(after))


def find(tx: Tx, host_id: str) -> Host | None:
    row = tx.one(SELECT_HOST, {"id": host_id})
    return None if row is None else host_from(row)


def find_named(tx: Tx, name: str) -> Host | None:
    row = tx.one(SELECT_BY_NAME, {"name": name})
    return None if row is None else host_from(row)


def all_hosts(tx: Tx, limit: int = 100_000) -> list[Host]:
    """Every host there ever was, those that are revoked included."""
    return [host_from(row) for row in tx.all(SELECT_HOSTS, {"after": "", "limit": limit})]


def raise_epoch(tx: Tx, host_id: HostId, seen: int) -> int | None:
    """The number of a new session; None when another began since `seen` was read, or the host is revoked."""
    row = tx.one(RAISE_EPOCH, {"id": host_id, "seen": seen})
    return None if row is None else int(row["epoch"])


def raise_desired(tx: Tx, host_id: HostId) -> int:
    """What is wanted of the host has changed; answers the number of the new wish."""
    row = tx.one(RAISE_DESIRED, {"id": host_id})
    if row is None:
        raise RuntimeError(f"there is no host {host_id}")
    return int(row["desired_generation"])


def take_nonce(tx: Tx, host_id: HostId, nonce: str, *, at: int, keep_s: int) -> bool:
    """Whether this nonce was not used before; older ones than `keep_s` are forgotten."""
    tx.execute(DELETE_CALLS, {"host_id": host_id, "before": at - keep_s})
    return tx.execute(INSERT_CALL, {"host_id": host_id, "nonce": nonce, "at": at}) == 1


def count_calls(tx: Tx, host_id: HostId) -> int:
    """How many nonces of the host are remembered."""
    row = tx.one(COUNT_CALLS, {"host_id": host_id})
    return 0 if row is None else int(row["calls"])
