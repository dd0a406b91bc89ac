"""Nothing dies unwarned (DESIGN section 1, promise 2; docs/adr/0021 and 0023).

Invariants, worked out from committed rows and from what owners were told:
- a server is ended for want of money only when its tightest warning of this funding epoch is as old as it is tight,
  its grace is over, and neither its reserve nor, where it renews, its wallet could pay another second;
- a threshold is told once in an epoch, tighter ones only after it, the tightest crossed one where several are; and
  again only after money came in;
- what is crossed is told within a bound, while the process is up and its jobs tick;
- a price rises no sooner than 30 days after its owner heard.
"""

import json
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn

from tests.sim.oracle.deadlines import Deadlines
from tests.sim.oracle.part import Changes, Part, Row
from tests.sim.oracle.policy import DAY_S, Policy

if TYPE_CHECKING:
    from tests.sim.world import World

NOTICE_S: Final = 30 * DAY_S
LATE_S: Final = 900
"""By how much the moment at which something was decided may differ from that of its commit."""
WARNED: Final = (
    "SELECT seq, wallet, resource, cause, data, at FROM event WHERE type = 'deposit.low' ORDER BY seq"
)
STEADY_S: Final = 3_600
"""A clock that was set back by no more undoes nothing that an owner was told (docs/adr/0021)."""


@dataclass(frozen=True)
class Told:
    """One warning. `at` is the service's time; `growth` says how often money had come in by then."""

    seq: int
    epoch: int
    threshold_s: int
    at: int
    growth: int


@dataclass(frozen=True)
class Announced:
    """A price that an owner was told of: `daily` in micro-USDC, from the second `effective_at` on."""

    daily: int
    effective_at: int
    at: int


