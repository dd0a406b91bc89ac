"""What may be charged for what servers send: the price of a TB beyond the included, once, however it is read.

Followed from the counters that the cloud really showed and the rows that the service keeps of them; what is added up
and priced is done here again, in fractions. Invariants: no more is counted than was sent; what is included in a month
is free; what was asked for is paid or owed, and what is owed comes before all else that the server's own money could
pay.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, Final, NoReturn

from tests.sim.oracle.part import Changes, Part, Row

if TYPE_CHECKING:
    from tests.sim.world import World

TB: Final = 2**40
INCLUDED: Final = 20 * TB
LISTED_USDC: Final = 1_200_000
EUROPE: Final = frozenset({"nbg1", "fsn1", "hel1"})
"""Where traffic has a price: a euro a TB is what the provider asks (DESIGN section 9, the provider's list)."""

SERVERS: Final = "SELECT * FROM server"
TRAFFIC: Final = "SELECT * FROM traffic"


@dataclass
class Tab:
    """One server's traffic: what was asked for it in its life, of that paid, and what was counted."""

    asked_usdc: Fraction = Fraction(0)
    paid_usdc: int = 0
    counted: int = 0


class Overage(Part):
    """Every server's traffic."""

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._servers: dict[str, Row] = {}
        self._rows: dict[str, Row] = {}
        self._reserves: dict[str, int] = {}
        self._tabs: dict[str, Tab] = {}
        cost = ceil(1_000_000 * Fraction(world.settings.eur_price))
        floor = ceil(Fraction(cost * world.settings.price_floor_percent, 100_000)) * 1_000
        self._tb_usdc = max(LISTED_USDC, floor)

    def restored(self) -> None:
        """Begin anew from the rows: what was lost with the database was never asked for."""
        self._servers = {row["id"]: row for row in self.world.rows(SERVERS)}
        self._rows = {row["server_id"]: row for row in self.world.rows(TRAFFIC)}
        self._reserves = {
            row["id"][4:]: row["balance"]
            for row in self.world.rows("SELECT id, balance FROM account WHERE id LIKE 'srv:%'")
        }
        self._tabs = {}
        for server_id, row in self._rows.items():
            owed = self._servers[server_id]["traffic_owed_usdc"]
            self._tabs[server_id] = Tab(
                asked_usdc=row["charged_usdc"] + owed + Fraction(row["remainder"], TB),
                paid_usdc=row["charged_usdc"],
            )

    def committed(self, changes: Changes) -> None:
        """Count what was read, then hold what was taken against what was asked."""
        for server_id, row in changes.of("traffic").items():
            if row is None:
                self._wrong(f"{server_id} had traffic, and its row is gone")
            server = self._servers.get(server_id)
            if server is None or server["provider_ref"] is None:
                # Its machine was accepted, and then looked at, in one commit.
                server = changes.of("server").get(server_id)
            if server is None:
                self._wrong(f"{server_id} has traffic, and is no server")
            self._read(server, self._rows.get(server_id), row)
            self._rows[server_id] = row
        for transfer in changes.transfers:
            if transfer["code"] == "traffic" and transfer["credit"] == "rev:traffic":
                self._tab(transfer["reference"]).paid_usdc += transfer["amount"]
                self._check_payer(transfer, changes)
        self._check_order(changes)
        touched = [
            *changes.of("traffic"),
            *(t["reference"] for t in changes.transfers if t["code"] == "traffic"),
        ]
        for server_id, row in changes.of("server").items():
            if row is not None:
                self._servers[server_id] = row
                touched.append(server_id)
        for account, row in changes.of("account").items():
            if row is not None and account.startswith("srv:"):
                self._reserves[account[4:]] = row["balance"]
                touched.append(account[4:])
        for server_id in dict.fromkeys(touched):
            if server_id in self._servers:
                self._check(self._servers[server_id])

    def _tab(self, server_id: str) -> Tab:
        return self._tabs.setdefault(server_id, Tab())

    def _read(self, server: Row, old: Row | None, row: Row) -> None:
        """What a look at the machine added: what its counter grew by, or all of it where both began anew."""
        name, tab = row["server_id"], self._tab(row["server_id"])
        was = (0, 0) if old is None else (old["last_ingoing"], old["last_outgoing"])
        now = (row["last_ingoing"], row["last_outgoing"])
        same_month = old is not None and old["month"] == row["month"]
        counted, billed = (old["outgoing_bytes"], old["billed_bytes"]) if old and same_month else (0, 0)
        is_frozen = server["charged_until"] is None and server["status"] not in {
            "destroying",
            "destroyed",
            "failed",
        }
        if now != was and now not in self.world.cloud.senders.shown.get(server["provider_ref"], ()):
            self._wrong(f"{name} is said to have moved {now}, and no look has shown that")
        delta = 0
        if now != was and not is_frozen:
            anew = now[0] + now[1] < was[0] + was[1] and 2 * now[0] <= was[0] and 2 * now[1] <= was[1]
            delta = now[1] if anew else max(0, now[1] - was[1])
        tab.counted += delta
        sent = self.world.cloud.senders.sent.get(server["provider_ref"], 0)
        if tab.counted > sent:
            self._wrong(f"{name} is said to have sent {tab.counted}, and it sent {sent}")
        if row["outgoing_bytes"] != counted + delta:
            self._wrong(
                f"{name} sent {delta} after {counted} this month, and {row['outgoing_bytes']} is counted"
            )
        least = INCLUDED if server["location"] in EUROPE else 0
        if row["included_bytes"] != least:
            self._wrong(f"{name} may send {least} a month, and {row['included_bytes']} are free")
        beyond = max(billed, row["outgoing_bytes"] - least)
        if row["billed_bytes"] != beyond:
            self._wrong(f"{name} sent {beyond} beyond the included, and {row['billed_bytes']} are charged")
        if server["charged_until"] is not None:
            tab.asked_usdc += Fraction((beyond - billed) * (server["tb_usdc"] or 0), TB)

    def _check(self, server: Row) -> None:
        """What was asked for is paid or owed; a server that has ended owes nothing, and may not have paid all."""
        name, tab, owed = server["id"], self._tab(server["id"]), server["traffic_owed_usdc"]
        wanted = self._tb_usdc if server["location"] in EUROPE else None
        if server["tb_usdc"] != wanted:
            self._wrong(f"{name} pays {server['tb_usdc']} a TB, and it is sold for {wanted}")
        asked = int(tab.asked_usdc)
        if server["charged_until"] is not None and tab.paid_usdc + owed != asked:
            self._wrong(f"{name} is asked for {asked}, has paid {tab.paid_usdc} and owes {owed}")
        if server["charged_until"] is None and (owed or tab.paid_usdc > asked):
            self._wrong(f"{name} has ended, was asked for {asked}, has paid {tab.paid_usdc} and owes {owed}")
        if owed and self._reserves.get(name):
            self._wrong(f"{name} owes {owed} for its traffic, and has {self._reserves[name]} in its reserve")

    def _check_order(self, changes: Changes) -> None:
        """Nothing is burnt while something is owed: what was just read comes after what was burnt before it."""
        for transfer in changes.transfers:
            name = transfer["reference"]
            if transfer["code"] != "burn" or name in changes.of("traffic"):
                continue
            before, after = self._servers.get(name), changes.of("server").get(name)
            if before and after and before["traffic_owed_usdc"] and after["traffic_owed_usdc"]:
                self._wrong(
                    f"{transfer['id']} is paid for, and {after['traffic_owed_usdc']} is owed for traffic"
                )

    def _check_payer(self, transfer: Row, changes: Changes) -> None:
        """A wallet pays only for what it renews."""
        name = transfer["reference"]
        rows = [row for row in (self._servers.get(name), changes.of("server").get(name)) if row is not None]
        if transfer["debit"].startswith("wallet:") and not any(row["auto_renew"] for row in rows):
            self._wrong(f"{transfer['id']} takes from the wallet for a server that does not renew")

    def _wrong(self, text: str) -> NoReturn:
        self.world.violation("books", text)


PARTS: Final = (Overage,)
