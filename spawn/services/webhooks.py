"""Registering webhooks, changing them, and seeing what was sent to them.

Invariant: a URL is kept only after what it leads to was checked, and a signing secret is sealed; one answer shows it,
and what is stored of that answer does not.
"""

import difflib
from base64 import b64encode
from typing import Final

import msgspec
from msgspec.structs import replace
from spawn_ledger.tx import Row, Tx
from spawn_schemas import api
from spawn_schemas import webhooks as wire
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.events import PATTERNS, EventType, WebhookData
from spawn_schemas.ids import Address, Entropy, WebhookId, new_webhook_id

from spawn.domain.targets import BadTarget, Target
from spawn.outbound.outbound import Outbound
from spawn.outbound.resolver import Unresolvable
from spawn.services import funds, views
from spawn.services.calls import Acted, Context, Read, UseCase
from spawn.services.moments import moment
from spawn.services.ownership import owned_webhook
from spawn.services.purse import Purse
from spawn.store import deliveries, events, webhooks
from spawn.store.database import Database
from spawn.store.secrets import SIGNING, SIGNING_BEFORE, Vault
from spawn.store.webhooks import Disabled, Webhook

WEBHOOKS_MAX: Final = 10
"""Webhooks a wallet may have: each multiplies what every event costs us."""
SECRET_BYTES: Final = 24
ROTATION_S: Final = 86_400
"""How long the secret before still signs as well."""
NEWEST: Final = 2**62


class CreateWebhook(UseCase):
    """`POST /v1/webhooks`."""

    def __init__(
        self, wanted: wire.CreateWebhook, outbound: Outbound, vault: Vault, entropy: Entropy
    ) -> None:
        """Raises SpawnError for a URL that is never sent to, and for a type of event that there is not."""
        self._wanted = wanted
        self._target = _target(outbound, wanted.url)
        self._types = _known(wanted.types)
        self._outbound = outbound
        self._vault = vault
        self._entropy = entropy

    async def wait(self, db: Database, wallet: Address, now: int) -> None:
        """Look up where the URL leads. Raises SpawnError if that is nowhere, or where we do not go."""
        await _check_addresses(self._outbound, self._target)

    def check(self, tx: Tx, wallet: Address, purse: Purse, now: int) -> None:
        """Raises conflict when the wallet has as many as it may."""
        _check_count(tx, wallet)

    def act(self, tx: Tx, context: Context) -> Acted:
        _check_count(tx, context.wallet)
        webhook = Webhook(
            id=new_webhook_id(self._entropy),
            wallet=context.wallet,
            url=self._target.url,
            types=self._types,
            description=self._wanted.description,
            enabled=True,
            disabled_reason=None,
            failing_since=None,
            created_at=context.now,
        )
        secret = _new_secret(self._entropy)
        webhooks.insert_webhook(tx, webhook)
        self._vault.put(tx, webhook.id, SIGNING, secret, context.now)
        _charge(tx, context)
        view = webhook_view(webhook)
        return Acted(
            answer=views.encode(wire.WebhookCreated(webhook=view, secret=secret)),
            stored=views.encode(wire.WebhookCreated(webhook=view, secret=None)),
        )


class ListWebhooks(Read):
    """`GET /v1/webhooks`, oldest first."""

    def act(self, tx: Tx, context: Context) -> Acted:
        rows = tx.all(webhooks.SELECT_WEBHOOKS, {"wallet": context.wallet, "limit": WEBHOOKS_MAX})
        found = tuple(webhook_view(webhooks.webhook_from(row)) for row in rows)
        return Acted(answer=views.encode(wire.WebhookList(webhooks=found)))


class _OfOne(UseCase):
    """A use case about one webhook of the caller's."""

    def __init__(self, webhook_id: WebhookId) -> None:
        self._id = webhook_id

    def check(self, tx: Tx, wallet: Address, purse: Purse, now: int) -> None:
        """Raises not_found or forbidden."""
        owned_webhook(tx, self._id, wallet)


class ShowWebhook(_OfOne, Read):
    """`GET /v1/webhooks/{id}`."""

    def act(self, tx: Tx, context: Context) -> Acted:
        return _shown(owned_webhook(tx, self._id, context.wallet))


