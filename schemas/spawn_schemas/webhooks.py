"""Webhooks on the wire: `/v1/webhooks`. What they carry is `spawn_schemas.events.EventView`.

Invariant: a secret is shown by the answer that made it and by no other.
"""

from typing import Annotated, Literal

import msgspec

from spawn_schemas.api import Moment
from spawn_schemas.events import PATTERNS

WebhookUrl = Annotated[
    str,
    msgspec.Meta(
        min_length=1,
        max_length=2048,
        description="Where events are sent: an https URL on the public internet, without user, password or fragment.",
        examples=["https://agent.example.com/hooks/spawn"],
    ),
]
EventPattern = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(\*|[a-z_]{1,32}\.(\*|[a-z_]{1,32}))$(?!\n)",
        description="A type of event, all types of one thing (`server.*`), or all (`*`).",
        examples=["server.*"],
        extra_json_schema={"enum": sorted(PATTERNS)},
    ),
]
EventPatterns = Annotated[tuple[EventPattern, ...], msgspec.Meta(min_length=1, max_length=50)]
Description = Annotated[
    str, msgspec.Meta(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$(?!\n)", examples=["my agent"])
]
DeliveryState = Literal["pending", "delivered", "failed"]
Secret = (
    Annotated[
        str, msgspec.Meta(description="For verifying signatures; shown once, null in a repeated answer.")
    ]
    | None
)


class CreateWebhook(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where to send which events."""

    url: WebhookUrl
    types: EventPatterns = ("*",)
    description: Description = ""


class UpdateWebhook(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be changed about a webhook. `enabled: true` also forgives its failures and retries at once."""

    url: WebhookUrl | None = None
    types: EventPatterns | None = None
    description: Description | None = None
    enabled: bool | None = None


class WebhookView(msgspec.Struct, frozen=True, kw_only=True):
    """`failing_since` is when its deliveries began to fail, every one of them; null while they arrive.

    `disabled_reason`: `owner` disabled it; it answered 410 (`gone`); or it failed for three days (`failing`).
    """

    id: str
    url: str
    types: tuple[str, ...]
    description: str
    enabled: bool
    disabled_reason: str | None
    failing_since: Moment | None
    created_at: Moment
    owner_wallet: str


class WebhookCreated(msgspec.Struct, frozen=True, kw_only=True):
    webhook: WebhookView
    secret: Secret


class WebhookShown(msgspec.Struct, frozen=True, kw_only=True):
    webhook: WebhookView


class WebhookList(msgspec.Struct, frozen=True, kw_only=True):
    webhooks: tuple[WebhookView, ...]


class WebhookTested(msgspec.Struct, frozen=True, kw_only=True):
    """`event` is on its way; `GET …/deliveries` shows what came of it."""

    event: str


class SecretRotated(msgspec.Struct, frozen=True, kw_only=True):
    """Until `previous_until` each delivery is signed with the secret before as well."""

    webhook: WebhookView
    secret: Secret
    previous_until: Moment


class DeliveryView(msgspec.Struct, frozen=True, kw_only=True):
    """One event on its way to one webhook. `status_code` and `error` are those of the last attempt.

    `next_at` is when it is tried again; null when it is over, or waits for an earlier event of the same `resource`.
    """

    event: str
    type: str
    resource: str
    state: DeliveryState
    attempts: int
    status_code: int | None
    error: str | None
    created_at: Moment
    attempted_at: Moment | None
    next_at: Moment | None
    finished_at: Moment | None


class DeliveryList(msgspec.Struct, frozen=True, kw_only=True):
    deliveries: tuple[DeliveryView, ...]
    next_cursor: str | None
