"""The `server` table: rows in, `Server` out.

Invariant: a server is written back only by whoever read it in the same transaction, and its meter moves by
compare-and-set, so that one stretch of time can never be charged twice.
"""

from typing import Any, Final

import msgspec
from spawn_ledger.tx import Row, Tx
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.ids import Address, ServerId
from spawn_schemas.money import Usdc

from spawn.domain.pins import Owed
from spawn.domain.servers import Reason, Server, Status

_texts: Final = msgspec.json.Decoder(tuple[str, ...])
_stretches: Final = msgspec.json.Decoder(tuple[Owed, ...])
_COLUMNS: Final = Server.__struct_fields__

INSERT_SERVER: Final = """
INSERT INTO server (
  id, wallet, name, type, image, location, network, ssh_keys, provider, provider_type, provider_ref, architecture,
  cores, memory_gb, disk_gb, status, reason, ipv4, ipv6, auto_renew, created_at, ended_at, missing_since,
  missing_month_s, daily_usdc, remainder, charged_until, charged_usdc, minimum_usdc, due_at, capped_s, month_s,
  metered_from, priced_at, reprice_at, reprice_usdc, cost_daily_usdc, cost_capped_s, cost_step_s, cost_remainder,
  cost_until, cost_usdc, epoch, warned_s, last_warned_at, exhausted_at, owed,
  included_bytes, tb_usdc, cost_tb_usdc, traffic_owed_usdc, host_id
) VALUES (
  :id, :wallet, :name, :type, :image, :location, :network, :ssh_keys, :provider, :provider_type, :provider_ref,
  :architecture, :cores, :memory_gb, :disk_gb, :status, :reason, :ipv4, :ipv6, :auto_renew, :created_at, :ended_at,
  :missing_since, :missing_month_s, :daily_usdc, :remainder, :charged_until, :charged_usdc, :minimum_usdc, :due_at,
  :capped_s, :month_s, :metered_from, :priced_at, :reprice_at, :reprice_usdc, :cost_daily_usdc, :cost_capped_s,
  :cost_step_s, :cost_remainder, :cost_until, :cost_usdc, :epoch, :warned_s, :last_warned_at, :exhausted_at,
  :owed, :included_bytes, :tb_usdc, :cost_tb_usdc, :traffic_owed_usdc, :host_id
)
"""
UPDATE_SERVER: Final = """
UPDATE server SET
  name = :name, type = :type, image = :image, provider_type = :provider_type, provider_ref = :provider_ref,
  cores = :cores, memory_gb = :memory_gb, disk_gb = :disk_gb, status = :status, reason = :reason, ipv4 = :ipv4,
  ipv6 = :ipv6, auto_renew = :auto_renew, ended_at = :ended_at, missing_since = :missing_since,
  missing_month_s = :missing_month_s, daily_usdc = :daily_usdc,
  remainder = :remainder, charged_until = :charged_until, charged_usdc = :charged_usdc,
  minimum_usdc = :minimum_usdc, due_at = :due_at, capped_s = :capped_s, month_s = :month_s,
  metered_from = :metered_from, priced_at = :priced_at, reprice_at = :reprice_at, reprice_usdc = :reprice_usdc,
  cost_daily_usdc = :cost_daily_usdc, cost_capped_s = :cost_capped_s, cost_step_s = :cost_step_s,
  cost_remainder = :cost_remainder, cost_until = :cost_until, cost_usdc = :cost_usdc, epoch = :epoch,
  warned_s = :warned_s, last_warned_at = :last_warned_at, exhausted_at = :exhausted_at,
  owed = :owed, included_bytes = :included_bytes, tb_usdc = :tb_usdc, cost_tb_usdc = :cost_tb_usdc,
  traffic_owed_usdc = :traffic_owed_usdc
WHERE id = :id AND charged_until IS NOT DISTINCT FROM :expected_charged_until
"""
# Only before there is a machine: nothing that has one ever moves.
MOVE_SERVER: Final = """
UPDATE server SET location = :location, architecture = :architecture WHERE id = :id AND provider_ref IS NULL
"""
SELECT_SERVER: Final = "SELECT * FROM server WHERE id = :id"
SELECT_NAME_TAKEN: Final = (
    "SELECT id FROM server WHERE wallet = :wallet AND LOWER(name) = LOWER(:name) AND ended_at IS NULL"
)
COUNT_LIVE: Final = "SELECT COUNT(*) AS n FROM server WHERE wallet = :wallet AND ended_at IS NULL"
# Servers that ended answer as tombstones for a while.
SELECT_ENDED_PAGE: Final = """
SELECT id, wallet, name, type, image, location, provider, provider_ref, status, ipv4, ipv6, created_at
FROM server WHERE wallet = :wallet AND ended_at > :since AND status = :status
ORDER BY created_at, id LIMIT :limit OFFSET :offset
"""
COUNT_ENDED: Final = """
SELECT COUNT(*) AS n FROM server WHERE wallet = :wallet AND ended_at > :since AND status = :status
"""
SELECT_BILLED: Final = """
SELECT server.*, account.balance AS reserve FROM server
JOIN account ON account.id = 'srv:' || server.id
WHERE server.wallet = :wallet AND server.ended_at IS NULL AND server.due_at IS NOT NULL ORDER BY server.id
"""
SELECT_ANY_DUE: Final = "SELECT id FROM server WHERE due_at IS NOT NULL AND due_at <= :now LIMIT 1"
# Pages in the order of the index: to order by wallet would read every server there is, due or not.
SELECT_DUE: Final = """
SELECT wallet, due_at, id FROM server WHERE due_at <= :now AND (due_at, id) > (:after_due_at, :after_id)
ORDER BY due_at, id LIMIT :limit
"""
# As `Server.frozen` has it, without those whose host is silent: their meters start when it is heard again.
SELECT_FROZEN: Final = """
SELECT * FROM server WHERE ended_at IS NULL AND charged_until IS NULL AND provider_ref IS NOT NULL
  AND status NOT IN ('destroying', 'destroyed', 'failed')
  AND NOT EXISTS (SELECT 1 FROM rental WHERE rental.id = server.id AND rental.paused_at IS NOT NULL) ORDER BY id
"""
SELECT_LIVE: Final = "SELECT * FROM server WHERE ended_at IS NULL AND id > :after ORDER BY id LIMIT :limit"