class UpdateWebhook(_OfOne):
    """`PATCH /v1/webhooks/{id}`."""

    def __init__(self, webhook_id: WebhookId, wanted: wire.UpdateWebhook, outbound: Outbound) -> None:
        """Raises SpawnError for a change of nothing, and as `CreateWebhook` does."""
        super().__init__(webhook_id)
        if wanted == wire.UpdateWebhook():
            raise SpawnError(
                Code.INVALID_REQUEST,
                "Nothing is to be changed.",
                next="Send at least one of url, types, description, enabled.",
            )
        self._wanted = wanted
        self._target = None if wanted.url is None else _target(outbound, wanted.url)
        self._types = None if wanted.types is None else _known(wanted.types)
        self._outbound = outbound

    async def wait(self, db: Database, wallet: Address, now: int) -> None:
        """Look up where a new URL leads. Raises SpawnError if that is nowhere, or where we do not go."""
        if self._target is not None:
            await _check_addresses(self._outbound, self._target)

    def act(self, tx: Tx, context: Context) -> Acted:
        webhook = self._changed(owned_webhook(tx, self._id, context.wallet))
        webhooks.update_webhook(tx, webhook)
        if not webhook.enabled:
            deliveries.end_pending(tx, webhook.id, "disabled", context.now)
        elif webhook.failing_since is None:
            deliveries.hurry(tx, webhook.id, context.now)
        _charge(tx, context)
        return _shown(webhook)

    def _changed(self, webhook: Webhook) -> Webhook:
        wanted = self._wanted
        if wanted.description is not None:
            webhook = replace(webhook, description=wanted.description)
        if self._types is not None:
            webhook = replace(webhook, types=self._types)
        if self._target is not None:
            # What failed before was another receiver.
            webhook = replace(webhook, url=self._target.url, failing_since=None)
        match wanted.enabled:
            case True:
                return replace(webhook, enabled=True, disabled_reason=None, failing_since=None)
            case False:
                return replace(webhook, enabled=False, disabled_reason=Disabled.OWNER)
            case None:
                return webhook


class DeleteWebhook(_OfOne):
    """`DELETE /v1/webhooks/{id}`: nothing more is sent; what was is erased by the `deliveries` job."""

    def __init__(self, webhook_id: WebhookId, vault: Vault) -> None:
        super().__init__(webhook_id)
        self._vault = vault

    def act(self, tx: Tx, context: Context) -> Acted:
        webhook = owned_webhook(tx, self._id, context.wallet)
        webhooks.update_webhook(tx, replace(webhook, enabled=False, disabled_reason=Disabled.DELETED))
        self._vault.erase(tx, webhook.id)
        _charge(tx, context)
        return Acted(answer=views.encode(api.Deleted(status="deleted")))


class TestWebhook(_OfOne):
    """`POST /v1/webhooks/{id}/test`: an event for this webhook alone, whatever types it wants."""

    def act(self, tx: Tx, context: Context) -> Acted:
        webhook = owned_webhook(tx, self._id, context.wallet)
        if not webhook.enabled:
            raise SpawnError(
                Code.CONFLICT,
                f"Webhook {webhook.id} is disabled.",
                details={
                    "reason": None if webhook.disabled_reason is None else webhook.disabled_reason.value
                },
                next=f'PATCH /v1/webhooks/{webhook.id} {{"enabled": true}} first.',
            )
        data = msgspec.json.encode(WebhookData(webhook=webhook.id, url=webhook.url, reason=None)).decode()
        seq = events.insert_event(
            tx,
            wallet=context.wallet,
            type=EventType.WEBHOOK_TEST.value,
            resource=webhook.id,
            cause=None,
            at=context.now,
            data=data,
        )
        params = {"webhook_id": webhook.id, "seq": seq, "resource": webhook.id, "now": context.now}
        tx.execute(deliveries.INSERT_DELIVERY, params)
        _charge(tx, context)
        return Acted(answer=views.encode(wire.WebhookTested(event=f"evt_{seq}")))


class RotateSecret(_OfOne):
    """`POST /v1/webhooks/{id}/secret`: a new secret, and for a day both sign."""

    def __init__(self, webhook_id: WebhookId, vault: Vault, entropy: Entropy) -> None:
        super().__init__(webhook_id)
        self._vault = vault
        self._entropy = entropy

    def act(self, tx: Tx, context: Context) -> Acted:
        webhook = owned_webhook(tx, self._id, context.wallet)
        before = self._vault.find(tx, webhook.id, SIGNING)
        if before is not None:
            self._vault.put(tx, webhook.id, SIGNING_BEFORE, before, context.now)
        secret = _new_secret(self._entropy)
        self._vault.put(tx, webhook.id, SIGNING, secret, context.now)
        _charge(tx, context)
        answer = wire.SecretRotated(
            webhook=webhook_view(webhook),
            secret=secret,
            previous_until=moment(context.now + ROTATION_S),
        )
        return Acted(answer=views.encode(answer), stored=views.encode(replace(answer, secret=None)))


