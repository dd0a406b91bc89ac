"""When a wallet's money ends, found by looking for the second, and held against what the service did and said.

The rule (DESIGN section 4): a server burns its own reserve first, then, if it renews, what its wallet has available; a
second that the wallet cannot pay for all who need it, it pays for none of them, and those end. Invariants: no server is
charged beyond that second, none is said to have ended before it, and whoever is not looked at until later is paid for
until then and has no warning to be given before.
"""

import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn

from tests.sim.client_types import Answer, Request
from tests.sim.oracle.part import Changes, Part, Row, deeds_of
from tests.sim.oracle.rates import DAY, next_month, thresholds_s

if TYPE_CHECKING:
    from tests.sim.world import World

HORIZON_S: Final = 3_650 * DAY
"""How far ahead the service says when money ends."""
TOLD_MAX: Final = 100
"""So many answers are remembered between their commit and their arrival."""
_EXPIRES: Final = b'"deposit_expires_at"'
_ALL_EVENTS_OF_NOW: Final = ("deposit.", "server.destroying", "server.destroyed")

SERVERS: Final = "SELECT * FROM server"
ACCOUNTS: Final = "SELECT * FROM account"


@dataclass(frozen=True, kw_only=True)
class Tab:
    """One server from its watermark on. `rates` are the daily prices, each with the second from which it holds."""

    server_id: str
    since: int
    owed: int
    """86 400ths of a micro-USDC that are owed at `since` and not charged."""
    month_s: int
    capped_s: int
    rates: tuple[tuple[int, int], ...]
    reserve_usdc: int
    renews: bool

    def burnt_usdc(self, until: int) -> int:
        """What is charged for the seconds from `since` to `until`."""
        owed, at, used_s = self.owed, self.since, self.month_s
        for number, (_, daily_usdc) in enumerate(self.rates):
            end = until
            if number + 1 < len(self.rates):
                end = min(until, self.rates[number + 1][0])
            while at < end:
                month_end = next_month(at)
                stop = min(end, month_end)
                costing_s = min(used_s + stop - at, self.capped_s) - min(used_s, self.capped_s)
                owed += daily_usdc * costing_s
                used_s = 0 if stop == month_end else used_s + stop - at
                at = stop
        return owed // DAY

    def lacks_usdc(self, until: int) -> int:
        """What its own reserve lacks up to `until`."""
        return max(0, self.burnt_usdc(until) - self.reserve_usdc)


def tab_of(row: Row, reserve_usdc: int) -> Tab:
    """The server of this row, which is metered, with the price that is announced for it."""
    since: int = row["charged_until"]
    # What it owes at an old price, it has no money for: nobody looks beyond that price.
    now_costs = json.loads(row["owed"])[0]["pin"] if row["owed"] else row
    rates = [(since, now_costs["daily_usdc"])]
    if row["reprice_at"] is not None and not row["owed"]:
        rates.append((max(since, row["reprice_at"]), row["reprice_usdc"]))
    return Tab(
        server_id=row["id"],
        since=since,
        owed=row["remainder"],
        month_s=row["month_s"],
        capped_s=now_costs["capped_s"],
        rates=tuple(rates),
        reserve_usdc=reserve_usdc,
        renews=bool(row["auto_renew"]),
    )


def ends(tabs: Sequence[Tab], available_usdc: int, until: int) -> dict[str, int]:
    """The last second that is paid for, of each server; `until` for those whose money lasts as long or longer."""
    found = {
        tab.server_id: _last(tab.since, until, lambda at, tab=tab: tab.lacks_usdc(at) == 0)  # type: ignore[misc]  # a default binds the loop's variable
        for tab in tabs
        if not tab.renews
    }
    sharing = [tab for tab in tabs if tab.renews]
    left_usdc = available_usdc
    while sharing:
        since = min(tab.since for tab in sharing)
        end = _last(since, until, lambda at: sum(tab.lacks_usdc(at) for tab in sharing) <= left_usdc)  # noqa: B023 - used at once
        over = [tab for tab in sharing if end < until and tab.lacks_usdc(end + 1) > tab.lacks_usdc(end)]
        found.update((tab.server_id, end) for tab in (over or sharing))
        left_usdc -= sum(tab.lacks_usdc(end) for tab in over)
        sharing = [tab for tab in sharing if tab not in over] if over else []
    return found


