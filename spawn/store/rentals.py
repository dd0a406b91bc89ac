"""The tables `rental`, `command` and `relay_port`: what runs on lent machines, what was ordered, where it is reached.

Invariant: a command keeps its place among its host's; one that ended stays as it ended. A public port leads to one
rental, and rests for a while before it leads to another.
"""

from typing import Any, Final

import msgspec
from spawn_ledger.tx import Row, Tx
from spawn_providers.base import Endpoint
from spawn_schemas.ids import CommandId, HostId, RentalId

from spawn.domain.rentals import ASKS, CommandState, Desired, Issued, Rental

_endpoints: Final = msgspec.json.Decoder(tuple[Endpoint, ...])
_RENTAL: Final = Rental.__struct_fields__
_COMMAND: Final = Issued.__struct_fields__

INSERT_RENTAL: Final = """
INSERT INTO rental (
  id, host_id, generation, owner, hostname, type, image, cores, memory_gb, disk_gb, endpoints, desired, lease_until,
  reported, reported_at, ended_by, exit_code, out_of_memory_kills, start_command, destroy_command, paused_at,
  ingoing_bytes, outgoing_bytes, created_at, gone_at
) VALUES (
  :id, :host_id, :generation, :owner, :hostname, :type, :image, :cores, :memory_gb, :disk_gb, :endpoints, :desired,
  :lease_until, :reported, :reported_at, :ended_by, :exit_code, :out_of_memory_kills, :start_command, :destroy_command,
  :paused_at, :ingoing_bytes, :outgoing_bytes, :created_at, :gone_at
)
"""
UPDATE_RENTAL: Final = """
UPDATE rental SET generation = :generation, desired = :desired, lease_until = :lease_until, reported = :reported,
  reported_at = :reported_at, ended_by = :ended_by, exit_code = :exit_code, out_of_memory_kills = :out_of_memory_kills,
  destroy_command = :destroy_command, paused_at = :paused_at, gone_at = :gone_at
WHERE id = :id
"""
COUNT_BYTES: Final = """
UPDATE rental SET ingoing_bytes = ingoing_bytes + :ingoing, outgoing_bytes = outgoing_bytes + :outgoing WHERE id = :id
"""
SELECT_RENTAL: Final = "SELECT * FROM rental WHERE id = :id"
SELECT_LIVING: Final = """
SELECT * FROM rental WHERE gone_at IS NULL AND id > :after ORDER BY id LIMIT :limit
"""
SELECT_OF_HOST: Final = (
    "SELECT * FROM rental WHERE host_id = :host_id AND gone_at IS NULL ORDER BY id LIMIT 1000"
)
INSERT_COMMAND: Final = """
INSERT INTO command (
  id, host_id, number, rental_id, kind, body, expires_at, state, sent_at, progress, problem_code, problem, result,
  created_at, finished_at
) VALUES (
  :id, :host_id, :number, :rental_id, :kind, :body, :expires_at, :state, :sent_at, :progress, :problem_code, :problem,
  :result, :created_at, :finished_at
)
"""
SELECT_PLACE: Final = "SELECT COALESCE(MAX(number), 0) + 1 AS number FROM command WHERE host_id = :host_id"
UPDATE_COMMAND: Final = """
UPDATE command SET state = :state, sent_at = :sent_at, progress = :progress, problem_code = :problem_code,
  problem = :problem, result = :result, finished_at = :finished_at
WHERE id = :id AND finished_at IS NULL
"""
SELECT_COMMAND: Final = "SELECT * FROM command WHERE id = :id"
SELECT_OPEN: Final = """
SELECT * FROM command WHERE host_id = :host_id AND finished_at IS NULL ORDER BY number LIMIT 1000
"""
SELECT_OPEN_OF_RENTAL: Final = """
SELECT * FROM command WHERE rental_id = :rental_id AND finished_at IS NULL ORDER BY number LIMIT 1000
"""
DELETE_OLD_ASKS: Final = """
DELETE FROM command WHERE id IN (
  SELECT id FROM command WHERE kind IN ('exec', 'logs') AND finished_at < :before ORDER BY finished_at LIMIT :limit
)
"""
# What made a rental is looked at as long as that is there.
DELETE_OLD_COMMANDS: Final = """
DELETE FROM command WHERE id IN (
  SELECT command.id FROM command
  LEFT JOIN rental
    ON rental.id = command.rental_id AND rental.start_command = command.id AND rental.gone_at IS NULL
  WHERE command.finished_at < :before AND rental.id IS NULL
  ORDER BY command.finished_at LIMIT :limit
)
"""
INSERT_PORT: Final = """
INSERT INTO relay_port (port, rental_id, inner_port, leased_at, freed_at)
VALUES (:port, :rental_id, :inner_port, :now, NULL)
ON CONFLICT (port) DO UPDATE SET rental_id = :rental_id, inner_port = :inner_port, leased_at = :now, freed_at = NULL
WHERE relay_port.freed_at IS NOT NULL AND relay_port.freed_at < :rested
"""
# The ports that lead somewhere, or did so too lately.
SELECT_TAKEN: Final = """
SELECT port FROM relay_port WHERE freed_at IS NULL OR freed_at >= :rested ORDER BY port LIMIT 70000
"""
SELECT_PORTS: Final = """
SELECT port, inner_port FROM relay_port WHERE rental_id = :rental_id AND freed_at IS NULL ORDER BY inner_port
"""
SELECT_LEASED: Final = """
SELECT relay_port.port, relay_port.inner_port, relay_port.rental_id, rental.host_id
FROM relay_port JOIN rental ON rental.id = relay_port.rental_id
WHERE relay_port.freed_at IS NULL AND rental.desired <> 'gone' ORDER BY relay_port.port LIMIT 70000
"""
FREE_PORTS: Final = "UPDATE relay_port SET freed_at = :now WHERE rental_id = :rental_id AND freed_at IS NULL"


