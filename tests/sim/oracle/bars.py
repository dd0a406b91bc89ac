"""What the operator did to wallets: nobody who is barred has an effect that a barred wallet may not have.

Invariants: from the commit of a bar on, a suspended wallet reads, destroys, pays in and claims; a blocked one reads and
destroys, and no payment of it is begun. Its running servers are ordered off in that commit, and its owner is told. What
the operator gives is in the books once for each id, to the wallet and with the amount that were ordered.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.sim.oracle.part import Changes, Part, Row

if TYPE_CHECKING:
    from tests.sim.world import World

_WALLET: Final = "wallet:"
_OWNERS_OWN: Final = ("name", "auto_renew")
"""What only its owner changes of a server."""
_WEBHOOKS_OWN: Final = ("url", "types", "description")
_DELETED: Final = "deleted"

Given = tuple[str, int]


@dataclass(kw_only=True)
class Ordered:
    """What the operator has ordered, by id; `heard` once it was told that it is done."""

    wallet: str
    usdc: int
    heard: bool = False


class Bars(Part):
    """Barred wallets, and the operator's gifts."""

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self.ordered: dict[str, Ordered] = {}
        """The credits that the operator sent; the operator writes it, and repeats what was lost with the books."""
        self.barred: dict[str, str] = {}
        self._given: dict[str, Given] = {}
        self._known: dict[str, dict[str, Row]] = {}
        """Rows of the tables whose owners write them, as they were after the commit before this one."""
        self._calls: dict[str, None] = {}
        self._notes: dict[str, int] = {}
        """How often the operator had barred each of the barred by the last look."""
        self.restored()

    # --- after each commit ------------------------------------------------------------------------------------

    def committed(self, changes: Changes) -> None:
        before, self.barred = self.barred, self._barred_now(changes)
        if before is not self.barred:
            self._check_bars(before, changes)
        # Within one commit nobody knows what came first.
        barred = {wallet: bar for wallet, bar in before.items() if self.barred.get(wallet) == bar}
        if barred:
            self._check_effects(barred, changes)
            # A bar that the operator repeats powers off what had stayed on.
            for row in changes.of("operation").values():
                if row is not None and row["wallet"] in barred:
                    self._notes[row["wallet"]] = self._count_notes(row["wallet"])
        self._remember(changes)
        for transfer in changes.transfers:
            if transfer["code"] == "goodwill":
                self._check_gift(transfer)

    def _barred_now(self, changes: Changes) -> dict[str, str]:
        now = self.barred
        for account, row in changes.of("account").items():
            bar = None if row is None else row["barred"]
            wallet = account.removeprefix(_WALLET)
            if bar != now.get(wallet):
                now = {known: was for known, was in now.items() if known != wallet}
                if bar is not None:
                    now[wallet] = bar
        return now

    def _remember(self, changes: Changes) -> None:
        for table, known in self._known.items():
            for key, row in changes.of(table).items():
                if row is None:
                    known.pop(key, None)
                else:
                    known[key] = row
        for key, row in changes.of("reservation").items():
            if row is not None:
                self._calls[key] = None

    # --- a bar --------------------------------------------------------------------------------------------------

    def _check_bars(self, before: dict[str, str], changes: Changes) -> None:
        told = {
            (event["wallet"], event["type"])
            for event in changes.events
            if event["type"].startswith("wallet.")
        }
        for wallet in sorted({**before, **self.barred}):
            was, now = before.get(wallet), self.barred.get(wallet)
            if was == now:
                continue
            if (wallet, "wallet.restored" if now is None else "wallet.suspended") not in told:
                self.world.violation("unwarned", f"{wallet} was {was}, is {now}, and nobody told it")
            if now is not None:
                self._check_powered_off(wallet, changes)
                self._notes[wallet] = self._count_notes(wallet)

    def _check_powered_off(self, wallet: str, changes: Changes) -> None:
        """Whatever was under way on a server when the bar came is left alone, also if it ended in the same commit."""
        busy = {row["server_id"] for row in changes.of("operation").values() if row is not None}
        on = self.world.rows(
            "SELECT id FROM server WHERE wallet = :wallet AND status = 'running' AND ended_at IS NULL AND NOT EXISTS "
            "(SELECT 1 FROM operation WHERE operation.server_id = server.id AND operation.status = 'running')",
            wallet=wallet,
        )
        for server in on:
            if server["id"] not in busy:
                self.world.violation(
                    "foreign", f"{wallet} was barred, and {server['id']} is not even ordered off"
                )

    # --- what the barred do -------------------------------------------------------------------------------------

    def _check_effects(self, barred: dict[str, str], changes: Changes) -> None:
        for table, check in (
            ("server", self._check_server),
            ("operation", self._check_operation),
            ("ssh_key", self._check_key),
            ("webhook", self._check_webhook),
        ):
            known = self._known[table]
            for key, row in changes.of(table).items():
                was = known.get(key)
                owner = (row or was or {}).get("wallet")
                if owner in barred:
                    check(owner, was, row)
        for key, row in changes.of("reservation").items():
            if row is None or key in self._calls or barred.get(row["wallet"]) != "blocked":
                continue
            if row["rail"] == "x402":
                self._wrong(row["wallet"], f"is blocked, and a payment of it was begun: {key}")
        for transfer in changes.transfers:
            self._check_transfer(barred, transfer, changes)

    def _check_server(self, wallet: str, was: Row | None, row: Row | None) -> None:
        if was is None:
            self._wrong(wallet, f"is barred, and rents {row and row['id']}")
        elif row is not None and any(row[name] != was[name] for name in _OWNERS_OWN):
            self._wrong(wallet, f"is barred, and changed {row['id']}")

    def _check_operation(self, wallet: str, was: Row | None, row: Row | None) -> None:
        if was is not None or row is None or row["command"] == "destroy_server":
            return
        if row["command"] != "poweroff_server" or self._notes.get(wallet, 0) == self._count_notes(wallet):
            self._wrong(wallet, f"is barred, and {row['command']} runs on {row['server_id']}")

    def _count_notes(self, wallet: str) -> int:
        (row,) = self.world.rows(
            "SELECT COUNT(*) AS n FROM wallet_note WHERE wallet = :wallet AND kind IN ('suspend', 'block')",
            wallet=wallet,
        )
        return int(row["n"])

    def _check_key(self, wallet: str, was: Row | None, row: Row | None) -> None:
        if was is None or row is None:
            self._wrong(wallet, "is barred, and changed its SSH keys")

    def _check_webhook(self, wallet: str, was: Row | None, row: Row | None) -> None:
        if was is None:
            self._wrong(wallet, "is barred, and registered a webhook")
        elif row is not None and row["disabled_reason"] == _DELETED:
            if was["disabled_reason"] != _DELETED:
                self._wrong(wallet, f"is barred, and deleted {row['id']}")
        elif row is not None and (
            any(row[name] != was[name] for name in _WEBHOOKS_OWN) or row["enabled"] > was["enabled"]
        ):
            self._wrong(wallet, f"is barred, and changed {row['id']}")

    def _check_transfer(self, barred: dict[str, str], transfer: Row, changes: Changes) -> None:
        payer = transfer["debit"].removeprefix(_WALLET)
        if payer in barred and transfer["code"] == "deposit" and transfer["reference"].startswith("srv_"):
            self._wrong(payer, f"is barred, and raised the deposit of {transfer['reference']}")
        payee = transfer["credit"].removeprefix(_WALLET)
        if transfer["code"] == "claim" and barred.get(payee) == "blocked":
            arrival = changes.of("arrival").get(transfer["id"].removeprefix("claim|"))
            # The payment of a call from before the bar may have come by a stranger, and be taken from there.
            if arrival is None or arrival["nonce_key"] not in self._calls:
                self._wrong(payee, f"is blocked, and claimed {transfer['id']}")

    # --- gifts --------------------------------------------------------------------------------------------------

    def _check_gift(self, transfer: Row) -> None:
        name = transfer["id"].removeprefix("goodwill|")
        given = (transfer["credit"].removeprefix(_WALLET), transfer["amount"])
        ordered = self.ordered.get(name)
        if name in self._given:
            self.world.violation("books", f"the credit {name} was given twice")
        if ordered is None or (ordered.wallet, ordered.usdc) != given:
            self.world.violation("books", f"{transfer['id']} gives {given}, and {ordered} was ordered")
        self._given[name] = given

    def unsettled(self) -> list[str]:
        return [
            f"the credit {name} is on its way" for name, ordered in self.ordered.items() if not ordered.heard
        ]

    def at_rest(self) -> None:
        for name, ordered in self.ordered.items():
            if self._given.get(name) != (ordered.wallet, ordered.usdc):
                self.world.violation(
                    "books", f"the credit {name} was said to be given: {self._given.get(name)}"
                )

    def restored(self) -> None:
        """What was given and who was barred since the backup is forgotten by the books: the rows say what is left."""
        self.barred = {
            row["id"].removeprefix(_WALLET): row["barred"]
            for row in self.world.rows("SELECT id, barred FROM account WHERE barred IS NOT NULL ORDER BY id")
        }
        self._given = {
            row["id"].removeprefix("goodwill|"): (row["credit"].removeprefix(_WALLET), row["amount"])
            for row in self.world.rows(
                "SELECT id, credit, amount FROM transfer WHERE code = 'goodwill' ORDER BY seq"
            )
        }
        self._known = {
            table: {row["id"]: row for row in self.world.rows(f"SELECT * FROM {table}")}
            for table in ("server", "operation", "ssh_key", "webhook")
        }
        self._calls = {row["id"]: None for row in self.world.rows("SELECT id FROM reservation ORDER BY id")}
        self._notes = {wallet: self._count_notes(wallet) for wallet in self.barred}
        for name, ordered in self.ordered.items():
            ordered.heard = ordered.heard and name in self._given

    def _wrong(self, wallet: str, text: str) -> None:
        self.world.violation("foreign", f"{wallet} {text}")
