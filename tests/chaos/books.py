"""What is true of a fleet's world once it is at rest: from the chain, the cloud, the receivers and the books.

Invariant: nothing here asks a replica, so that what customers were answered can be held against it.
"""

import asyncio
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from spawn_ledger.accounts import REV_COMPUTE, wallet_account
from spawn_ledger.tx import Row, Tx
from spawn_ledger.verify import verify
from spawn_providers.simulated import SimulatedProvider
from spawn_schemas.money import Usdc

from spawn.clock import SystemClock
from spawn.settings import Settings
from spawn.store.places import place_of
from tests.chaos.chains import ChainOfRun, Paid
from tests.chaos.customers import Call
from tests.integration.rational_bills import Bill, Rate
from tests.integration.receivers import Message

REST_S: Final = 150.0
DAILY: Final = {"small": 150_000, "medium": 220_000, "large": 400_000}
"""Micro-dollars, from the specification's price table."""
NEVER_CAPPED: Final = 10**9
"""Seconds: no life here is a month long."""

SELECT_BUSY: Final = """
SELECT (SELECT COUNT(*) FROM operation WHERE status = 'running') AS operations,
  (SELECT COUNT(*) FROM delivery WHERE state = 'pending') AS deliveries,
  (SELECT COUNT(*) FROM settlement WHERE finished_at IS NULL) AS settlements,
  (SELECT COUNT(*) FROM relay WHERE state IN ('signed', 'broadcast')) AS relays,
  (SELECT COUNT(*) FROM transfer WHERE code = 'topup') AS topups
"""
SELECT_TOPUPS: Final = "SELECT credit, amount FROM transfer WHERE code = 'topup'"
SELECT_FEES: Final = """
SELECT debit, amount, COUNT(*) AS count FROM transfer WHERE code = 'fee' AND amount >= 5000 GROUP BY debit, amount
"""
SELECT_BURNT: Final = """
SELECT SUM(CASE WHEN credit = :compute THEN amount ELSE -amount END) AS burnt FROM transfer
WHERE reference = :server AND (credit = :compute OR debit = :compute)
"""
SELECT_TOLD: Final = "SELECT resource, type, at, data FROM event ORDER BY resource, seq"
SELECT_DELIVERIES: Final = """
SELECT w.wallet, d.resource, d.state, e.type FROM delivery d
JOIN webhook w ON w.id = d.webhook_id JOIN event e ON e.seq = d.seq AND e.wallet = w.wallet
ORDER BY w.wallet, d.resource, d.seq
"""


async def in_cloud(settings: Settings) -> list[str]:
    """Whose machines there are."""
    cloud = SimulatedProvider(
        Path(settings.simulated_path),
        now_ms=SystemClock().now_ms,
        seed=settings.simulated_seed,
        speed=settings.simulated_speed,
    )
    try:
        return [str(machine.key) async for machine in cloud.list_owned()]
    finally:
        await cloud.aclose()


async def come_to_rest(settings: Settings, chain: ChainOfRun, pause: float = 0.5) -> None:
    """Wait until nothing is under way; the bound is how long claims and leases of the dead may last."""
    place, end = place_of(settings.database_url), time.monotonic() + REST_S
    while True:
        paid = await chain.paid()
        with place.snapshot() as tx:
            (row,) = tx.all(SELECT_BUSY)
        busy = {what: row[what] for what in ("operations", "deliveries", "settlements", "relays")}
        busy["topups"] = len(paid) - row["topups"]
        if not any(busy.values()):
            return
        assert time.monotonic() < end, f"what does not end: {busy}"
        await asyncio.sleep(pause)


