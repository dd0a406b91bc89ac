"""Events reach whoever is to hear of them (docs/events.md, docs/webhooks.md).

Invariants:
- an event is written once and never changed, under a number higher than every one before of its wallet, and than
  all that a restored backup has lost;
- what is kept of a wallet is all after the number that its head says is forgotten, and nothing up to it;
- in its commit there is a delivery for each webhook of its wallet that is enabled and wants its type, and no other;
- a webhook hears of each of them at least once, signed, under one id with one body, and of one resource in order: a
  later one is sent only after what became of the earlier one is written down;
- what counts as delivered was answered with 2xx, and what was given up is told;
- a feed that is read by its cursor, whatever crashes in between, is all of the wallet's events and nothing else.
"""

import json
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, NoReturn

from tests.sim.oracle.effects import Effects
from tests.sim.oracle.feeds import Feeds
from tests.sim.oracle.part import Changes, Part, Row
from tests.sim.receivers import Message

if TYPE_CHECKING:
    from tests.sim.world import World

TAKEN_S: Final = 4 * 3_600
"""What arrives may be of a delivery that was ended while it was on its way, or of a webhook that was turned since."""
GONE: Final = 410
DISABLED_AFTER_S: Final = 3 * 86_400 - 14 * 3_600
"""Nothing was delivered for three days, by a clock that may be set by half a day meanwhile."""