class ListDeliveries(_OfOne, Read):
    """`GET /v1/webhooks/{id}/deliveries`, newest first; the cursor is opaque to callers."""

    def __init__(self, webhook_id: WebhookId, *, cursor: str | None, limit: int) -> None:
        """Raises SpawnError for a cursor that is none of ours."""
        super().__init__(webhook_id)
        self._before = NEWEST if cursor is None else _read_cursor(cursor)
        self._limit = limit

    def act(self, tx: Tx, context: Context) -> Acted:
        owned_webhook(tx, self._id, context.wallet)
        params = {"webhook_id": self._id, "before": self._before, "limit": self._limit + 1}
        rows = tx.all(deliveries.SELECT_PAGE, params)
        page = rows[: self._limit]
        answer = wire.DeliveryList(
            deliveries=tuple(map(_delivery_view, page)),
            next_cursor=f"c{page[-1]['seq']}" if len(rows) > len(page) else None,
        )
        return Acted(answer=views.encode(answer))


def webhook_view(webhook: Webhook) -> wire.WebhookView:
    """A webhook as its owner sees it; its secret is no part of it."""
    return wire.WebhookView(
        id=webhook.id,
        url=webhook.url,
        types=webhook.types,
        description=webhook.description,
        enabled=webhook.enabled,
        disabled_reason=None if webhook.disabled_reason is None else webhook.disabled_reason.value,
        failing_since=None if webhook.failing_since is None else moment(webhook.failing_since),
        created_at=moment(webhook.created_at),
        owner_wallet=webhook.wallet,
    )


def _delivery_view(row: Row) -> wire.DeliveryView:
    waits = row["state"] == "pending" and row["next_at"] < deliveries.PARKED
    return wire.DeliveryView(
        event=f"evt_{row['seq']}",
        type=row["type"],
        resource=row["resource"],
        state=row["state"],
        attempts=row["attempts"],
        status_code=row["status_code"],
        error=row["error"],
        created_at=moment(row["created_at"]),
        attempted_at=None if row["attempted_at"] is None else moment(row["attempted_at"]),
        next_at=moment(row["next_at"]) if waits else None,
        finished_at=None if row["finished_at"] is None else moment(row["finished_at"]),
    )


def _shown(webhook: Webhook) -> Acted:
    return Acted(answer=views.encode(wire.WebhookShown(webhook=webhook_view(webhook))))


def _charge(tx: Tx, context: Context) -> None:
    funds.charge_fee(tx, context.wallet, context.fee_usdc, context.reference, context.now)


def _new_secret(entropy: Entropy) -> str:
    """As Standard Webhooks spells a symmetric secret."""
    return f"whsec_{b64encode(entropy.bytes(SECRET_BYTES)).decode()}"


def _check_count(tx: Tx, wallet: Address) -> None:
    if webhooks.count_webhooks(tx, wallet) >= WEBHOOKS_MAX:
        raise SpawnError(
            Code.CONFLICT,
            f"A wallet has at most {WEBHOOKS_MAX} webhooks.",
            next="Delete one you do not need.",
        )


def _known(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """The patterns, each once. Raises SpawnError for one that no event can match."""
    for pattern in patterns:
        if pattern not in PATTERNS:
            close = difflib.get_close_matches(pattern, sorted(PATTERNS), n=1)
            raise SpawnError(
                Code.INVALID_REQUEST,
                f"There is no event {pattern}." + (f" Did you mean {close[0]}?" if close else ""),
                details={"types": sorted(PATTERNS)},
                next="Send types of the list, or * for all.",
            )
    return tuple(dict.fromkeys(patterns))


def _target(outbound: Outbound, url: str) -> Target:
    try:
        return outbound.target(url)
    except BadTarget as error:
        raise _refused(str(error)) from error


async def _check_addresses(outbound: Outbound, target: Target) -> None:
    try:
        await outbound.addresses(target)
    except BadTarget as error:
        raise _refused(str(error)) from error
    except Unresolvable as error:
        raise _refused(f"{target.host} has no address: no name server knows it, or none answered.") from error


def _refused(why: str) -> SpawnError:
    return SpawnError(
        Code.INVALID_REQUEST,
        why,
        details={"field": "url"},
        next="Send an https URL that leads to the public internet.",
    )


def _read_cursor(cursor: str) -> int:
    if not (cursor.startswith("c") and cursor[1:].isascii() and cursor[1:].isdigit() and len(cursor) < 20):
        raise SpawnError(
            Code.INVALID_REQUEST, "That cursor is none of ours.", next="Use next_cursor of the page before."
        )
    return int(cursor[1:])
