"""What every server was charged, and what it costs us, beside what `rates` says that it owes.

Invariant: what must have been charged follows from the moments at which prices began, and never from what was charged
before; who pays, what goes back at the end and what a resize moves follow from DESIGN section 4.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, Any, Final, NoReturn

from tests.sim.oracle.part import Changes, Part, Row
from tests.sim.oracle.rates import DAY, Bill, Rate, thresholds_s

if TYPE_CHECKING:
    from tests.sim.world import World

_METERED: Final = frozenset({"burn", "minimum", "burn_refund", "cost", "overrun"})
_PINS: Final = ("daily_usdc", "capped_s", "priced_at", "cost_daily_usdc", "cost_capped_s")
_STEADY_S: Final = 3_600
"""A wallet's time does not go back where the clock is set back by no more than this (`spawn.services.billing`)."""

SERVERS: Final = "SELECT * FROM server"
RESERVES: Final = "SELECT id, balance FROM account WHERE id LIKE 'srv:%'"
CHARGED: Final = "SELECT id, debit, credit, amount, code, reference, at FROM transfer ORDER BY seq"


@dataclass
class Account:
    """One server: its row as last seen, its two bills, and what the movements of money say.

    `is_over`: its billing has ended.
    """

    row: Row
    price: Bill | None = None
    cost: Bill | None = None
    burnt_usdc: int = 0
    minimum_usdc: int = 0
    given_back_usdc: int = 0
    cost_usdc: int = 0
    reserve_usdc: int = 0
    is_over: bool = False

    @property
    def charged_usdc(self) -> int:
        return self.burnt_usdc + self.minimum_usdc - self.given_back_usdc