class Events(Part):
    """Follows each event from its commit to everybody who wanted it."""

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._newest: dict[str, int] = {}
        """By wallet the highest number so far: those of others may be committed before lower ones."""
        self._lost = 0
        """The highest number of all when the last backup was put back."""
        self._events: dict[int, Row] = {}
        self._hashes: dict[int, bytes] = {}
        self._webhooks: dict[str, Row] = {}
        self._deliveries: dict[tuple[str, int], Row] = {}
        self._pending: dict[tuple[str, str], dict[int, None]] = {}
        """By webhook and resource the numbers that wait, the lowest first."""
        self._urls: dict[str, dict[str, None]] = {}
        """By URL every webhook that has led there."""
        self._bodies: dict[tuple[str, str], bytes] = {}
        self._delivered_at: dict[str, int] = {}
        world.receivers.listeners.append(self._arrived)

    def restored(self) -> None:
        """The lost rows have been told; those that there are now count. Their numbers never come again."""
        world = self.world
        self._lost = max([self._lost, *self._newest.values()])
        self._events = {row["seq"]: row for row in world.rows("SELECT * FROM event")}
        self._hashes = {seq: _hash(row) for seq, row in self._events.items()}
        self._webhooks = {row["id"]: row for row in world.rows("SELECT * FROM webhook")}
        self._deliveries, self._pending = {}, {}
        for row in world.rows("SELECT * FROM delivery ORDER BY seq"):
            self._keep((row["webhook_id"], row["seq"]), row)
        for webhook, row in self._webhooks.items():
            self._urls.setdefault(row["url"], {})[webhook] = None
        for hook in world.receivers.hooks.values():
            hook.doubt()

    def committed(self, changes: Changes) -> None:
        deliveries = changes.of("delivery")
        new = {seq: [] for seq in (event["seq"] for event in changes.events)}  # type: dict[int, list[str]]
        for webhook, seq in deliveries:
            if seq in new and deliveries[webhook, seq] is not None:
                new[seq].append(webhook)
        for event in changes.events:
            self._told(event, new[event["seq"]], changes)
        for webhook, row in changes.of("webhook").items():
            if row is None:
                self._webhooks.pop(webhook, None)
            else:
                self._check_disabled(row)
                self._webhooks[webhook] = row
                self._urls.setdefault(row["url"], {})[webhook] = None
        for key in sorted(deliveries):
            self._moved(key, deliveries[key])

    # --- writing ---

    def _told(self, event: Row, found: list[str], changes: Changes) -> None:
        seq = event["seq"]
        newest = max(self._newest.get(event["wallet"], 0), self._lost)
        if seq <= newest or seq in self._events:
            self._broken(f"event {seq} of {event['wallet']} comes after {newest}")
        self._newest[event["wallet"]] = seq
        self._events[seq], self._hashes[seq] = event, _hash(event)
        if event["type"] == "webhook.test":
            if found != [event["resource"]]:
                self._broken(f"the test {seq} of {event['resource']} goes to {found}")
            return
        for webhook, before in self._webhooks.items():
            if webhook in changes.of("webhook"):
                continue  # it changed in this commit, before or after the event
            wants = (
                bool(before["enabled"])
                and before["wallet"] == event["wallet"]
                and _wants(before, event["type"])
            )
            if wants != (webhook in found):
                self._broken(f"{event['type']} {seq} has {found}, and {webhook} is {before}")
        for webhook in found:
            owner = changes.of("webhook").get(webhook) or self._webhooks.get(webhook)
            if owner is None or owner["wallet"] != event["wallet"]:
                self.world.violation(
                    "foreign", f"event {seq} of {event['wallet']} goes to {webhook} of {owner}"
                )

    def _moved(self, key: tuple[str, int], row: Row | None) -> None:
        """A delivery ends once, and what is delivered was taken."""
        webhook, seq = key
        before = self._deliveries.get(key)
        if row is None:
            owner = self._webhooks.get(webhook)
            if before is not None and before["state"] == "pending" and owner is not None and owner["enabled"]:
                self._broken(f"the delivery of {seq} to {webhook} is erased, and was never ended")
            self._keep(key, None)
            return
        was = "pending" if before is None else before["state"]
        if was != "pending" and row["state"] != was:
            self._broken(f"the delivery of {seq} to {webhook} was {was} and is {row['state']}")
        if row["state"] == "delivered" and was == "pending" and not self._was_taken(webhook, seq):
            self._broken(f"{seq} counts as delivered to {webhook}, and nobody took it")
        if row["state"] == "delivered" and was == "pending":
            self._delivered_at[webhook] = self.world.true_s()
        self._keep(key, row)

    def _was_taken(self, webhook: str, seq: int) -> bool:
        taken = self.world.receivers.taken
        return any(f"evt_{seq}" in taken.get(url, ()) for url, ids in self._urls.items() if webhook in ids)

    def _check_disabled(self, row: Row) -> None:
        before = self._webhooks.get(row["id"])
        if before is None or not before["enabled"] or row["disabled_reason"] != "failing":
            return
        ago_s = self.world.true_s() - self._delivered_at.get(row["id"], 0)
        if ago_s < DISABLED_AFTER_S:
            self._broken(f"{row['id']} is disabled as failing, and took an event {ago_s} s ago")

    def _keep(self, key: tuple[str, int], row: Row | None) -> None:
        webhook, seq = key
        before = self._deliveries.pop(key, None)
        resource = (row or before or {"resource": ""})["resource"]
        line = self._pending.setdefault((webhook, resource), {})
        line.pop(seq, None)
        if row is not None:
            self._deliveries[key] = row
            if row["state"] == "pending":
                line[seq] = None
                if len(line) > 1 and next(reversed(line)) < max(line):
                    self._pending[webhook, resource] = dict.fromkeys(sorted(line))
        if not line:
            self._pending.pop((webhook, resource), None)

    # --- arriving ---

    def _arrived(self, message: Message, _status: int) -> None:
        event = self._events.get(int(message.id.removeprefix("evt_")))
        if event is None or json.loads(message.body) != _view(event):
            self._broken(f"{message.url} was told {message.body!r}, and written was {event}")
        known = self._bodies.setdefault((message.url, message.id), message.body)
        if known != message.body:
            self._broken(f"{message.id} came to {message.url} as {known!r} and as {message.body!r}")
        wanted = [id_ for id_ in self._urls.get(message.url, ()) if (id_, event["seq"]) in self._deliveries]
        if not wanted:
            self._check_erased(message)
            return
        if not any(self._is_next(webhook, event) for webhook in wanted):
            self._broken(f"{message.id} came to {message.url} before others of {event['resource']}")
        hook = self.world.receivers.hooks.get(message.url)
        if hook is not None and any(self._webhooks[webhook]["wallet"] == hook.wallet for webhook in wanted):
            flaw = hook.flaw_of(message)
            if flaw is not None:
                self._broken(f"{message.id} at {message.url}: {flaw}")

    def _check_erased(self, message: Message) -> None:
        """What was on its way when its webhook was deleted has no row any more."""
        if all(webhook in self._webhooks for webhook in self._urls.get(message.url, {"": None})):
            self._broken(f"{message.id} came to {message.url}, for which there is no delivery")

    def _is_next(self, webhook: str, event: Row) -> bool:
        """Whether nothing earlier of its resource waits."""
        line = self._pending.get((webhook, event["resource"]), {})
        return not line or next(iter(line)) >= event["seq"]

    # --- at rest ---

    def unsettled(self) -> list[str]:
        """Deliveries that wait for receivers that are there. In calm all are, but those whose names we never knew."""
        waiting = 0
        for (webhook, _), line in self._pending.items():
            row = self._webhooks.get(webhook)
            if row is not None and row["enabled"] and self.world.receivers.is_alive(row["url"]):
                waiting += len(line)
        return [f"{waiting} deliveries wait"] if waiting else []

    def at_rest(self) -> None:
        """What was written is as it was written; the oldest may be forgotten, in order, and nothing that waits."""
        kept = {row["seq"]: _hash(row) for row in self.world.rows("SELECT * FROM event")}
        heads = {row["wallet"]: row["forgotten"] for row in self.world.rows("SELECT * FROM event_head")}
        horizon = self.world.clock.now_s() - self.world.settings.events_keep_s
        for seq, digest in self._hashes.items():
            event = self._events[seq]
            is_forgotten = seq <= heads.get(event["wallet"], 0)
            if kept.get(seq) != (None if is_forgotten else digest):
                self._broken(f"event {seq} was {event}, is changed or gone, and heads are {heads}")
            if is_forgotten and event["at"] > horizon + TAKEN_S * 6:
                self._broken(f"event {seq} of {event['at']} is forgotten before its time")
        for (webhook, seq), row in self._deliveries.items():
            is_ours = row["state"] == "failed" and row["error"] != "disabled" and row["status_code"] != GONE
            if is_ours and self._webhooks[webhook]["enabled"]:
                self._check_given_up(webhook, seq, row)

    def _check_given_up(self, webhook: str, seq: int, row: Row) -> None:
        if row["attempts"] < 2 or row["finished_at"] - row["created_at"] < 2 * 86_400:
            self._broken(f"{seq} was given up for {webhook} after {row['attempts']} attempts: {row}")

    def _broken(self, text: str) -> NoReturn:
        self.world.violation("unwarned", text)


def _wants(webhook: Row, type_: str) -> bool:
    patterns = webhook["types"].split(",")
    return any(p in {"*", type_} or (p.endswith(".*") and type_.startswith(p[:-1])) for p in patterns)


def _hash(event: Row) -> bytes:
    return sha256(repr(sorted(event.items())).encode()).digest()


def _view(event: Row) -> dict[str, Any]:
    """The event as its owner is shown it (docs/events.md)."""
    at = datetime.fromtimestamp(event["at"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "id": f"evt_{event['seq']}",
        "type": event["type"],
        "resource": event["resource"],
        "at": at,
        "data": json.loads(event["data"]),
    }


PARTS: Final = (Events, Effects, Feeds)