class Billed(msgspec.Struct, frozen=True, kw_only=True):
    """A server that costs money, with what is left in its reserve."""

    server: Server
    reserve_usdc: Usdc


def server_from(row: Row) -> Server:
    """Read one row of `SELECT * FROM server`."""
    values: dict[str, Any] = {name: row[name] for name in _COLUMNS}
    values["ssh_keys"] = _texts.decode(values["ssh_keys"])
    values["status"] = Status(values["status"])
    values["reason"] = None if values["reason"] is None else Reason(values["reason"])
    values["auto_renew"] = bool(values["auto_renew"])
    values["owed"] = owed_from(values["owed"])
    return Server(**values)


def owed_from(text: str | None) -> tuple[Owed, ...]:
    """Read the column `owed`."""
    return () if text is None else _stretches.decode(text)


def _params(server: Server) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(server, name) for name in _COLUMNS}
    values["ssh_keys"] = msgspec.json.encode(server.ssh_keys).decode()
    values["status"] = server.status.value
    values["reason"] = None if server.reason is None else server.reason.value
    values["auto_renew"] = int(server.auto_renew)
    values["owed"] = msgspec.json.encode(server.owed).decode() if server.owed else None
    return values


def insert_server(tx: Tx, server: Server) -> None:
    tx.execute(INSERT_SERVER, _params(server))


def update_server(tx: Tx, before: Server, after: Server) -> None:
    """Write back; `before` is what this transaction read. Raises if the meter moved in between."""
    params = _params(after)
    params["expected_charged_until"] = before.charged_until
    if tx.execute(UPDATE_SERVER, params) != 1:
        raise RuntimeError(f"the meter of {before.id} moved within one transaction")


def move_server(tx: Tx, before: Server, after: Server) -> None:
    """Write back a server that is ordered in another place than before."""
    update_server(tx, before, after)
    params = {"id": after.id, "location": after.location, "architecture": after.architecture}
    if tx.execute(MOVE_SERVER, params) != 1:
        raise RuntimeError(f"{before.id} has a machine, and cannot move")


def find_server(tx: Tx, server_id: ServerId) -> Server | None:
    row = tx.one(SELECT_SERVER, {"id": server_id})
    return None if row is None else server_from(row)


def get_server(tx: Tx, server_id: ServerId) -> Server:
    """Raise `not_found` when there is no such server."""
    server = find_server(tx, server_id)
    if server is None:
        raise unknown_server(server_id)
    return server


def unknown_server(server_id: str) -> SpawnError:
    return SpawnError(
        Code.NOT_FOUND, f"There is no server {server_id}.", next="GET /v1/servers lists the servers you own."
    )


def list_billed(tx: Tx, wallet: Address) -> list[Billed]:
    """Every server of the wallet that costs money, in a fixed order."""
    return [
        Billed(server=server_from(row), reserve_usdc=Usdc(row["reserve"]))
        for row in tx.all(SELECT_BILLED, {"wallet": wallet})
    ]