class Bills(Part):
    """Every server's account, taken on after each commit that touches it."""

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self.accounts: dict[str, Account] = {}
        self._latest_s = 0
        self._last_warning_s = thresholds_s(world.settings.warnings)[-1]

    def stepped(self) -> None:
        now = self.world.clock.now_s()
        self._latest_s = max(now, self._latest_s)

    def restored(self) -> None:
        """Rates that were known and still explain what a row says are kept; else its bill goes on from the row."""
        known, self.accounts = self.accounts, {}
        for row in self.world.rows(SERVERS):
            account = self.accounts[row["id"]] = Account(row)
            before = known.get(row["id"], account)
            account.is_over = row["metered_from"] is not None and row["charged_until"] is None
            if row["metered_from"] is not None:
                account.price = _gone_on(before.price, row, "", row["charged_until"])
                account.cost = _gone_on(before.cost, row, "cost_", row["cost_until"])
        for transfer in self.world.rows(CHARGED):
            for server_id in _servers_of(transfer):
                self._take(self.accounts[server_id], transfer)

    def committed(self, changes: Changes) -> None:
        """Follow each server that the commit touched."""
        self.stepped()
        rows = changes.of("server")
        legs: dict[str, list[Row]] = {}
        for transfer in changes.transfers:
            for server_id in _servers_of(transfer):
                legs.setdefault(server_id, []).append(transfer)
        for server_id in {**rows, **legs}:
            account = self.accounts.get(server_id)
            row = rows.get(server_id, None if account is None else account.row)
            if row is None:
                self._wrong(f"{server_id} has no row (any more)")
            self._follow(server_id, account, row, legs.get(server_id, []), changes)
        for operation in changes.of("operation").values():
            if operation is not None and operation["status"] == "running":
                self._check_delta(operation, legs.get(operation["server_id"], []))

    def _follow(
        self, server_id: str, account: Account | None, row: Row, legs: list[Row], changes: Changes
    ) -> None:
        if account is None:
            account = self.accounts[server_id] = Account(row)
        old, account.row = account.row, row
        if account.price is None and row["metered_from"] is not None:
            self._start(account, old)
        for leg in legs:
            self._check_payer(account, old, leg)
            self._check_resized(account, old, leg)
            self._take(account, leg)
        if account.price is None:
            if account.charged_usdc or row["charged_usdc"]:
                self._wrong(f"{server_id} was charged before its machine was accepted")
            return
        marks = _watermarks(old, row, legs)
        if any(old[pin] != row[pin] for pin in _PINS) and not account.is_over:
            self._cut(account, old, marks, legs, changes)
        if row["charged_usdc"] != account.charged_usdc:
            self._wrong(f"{server_id} shows {row['charged_usdc']} charged, moved were {account.charged_usdc}")
        if row["cost_usdc"] != account.cost_usdc:
            self._wrong(f"{server_id} shows a cost of {row['cost_usdc']}, booked are {account.cost_usdc}")
        if row["charged_until"] is not None:
            self._check_meter(account, old)
            self._check_month(row)
        elif not account.is_over:
            self._end(account, marks, legs, changes)
        elif any(leg["code"] in {"burn", "minimum"} for leg in legs) or account.reserve_usdc:
            self._wrong(f"{server_id} has ended, and money of it moves: {legs}")
        if old["cost_until"] is not None and row["cost_until"] is None and row["ended_at"] is not None:
            self._check_overrun(account, max(old["cost_until"], marks[-1]))

    def _check_month(self, row: Row) -> None:
        """Of a UTC month no more seconds are metered than it has had."""
        until = row["charged_until"]
        begun = datetime.fromtimestamp(until, UTC).replace(day=1, hour=0, minute=0, second=0)
        if row["month_s"] > until - int(begun.timestamp()):
            self._wrong(f"{row['id']} has {row['month_s']} s of its month by {until}, and that began {begun}")

    # --- begin, change, go on -----------------------------------------------------------------------------------

    def _start(self, account: Account, old: Row) -> None:
        """The provider has accepted; or a restore has found the machine, which then costs since it began."""
        since, first = account.row["metered_from"], old
        if first["metered_from"] is not None and first["priced_at"] > since:
            self._wrong(f"{first['id']} was accepted and had another price already when it was first seen")
        account.price = Bill([Rate(since, first["daily_usdc"], first["capped_s"])])
        account.cost = Bill([Rate(since, first["cost_daily_usdc"] or 0, first["cost_capped_s"])])
        if since > self._latest_s:
            self._wrong(f"{first['id']} costs money from {since} on, and it is {self._latest_s}")

    def _cut(self, account: Account, old: Row, marks: list[int], legs: list[Row], changes: Changes) -> None:
        """Begin the rates that the commit's events tell of; the last of them is what the row says."""
        row = account.row
        cuts = [
            event
            for event in changes.events
            if event["resource"] == row["id"] and event["type"] in {"price.changed", "server.resized"}
        ]
        if not cuts:
            self._wrong(
                f"{row['id']} has another price, and nobody was told: {_pins(old)} became {_pins(row)}"
            )
        for event in cuts:
            data, resized = json.loads(event["data"]), event["type"] == "server.resized"
            at = event["at"] if resized else _seconds(data["effective_at"])
            pins = row if event is cuts[-1] else _pins_between(event["type"], data, account, changes)
            self._begin(account, pins, _begins(marks[0], legs, at), resized=resized)
            if not resized:
                self._check_announced(old, data, changes)

    def _begin(self, account: Account, pins: Row, since: int, *, resized: bool) -> None:
        if account.price is None or account.cost is None:
            self._wrong(f"{account.row['id']} has another price before it has one")
        dearer = resized and pins["daily_usdc"] > account.price.rates[-1].daily_usdc
        account.price.begin(Rate(since, pins["daily_usdc"], pins["capped_s"], dearer))
        account.cost.begin(Rate(since, pins["cost_daily_usdc"] or 0, pins["cost_capped_s"], dearer))

    def _check_announced(self, old: Row, data: dict[str, Any], changes: Changes) -> None:
        """A price that began by itself is one that was announced, at the moment that was named."""
        was = [(old["reprice_at"], old["reprice_usdc"])] if old["reprice_at"] is not None else []
        for event in changes.events:
            if event["type"] == "price.announced" and event["resource"] == old["id"]:
                told = json.loads(event["data"])
                was.append((_seconds(told["effective_at"]), _usdc(told["new_daily_burn"])))
        began = (_seconds(data["effective_at"]), _usdc(data["new_daily_burn"]))
        if began not in was:
            self._wrong(f"{old['id']} has the price {began}, and announced was {was}")

    def _check_meter(self, account: Account, old: Row) -> None:
        """Charged is what is owed at the watermark, which only goes ahead, and never beyond the clock."""
        row, until = account.row, account.row["charged_until"]
        if account.price is None or account.cost is None or account.is_over:
            self._wrong(f"{row['id']} is charged again after its end")
        if old["charged_until"] is not None and until < old["charged_until"]:
            self._wrong(f"{row['id']} is charged up to {until}, and was up to {old['charged_until']}")
        if until > self._latest_s:
            self._wrong(f"{row['id']} is charged up to {until}, and it is {self._latest_s} at the latest")
        owed = account.price.charged(until)
        if account.charged_usdc != owed:
            self._wrong(f"{row['id']} owes {owed} up to {until}, and was charged {account.charged_usdc}")
        if row["minimum_usdc"] != account.price.least():
            self._wrong(f"{row['id']} costs {account.price.least()} at least, not {row['minimum_usdc']}")
        if row["exhausted_at"] is not None and until > row["exhausted_at"]:
            self._wrong(f"{row['id']} is charged up to {until}, and its money ended at {row['exhausted_at']}")
        if row["cost_until"] is not None:
            cost = account.cost.charged(row["cost_until"])
            if account.cost_usdc != cost or row["cost_until"] != until:
                self._wrong(f"{row['id']} costs us {cost} up to {until}, and booked are {account.cost_usdc}")
        at, before = row["reprice_at"], old["charged_until"]
        if (
            at is not None
            and old["reprice_at"] == at
            and before is not None
            and before < until
            and at <= until
        ):
            self._wrong(f"{row['id']} is charged up to {until} at its old price, which ended at {at}")

    # --- who pays -----------------------------------------------------------------------------------------------

    def _check_payer(self, account: Account, old: Row, leg: Row) -> None:
        """The own reserve first, down to nothing; then the wallet, if the server renews."""
        if leg["code"] != "burn" or not leg["debit"].startswith("wallet:"):
            return
        if account.reserve_usdc:
            self._wrong(f"{leg['id']} takes from the wallet, and the reserve has {account.reserve_usdc} left")
        if not (old["auto_renew"] or account.row["auto_renew"]):
            self._wrong(f"{leg['id']} takes from the wallet for a server that does not renew")

    def _take(self, account: Account, leg: Row) -> None:
        """Book one movement on the server's account."""
        amount, own = leg["amount"], f"srv:{account.row['id']}"
        if own == leg["credit"]:
            account.reserve_usdc += amount
        if own == leg["debit"]:
            account.reserve_usdc -= amount
        match leg["code"]:
            case "burn":
                account.burnt_usdc += amount
            case "minimum":
                account.minimum_usdc += amount
            case "burn_refund":
                account.given_back_usdc += amount
            case "cost" | "overrun":
                account.cost_usdc += amount if leg["credit"] == "owed:provider" else -amount
            case _:
                pass  # deposits: they lie in the reserve, and are no charge

    def _check_resized(self, account: Account, old: Row, leg: Row) -> None:
        """A smaller machine never sets free so much that the rest ends sooner, and before the last warning's time."""
        if leg["id"].startswith("resize|") and account.row["charged_until"] is not None:
            daily, left = account.row["daily_usdc"], account.reserve_usdc - leg["amount"]
            was_daily = max(old["daily_usdc"], old["reprice_usdc"] or 0)
            is_sooner = (left + 1) * was_daily < account.reserve_usdc * daily
            if is_sooner and left < daily * self._last_warning_s // DAY and leg["amount"] > 0:
                self._wrong(f"{leg['id']} leaves {left}, less than the last warning is early")

    def _check_delta(self, operation: Row, legs: list[Row]) -> None:
        """A resize asks for as much more, or less, as the same runway costs at the other price."""
        if operation["command"] != "resize_server" or operation["attempts"] or operation["step"]:
            return
        resized = json.loads(operation["plan"])["resized"]
        account = self.accounts[operation["server_id"]]
        old_usdc, new_usdc = account.row["daily_usdc"], resized["pin"]["daily_usdc"]
        reserves = [account.reserve_usdc]
        for leg in reversed(legs):
            own = f"srv:{account.row['id']}"
            reserves.append(reserves[-1] + leg["amount"] * ((leg["debit"] == own) - (leg["credit"] == own)))
        deltas = [ceil(Fraction(reserve * new_usdc, old_usdc)) - reserve for reserve in reserves]
        if operation["phase"] == "queued" and resized["reserve_delta_usdc"] not in deltas:
            self._wrong(
                f"{operation['id']} moves {resized['reserve_delta_usdc']}, and it should be {deltas[0]}"
            )

    # --- the end ------------------------------------------------------------------------------------------------

    def _end(self, account: Account, marks: list[int], legs: list[Row], changes: Changes) -> None:
        """Billing is over: charged is what was owed at the end, and at least an hour; the rest went back."""
        row, price = account.row, account.price
        if price is None or account.cost is None:
            self._wrong(f"{row['id']} has ended before it began")
        account.is_over = True
        if row["reason"] == "provider_refused":
            owed, least, ended_at = 0, 0, None
        else:
            ended_at = self._ended_at(account, marks, changes.events)
            if ended_at < price.rates[0].since:
                return  # it ended before what a restored row could tell
            owed, least = price.charged(ended_at), price.least()
        burnt = account.burnt_usdc - account.given_back_usdc
        if burnt != owed:
            self._wrong(f"{row['id']} ended at {ended_at} and owes {owed}, and {burnt} was charged")
        refund = sum(leg["amount"] for leg in legs if leg["id"] == f"refund|{row['id']}")
        minimum = min(max(0, least - owed), account.minimum_usdc + refund)
        if account.minimum_usdc != minimum:
            self._wrong(f"{row['id']} paid {account.minimum_usdc} for its first hour, it should be {minimum}")
        if account.reserve_usdc:
            self._wrong(f"{row['id']} has ended, and {account.reserve_usdc} of its deposit did not come back")
        if row["reason"] == "vanished" and account.cost_usdc != account.cost.charged(ended_at or 0):
            self._wrong(f"{row['id']} vanished at {ended_at}, and is said to cost {account.cost_usdc}")

    def _ended_at(self, account: Account, marks: list[int], events: Iterable[Row]) -> int:
        """Up to when it was to be paid for: its money's end, else when it was ended, else when it was missed."""
        row = account.row
        told = [
            event["at"]
            for event in events
            if event["resource"] == row["id"] and event["type"] in {"server.destroying", "server.destroyed"}
        ]
        if not told:
            self._wrong(f"{row['id']} has ended, and nobody was told")
        last = max(marks)
        at = last if told[0] < last <= told[0] + _STEADY_S else max(told[0], marks[0])
        if row["exhausted_at"] is not None:
            at = row["exhausted_at"]
        if row["reason"] == "deposit_exhausted" and (
            row["exhausted_at"] is None or at >= max(told[0], last + 1)
        ):
            self._wrong(f"{row['id']} was ended for want of money that had not ended: {row['exhausted_at']}")
        if row["reason"] == "vanished" and account.price is not None:
            at = min(at, max(row["missing_since"], row["priced_at"], row["metered_from"]))
        return int(at)

    def _check_overrun(self, account: Account, booked_until: int) -> None:
        """The machine is gone: its provider asks for every started step of its life, what nobody paid for included."""
        row = account.row
        if account.cost is None or row["reason"] == "vanished" or row["cost_daily_usdc"] is None:
            return
        began, step = row["metered_from"], row["cost_step_s"]
        until = max(booked_until, began + ceil(Fraction(row["ended_at"] - began, step)) * step)
        if account.cost_usdc != account.cost.charged(until):
            self._wrong(
                f"{row['id']} was gone at {row['ended_at']} and cost us {account.cost.charged(until)} up to {until}, "
                f"and booked are {account.cost_usdc}"
            )

    def at_rest(self) -> None:
        """Every bill once more from its first second, against the database's own sums."""
        sums: dict[str, int] = {}
        for transfer in self.world.rows(CHARGED):
            if transfer["code"] in {"burn", "minimum", "burn_refund"}:
                sign = 1 if transfer["credit"] == "rev:compute" else -1
                sums[transfer["reference"]] = sums.get(transfer["reference"], 0) + sign * transfer["amount"]
        for row in self.world.rows(SERVERS):
            account = self.accounts[row["id"]]
            if account.row != row:
                self._wrong(f"{row['id']} was changed past every commit: {account.row} is {row}")
            if sums.get(row["id"], 0) != row["charged_usdc"]:
                self._wrong(
                    f"{row['id']} shows {row['charged_usdc']} charged, in all {sums.get(row['id'], 0)}"
                )
            if row["charged_until"] is not None and account.price is not None:
                owed = replace(account.price).charged(row["charged_until"])
                if owed != row["charged_usdc"]:
                    self._wrong(f"{row['id']} owes {owed} in all, and {row['charged_usdc']} was charged")
            if row["ended_at"] is not None and row["cost_until"] is not None:
                self._wrong(f"{row['id']} is gone, and costs us still")

    def unsettled(self) -> list[str]:
        """Servers that somebody should have looked at by now."""
        late_s = self.world.clock.now_s() - 2 * self.world.settings.burn_every_s - 60
        return [
            f"{server_id} was to be looked at by {account.row['due_at']}"
            for server_id, account in self.accounts.items()
            if account.row["due_at"] is not None and account.row["due_at"] < late_s
        ]

    def _wrong(self, text: str) -> NoReturn:
        self.world.violation("books", text)


