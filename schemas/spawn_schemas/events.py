"""What happens to a wallet's things, on the wire: `/v1/events` and webhooks.

Invariant: `TYPES` names every type of event there is, and what `data` it carries.
"""

from enum import Enum
from typing import Final

import msgspec

from spawn_schemas.api import Moment
from spawn_schemas.money import UsdcText


class EventType(str, Enum):
    """`thing.what_happened`."""

    SERVER_CREATED = "server.created"
    SERVER_RUNNING = "server.running"
    SERVER_OFF = "server.off"
    SERVER_RESIZED = "server.resized"
    SERVER_REBUILT = "server.rebuilt"
    SERVER_UPDATED = "server.updated"
    SERVER_DESTROYING = "server.destroying"
    SERVER_DESTROYED = "server.destroyed"
    SERVER_FAILED = "server.failed"
    DEPOSIT_LOW = "deposit.low"
    DEPOSIT_EXHAUSTED = "deposit.exhausted"
    DEPOSIT_RESTORED = "deposit.restored"
    DEPOSIT_FUNDED = "deposit.funded"
    PAYMENT_SETTLED = "payment.settled"
    PAYMENT_REFUSED = "payment.refused"
    CREDIT_GRANTED = "credit.granted"
    SUSPENSE_RECEIVED = "suspense.received"
    SUSPENSE_CLAIMED = "suspense.claimed"
    OPERATION_SUCCEEDED = "operation.succeeded"
    OPERATION_FAILED = "operation.failed"
    PRICE_ANNOUNCED = "price.announced"
    PRICE_CHANGED = "price.changed"
    WALLET_SUSPENDED = "wallet.suspended"
    WALLET_RESTORED = "wallet.restored"
    SSH_KEY_ADDED = "ssh_key.added"
    SSH_KEY_REMOVED = "ssh_key.removed"
    WEBHOOK_DISABLED = "webhook.disabled"
    WEBHOOK_TEST = "webhook.test"


class ServerData(msgspec.Struct, frozen=True, kw_only=True):
    """A server as it is now; `previous` is the state it left."""

    server: str
    name: str
    type: str
    status: str
    previous: str
    reason: str | None
    ipv4: str | None
    ipv6: str | None


class DepositData(msgspec.Struct, frozen=True, kw_only=True):
    """How long a server's money lasts.

    `threshold_s` is the warning that this is, in seconds before the end; null where it is none. `runway_s` is what is
    left, `expires_at` when it ends, and `destroyed_from` the earliest moment at which the server is destroyed if
    nothing is added.
    """

    server: str
    name: str
    threshold_s: int | None
    runway_s: int
    expires_at: Moment | None
    destroyed_from: Moment | None
    deposit_remaining: UsdcText
    daily_burn: UsdcText


class PaymentData(msgspec.Struct, frozen=True, kw_only=True):
    """USDC that came in, or did not. `transaction` is the chain's; `reason` is why a payment was refused."""

    amount: UsdcText
    transaction: str | None
    reason: str | None


class OperationData(msgspec.Struct, frozen=True, kw_only=True):
    action: str
    server: str
    command: str
    code: str | None
    message: str | None


class PriceData(msgspec.Struct, frozen=True, kw_only=True):
    """A server's price per day, from `effective_at` on."""

    server: str
    type: str
    location: str
    daily_burn: UsdcText
    new_daily_burn: UsdcText
    effective_at: Moment


class WalletData(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator did to the wallet, and why."""

    kind: str
    reason: str
    amount: UsdcText | None


class SshKeyData(msgspec.Struct, frozen=True, kw_only=True):
    ssh_key: str
    name: str
    fingerprint: str


class WebhookData(msgspec.Struct, frozen=True, kw_only=True):
    webhook: str
    url: str
    reason: str | None


EventData = (
    ServerData | DepositData | PaymentData | OperationData | PriceData | WalletData | SshKeyData | WebhookData
)

TYPES: Final[dict[EventType, type[msgspec.Struct]]] = {
    EventType.SERVER_CREATED: ServerData,
    EventType.SERVER_RUNNING: ServerData,
    EventType.SERVER_OFF: ServerData,
    EventType.SERVER_RESIZED: ServerData,
    EventType.SERVER_REBUILT: ServerData,
    EventType.SERVER_UPDATED: ServerData,
    EventType.SERVER_DESTROYING: ServerData,
    EventType.SERVER_DESTROYED: ServerData,
    EventType.SERVER_FAILED: ServerData,
    EventType.DEPOSIT_LOW: DepositData,
    EventType.DEPOSIT_EXHAUSTED: DepositData,
    EventType.DEPOSIT_RESTORED: DepositData,
    EventType.DEPOSIT_FUNDED: DepositData,
    EventType.PAYMENT_SETTLED: PaymentData,
    EventType.PAYMENT_REFUSED: PaymentData,
    EventType.CREDIT_GRANTED: WalletData,
    EventType.SUSPENSE_RECEIVED: PaymentData,
    EventType.SUSPENSE_CLAIMED: PaymentData,
    EventType.OPERATION_SUCCEEDED: OperationData,
    EventType.OPERATION_FAILED: OperationData,
    EventType.PRICE_ANNOUNCED: PriceData,
    EventType.PRICE_CHANGED: PriceData,
    EventType.WALLET_SUSPENDED: WalletData,
    EventType.WALLET_RESTORED: WalletData,
    EventType.SSH_KEY_ADDED: SshKeyData,
    EventType.SSH_KEY_REMOVED: SshKeyData,
    EventType.WEBHOOK_DISABLED: WebhookData,
    EventType.WEBHOOK_TEST: WebhookData,
}


class EventView(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened. `id` never changes, however often it is delivered; `resource` is what it happened to."""

    id: str
    type: str
    resource: str
    at: Moment
    data: msgspec.Raw