@dataclass
class Books:
    """What is there, and what was answered."""

    tx: Tx
    calls: Sequence[Call]
    paid: Sequence[Paid]
    machines: Sequence[str]
    messages: Sequence[Message]

    def check(self, balance: Usdc) -> None:
        assert verify(self.tx, chain_balance_usdc=balance) == []
        self._payments()
        self._servers()
        self._operations()
        self._bills()
        self._events()
        self._webhooks()

    def rows(self, sql: str, **params: Any) -> list[Row]:
        return self.tx.all(sql, params)

    def _answered(self, what: str) -> tuple[list[Call], list[Call]]:
        """The calls of this kind that were done, and those of which nobody heard."""
        of_kind = [call for call in self.calls if call.what == what]
        done = [call for call in of_kind if call.status is not None and call.status < 300]
        return done, [call for call in of_kind if call.status is None]

    def _payments(self) -> None:
        """Each payment on chain is in the books once, and each paid call was paid for once."""
        booked = Counter((row["credit"], row["amount"]) for row in self.rows(SELECT_TOPUPS))
        assert booked == Counter((wallet_account(one.sender), one.amount) for one in self.paid)
        by_wallet = Counter(one.sender for one in self.paid)
        for wallet in {call.wallet for call in self.calls}:
            paying = [call for call in self.calls if call.pays and call.wallet == wallet]
            done = [call for call in paying if call.status is not None and call.status < 300]
            unheard = sum(call.status is None for call in paying)
            assert len(done) <= by_wallet[wallet] <= len(done) + unheard  # type: ignore[index]  # an address is a text
        moved = {one.nonce_key: one.transaction for one in self.paid}
        assert len(moved) == len(self.paid)
        receipts = [call.receipt for call in self.calls if call.receipt is not None]
        assert len({key for key, _ in receipts}) == len(receipts)
        assert [told for told in receipts if moved.get(told[0]) != told[1]] == []

    def _servers(self) -> None:
        """Each order that was answered is a server, no order is two, and machines are of servers that live."""
        rows = self.rows("SELECT id, wallet, name, ended_at FROM server")
        done, unheard = self._answered("POST server")
        told = [call.body["server"]["id"] for call in done]
        assert len(set(told)) == len(told)
        assert {*told} <= {row["id"] for row in rows}
        assert len(rows) <= len(told) + len(unheard)
        names = Counter((row["wallet"], row["name"]) for row in rows)
        assert max(names.values(), default=1) == 1
        assert sorted(self.machines) == sorted(row["id"] for row in rows if row["ended_at"] is None)

    def _operations(self) -> None:
        """What was answered was done as often as that, and paid for as often."""
        rows = self.rows("SELECT server_id, wallet, command, status, accepted_at FROM operation")
        # What its provider refused was answered with that, and cost nothing.
        taken = [row for row in rows if row["accepted_at"] is not None or row["status"] != "error"]
        ordered = Counter((row["server_id"], row["command"]) for row in taken)
        for what, command in (("POST resize", "resize_server"), ("DELETE server", "destroy_server")):
            done, unheard = (
                Counter(call.path.split("/")[3] for call in calls) for calls in self._answered(what)
            )
            for server in {row["server_id"] for row in rows}:
                count = ordered[server, command]
                heard = [(call.status, call.body) for call in self.calls if f"/{server}/" in f"{call.path}/"]
                assert done[server] <= count <= done[server] + unheard[server], (what, server, heard)
        fees = {"create_server": 10_000, "resize_server": 10_000, "destroy_server": 5_000}
        due = Counter(
            (wallet_account(row["wallet"]), fees[row["command"]])
            for row in rows
            if row["accepted_at"] is not None or row["command"] == "destroy_server"
        )
        charged = {(row["debit"], row["amount"]): row["count"] for row in self.rows(SELECT_FEES)}
        assert charged == dict(due)

    def _bills(self) -> None:
        """Each server costs what seconds and prices say, worked out from what happened to it."""
        for row in self.rows("SELECT * FROM server"):
            (burnt,) = self.rows(SELECT_BURNT, compute=REV_COMPUTE, server=row["id"])
            assert (burnt["burnt"] or 0) == self._owed(row), row["id"]

    def _owed(self, server: Row) -> int:
        (created,) = self.rows(
            "SELECT accepted_at FROM operation WHERE server_id = :id AND command = 'create_server'",
            id=server["id"],
        )
        if created["accepted_at"] is None:
            return 0
        bill = Bill([Rate(created["accepted_at"], DAILY["small"], NEVER_CAPPED)])
        for event in self.rows(
            "SELECT type, at, data FROM event WHERE resource = :id ORDER BY seq", id=server["id"]
        ):
            if event["type"] == "server.resized":
                bill.resize(Rate(event["at"], DAILY[json.loads(event["data"])["type"]], NEVER_CAPPED))
            if event["type"] == "server.destroying":
                return max(bill.charged(event["at"]), bill.least())
        assert server["charged_until"] is not None
        return bill.charged(server["charged_until"])

    def _events(self) -> None:
        """Nothing that happens once is told twice."""
        once = {"server.created", "server.destroying", "server.destroyed"}
        told: Counter[tuple[str, str, str]] = Counter()
        resized = {row["resource"] for row in self.rows(SELECT_TOLD) if row["type"] == "server.resized"}
        for row in self.rows(SELECT_TOLD):
            if row["type"] in once:
                told[row["resource"], row["type"], ""] += 1
            if row["type"] == "deposit.low" and row["resource"] not in resized:
                told[row["resource"], row["type"], row["data"]] += 1
        assert [one for one, count in told.items() if count > 1] == []

    def _webhooks(self) -> None:
        """Each event reached its receiver, under one name and with one text, and first arrivals are in order."""
        texts: defaultdict[tuple[str, str], set[bytes]] = defaultdict(set)
        first: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        for message in self.messages:
            wallet = message.path.rpartition("/")[2]
            if (wallet, message.id) not in texts:
                first[wallet, message.event["resource"]].append(message.event["type"])
            texts[wallet, message.id].add(message.body)
        assert [name for name, bodies in texts.items() if len(bodies) > 1] == []
        meant: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        for row in self.rows(SELECT_DELIVERIES):
            assert row["state"] == "delivered"
            meant[row["wallet"], row["resource"]].append(row["type"])
        assert first == meant

    def repeated_messages(self) -> int:
        """How many messages arrived once more, as they may."""
        return len(self.messages) - len({(message.path, message.id) for message in self.messages})


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def told(calls: Sequence[Call]) -> Iterator[str]:
    """How it was for the customers."""
    answered = [call for call in calls if call.status is not None]
    at_once = sum(call.attempts == 1 for call in answered)
    seconds = [call.seconds for call in calls]
    yield f"{len(calls)} calls, {at_once / len(calls):.1%} answered at the first attempt"
    yield f"{len(answered) / len(calls):.2%} after their clients' retries ({sum(c.attempts for c in calls)} attempts)"
    yield f"p50 {quantile(seconds, 0.5) * 1000:.0f} ms, p99 {quantile(seconds, 0.99):.2f} s, most {max(seconds):.1f} s"
    yield f"by status {dict(sorted(Counter(str(call.status) for call in calls).items()))}"