def _servers_of(transfer: Row) -> Iterable[str]:
    """Whose account a movement belongs to: its reserve's, or that of the server it is for."""
    if transfer["code"] in _METERED:
        return (transfer["reference"],)
    return [account[4:] for account in (transfer["debit"], transfer["credit"]) if account.startswith("srv:")]


def _gone_on(before: Bill | None, row: Row, kind: str, until: int | None) -> Bill:
    """The bill of a restored row, for its owner or (`cost_`) for us, which was charged up to `until`."""
    daily_usdc, capped_s = row[f"{kind}daily_usdc"] or 0, row[f"{kind}capped_s"]
    charged_usdc = row["cost_usdc" if kind else "charged_usdc"]
    if until is not None:
        first = Bill([Rate(row["metered_from"], daily_usdc, capped_s)])
        bills = [first] if before is None else [_cut_back(before, until), first]
        for bill in bills:
            if bill.rates[-1].daily_usdc == daily_usdc and bill.charged(until) == charged_usdc:
                return bill
    return Bill(
        [Rate(until or row["metered_from"], daily_usdc, capped_s)],
        before_usdc=charged_usdc + Fraction(row[f"{kind}remainder"], DAY),
        before_s=row["month_s"],
        least_usdc=0 if kind else row["minimum_usdc"],
    )