def _last(since: int, until: int, is_paid: Callable[[int], bool]) -> int:
    """The last second from `since` to `until` that is paid for, knowing that once one is not, none after it is."""
    if until <= since or is_paid(until):
        return max(since, until)
    return bisect_left(range(since, until), True, key=lambda at: not is_paid(at + 1)) + since


class Runways(Part):
    """Every wallet's money beside its servers."""

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._thresholds_s = thresholds_s(world.settings.warnings)
        self._servers: dict[str, Row] = {}
        self._metered: dict[str, dict[str, None]] = {}
        self._accounts: dict[str, Row] = {}
        self._told: dict[str, list[str | None]] = {}
        self._unclear: dict[str, None] = {}
        self._latest_s = 0

    def stepped(self) -> None:
        self._latest_s = max(self._latest_s, self.world.clock.now_s())

    def restored(self) -> None:
        self._servers.clear()
        self._metered.clear()
        self._accounts = {row["id"]: row for row in self.world.rows(ACCOUNTS)}
        for row in self.world.rows(SERVERS):
            self._note(row)

    def committed(self, changes: Changes) -> None:
        """Settle once more what was settled, then look whether what is due is due in time."""
        self.stepped()
        servers, accounts = changes.of("server"), changes.of("account")
        touched: dict[str, None] = {}
        settled: dict[str, None] = {}
        for server_id, row in servers.items():
            if row is not None:
                touched[row["wallet"]] = None
                known = self._servers.get(server_id, row)
                if any(known[field] != row[field] for field in ("charged_until", "exhausted_at")):
                    settled[row["wallet"]] = None
        for wallet in settled:
            self._check_settled(wallet, changes)
        for row in servers.values():
            if row is not None:
                self._note(row)
        for account, row in accounts.items():
            if row is not None:
                self._accounts[account] = row
                owner = account[7:] if account.startswith("wallet:") else self._owner(account[4:])
                touched[owner] = None
        for wallet in touched:
            if self._metered.get(wallet):
                self._check_due(wallet)
        self._check_said(changes)

    def _note(self, row: Row) -> None:
        self._servers[row["id"]] = row
        metered = self._metered.setdefault(row["wallet"], {})
        if row["charged_until"] is None:
            metered.pop(row["id"], None)
        else:
            metered[row["id"]] = None

    def _owner(self, server_id: str) -> str:
        row = self._servers.get(server_id)
        return "" if row is None else str(row["wallet"])

    def _standing(self, wallet: str) -> tuple[list[Tab], int]:
        """Its metered servers and what it has available, by the rows as last seen."""
        tabs = [
            tab_of(self._servers[server_id], self._accounts[f"srv:{server_id}"]["balance"])
            for server_id in self._metered.get(wallet, ())
        ]
        account = self._accounts.get(f"wallet:{wallet}")
        return tabs, 0 if account is None else account["balance"] - account["held"]

    # --- what was charged -----------------------------------------------------------------------------------------

    def _check_settled(self, wallet: str, changes: Changes) -> None:
        """Nobody was charged beyond the money, and nobody is said to have ended before it."""
        tabs, available_usdc = self._standing(wallet)
        rows = changes.of("server")
        mine = {tab.server_id for tab in tabs}
        flow = _flow(wallet, mine, changes.transfers)
        if flow is None:
            return
        tabs = [_with(tab, flow.get(f"srv:{tab.server_id}", 0)) for tab in tabs]
        added_usdc = flow.get(f"wallet:{wallet}", 0)
        now = max((event["at"] for event in changes.events if _is_of_now(event, wallet)), default=0)
        after = {server_id: rows[server_id] for server_id in mine if rows.get(server_id) is not None}
        now = max([now, *(row["charged_until"] or 0 for row in after.values() if row)])
        if not now:
            return
        account = changes.of("account").get(f"wallet:{wallet}")
        held_usdc = self._held(wallet)
        options = [available_usdc + added_usdc]
        if account is not None and account["held"] != held_usdc:
            options.append(available_usdc + added_usdc + held_usdc - account["held"])
        problems = [self._problem(tabs, option, now, after) for option in options if option >= 0]
        if problems and all(problems):
            self._wrong(f"{problems[0]} (of {wallet}, with {options[0]} available)", "books")

    def _held(self, wallet: str) -> int:
        account = self._accounts.get(f"wallet:{wallet}")
        return 0 if account is None else int(account["held"])

    def _problem(
        self, tabs: Sequence[Tab], available_usdc: int, now: int, after: dict[str, Row | None]
    ) -> str | None:
        found = ends(tabs, available_usdc, now + 1)
        for tab in tabs:
            row, end = after.get(tab.server_id), found[tab.server_id]
            if row is None:
                continue
            until, exhausted_at = row["charged_until"], row["exhausted_at"]
            if until is not None and until > end:
                return f"{tab.server_id} is charged up to {until}, and its money ended at {end}"
            was = self._servers[tab.server_id]["exhausted_at"]
            if exhausted_at is not None and was is None and exhausted_at != end:
                return f"{tab.server_id} is said to have ended at {exhausted_at}, and its money lasts until {end}"
        return None

    # --- what is due ----------------------------------------------------------------------------------------------

    def _check_due(self, wallet: str) -> None:
        """Whoever is not due before long has a money that lasts until then, and what is to be told is told by then."""
        tabs, available_usdc = self._standing(wallet)
        rows = [self._servers[tab.server_id] for tab in tabs]
        ahead = [(tab, row) for tab, row in zip(tabs, rows, strict=True) if row["due_at"] > self._latest_s]
        if not ahead:
            return
        until = max(row["due_at"] for _, row in ahead) - 1
        found = ends([_at_one_price(tab) for tab in tabs], available_usdc, until)
        for tab, row in ahead:
            due_at, end = row["due_at"], found[tab.server_id]
            if row["exhausted_at"] is not None:
                self._check_last_hours(row)
            elif end < min(due_at - 1, until):
                self._wrong(f"{row['id']} is looked at again at {due_at}, and its money ends at {end}")
            elif row["reprice_at"] is not None and max(row["reprice_at"], tab.since) < due_at:
                self._wrong(
                    f"{row['id']} is looked at again at {due_at}, its price changes at {row['reprice_at']}"
                )
            elif not tab.renews:
                self._check_next_warning(tab, row)

    def _check_next_warning(self, tab: Tab, row: Row) -> None:
        """A runway that only its own reserve makes falls to the next threshold no sooner than it is looked at."""
        warned_s = row["warned_s"]
        left = [threshold for threshold in self._thresholds_s if warned_s is None or threshold < warned_s]
        if left and _at_one_price(tab).lacks_usdc(row["due_at"] + left[0] - 1):
            self._wrong(f"{row['id']} falls to {left[0]} seconds before it is looked at, at {row['due_at']}")

    def _check_last_hours(self, row: Row) -> None:
        """A server without money is looked at when it may end: after its grace, and long enough after its warning."""
        told_at = row["last_warned_at"]
        if told_at is None:
            self._wrong(f"{row['id']} has no money, and was not warned")
        may_end_at = max(
            row["exhausted_at"] + 1 + self.world.settings.grace_s, told_at + self._thresholds_s[-1]
        )
        if row["due_at"] > may_end_at:
            self._wrong(f"{row['id']} may end at {may_end_at}, and is looked at at {row['due_at']}")

    # --- what is said ---------------------------------------------------------------------------------------------

    def _check_said(self, changes: Changes) -> None:
        """An answer that was fixed in this commit, in which nothing else became of its wallet, shows the true end."""
        calls = [row for row in changes.of("reservation").values() if row is not None]
        shown = [row for row in calls if row["state"] == "done" and _EXPIRES in (row["answer"] or b"")]
        deeds = deeds_of(changes) if shown else {}
        for row in shown:
            server = json.loads(row["answer"])["body"]["server"]
            if deeds[row["wallet"]] > 1:
                # Which of them came first nobody can tell.
                self._unclear[_without_secret(server)] = None
                continue
            now = self.world.clock.now_s()
            tabs, available_usdc = self._standing(row["wallet"])
            found = ends([_at_one_price(tab) for tab in tabs], available_usdc, now + HORIZON_S)
            soon = {server_id: end for server_id, end in found.items() if end < now + HORIZON_S}
            said = server["deposit_expires_at"]
            at = None if said is None else int(datetime.fromisoformat(said).timestamp())
            if at != soon.get(server["id"]):
                self._wrong(
                    f"{server['id']} is said to end at {at}, and it does at {soon.get(server['id'])}",
                    "answers",
                )
            runway = None if not soon else str(max(0, min(soon.values()) - now))
            # Two calls of one second may show the same server, and different runways.
            self._told.setdefault(_without_secret(server), []).append(runway)
            while len(self._unclear) > TOLD_MAX:
                self._unclear.pop(next(iter(self._unclear)))
            while len(self._told) > TOLD_MAX:
                self._told.pop(next(iter(self._told)))

    def answered(self, request: Request, answer: Answer) -> None:
        """`Spawn-Runway` is the time to the first of the wallet's ends, as it was when the answer was fixed."""
        is_server = answer.status == 200 and request.path.startswith("/v1/servers/")
        if not is_server or _EXPIRES not in answer.body or "idempotent-replayed" in answer.headers:
            return
        server = _without_secret(answer.json()["server"])
        said = answer.headers.get("spawn-runway")
        if server not in self._unclear and not self._is_told(server, said, answer):
            self._wrong(
                f"{server} is shown with a runway of {said} seconds, and it has {self._told[server]}",
                "answers",
            )

    def _is_told(self, server: str, said: str | None, answer: Answer) -> bool:
        """Whether this is the runway by the second in which it was reckoned: that of the commit, or since the call
        was made where a transaction rests among others and is repeated."""
        told = self._told.get(server, [said])
        if said in told or said is None or not self.world.books.has_replicas:
            return said in told
        rested_s = (self.world.true_ms() - answer.asked_ms) // 1000 + 1
        may = self.world.climate.clock_steps
        return any(one is not None and (may or 0 <= int(said) - int(one) <= rested_s) for one in told)

    def _wrong(self, text: str, promise: str = "unwarned") -> NoReturn:
        self.world.violation(promise, text)


