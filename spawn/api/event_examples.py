"""An example of each type of event, as the very structs that are told: in the description, and in `docs/events.md`.

Invariant: there is one for each type (a test says so); they tell the life of one server.
"""

from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec.structs import replace
from spawn_schemas.events import (
    MEANINGS,
    TYPES,
    DepositData,
    EventData,
    EventType,
    EventView,
    OperationData,
    PaymentData,
    PriceData,
    ReadyData,
    ServerData,
    SshKeyData,
    WalletData,
    WebhookData,
)

_SERVER_ID: Final = "srv_mfzwizltoq4dgnbvgy3tqojqme"
_ACTION_ID: Final = "act_nbswy3dpfqqho33snrscc4tfmq"
_KEY_ID: Final = "sk_onuw24dmmuqhg5dsnfxgoidjom"
_WEBHOOK_ID: Final = "wh_mfrggzdfmztwq2lknnwg23tpoa"
_WALLET: Final = "0x8ba1f109551bd432803012645ac136ddd64dba72"
_TRANSACTION: Final = "0x88df016429689c079f3b2f6ad39fa052532c56795b733da78a91ebe6a713944b"

_SERVER: Final = ServerData(
    server=_SERVER_ID,
    name="my-agent-node",
    type="small",
    status="running",
    previous="initializing",
    reason=None,
    ipv4="203.0.113.7",
    ipv6="2001:db8::1",
)
_ORDERED: Final = replace(_SERVER, status="initializing", ipv4=None, ipv6=None)
_ENDING: Final = replace(_SERVER, status="destroying", previous="running", reason="deposit_exhausted")
_READY: Final = ReadyData(
    server=_SERVER_ID,
    name="my-agent-node",
    cloud_init="done",
    seconds=74,
    ipv4="203.0.113.7",
    ipv6="2001:db8::1",
)
_DEPOSIT: Final = DepositData(
    server=_SERVER_ID,
    name="my-agent-node",
    threshold_s=86_400,
    runway_s=86_400,
    expires_at="2026-02-25T10:00:00Z",
    destroyed_from="2026-02-25T10:00:01Z",
    deposit_remaining="0.15",
    daily_burn="0.15",
)
_FUNDED: Final = replace(
    _DEPOSIT,
    threshold_s=None,
    runway_s=2_966_400,
    expires_at="2026-03-30T18:00:00Z",
    destroyed_from="2026-03-30T18:00:01Z",
    deposit_remaining="5.15",
)
_PAYMENT: Final = PaymentData(amount="5.00", transaction=_TRANSACTION, reason=None)
_DONE: Final = OperationData(
    action=_ACTION_ID, server=_SERVER_ID, command="resize_server", code=None, message=None
)
_PRICE: Final = PriceData(
    server=_SERVER_ID,
    type="small",
    location="nbg1",
    daily_burn="0.15",
    new_daily_burn="0.16",
    effective_at="2026-03-26T10:00:00Z",
)
_KEY: Final = SshKeyData(
    ssh_key=_KEY_ID, name="my-laptop", fingerprint="SHA256:uNiVztksCsDhcc0u9e8BrrJXVGDvpk/sYQ5KJk1Q7nE"
)
_WEBHOOK: Final = WebhookData(webhook=_WEBHOOK_ID, url="https://agent.example/spawn", reason=None)

DATA: Final[dict[EventType, tuple[str, EventData]]] = {
    EventType.SERVER_CREATED: (_SERVER_ID, _ORDERED),
    EventType.SERVER_RUNNING: (_SERVER_ID, _SERVER),
    EventType.SERVER_READY: (_SERVER_ID, _READY),
    EventType.SERVER_UNREACHABLE: (
        _SERVER_ID,
        replace(_SERVER, status="unknown", previous="running", ipv4=None, ipv6=None, stopped_by="owner"),
    ),
    EventType.SERVER_OFF: (_SERVER_ID, replace(_SERVER, status="off", previous="stopping")),
    EventType.SERVER_RESIZED: (_SERVER_ID, replace(_SERVER, type="medium", previous="migrating")),
    EventType.SERVER_REBUILT: (_SERVER_ID, replace(_SERVER, previous="rebuilding")),
    EventType.SERVER_UPDATED: (_SERVER_ID, replace(_SERVER, name="renamed", previous="running")),
    EventType.SERVER_DESTROYING: (_SERVER_ID, _ENDING),
    EventType.SERVER_DESTROYED: (_SERVER_ID, replace(_ENDING, status="destroyed", previous="destroying")),
    EventType.SERVER_FAILED: (
        _SERVER_ID,
        replace(_ORDERED, status="failed", previous="initializing", reason="provider_refused"),
    ),
    EventType.DEPOSIT_LOW: (_SERVER_ID, _DEPOSIT),
    EventType.DEPOSIT_EXHAUSTED: (
        _SERVER_ID,
        replace(_DEPOSIT, threshold_s=None, runway_s=0, deposit_remaining="0.00"),
    ),
    EventType.DEPOSIT_RESTORED: (_SERVER_ID, replace(_FUNDED, deposit_remaining="5.00", runway_s=2_880_000)),
    EventType.DEPOSIT_FUNDED: (_SERVER_ID, _FUNDED),
    EventType.PAYMENT_SETTLED: (_TRANSACTION, _PAYMENT),
    EventType.PAYMENT_REFUSED: (
        "call_5f0c2b7d",
        replace(_PAYMENT, transaction=None, reason="The payment expired before it was settled."),
    ),
    EventType.CREDIT_GRANTED: (
        _WALLET,
        WalletData(kind="goodwill", reason="An outage of two hours.", amount="1.00"),
    ),
    EventType.SUSPENSE_RECEIVED: (_TRANSACTION, _PAYMENT),
    EventType.SUSPENSE_CLAIMED: (_TRANSACTION, _PAYMENT),
    EventType.OPERATION_SUCCEEDED: (_SERVER_ID, _DONE),
    EventType.OPERATION_FAILED: (
        _SERVER_ID,
        replace(_DONE, code="out_of_capacity", message="The location has none of this type left."),
    ),
    EventType.PRICE_ANNOUNCED: (_SERVER_ID, _PRICE),
    EventType.PRICE_CHANGED: (_SERVER_ID, _PRICE),
    EventType.WALLET_SUSPENDED: (
        _WALLET,
        WalletData(kind="suspended", reason="A complaint is looked into.", amount=None),
    ),
    EventType.WALLET_RESTORED: (
        _WALLET,
        WalletData(kind="restored", reason="It was found groundless.", amount=None),
    ),
    EventType.SSH_KEY_ADDED: (_KEY_ID, _KEY),
    EventType.SSH_KEY_REMOVED: (_KEY_ID, _KEY),
    EventType.WEBHOOK_DISABLED: (
        _WEBHOOK_ID,
        replace(_WEBHOOK, reason="No delivery has succeeded for three days."),
    ),
    EventType.WEBHOOK_TEST: (_WEBHOOK_ID, _WEBHOOK),
}
"""What it happened to, and what is told of it."""


def example(type: EventType) -> EventView:
    """An event of this type, as the wire shows it."""
    resource, data = DATA[type]
    return EventView(
        id="evt_42",
        type=type.value,
        resource=resource,
        at="2026-02-24T10:00:00Z",
        data=msgspec.Raw(msgspec.json.encode(data)),
    )


def table() -> str:
    """Every type with its data and its meaning, as Markdown."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield "| type | `data` | what it says |"
    yield "|---|---|---|"
    for type in EventType:
        yield f"| `{type.value}` | `{TYPES[type].__name__}` | {MEANINGS[type]} |"