def rental_from(row: Row) -> Rental:
    """Read one row of `SELECT * FROM rental`."""
    values: dict[str, Any] = {name: row[name] for name in _RENTAL}
    values["desired"] = Desired(values["desired"])
    values["endpoints"] = _endpoints.decode(values["endpoints"])
    return Rental(**values)


def command_from(row: Row) -> Issued:
    """Read one row of `SELECT * FROM command`."""
    values: dict[str, Any] = {name: row[name] for name in _COMMAND}
    values["state"] = CommandState(values["state"])
    return Issued(**values)


def _values(struct: Rental | Issued) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(struct, name) for name in struct.__struct_fields__}
    if isinstance(struct, Rental):
        values["desired"] = struct.desired.value
        values["endpoints"] = msgspec.json.encode(struct.endpoints).decode()
    else:
        values["state"] = struct.state.value
    return values


def insert(tx: Tx, rental: Rental) -> None:
    tx.execute(INSERT_RENTAL, _values(rental))


def save(tx: Tx, before: Rental, after: Rental) -> None:
    """Write `after` back, where it differs from what this transaction read."""
    if after != before:
        tx.execute(UPDATE_RENTAL, _values(after))


def find(tx: Tx, rental_id: str) -> Rental | None:
    row = tx.one(SELECT_RENTAL, {"id": rental_id})
    return None if row is None else rental_from(row)


def of_host(tx: Tx, host_id: HostId) -> list[Rental]:
    """What has not gone of a host's rentals."""
    return [rental_from(row) for row in tx.all(SELECT_OF_HOST, {"host_id": host_id})]


def next_number(tx: Tx, host_id: HostId) -> int:
    row = tx.one(SELECT_PLACE, {"host_id": host_id})
    return 1 if row is None else int(row["number"])


def insert_command(tx: Tx, command: Issued) -> None:
    tx.execute(INSERT_COMMAND, _values(command))


def save_command(tx: Tx, before: Issued, after: Issued) -> None:
    """Write `after` back, where it differs and had not ended meanwhile."""
    if after != before:
        tx.execute(UPDATE_COMMAND, _values(after))


def find_command(tx: Tx, command_id: CommandId | str) -> Issued | None:
    row = tx.one(SELECT_COMMAND, {"id": command_id})
    return None if row is None else command_from(row)


def open_commands(tx: Tx, host_id: HostId) -> list[Issued]:
    """What the host was or will be told, and has not ended, in order."""
    return [command_from(row) for row in tx.all(SELECT_OPEN, {"host_id": host_id})]


def open_of_rental(tx: Tx, rental_id: RentalId) -> list[Issued]:
    return [command_from(row) for row in tx.all(SELECT_OPEN_OF_RENTAL, {"rental_id": rental_id})]


def under_way(tx: Tx, rental_id: RentalId) -> list[Issued]:
    """The open orders that say what becomes of the rental."""
    return [issued for issued in open_of_rental(tx, rental_id) if issued.kind not in ASKS]


def ports_of(tx: Tx, rental_id: str) -> dict[int, int]:
    """The public port of each inner one."""
    rows = tx.all(SELECT_PORTS, {"rental_id": rental_id})
    return {row["inner_port"]: row["port"] for row in rows}


def lease_port(
    tx: Tx, ports: range, rental_id: RentalId, inner_port: int, *, now: int, rest_s: int
) -> int | None:
    """A public port that leads to `inner_port` of the rental; None when all are taken or rest."""
    rested = now - rest_s
    taken = {row["port"] for row in tx.all(SELECT_TAKEN, {"rested": rested})}
    free = next((port for port in ports if port not in taken), None)
    if free is None:
        return None
    params = {"port": free, "rental_id": rental_id, "inner_port": inner_port, "now": now, "rested": rested}
    if tx.execute(INSERT_PORT, params) != 1:
        raise RuntimeError(f"port {free} was taken within one transaction")
    return free
