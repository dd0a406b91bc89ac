"""The `operation` table: durable provider work, claimed with a lease and a fencing token.

Invariant: an effect of an operation is recorded only by the holder of its claim, in the effect's own transaction.
"""

from typing import Any, Final

import msgspec
from spawn_ledger.tx import Row, Tx
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.ids import ActionId, Address, ServerId

from spawn.domain.operations import Operation, OperationStatus, Phase, Plan, Resized
from spawn.domain.servers import Command

_plans: Final[msgspec.json.Decoder[Plan]] = msgspec.json.Decoder(Plan)
_COLUMNS: Final = Operation.__struct_fields__

INSERT_OPERATION: Final = """
INSERT INTO operation (
  id, server_id, wallet, command, status, plan, step, phase, handle, accepted_at, answered, error_code,
  error_message, attempts, next_at, deadline_at, claim, claim_until, created_at, finished_at
) VALUES (
  :id, :server_id, :wallet, :command, :status, :plan, :step, :phase, :handle, :accepted_at, :answered,
  :error_code, :error_message, :attempts, :next_at, :deadline_at, :claim, :claim_until, :created_at, :finished_at
)
"""
UPDATE_OPERATION: Final = """
UPDATE operation SET
  status = :status, plan = :plan, step = :step, phase = :phase, handle = :handle, accepted_at = :accepted_at,
  answered = :answered, error_code = :error_code, error_message = :error_message, attempts = :attempts,
  next_at = :next_at, deadline_at = :deadline_at, claim = :claim, claim_until = :claim_until, finished_at = :finished_at
WHERE id = :id AND status = 'running' AND claim IS NOT DISTINCT FROM :expected_claim
"""
END_OPERATION: Final = """
UPDATE operation SET
  status = :status, answered = 1, error_code = :error_code, error_message = :error_message, claim = NULL,
  claim_until = 0, finished_at = :finished_at
WHERE id = :id AND status = 'running'
"""
SELECT_OPERATION: Final = "SELECT * FROM operation WHERE id = :id"
SELECT_RUNNING: Final = "SELECT * FROM operation WHERE server_id = :server_id AND status = 'running'"
SELECT_DUE: Final = """
SELECT id FROM operation
WHERE status = 'running' AND next_at <= :now AND claim_until <= :now ORDER BY next_at, id LIMIT :limit
"""
SELECT_RESIZING: Final = """
SELECT operation.server_id, operation.plan FROM server
JOIN operation ON operation.server_id = server.id AND operation.status = 'running'
WHERE server.wallet = :wallet AND server.ended_at IS NULL AND operation.command = 'resize_server'
"""
# Times further ahead than anyone sets them were written before the clock was set back.
SELECT_AHEAD: Final = """
SELECT id FROM operation
WHERE status = 'running' AND (next_at > :latest OR claim_until > :claimed_until) LIMIT 1
"""
BRING_BACK: Final = """
UPDATE operation SET
  next_at = CASE WHEN next_at > :latest THEN :now ELSE next_at END,
  claim_until = CASE WHEN claim_until > :claimed_until THEN :claimed_until ELSE claim_until END
WHERE id IN (
  SELECT id FROM operation
  WHERE status = 'running' AND (next_at > :latest OR claim_until > :claimed_until) LIMIT :limit)
"""
# The books went on after the copy that they were put back from: what was not sent then may have been since.
DOUBT: Final = "UPDATE operation SET phase = 'sent' WHERE status = 'running' AND phase = 'queued'"
RELEASE_CLAIMS: Final = "UPDATE operation SET claim = NULL, claim_until = 0 WHERE status = 'running'"


def operation_from(row: Row) -> Operation:
    """Read one row of `SELECT * FROM operation`."""
    values: dict[str, Any] = {name: row[name] for name in _COLUMNS}
    values["plan"] = _plans.decode(values["plan"])
    values["status"] = OperationStatus(values["status"])
    values["phase"] = Phase(values["phase"])
    values["command"] = Command(values["command"])
    values["answered"] = bool(values["answered"])
    return Operation(**values)


def _params(operation: Operation) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(operation, name) for name in _COLUMNS}
    values["plan"] = msgspec.json.encode(operation.plan).decode()
    values["status"] = operation.status.value
    values["phase"] = operation.phase.value
    values["command"] = operation.command.value
    values["answered"] = int(operation.answered)
    return values


def insert_operation(tx: Tx, operation: Operation) -> None:
    tx.execute(INSERT_OPERATION, _params(operation))


def update_operation(tx: Tx, before: Operation, after: Operation) -> bool:
    """Write back what `before`'s claim holder decided; False when the claim was lost or the operation ended."""
    params = _params(after)
    params["expected_claim"] = before.claim
    return tx.execute(UPDATE_OPERATION, params) == 1


def end_operation(tx: Tx, operation: Operation) -> None:
    """End the operation whoever claims it: its server's slot is free for the next one in this transaction."""
    tx.execute(
        END_OPERATION,
        {
            "id": operation.id,
            "status": operation.status.value,
            "error_code": operation.error_code,
            "error_message": operation.error_message,
            "finished_at": operation.finished_at,
        },
    )


def find_operation(tx: Tx, action_id: ActionId) -> Operation | None:
    row = tx.one(SELECT_OPERATION, {"id": action_id})
    return None if row is None else operation_from(row)


def get_operation(tx: Tx, action_id: ActionId) -> Operation:
    """Raise `not_found` when there is no such operation."""
    operation = find_operation(tx, action_id)
    if operation is None:
        raise unknown_action(action_id)
    return operation


def unknown_action(action_id: str) -> SpawnError:
    return SpawnError(
        Code.NOT_FOUND, f"There is no action {action_id}.", next="Use the id from the answer that started it."
    )


def find_running(tx: Tx, server_id: ServerId) -> Operation | None:
    """The operation that runs on this server; there is one at most."""
    row = tx.one(SELECT_RUNNING, {"server_id": server_id})
    return None if row is None else operation_from(row)


def list_resizing(tx: Tx, wallet: Address) -> dict[ServerId, Resized]:
    """What those of the wallet's servers are about to be on which a resize runs."""
    plans = {
        ServerId(row["server_id"]): _plans.decode(row["plan"]).resized
        for row in tx.all(SELECT_RESIZING, {"wallet": wallet})
    }
    return {server_id: resized for server_id, resized in plans.items() if resized is not None}
