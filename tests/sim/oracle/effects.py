"""What happened is told, and what is told happened (docs/events.md, docs/adr/0022).

Invariant: in each commit the events about a thing are exactly those that the change of its row, or the movement of
money, asks for. A commit may hold several transactions: then what is told must lead, step by step, from the row before
to the row after.
"""

import json
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NoReturn

from tests.sim.oracle.part import Changes, Part, Row

if TYPE_CHECKING:
    from tests.sim.world import World

_STATUS: Final = {
    "server.running": "running",
    "server.off": "off",
    "server.destroying": "destroying",
    "server.destroyed": "destroyed",
    "server.failed": "failed",
}
_OF_OTHER_ROWS: Final = ("server.rebuilt", "server.ready")
"""What happened to the server's operation, or to its boot (`oracle.boots`)."""
_ON_THE_WAY: Final = frozenset({"initializing", "stopping", "rebuilding", "migrating", "unknown"})
"""States that no event tells of."""
_TABLES: Final = ("server", "operation", "account", "ssh_key", "webhook", "arrival")

Told = dict[str, Any]


class Effects(Part):
    """Compares the events of each commit with what it did."""

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._rows: dict[str, dict[str, Row]] = {table: {} for table in _TABLES}

    def restored(self) -> None:
        for table in _TABLES:
            rows = self.world.rows(f"SELECT * FROM {table}")
            self._rows[table] = {row["id"]: row for row in rows}

    def committed(self, changes: Changes) -> None:
        events = [_read(event) for event in changes.events]
        about: dict[str, list[Told]] = {}
        for event in events:
            about.setdefault(event["resource"], []).append(event)
        for server_id, row in changes.of("server").items():
            self._server(server_id, row, about.get(server_id, []), changes)
        self._no_other("server", changes, events, ("server.", "price."))
        self._operations(changes, events)
        self._money(changes, events)
        self._things(changes, about, events)
        for table in _TABLES:
            self._rows[table].update({k: row for k, row in changes.of(table).items() if row is not None})
            for key in [key for key, row in changes.of(table).items() if row is None]:
                self._rows[table].pop(key, None)

    # --- servers ---

    def _server(self, server_id: str, row: Row | None, told: list[Told], changes: Changes) -> None:
        before = self._rows["server"].get(server_id)
        if row is None:
            self._broken(f"{server_id} has been erased")
        for event in told:
            if event["wallet"] != row["wallet"] or event["data"].get("server", server_id) != server_id:
                self._broken(
                    f"{event['type']} of {server_id} is told to {event['wallet']} as {event['data']}"
                )
        created = [event for event in told if event["type"] == "server.created"]
        if len(created) != (before is None):
            self._broken(
                f"{server_id} is {'new' if before is None else 'known'}, and told as created {len(created)} times"
            )
        before = before or {**row, "status": "initializing", "exhausted_at": None, "reprice_at": None}
        self._status(before, row, told)
        self._facts(before, row, told)
        self._deposit(before, row, told)
        self._price(before, row, told)

    def _status(self, before: Row, row: Row, told: list[Told]) -> None:
        """The events form a way from one state to the other; only states that nobody is told of may be left out."""
        at = before["status"]
        for event in told:
            status = _STATUS.get(event["type"])
            if status is None:
                continue
            data = event["data"]
            if data["status"] != status or data["previous"] == status:
                self._broken(f"{event['type']} of {row['id']} says {data}")
            if data["previous"] != at and data["previous"] not in _ON_THE_WAY:
                self._broken(f"{row['id']} was {at}, and is told to have left {data['previous']}")
            at = status
        if row["status"] != at and row["status"] not in _ON_THE_WAY:
            self._broken(f"{row['id']} was {at} and is {row['status']}, and nobody was told")
        last = [event["data"] for event in told if event["type"] in _STATUS][-1:]
        if last and last[0]["status"] == row["status"] and last[0]["reason"] != row["reason"]:
            self._broken(
                f"{row['id']} is {row['status']} for {row['reason']}, and told for {last[0]['reason']}"
            )

    def _facts(self, before: Row, row: Row, told: list[Told]) -> None:
        """Type, name and renewal."""
        resized = [event["data"]["type"] for event in told if event["type"] == "server.resized"]
        if (resized[-1] if resized else before["type"]) != row["type"]:
            self._broken(
                f"{row['id']} was a {before['type']} and is a {row['type']}, and told to be {resized}"
            )
        # An order whose end a restore has seen before it tells the price that it was made at.
        again = before["priced_at"] != row["priced_at"]
        if resized and before["type"] == row["type"] and len(resized) == 1 and not again:
            self._broken(f"{row['id']} is told to be resized, and is a {row['type']} as before")
        updated = [event["data"]["name"] for event in told if event["type"] == "server.updated"]
        if (updated[-1] if updated else before["name"]) != row["name"]:
            self._broken(f"{row['id']} was {before['name']} and is {row['name']}, and told to be {updated}")
        if before["auto_renew"] != row["auto_renew"] and not updated:
            self._broken(f"nobody was told that {row['id']} renews: {row['auto_renew']}")

    def _deposit(self, before: Row, row: Row, told: list[Told]) -> None:
        """Its money ends and comes back by turns."""
        is_out = before["exhausted_at"] is not None
        for event in told:
            if event["type"] in {"deposit.exhausted", "deposit.restored"}:
                if (event["type"] == "deposit.exhausted") == is_out:
                    self._broken(f"{event['type']} of {row['id']} is told where it is so already")
                is_out = not is_out
        if is_out != (row["exhausted_at"] is not None):
            self._broken(
                f"{row['id']}'s money ended at {row['exhausted_at']}, before {before['exhausted_at']}: untold"
            )

    def _price(self, before: Row, row: Row, told: list[Told]) -> None:
        announced = [event["data"] for event in told if event["type"] == "price.announced"]
        changed = [event["data"] for event in told if event["type"] == "price.changed"]
        was, is_ = (
            (before["reprice_at"], before.get("reprice_usdc")),
            (row["reprice_at"], row["reprice_usdc"]),
        )
        if is_ not in {was, (None, None)} and not announced:
            self._broken(f"{row['id']} will cost {row['reprice_usdc']} a day, and nobody was told")
        if is_ == (None, None) != was and not (announced or changed or before["type"] != row["type"]):
            self._broken(f"the price announced for {row['id']} is gone, and nobody was told")
        if row["daily_usdc"] != before["daily_usdc"] and row["type"] == before["type"] and not changed:
            self._broken(f"{row['id']} costs {row['daily_usdc']} a day now, and nobody was told")
        if changed and len(told) == 1 and _micro(changed[-1]["new_daily_burn"]) != row["daily_usdc"]:
            self._broken(f"{row['id']} costs {row['daily_usdc']} a day, and its owner was told {changed[-1]}")

    # --- operations ---

    def _operations(self, changes: Changes, events: list[Told]) -> None:
        told: Counter[tuple[str, str]] = Counter()
        for event in events:
            if event["type"].startswith("operation."):
                told[event["data"]["action"], event["type"]] += 1
        for action, row in changes.of("operation").items():
            before = self._rows["operation"].get(action)
            was = "running" if before is None else before["status"]
            if row is None or row["status"] == was:
                continue
            type_ = "operation.succeeded" if row["status"] == "success" else "operation.failed"
            if told.pop((action, type_), 0) != 1:
                self._broken(f"{row['command']} {action} is {row['status']}, and its owner was not told once")
            event = next(e for e in events if e["type"] == type_ and e["data"]["action"] == action)
            said = event["wallet"], event["resource"], event["data"]["command"], event["data"]["code"]
            if said != (row["wallet"], row["server_id"], row["command"], row["error_code"]):
                self._broken(f"{type_} of {action} says {said}")
        if told:
            self._broken(f"{sorted(told)} were told, and no operation ended")
        self._rebuilt(changes, events)

    def _rebuilt(self, changes: Changes, events: list[Told]) -> None:
        """A rebuild may leave the server's row as it was: the image is the same, and it was seen running before."""
        ended = Counter(
            row["server_id"]
            for action, row in changes.of("operation").items()
            if row is not None
            and row["status"] == "success"
            and row["command"] == "rebuild_server"
            and self._rows["operation"].get(action, {"status": ""})["status"] != "success"
        )
        told = Counter(event["resource"] for event in events if event["type"] == "server.rebuilt")
        if ended != told:
            self._broken(f"rebuilt are {dict(ended)}, and told to be {dict(told)}")

    # --- money ---

    def _money(self, changes: Changes, events: list[Told]) -> None:
        """What came in is told with amount and transaction; what an owner moves into a deposit is told, too."""
        moved: Counter[tuple[str, ...]] = Counter()
        posted = changes.of("hold")
        for t in changes.transfers:
            owner = t["credit"].removeprefix("wallet:")
            match t["code"]:
                case "topup":
                    moved["payment.settled", owner, t["reference"], str(t["amount"])] += 1
                case "claim":
                    moved["claim", owner, t["reference"], str(t["amount"])] += 1
                case "suspense":
                    moved["suspense.received", t["reference"], str(t["amount"])] += 1
                case "goodwill":
                    moved["credit.granted", owner, str(t["amount"])] += 1
                case "deposit" if t["id"] not in posted:
                    moved["deposit.funded", t["credit"].removeprefix("srv:")] += 1
                case _:
                    pass  # nobody is told of each burn and fee: they are in the statement
        told = Counter(_money_told(events))
        # What waited in suspense and is found to be a call's payment is told as that.
        for key in [key for key in moved if key[0] == "claim"]:
            for type_ in ("payment.settled", "suspense.claimed"):
                while moved[key] and told[type_, *key[1:]] > moved[type_, *key[1:]]:
                    moved[key] -= 1
                    told[type_, *key[1:]] -= 1
        if +moved != +told:
            self._broken(f"moved were {dict(+moved - +told)}, and told {dict(+told - +moved)}")

    # --- what else owners have ---

    def _things(self, changes: Changes, about: dict[str, list[Told]], events: list[Told]) -> None:
        wanted: Counter[tuple[str, str]] = Counter()
        for key, row in changes.of("ssh_key").items():
            before = self._rows["ssh_key"].get(key)
            if (row is None) != (before is None):
                wanted["ssh_key.added" if row is not None else "ssh_key.removed", key] += 1
        told = Counter((e["type"], e["resource"]) for e in events if e["type"].startswith("ssh_key."))
        # Added and removed in one commit leaves no row.
        for key in {key for _, key in told}:
            if (
                told["ssh_key.added", key]
                and told["ssh_key.removed", key]
                and changes.of("ssh_key").get(key) is None
            ):
                del told["ssh_key.added", key], told["ssh_key.removed", key]
        if wanted != told:
            self._broken(f"keys changed {dict(wanted)}, and told {dict(told)}")
        self._webhooks(changes, about)
        self._bars(changes, about)

    def _webhooks(self, changes: Changes, about: dict[str, list[Told]]) -> None:
        for webhook, row in changes.of("webhook").items():
            before = self._rows["webhook"].get(webhook)
            given_up = (
                row is not None and row["disabled_reason"] in {"failing", "gone"} and not row["enabled"]
            )
            is_new = given_up and (before is None or before["enabled"])
            told = [e["data"]["reason"] for e in about.get(webhook, []) if e["type"] == "webhook.disabled"]
            if is_new and row is not None and told[-1:] != [row["disabled_reason"]]:
                self._broken(f"{webhook} is disabled as {row['disabled_reason']}, and told {told}")
        for resource, events in about.items():
            if (
                any(e["type"] == "webhook.disabled" for e in events)
                and changes.of("webhook").get(resource) is None
            ):
                self._broken(f"{resource} is told to be disabled, and is as it was")

    def _bars(self, changes: Changes, about: dict[str, list[Told]]) -> None:
        for account, row in changes.of("account").items():
            before = self._rows["account"].get(account)
            wallet = account.removeprefix("wallet:")
            told = [e for e in about.get(wallet, []) if e["type"] in {"wallet.suspended", "wallet.restored"}]
            was = None if before is None else before["barred"]
            is_ = None if row is None else row["barred"]
            last = told[-1]["data"]["kind"] if told else was or "restored"
            if last != (is_ or "restored"):
                self._broken(f"{wallet} was {was} and is {is_}, and told to be {last}")

    def _no_other(self, table: str, changes: Changes, events: list[Told], families: tuple[str, ...]) -> None:
        for event in events:
            is_about_a_row = event["type"].startswith(families) and event["type"] not in _OF_OTHER_ROWS
            if is_about_a_row and event["resource"] not in changes.of(table):
                self._broken(f"{event['type']} of {event['resource']} was told, and nothing happened to it")

    def _broken(self, text: str) -> NoReturn:
        self.world.violation("unwarned", text)


def _money_told(events: list[Told]) -> Iterator[tuple[str, ...]]:
    for event in events:
        type_, data, resource = event["type"], event["data"], event["resource"]
        match type_:
            case "payment.settled" | "suspense.claimed":
                yield type_, event["wallet"], resource, str(_micro(data["amount"]))
            case "suspense.received":
                yield type_, resource, str(_micro(data["amount"]))
            case "credit.granted":
                yield type_, event["wallet"], str(_micro(data["amount"]))
            case "deposit.funded":
                yield type_, resource
            case _:
                pass


def _read(event: Row) -> Told:
    return {**event, "data": json.loads(event["data"])}


def _micro(text: str) -> int:
    whole, _, part = text.partition(".")
    return int(whole) * 1_000_000 + int(part.ljust(6, "0"))
