"""The `webhook` table: where a wallet's events are sent.

Invariant: `types` is a comma list of patterns, as `store/events.py` matches it. A webhook that its owner deleted is
disabled and found by nobody; its row stays until its deliveries are erased, a few at a time.
"""

from enum import Enum
from typing import Any, Final

import msgspec
from spawn_ledger.tx import Row, Tx
from spawn_schemas.ids import Address, WebhookId


class Disabled(Enum):
    """Why nothing is sent to a webhook."""

    OWNER = "owner"
    GONE = "gone"
    FAILING = "failing"
    DELETED = "deleted"


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """`failing_since` is when its deliveries began to fail, every one of them."""

    id: WebhookId
    wallet: Address
    url: str
    types: tuple[str, ...]
    description: str
    enabled: bool
    disabled_reason: Disabled | None
    failing_since: int | None
    created_at: int


INSERT_WEBHOOK: Final = """
INSERT INTO webhook (id, wallet, url, types, description, enabled, disabled_reason, failing_since, created_at)
VALUES (:id, :wallet, :url, :types, :description, :enabled, :disabled_reason, :failing_since, :created_at)
"""
UPDATE_WEBHOOK: Final = """
UPDATE webhook SET url = :url, types = :types, description = :description, enabled = :enabled,
  disabled_reason = :disabled_reason, failing_since = :failing_since
WHERE id = :id
"""
SELECT_WEBHOOK: Final = """
SELECT * FROM webhook WHERE id = :id AND disabled_reason IS DISTINCT FROM 'deleted'
"""
SELECT_WEBHOOKS: Final = """
SELECT * FROM webhook WHERE wallet = :wallet AND disabled_reason IS DISTINCT FROM 'deleted'
ORDER BY created_at, id LIMIT :limit
"""
COUNT_WEBHOOKS: Final = """
SELECT COUNT(*) AS n FROM webhook WHERE wallet = :wallet AND disabled_reason IS DISTINCT FROM 'deleted'
"""
FORGET_FAILURES: Final = (
    "UPDATE webhook SET failing_since = NULL WHERE enabled = 1 AND failing_since IS NOT NULL"
)
SELECT_DELETED: Final = "SELECT id FROM webhook WHERE disabled_reason = 'deleted' ORDER BY id LIMIT 1"
DELETE_DELETED: Final = "DELETE FROM webhook WHERE id = :id AND disabled_reason = 'deleted'"


def webhook_from(row: Row) -> Webhook:
    """Read one row of `SELECT * FROM webhook`."""
    values: dict[str, Any] = {name: row[name] for name in Webhook.__struct_fields__}
    values["types"] = tuple(values["types"].split(","))
    values["enabled"] = bool(values["enabled"])
    reason = values["disabled_reason"]
    values["disabled_reason"] = None if reason is None else Disabled(reason)
    return Webhook(**values)


def _params(webhook: Webhook) -> dict[str, Any]:
    values = msgspec.structs.asdict(webhook)
    values["types"] = ",".join(webhook.types)
    values["enabled"] = int(webhook.enabled)
    values["disabled_reason"] = None if webhook.disabled_reason is None else webhook.disabled_reason.value
    return values


def insert_webhook(tx: Tx, webhook: Webhook) -> None:
    tx.execute(INSERT_WEBHOOK, _params(webhook))


def update_webhook(tx: Tx, webhook: Webhook) -> None:
    tx.execute(UPDATE_WEBHOOK, _params(webhook))


def find_webhook(tx: Tx, webhook_id: WebhookId) -> Webhook | None:
    row = tx.one(SELECT_WEBHOOK, {"id": webhook_id})
    return None if row is None else webhook_from(row)


def count_webhooks(tx: Tx, wallet: Address) -> int:
    row = tx.one(COUNT_WEBHOOKS, {"wallet": wallet})
    return 0 if row is None else row["n"]
