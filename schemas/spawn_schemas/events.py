"""What happens to a wallet's things, on the wire: `/v1/events` and webhooks.

Invariants: `TYPES` names every type of event there is and what `data` it carries, `MEANINGS` when it happens. No event
has a secret in it: whoever receives one learns nothing that lets it act.
"""

from enum import Enum
from typing import Annotated, Final

import msgspec

from spawn_schemas.api import Moment
from spawn_schemas.lent import StoppedBy
from spawn_schemas.money import UsdcText


class EventType(str, Enum):
    """`thing.what_happened`."""

    SERVER_CREATED = "server.created"
    SERVER_RUNNING = "server.running"
    SERVER_READY = "server.ready"
    SERVER_OFF = "server.off"
    SERVER_UNREACHABLE = "server.unreachable"
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
    """A server as it is now. `previous` is the state it left, or its own where it left none; `reason` why it ended.

    `stopped_by` is why the container of one on a lent machine does not run; null where its host is silent, too.
    """

    server: str
    name: str
    type: str
    status: str
    previous: str
    reason: str | None
    ipv4: str | None
    ipv6: str | None
    stopped_by: StoppedBy | None = None


class ReadyData(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine told of its boot: its `cloud_init` is `done` or `failed`, `seconds` after it was ordered or
    rebuilt.
    """

    server: str
    name: str
    cloud_init: str
    seconds: int
    ipv4: str | None
    ipv6: str | None


class DepositData(msgspec.Struct, frozen=True, kw_only=True):
    """How long a server's money lasts, if nothing is added.

    `threshold_s` is the warning that this is, in seconds before the end; null where it is none. `runway_s` is how many
    seconds are left, `expires_at` when the money ends, and `destroyed_from` the earliest moment at which the server is
    destroyed: null each where that is years ahead, or the provider has not accepted the order yet. `deposit_remaining`
    is the server's own reserve; one that renews itself also lives on the wallet's balance.
    """

    server: str
    name: str
    threshold_s: int | None
    runway_s: int | None
    expires_at: Moment | None
    destroyed_from: Moment | None
    deposit_remaining: UsdcText
    daily_burn: UsdcText


class PaymentData(msgspec.Struct, frozen=True, kw_only=True):
    """USDC that came in, or did not. `transaction` is the chain's, null where there is none; `reason` is why a payment
    was refused.
    """

    amount: UsdcText
    transaction: str | None
    reason: str | None


class OperationData(msgspec.Struct, frozen=True, kw_only=True):
    """An action that ended: `action` is its id (`GET /v1/actions/{action_id}`), `code` and `message` why it failed."""

    action: str
    server: str
    command: str
    code: str | None
    message: str | None


class PriceData(msgspec.Struct, frozen=True, kw_only=True):
    """A server's price per day: `daily_burn` until `effective_at`, and `new_daily_burn` from then on."""

    server: str
    type: str
    location: str
    daily_burn: UsdcText
    new_daily_burn: UsdcText
    effective_at: Moment


class WalletData(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator did to the wallet, and why; `amount` where money moved."""

    kind: str
    reason: str
    amount: UsdcText | None


class SshKeyData(msgspec.Struct, frozen=True, kw_only=True):
    """A registered key, by its SHA-256 fingerprint."""

    ssh_key: str
    name: str
    fingerprint: str


class WebhookData(msgspec.Struct, frozen=True, kw_only=True):
    """One of the wallet's webhooks; `reason` is why it was disabled."""

    webhook: str
    url: str
    reason: str | None


EventData = (
    ServerData
    | ReadyData
    | DepositData
    | PaymentData
    | OperationData
    | PriceData
    | WalletData
    | SshKeyData
    | WebhookData
)

TYPES: Final[dict[EventType, type[msgspec.Struct]]] = {
    EventType.SERVER_CREATED: ServerData,
    EventType.SERVER_RUNNING: ServerData,
    EventType.SERVER_READY: ReadyData,
    EventType.SERVER_OFF: ServerData,
    EventType.SERVER_UNREACHABLE: ServerData,
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


MEANINGS: Final[dict[EventType, str]] = {
    EventType.SERVER_CREATED: "A server was ordered; its machine is not there yet.",
    EventType.SERVER_RUNNING: "The server runs: for the first time, or again after a start, a rebuild or a resize.",
    EventType.SERVER_READY: "The machine told that its cloud-init has ended: once after it was ordered, and after each "
    "rebuild.",
    EventType.SERVER_OFF: "The server is switched off. It still costs money.",
    EventType.SERVER_UNREACHABLE: "Its lent machine is silent, or keeps it stopped: it costs nothing.",
    EventType.SERVER_RESIZED: "The server has another type, and from this second another price.",
    EventType.SERVER_REBUILT: "The server's disk was written anew from an image.",
    EventType.SERVER_UPDATED: "The server was renamed, its renewal was switched on or off, or it is ordered in another "
    "place or size, because there was no room.",
    EventType.SERVER_DESTROYING: "The server is being destroyed, for the `reason` given; it costs nothing any more.",
    EventType.SERVER_DESTROYED: "The machine and everything on it are gone.",
    EventType.SERVER_FAILED: "The machine could not be made; deposit and fee are back in the balance.",
    EventType.DEPOSIT_LOW: "The server's money ends within `threshold_s`: a warning, once for each threshold until "
    "money is added.",
    EventType.DEPOSIT_EXHAUSTED: "The server's money has ended; it is destroyed from `destroyed_from` on.",
    EventType.DEPOSIT_RESTORED: "Money was added after the server's had ended, and in time: it goes on.",
    EventType.DEPOSIT_FUNDED: "Money was moved into the server's deposit.",
    EventType.PAYMENT_SETTLED: "A payment of the wallet is on the chain and in its balance.",
    EventType.PAYMENT_REFUSED: "A payment that was waited for will never settle; nothing was charged.",
    EventType.CREDIT_GRANTED: "The operator gave the wallet money, and says why.",
    EventType.SUSPENSE_RECEIVED: "USDC of the wallet arrived outside a call: `POST /v1/suspense/claim` takes it.",
    EventType.SUSPENSE_CLAIMED: "USDC that had arrived outside a call was taken into the balance.",
    EventType.OPERATION_SUCCEEDED: "An action on a server was carried out.",
    EventType.OPERATION_FAILED: "An action on a server could not be carried out, for the `code` given.",
    EventType.PRICE_ANNOUNCED: "The price of one of the wallet's servers will change at `effective_at`.",
    EventType.PRICE_CHANGED: "The price of one of the wallet's servers has changed.",
    EventType.WALLET_SUSPENDED: "The operator restricted what the wallet may do, and says why.",
    EventType.WALLET_RESTORED: "The wallet may do everything again.",
    EventType.SSH_KEY_ADDED: "An SSH key was registered.",
    EventType.SSH_KEY_REMOVED: "An SSH key was deleted; servers that have it keep it.",
    EventType.WEBHOOK_DISABLED: "A webhook failed for too long and gets no more events until it is enabled again.",
    EventType.WEBHOOK_TEST: "A test of a webhook was asked for.",
}
"""Each type of event in a sentence: when it happens."""

ANY: Final = "*"
"""The pattern that matches every type."""


def family(type: str) -> str:
    """The pattern that matches this type and its like: `server.*` for `server.running`."""
    return f"{type.partition('.')[0]}.*"


PATTERNS: Final = frozenset({ANY, *(kind.value for kind in EventType), *(family(kind) for kind in EventType)})
"""What a list or a webhook may ask for: everything, a family such as `server.*`, or one type."""


def matches(pattern: str, type: str) -> bool:
    """Whether events of this type are among those that one of `PATTERNS` asks for."""
    return pattern in {ANY, type, family(type)}


class EventView(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened. `id` never changes, however often it is delivered, and sorts by when it happened.

    `resource` is what it happened to: the id of a server, an SSH key or a webhook, the wallet's address, or the
    transaction of a payment. `data` is what `TYPES` names for the type, as JSON.
    """

    id: Annotated[
        str, msgspec.Meta(description="Good for `after`, and for telling repetitions.", examples=["evt_42"])
    ]
    type: str
    resource: str
    at: Moment
    data: msgspec.Raw


class EventList(msgspec.Struct, frozen=True, kw_only=True):
    """Events, oldest first. Ask on with `next_cursor`, which is always given: at once where there `has_more`.

    `gap`: what happened between the cursor that was sent and these events is not kept any more.
    """

    events: tuple[EventView, ...]
    next_cursor: str
    has_more: bool
    gap: bool