def _cut_back(bill: Bill, until: int) -> Bill:
    return replace(bill, rates=[rate for rate in bill.rates if rate.since <= until] or bill.rates[:1])


def _stretches(legs: Iterable[Row]) -> list[tuple[int, int]]:
    """From when until when the server was charged, one after the other."""
    names = [leg["id"].split("|") for leg in legs if leg["id"].startswith(("burn|", "cost|"))]
    return [(int(name[2]), int(name[3])) for name in names]


def _watermarks(old: Row, row: Row, legs: list[Row]) -> list[int]:
    """The seconds up to which the server was charged in turn: before the commit, in it, and after it."""
    marks = [old["charged_until"] or row["metered_from"], *(until for _, until in _stretches(legs))]
    if row["charged_until"] is not None:
        marks.append(row["charged_until"])
    return sorted(marks)


def _begins(charged_until: int, legs: list[Row], at: int) -> int:
    """When that begins which was to begin at `at`: where the charging stood, if that was ahead of it already."""
    at = max(at, charged_until)
    return max((until for since, until in _stretches(legs) if since < at < until), default=at)


def _pins(row: Row) -> dict[str, Any]:
    return {pin: row[pin] for pin in _PINS}


def _pins_between(type: str, data: dict[str, Any], account: Account, changes: Changes) -> Row:
    """The pins of a rate that another has followed within the same commit."""
    if account.price is None or account.cost is None:
        raise ValueError(f"{account.row['id']} has no rate yet")
    if type == "server.resized":
        for operation in changes.of("operation").values():
            if operation is not None and operation["server_id"] == account.row["id"]:
                plan = json.loads(operation["plan"])
                if plan["resized"] is not None:
                    return dict(plan["resized"]["pin"])
    price, cost = account.price.rates[-1], account.cost.rates[-1]
    return {
        "daily_usdc": _usdc(data["new_daily_burn"]) if type == "price.changed" else price.daily_usdc,
        "capped_s": price.capped_s,
        "cost_daily_usdc": cost.daily_usdc,
        "cost_capped_s": cost.capped_s,
    }


def _seconds(moment: str) -> int:
    """Unix seconds of a moment as the wire writes it (RFC 3339)."""
    return int(datetime.fromisoformat(moment).timestamp())


def _usdc(text: str) -> int:
    """Micro-USDC of a decimal text."""
    return int(Fraction(text) * 1_000_000)


PARTS: Final = (Bills,)