class Warnings(Part):
    """Follows each server's warnings, from its first second to its end."""

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._policy = Policy.of(world.settings)
        self._deadlines = Deadlines(world, self._policy)
        self._servers: dict[str, Row] = {}
        self._metered: dict[str, dict[str, Row]] = {}
        """By wallet the servers that cost money."""
        self._accounts: dict[str, Row] = {}
        self._told: dict[str, list[Told]] = {}
        self._announced: dict[str, Announced] = {}
        self._growths: dict[str, int] = {}
        self._clock_max = 0
        self._clock_was = (0, 0)
        self._set_at = 0
        self._set_back_s = 0

    def restored(self) -> None:
        """What only the lost rows told is told again; the owner heard of it, and the books do not know that."""
        world = self.world
        self._servers, self._metered = {}, {}
        for row in world.rows("SELECT * FROM server"):
            self._keep(row)
            self._growths[row["wallet"]] = self._growths.get(row["wallet"], 0) + 1
        self._accounts = {row["id"]: row for row in world.rows("SELECT * FROM account")}
        # The restore itself warns as well, of what it finds.
        known = {(one.seq, one.at): one.growth for told in self._told.values() for one in told}
        self._told = {}
        for event in world.rows(WARNED):
            growth = known.get((event["seq"], event["at"]), self._growths.get(event["wallet"], 0))
            self._told.setdefault(event["resource"], []).append(_told(event, growth))
        self._deadlines.forget()

    def stepped(self) -> None:
        self._note_clock()
        self._deadlines.look()

    def committed(self, changes: Changes) -> None:
        self._note_clock()
        for wallet in self._grown(changes):
            self._growths[wallet] = self._growths.get(wallet, 0) + 1
        servers = changes.of("server")
        for event in changes.events:
            if event["type"] == "deposit.low":
                self._warned(event, servers.get(event["resource"]))
            elif event["type"] == "price.announced":
                self._announced[event["resource"]] = _announced(event)
        for server_id, row in servers.items():
            before = self._servers.get(server_id)
            if row is not None and before is not None:
                self._changed(before, row, changes)
        self._follow(changes)

    # --- what was told ---

    def _warned(self, event: Row, row: Row | None) -> None:
        data: dict[str, Any] = json.loads(event["data"])
        server, threshold_s, runway_s = event["resource"], data["threshold_s"], data["runway_s"]
        if row is None or row["wallet"] != event["wallet"]:
            self._broken(f"{server} is warned of to {event['wallet']}, and nothing of it has changed")
        if threshold_s != self._policy.tightest_crossed(runway_s):
            self._broken(f"{server} has {runway_s} s left, and its owner is told of {threshold_s}")
        if _unix(data["expires_at"]) - event["at"] > runway_s:
            self._broken(
                f"{server} is said to have {runway_s} s at {event['at']}, until {data['expires_at']}"
            )
        clock = self.world.clock.now_s()
        if not self._clock_is_new() and not clock - LATE_S <= event["at"] <= self._clock_max + LATE_S:
            self._broken(f"{server} was warned at {event['at']}, when the clock said {clock}")
        told = self._told.setdefault(server, [])
        # What opened the next epoch in this very commit came in after it.
        growth = self._growths.get(event["wallet"], 0) - (row["epoch"] > _epoch(event))
        told.append(_told(event, growth))
        self._check_order(server, told)
        self._deadlines.told(server, told[-1].epoch, threshold_s)

    def _check_order(self, server: str, told: list[Told]) -> None:
        """Once in an epoch, tighter and tighter; and an epoch begins with money, or with a clock set back by much."""
        new = told[-1]
        for old in told[:-1]:
            if old.epoch == new.epoch and old.threshold_s <= new.threshold_s:
                self._broken(
                    f"{server} was told of {new.threshold_s} s after {old.threshold_s}, in epoch {new.epoch}"
                )
            repeated = old.threshold_s == new.threshold_s and old.growth == new.growth
            if repeated and self._set_back_s <= STEADY_S:
                self._broken(f"{server} was told of {new.threshold_s} s twice, and no money came in between")

    # --- ends ---

    def _changed(self, before: Row, row: Row, changes: Changes) -> None:
        ended = row["status"] in {"destroying", "destroyed"} and before["status"] != "destroying"
        if ended and row["reason"] == "deposit_exhausted":
            told = [
                e for e in changes.events if e["type"] == "server.destroying" and e["resource"] == row["id"]
            ]
            if not told:
                return  # `tellings` says so
            at = told[-1]["at"]
            self._check_warned(row, at)
            self._check_ended(before, row, at, changes)
        elif row["daily_usdc"] > before["daily_usdc"] and row["type"] == before["type"]:
            self._check_announced(row)

    def _check_warned(self, row: Row, at: int) -> None:
        last_s = self._policy.last_s
        told = [
            t for t in self._told.get(row["id"], ()) if t.epoch == row["epoch"] and t.threshold_s == last_s
        ]
        if not told:
            self._broken(
                f"{row['id']} is ended for want of money, and its owner was never told of the last {last_s} s"
            )
        if at - told[-1].at < last_s:
            self._broken(f"{row['id']} is ended {at - told[-1].at} s after its tightest warning")
        if at > self._clock_max + LATE_S:
            self._broken(f"{row['id']} is ended at {at}, which the clock has never said")

    def _check_ended(self, before: Row, row: Row, at: int, changes: Changes) -> None:
        ends_at = row["exhausted_at"]
        if ends_at is None or at < ends_at + 1 + self._policy.grace_s:
            self._broken(f"{row['id']} is ended at {at}, and its money only at {ends_at}")
        back = sum(
            t["amount"]
            for t in changes.transfers
            if t["debit"] == f"srv:{row['id']}" and t["code"] == "deposit_refund"
        )
        if back > row["daily_usdc"] // DAY_S + 1:
            self._broken(f"{row['id']} is ended for want of money with {back} micro-USDC of its own")
        if before["auto_renew"] and row["auto_renew"]:
            least = self._least_available(row, changes)
            second = sum(s["daily_usdc"] // DAY_S + 2 for s in self._renewing(row["wallet"]))
            if least > second:
                self._broken(f"{row['id']} is ended for want of money, and its wallet had {least} micro-USDC")

    def _renewing(self, wallet: str) -> list[Row]:
        return [row for row in self._metered.get(wallet, {}).values() if row["auto_renew"]]

    def _least_available(self, row: Row, changes: Changes) -> int:
        """The least that the wallet can have had available when the end was decided; other writes share the commit."""
        account = f"wallet:{row['wallet']}"
        before, after = self._accounts.get(account), changes.of("account").get(account)
        balance = 0 if before is None else before["balance"]
        held = max(0 if one is None else one["held"] for one in (before, after))
        balances = [balance]
        for transfer in changes.transfers:
            if transfer["debit"] == f"srv:{row['id']}" and transfer["code"] == "deposit_refund":
                return balances[-1] - held
            balance += transfer["amount"] * ((transfer["credit"] == account) - (transfer["debit"] == account))
            balances.append(balance)
        return min(balances) - held

    def _check_announced(self, row: Row) -> None:
        told = self._announced.get(row["id"])
        if told is None or told.daily != row["daily_usdc"]:
            self._broken(f"{row['id']} costs {row['daily_usdc']} a day now, and its owner was told of {told}")
        if told.effective_at < told.at + NOTICE_S:
            self._broken(f"{row['id']}'s price was announced {told.effective_at - told.at} s ahead")
        if self._clock_max < told.effective_at:
            self._broken(f"{row['id']}'s price changed before the announced {told.effective_at}")

    # --- what there is ---

    def _grown(self, changes: Changes) -> list[str]:
        """Wallets of whose servers one may last longer than before."""
        wallets: dict[str, None] = {}
        for transfer in changes.transfers:
            kind, _, name = transfer["credit"].partition(":")
            if kind == "wallet":
                wallets[name] = None
            elif kind == "srv" and (owned := self._servers.get(name)) is not None:
                wallets[owned["wallet"]] = None
        for hold in changes.of("hold").values():
            if hold is not None and hold["state"] != "pending":
                wallets[hold["debit"].partition(":")[2]] = None
        updates = Counter(e["resource"] for e in changes.events if e["type"] == "server.updated")
        for server_id, row in changes.of("server").items():
            before = self._servers.get(server_id)
            # Who changes it twice in one commit may have had it renew in between, which no row shows any more.
            if (
                row is not None
                and before is not None
                and (updates[server_id] > 1 or _lasts_longer(before, row))
            ):
                wallets[row["wallet"]] = None
        return list(wallets)

    def _follow(self, changes: Changes) -> None:
        touched: dict[str, None] = {}
        for server_id, row in changes.of("server").items():
            if row is None:
                self._servers.pop(server_id, None)
            else:
                self._keep(row)
                touched[row["wallet"]] = None
        for account_id, row in changes.of("account").items():
            if row is not None:
                self._accounts[account_id] = row
                kind, _, name = account_id.partition(":")
                owner = self._servers[name]["wallet"] if kind == "srv" and name in self._servers else name
                touched[owner] = None
        for wallet in touched:
            self._deadlines.follow(wallet, list(self._metered.get(wallet, {}).values()), self._accounts)

    def _keep(self, row: Row) -> None:
        self._servers[row["id"]] = row
        metered = self._metered.setdefault(row["wallet"], {})
        if row["due_at"] is None:
            metered.pop(row["id"], None)
            self._deadlines.drop(row["id"])
        else:
            metered[row["id"]] = row

    # --- the clock ---

    def _note_clock(self) -> None:
        clock, true_s = self.world.clock.now_s(), self.world.true_s()
        self._clock_max = max(self._clock_max, clock)
        was_clock, was_true = self._clock_was
        back_s = (was_clock - was_true) - (clock - true_s)
        if was_true and back_s:
            self._set_at = true_s
            self._set_back_s += max(0, back_s)
        self._clock_was = clock, true_s

    def _clock_is_new(self) -> bool:
        return self.world.true_s() - self._set_at < LATE_S

    def _broken(self, text: str) -> NoReturn:
        self.world.violation("unwarned", text)


def _lasts_longer(before: Row, row: Row) -> bool:
    return bool(
        row["daily_usdc"] < before["daily_usdc"]
        or row["auto_renew"] != before["auto_renew"]
        or row["due_at"] is None
        or row["reprice_usdc"] != before["reprice_usdc"]
    )


def _told(event: Row, growth: int) -> Told:
    return Told(
        seq=event["seq"],
        epoch=_epoch(event),
        threshold_s=json.loads(event["data"])["threshold_s"],
        at=event["at"],
        growth=growth,
    )


def _announced(event: Row) -> Announced:
    data: dict[str, Any] = json.loads(event["data"])
    return Announced(_micro(data["new_daily_burn"]), _unix(data["effective_at"]), event["at"])


def _epoch(event: Row) -> int:
    """An event's cause names what may be told once: the server, the epoch, the threshold."""
    return int(event["cause"].split("|")[2])


def _micro(text: str) -> int:
    whole, _, part = text.partition(".")
    return int(whole) * 1_000_000 + int(part.ljust(6, "0"))


def _unix(moment: str) -> int:
    return int(datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp())


PARTS: Final = (Warnings,)