def _flow(wallet: str, servers: Iterable[str], transfers: Iterable[Row]) -> dict[str, int] | None:
    """What came to each account before the burning began; None where money moved between two burnings as well."""
    accounts = {f"wallet:{wallet}", *(f"srv:{server_id}" for server_id in servers)}
    flow: dict[str, int] = {}
    burning = over = False
    for transfer in transfers:
        is_burn = transfer["code"] == "burn"
        if transfer["debit"] not in accounts and transfer["credit"] not in accounts:
            continue
        if is_burn and over:
            return None
        over = over or (burning and not is_burn)
        burning = burning or is_burn
        if not burning:
            for side, sign in (("debit", -1), ("credit", 1)):
                flow[transfer[side]] = flow.get(transfer[side], 0) + sign * transfer["amount"]
    return flow


def _with(tab: Tab, added_usdc: int) -> Tab:
    return tab if not added_usdc else replace(tab, reserve_usdc=tab.reserve_usdc + added_usdc)


def _at_one_price(tab: Tab) -> Tab:
    """What is said and planned goes by the price of today: at the other's beginning it is looked at again."""
    return tab if len(tab.rates) == 1 else replace(tab, rates=tab.rates[:1])


def _without_secret(server: dict[str, Any]) -> str:
    """What is shown of a server, to be found again: the stored answer never has the password."""
    return json.dumps({**server, "root_password": None})


def _is_of_now(event: Row, wallet: str) -> bool:
    type: str = event["type"]
    return bool(event["wallet"] == wallet) and type.startswith(_ALL_EVENTS_OF_NOW)


PARTS: Final = (Runways,)
