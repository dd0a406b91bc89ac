"""Sends events to webhooks: claim, send with no transaction open, record what came of it.

Invariant: at least once, and in order per webhook and resource. What is recorded was sent under the claim that it is
recorded with; a claim that was lost runs out, and the event goes out again under the same id. However many receivers
are dead or slow, there is room for the others: how much at once is bounded for each host and each wallet, and what
fails has half of the room at most.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

import msgspec
from msgspec.structs import replace
from spawn_ledger.tx import Row, Tx
from spawn_schemas.events import EventType, EventView, WebhookData
from spawn_schemas.ids import Address, Entropy, WebhookId
from standardwebhooks import Webhook as Signer

from spawn import __version__
from spawn.clock import Clock
from spawn.domain.retries import GIVE_UP_AFTER_S, GONE, delay_s
from spawn.outbound.outbound import Answer, NotAnswered, Outbound
from spawn.services import views
from spawn.services.events import emit
from spawn.services.moments import moment
from spawn.services.webhooks import ROTATION_S
from spawn.store import deliveries as rows
from spawn.store import webhooks
from spawn.store.database import Database
from spawn.store.secrets import SIGNING, SIGNING_BEFORE, Vault
from spawn.store.webhooks import Disabled

log = logging.getLogger(__name__)

AT_ONCE: Final = 256
FAILING_AT_ONCE: Final = 128
PER_HOST: Final = 4
PER_WALLET: Final = 8
FAILING_S: Final = 60
"""For how long nothing must have arrived at a webhook before it counts as one that fails: one bad answer is none."""
FAILING_TURN_S: Final = 60
"""When an event for such a webhook that found no room is looked at again: it must not be in the way of others."""
CLAIM_S: Final = 60
"""How long a claim lasts: far longer than a request may take, so that it ends only with its holder."""
SCAN_MAX: Final = 100
SCANS_PER_CLAIM: Final = 5
"""One transaction looks at so many rows so many times."""
CLAIMS_PER_TICK: Final = 20
BACK_AFTER_S: Final = 3600
"""After an outage of so long what waits is tried at once when the first event arrives. A shorter one needs no help, and
a receiver that takes some events and never others would be asked for those again and again."""


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """A claimed delivery, with all that sending it takes. `attempts` counts the one under way."""

    webhook_id: WebhookId
    wallet: Address
    url: str
    seq: int
    resource: str
    attempts: int
    created_at: int
    claim: str
    is_failing: bool
    body: bytes
    secrets: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.webhook_id}|{self.seq}"


class Claimed(msgspec.Struct, frozen=True, kw_only=True):
    """What one transaction found: work to do, and whether there may be more."""

    work: tuple[Work, ...]
    more: bool


class Deliveries:
    """Sends what is due, much of it at once."""

    def __init__(
        self, db: Database, outbound: Outbound, vault: Vault, clock: Clock, entropy: Entropy, *, wall: Clock
    ) -> None:
        """`wall` is what receivers go by: they refuse a message whose time is not now."""
        self._db = db
        self._outbound = outbound
        self._vault = vault
        self._clock = clock
        self._entropy = entropy
        self._wall = wall
        self._tasks: set[asyncio.Task[None]] = set()
        self._sending: set[Work] = set()
        self._claiming = asyncio.Lock()

    async def start_due(self) -> None:
        """Start sending what is due and there is room for, and wait for none of it."""
        async with self._claiming:
            for _ in range(CLAIMS_PER_TICK):
                if len(self._sending) >= AT_ONCE:
                    return
                claimed = await self._claim()
                for work in claimed.work:
                    self._start(work)
                if not claimed.more:
                    return

    def _start(self, work: Work) -> None:
        self._sending.add(work)
        task = asyncio.create_task(self._guarded(work), name=f"delivery {work.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def idle(self) -> None:
        """Wait for what was started, and for what that made room for."""
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    async def stop(self) -> None:
        """Cancel what is under way: its claims run out, and it is sent again."""
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _guarded(self, work: Work) -> None:
        try:
            try:
                await self._deliver(work)
            finally:
                self._sending.discard(work)
            await self.start_due()
        except Exception:
            # The claim runs out and the next tick tries again.
            log.exception("delivery %s stumbled", work.name)

    async def _deliver(self, work: Work) -> None:
        answer: Answer | None = None
        error: str | None = None
        try:
            answer = await self._outbound.post(work.url, signed(work, self._wall.now_s()), work.body)
        except NotAnswered as failure:
            error = str(failure)
        if answer is not None and not 200 <= answer.status < 300:
            error = f"answered {answer.status}"
        await self._db.write(lambda tx: record(tx, work, answer, error, self._clock.now_s()))

    # --- claiming ---------------------------------------------------------------------------------------------

    async def _claim(self) -> Claimed:
        now = self._clock.now_s()
        if not await self._db.read(rows.FIND_DUE, {"now": now}):
            return Claimed(work=(), more=False)
        claim = f"delivery-{self._entropy.bytes(8).hex()}"
        sending = tuple(self._sending)
        return await self._db.write(lambda tx: self._claim_due(tx, claim, sending, now))

    def _claim_due(self, tx: Tx, claim: str, sending: Iterable[Work], now: int) -> Claimed:
        """Whoever has no room left is not looked at again in this transaction, so that each look shows others."""
        room = _Room(sending)
        claimed: list[Work] = []
        full: set[str] = set()
        more = False
        for _ in range(SCANS_PER_CLAIM):
            params = {"now": now, "limit": SCAN_MAX, "full": ",".join(sorted(full))}
            found = tx.all(rows.SELECT_DUE, params)
            for row in found:
                if room.is_full:
                    return Claimed(work=tuple(claimed), more=False)
                if not row["enabled"]:
                    more |= rows.end_pending(tx, row["webhook_id"], "disabled", now)
                elif row["head"] != row["seq"]:
                    _move(tx, row, rows.PARKED)
                elif room.take(row["wallet"], row["url"], is_failing=_is_failing(row, now)):
                    claimed.append(self._work(tx, row, claim, now))
                elif _is_failing(row, now):
                    _move(tx, row, now + FAILING_TURN_S)
                else:
                    full.add(row["webhook_id"])
            if len(found) < SCAN_MAX:
                return Claimed(work=tuple(claimed), more=more)
        return Claimed(work=tuple(claimed), more=True)

    def _work(self, tx: Tx, row: Row, claim: str, now: int) -> Work:
        """Claim the delivery; whoever finds it due again knows that this claim ran out."""
        webhook_id = WebhookId(row["webhook_id"])
        params = {
            "webhook_id": webhook_id,
            "seq": row["seq"],
            "claim": claim,
            "now": now,
            "until": now + CLAIM_S,
        }
        tx.execute(rows.CLAIM, params)
        view = EventView(
            id=f"evt_{row['seq']}",
            type=row["type"],
            resource=row["resource"],
            at=moment(row["at"]),
            data=msgspec.Raw(row["data"].encode()),
        )
        return Work(
            webhook_id=webhook_id,
            wallet=row["wallet"],
            url=row["url"],
            seq=row["seq"],
            resource=row["resource"],
            attempts=row["attempts"] + 1,
            claim=claim,
            created_at=row["created_at"],
            is_failing=_is_failing(row, now),
            body=views.encode(view),
            secrets=self._secrets(tx, webhook_id, now),
        )

    def _secrets(self, tx: Tx, webhook_id: WebhookId, now: int) -> tuple[str, ...]:
        """What to sign with: the secret, and for a day the one before, which is erased after that."""
        current = self._vault.find(tx, webhook_id, SIGNING)
        if current is None:
            raise RuntimeError(f"{webhook_id} has no secret")
        before = self._vault.find(tx, webhook_id, SIGNING_BEFORE, since=now - ROTATION_S + 1)
        if before is not None:
            return current, before
        self._vault.erase_one(tx, webhook_id, SIGNING_BEFORE)
        return (current,)


def _is_failing(row: Row, now: int) -> bool:
    return row["failing_since"] is not None and now - row["failing_since"] >= FAILING_S


def _move(tx: Tx, row: Row, at: int) -> None:
    tx.execute(rows.MOVE, {"webhook_id": row["webhook_id"], "seq": row["seq"], "at": at})


class _Room:
    """What may be sent besides what is being sent."""

    def __init__(self, sending: Iterable[Work]) -> None:
        self._taken: Counter[str] = Counter()
        for work in sending:
            self._count(work.wallet, _host(work.url), is_failing=work.is_failing)

    @property
    def is_full(self) -> bool:
        return self._taken["all"] >= AT_ONCE

    def take(self, wallet: Address, url: str, *, is_failing: bool) -> bool:
        """False when this wallet, this host, or whoever fails, has all the room that it may have."""
        host = _host(url)
        if self._taken[wallet] >= PER_WALLET or self._taken[host] >= (1 if is_failing else PER_HOST):
            return False
        if is_failing and self._taken["failing"] >= FAILING_AT_ONCE:
            return False
        self._count(wallet, host, is_failing=is_failing)
        return True

    def _count(self, wallet: Address, host: str, *, is_failing: bool) -> None:
        self._taken.update(["all", wallet, host, *(["failing"] if is_failing else [])])


def _host(url: str) -> str:
    """Host and port of a URL in its one spelling."""
    return url.split("/", 3)[2]


def signed(work: Work, now: int) -> dict[str, str]:
    """The headers of Standard Webhooks: a signature with each secret, so that a receiver may know either."""
    message_id, at, body = f"evt_{work.seq}", datetime.fromtimestamp(now, UTC), work.body.decode()
    return {
        "Content-Type": "application/json",
        "User-Agent": f"spawn/{__version__}",
        "webhook-id": message_id,
        "webhook-timestamp": str(now),
        "webhook-signature": " ".join(Signer(secret).sign(message_id, at, body) for secret in work.secrets),
    }


# --- recording ------------------------------------------------------------------------------------------------


def record(tx: Tx, work: Work, answer: Answer | None, error: str | None, now: int) -> None:
    """Write down what came of an attempt; nothing, if the claim was lost or the delivery was ended meanwhile."""
    wait_s = None
    if error is not None and not _is_gone(answer):
        asked_s = None if answer is None else answer.retry_after_s
        wait_s = delay_s(work.name, work.attempts, age_s=now - work.created_at, retry_after_s=asked_s)
    params = {
        "webhook_id": work.webhook_id,
        "seq": work.seq,
        "claim": work.claim,
        "state": "delivered" if error is None else "failed" if wait_s is None else "pending",
        "next_at": now if wait_s is None else now + wait_s,
        "status_code": None if answer is None else answer.status,
        "error": error,
        "finished_at": now if wait_s is None else None,
    }
    if tx.execute(rows.RECORD, params) == 0:
        return
    if wait_s is None:
        heads = {"webhook_id": work.webhook_id, "resource": work.resource, "now": now}
        tx.execute(rows.BRING_FORWARD, heads)
    if error is None:
        _arrived(tx, work, now)
    else:
        _failed(tx, work, now, is_gone=_is_gone(answer))


def _is_gone(answer: Answer | None) -> bool:
    return answer is not None and answer.status == GONE


def _arrived(tx: Tx, work: Work, now: int) -> None:
    webhook = webhooks.find_webhook(tx, work.webhook_id)
    if webhook is not None and webhook.failing_since is not None:
        webhooks.update_webhook(tx, replace(webhook, failing_since=None))
        if now - webhook.failing_since >= BACK_AFTER_S:
            rows.hurry(tx, webhook.id, now)


def _failed(tx: Tx, work: Work, now: int, *, is_gone: bool) -> None:
    """Remember since when all fails; give up on a receiver that wants nothing more, or has been away too long."""
    webhook = webhooks.find_webhook(tx, work.webhook_id)
    if webhook is None or not webhook.enabled:
        return
    since = now if webhook.failing_since is None else webhook.failing_since
    if not is_gone and now - since < GIVE_UP_AFTER_S:
        if webhook.failing_since is None:
            webhooks.update_webhook(tx, replace(webhook, failing_since=now))
        return
    reason = Disabled.GONE if is_gone else Disabled.FAILING
    webhooks.update_webhook(tx, replace(webhook, enabled=False, disabled_reason=reason, failing_since=since))
    rows.end_pending(tx, webhook.id, "disabled", now)
    told = WebhookData(webhook=webhook.id, url=webhook.url, reason=reason.value)
    emit(tx, webhook.wallet, EventType.WEBHOOK_DISABLED, told, resource=webhook.id, at=now)
