"""Double entry, kept a second time: plain integers beside the service's books, compared after every commit.

Invariant: nothing here was written by whoever wrote the ledger. What a movement of money may be called, and between
whom it may go, is stated anew from DESIGN section 4 and the ledger's chart of accounts. `spawn`'s own verification is
asked at rest, as what is judged.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from spawn_ledger.verify import verify

from tests.sim.oracle.part import Changes, Part, Row

if TYPE_CHECKING:
    from tests.sim.world import World

CUSTOMERS: Final = ("wallet:", "srv:")
DAY: Final = 86_400
_TERMS: Final = ("debit", "credit", "amount", "code", "reference")
_SIDE: Final = ("debit", "credit")

TRANSFERS: Final = "SELECT seq, id, debit, credit, amount, code, reference, at FROM transfer ORDER BY seq"
ACCOUNTS: Final = "SELECT id, balance, held FROM account"
SUMS: Final = """
SELECT account, CAST(SUM(amount) AS BIGINT) AS total FROM (
  SELECT credit AS account, amount FROM transfer UNION ALL SELECT debit AS account, -amount AS amount FROM transfer
) AS leg GROUP BY account
"""
HOLDS: Final = "SELECT * FROM hold"
SERVERS: Final = "SELECT id, wallet FROM server"
RESERVATIONS: Final = "SELECT id, created_ms, fingerprint, fee, operation_id FROM reservation"


@dataclass(frozen=True)
class Way:
    """Between which kinds of account a movement may go, and what its name begins with.

    `names_reference`: what follows in the name is the movement's reference, alone or with a time behind it.
    """

    debit: str
    credit: str
    name: str
    names_reference: bool = True


WAYS: Final[dict[str, tuple[Way, ...]]] = {
    "topup": (Way("ext:usdc", "wallet:", "topup|", names_reference=False),),
    "suspense": (
        Way("ext:usdc", "suspense", "suspense|", names_reference=False),
        Way("ext:usdc", "suspense", "topup|", names_reference=False),
    ),
    "claim": (Way("suspense", "wallet:", "claim|", names_reference=False),),
    "goodwill": (Way("exp:goodwill", "wallet:", "goodwill|"),),
    "fee": (Way("wallet:", "rev:opfee", "fee|"),),
    "fee_refund": (Way("rev:opfee", "wallet:", "fee-refund|"),),
    "deposit": (Way("wallet:", "srv:", "deposit|", names_reference=False),),
    "deposit_refund": (
        Way("srv:", "wallet:", "refund|"),
        Way("srv:", "wallet:", "resize|", names_reference=False),
    ),
    "burn": (Way("srv:", "rev:compute", "burn|"), Way("wallet:", "rev:compute", "burn|")),
    "minimum": (Way("srv:", "rev:compute", "minimum|"),),
    "burn_refund": (Way("rev:compute", "wallet:", "burn-refund|"),),
    "cost": (
        Way("cost:provider", "owed:provider", "cost|"),
        Way("owed:provider", "cost:provider", "cost-refund|"),
    ),
    "overrun": (Way("exp:overrun", "owed:provider", "overrun|"),),
    "traffic": (
        Way("srv:", "rev:traffic", "traffic|"),
        Way("wallet:", "rev:traffic", "traffic|"),
        Way("cost:provider", "owed:provider", "traffic|"),
        Way("exp:overrun", "owed:provider", "traffic|"),
        Way("exp:overrun", "cost:provider", "traffic|"),
    ),
    "gas": (Way("cost:gas", "ext:gas", "gas|"),),
}
"""Why money moves, and so whence and whither."""


class Books(Part):
    """The mirror of every account, hold and fee."""

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        # Calls are forgotten after a day, and their fees are not: what was once known of them stays known.
        self._calls: dict[str, str] = {}
        self._fees_due: dict[str, int] = {}
        self._forget()

    def restored(self) -> None:
        """Begin anew from the rows: what was lost with the database was never booked."""
        self._forget()
        rows = self.world.rows
        self._owners.update((row["id"], row["wallet"]) for row in rows(SERVERS))
        for row in rows(RESERVATIONS):
            self._note_call(row)
        for transfer in rows(TRANSFERS):
            self._record(transfer)
        for row in rows(HOLDS):
            self._hold(row["id"], row)
        for row in rows(ACCOUNTS):
            self._rows[row["id"]] = row
            self._compare(row["id"])

    def _forget(self) -> None:
        self._transfers: dict[str, Row] = {}
        self._last_seq = 0
        self._balances: dict[str, int] = {}
        self._rows: dict[str, Row] = {}
        self._holds: dict[str, Row] = {}
        self._held: dict[str, int] = {}
        self._owners: dict[str, str] = {}
        self._fees: dict[str, str] = {}
        self._stretches: dict[tuple[str, str], tuple[int, int]] = {}

    def committed(self, changes: Changes) -> None:
        """Take over what the commit did, and compare what it touched."""
        for server_id, server in changes.of("server").items():
            if server is not None:
                self._owners[server_id] = server["wallet"]
        for row in changes.of("reservation").values():
            if row is not None:
                self._note_call(row)
        touched: dict[str, None] = {}
        for transfer in changes.transfers:
            self._record(transfer)
            touched[transfer["debit"]] = touched[transfer["credit"]] = None
        for hold_id, hold in changes.of("hold").items():
            touched[self._hold(hold_id, hold)] = None
            if hold is not None and hold["state"] == "posted" and hold["code"] == "deposit":
                self._check_moved(hold, changes)
        for account, row in changes.of("account").items():
            if row is None:
                self._wrong(f"{account} had a row, and it is gone")
            self._rows[account] = row
            touched[account] = None
        for account in touched:
            self._compare(account)
        for operation in changes.of("operation").values():
            if operation is not None and operation["status"] != "running":
                self._operation_over(operation)

    # --- movements ------------------------------------------------------------------------------------------------

    def _record(self, transfer: Row) -> None:
        """One more movement: new, later than all before it, and one that its code allows."""
        name, amount = transfer["id"], transfer["amount"]
        if name in self._transfers:
            self._wrong(f"{name} moved money twice")
        # Where several write at once a number may be committed after a higher one.
        if transfer["seq"] <= self._last_seq and not self.world.books.has_replicas:
            self._wrong(f"{name} has the number {transfer['seq']}, and {self._last_seq} was given before")
        if amount <= 0 or transfer["debit"] == transfer["credit"]:
            self._wrong(f"{name} moves {amount} from {transfer['debit']} to {transfer['credit']}")
        self._check_way(transfer)
        self._transfers[name] = transfer
        self._last_seq = transfer["seq"]
        self._balances[transfer["debit"]] = self._balances.get(transfer["debit"], 0) - amount
        self._balances[transfer["credit"]] = self._balances.get(transfer["credit"], 0) + amount
        if name.startswith(("burn|", "cost|")):
            self._check_stretch(transfer)
        elif name.startswith("fee|"):
            self._check_fee(transfer)

    def _check_way(self, transfer: Row) -> None:
        debit, credit, name = transfer["debit"], transfer["credit"], transfer["id"]
        for way in WAYS.get(transfer["code"], ()):
            whole = way.name + transfer["reference"] if way.names_reference else way.name
            if debit.startswith(way.debit) and credit.startswith(way.credit) and name.startswith(whole):
                break
        else:
            self._wrong(f"{name} is a {transfer['code']} from {debit} to {credit}, and none goes there")
        server = debit[4:] if debit.startswith("srv:") else credit[4:] if credit.startswith("srv:") else None
        is_metered = transfer["code"] in {"burn", "burn_refund", "traffic"}
        server = transfer["reference"] if server is None and is_metered else server
        for account in (debit, credit):
            if (
                server is not None
                and account.startswith("wallet:")
                and account[7:] != self._owners.get(server)
            ):
                self._wrong(f"{name} is between {server} and {account}, which does not own it")
        if is_metered and debit.startswith("srv:") and debit[4:] != transfer["reference"]:
            self._wrong(f"{name} takes from {debit} what {transfer['reference']} burnt or sent")

    def _check_stretch(self, transfer: Row) -> None:
        """A stretch of time is charged once, in order, and within one UTC month; two may pay for the same one."""
        name, code, server = transfer["id"], transfer["code"], transfer["reference"]
        texts = name.split("|")
        since, until = int(texts[2]), int(texts[3])
        if until != transfer["at"]:
            self._wrong(f"{name} is booked at {transfer['at']}, and not at its end")
        before = self._stretches.get((code, server))
        both_legs = code == "burn" and before == (since, until) and texts[4] == "wallet"
        if since >= until or (before is not None and since < before[1] and not both_legs):
            self._wrong(f"{name} charges time that was charged before, up to {before and before[1]}")
        if since // DAY != (until - 1) // DAY and _month(since) != _month(until - 1):
            self._wrong(f"{name} reaches from one month into another")
        self._stretches[code, server] = (since, until)

    # --- calls and their fees -------------------------------------------------------------------------------------

    def _note_call(self, row: Row) -> None:
        """A fee is called after its call, by time, request and nonce, or after the operation that the call ordered."""
        call: str = row["id"]
        self._calls[f"{row['created_ms']:011x}{row['fingerprint'][:8]}{call}"] = call
        if row["operation_id"] is not None:
            self._calls[row["operation_id"]] = call
        self._fees_due[call] = row["fee"]

    def _check_fee(self, transfer: Row) -> None:
        name = transfer["id"]
        call = self._calls.get(transfer["reference"])
        if call is None:
            self._wrong(f"{name} is the fee of no call")
        if call in self._fees:
            self._wrong(f"{name} is a second fee of one call, after {self._fees[call]}")
        if transfer["amount"] != self._fees_due[call]:
            self._wrong(f"{name} takes {transfer['amount']} for a call that costs {self._fees_due[call]}")
        self._fees[call] = name

    def _check_moved(self, hold: Row, changes: Changes) -> None:
        """What is set aside for a larger machine is moved when the machine is larger, or its server goes."""
        operation = changes.of("operation").get(hold["reference"])
        if operation is None or operation["command"] != "resize_server":
            return
        server = changes.of("server").get(operation["server_id"])
        resized = any(
            event["type"] == "server.resized" and event["resource"] == operation["server_id"]
            for event in changes.events
        )
        if not resized and (server is None or server["charged_until"] is not None):
            self._wrong(f"{hold['id']} was moved, and {operation['server_id']} has the size that it had")

    def _operation_over(self, operation: Row) -> None:
        """What was set aside for it is decided, and what failed by itself has cost nothing."""
        name, fee = operation["id"], self._transfers.get(f"fee|{operation['id']}")
        refund = self._transfers.get(f"fee-refund|{name}")
        for kind in ("fee", "deposit"):
            hold = self._holds.get(f"{kind}|{name}")
            if hold is not None and hold["state"] == "pending":
                self._wrong(f"{name} is over, and {hold['id']} is still set aside for it")
        failed = operation["status"] == "error"
        if fee is not None and failed and refund is None and operation["error_code"] != "superseded":
            self._wrong(f"{name} failed ({operation['error_code']}), and its fee was not given back")
        if refund is not None and (fee is None or not failed or refund["amount"] != fee["amount"]):
            self._wrong(f"{refund['id']} gives a fee back that is to be kept, or was never taken")

    # --- holds ----------------------------------------------------------------------------------------------------

    def _hold(self, hold_id: str, hold: Row | None) -> str:
        """Take over a hold; answers the account on which it lies. It is decided once, and never changes else."""
        before = self._holds.get(hold_id)
        if hold is None:
            self._wrong(f"hold {hold_id} is gone")
        if before is not None and any(before[term] != hold[term] for term in _TERMS):
            self._wrong(f"hold {hold_id} has become another: {before} is {hold}")
        if before is not None and before["state"] != "pending" and before["state"] != hold["state"]:
            self._wrong(f"hold {hold_id} was {before['state']}, and is {hold['state']}")
        transfer = self._transfers.get(hold_id)
        if (transfer is not None) != (hold["state"] == "posted"):
            self._wrong(f"hold {hold_id} is {hold['state']}, and its transfer is {transfer}")
        if transfer is not None and any(transfer[term] != hold[term] for term in _TERMS):
            self._wrong(f"hold {hold_id} became another movement: {transfer}")
        was_held = before is not None and before["state"] == "pending"
        change = ((hold["state"] == "pending") - was_held) * hold["amount"]
        debit: str = hold["debit"]
        self._held[debit] = self._held.get(debit, 0) + change
        self._holds[hold_id] = hold
        return debit

    # --- balances -------------------------------------------------------------------------------------------------

    def _compare(self, account: str) -> None:
        """A customer's row says what its movements and holds add up to; the operator's accounts have none."""
        row = self._rows.get(account)
        balance, held = self._balances.get(account, 0), self._held.get(account, 0)
        if not account.startswith(CUSTOMERS):
            if row is not None:
                self._wrong(f"{account} has a cached balance, and is no customer's")
            return
        if row is None:
            self._wrong(f"{account} has movements that add up to {balance}, and no row")
        if row["balance"] != balance:
            self._wrong(f"{account} shows {row['balance']}, and its movements add up to {balance}")
        if row["held"] != held:
            self._wrong(f"{account} shows {row['held']} held, and its pending holds add up to {held}")
        if balance < 0 or not 0 <= held <= balance:
            self._wrong(f"{account} has {balance}, and {held} of that is held")

    def at_rest(self) -> None:
        """Everything once more from zero, out of the database; then what the service says of its own books."""
        rows = self.world.rows
        stored = rows(TRANSFERS)
        stored_ids, seen = [row["id"] for row in stored], list(self._transfers)
        in_order = not self.world.books.has_replicas
        if stored_ids != seen and (in_order or sorted(stored_ids) != sorted(seen)):
            self._wrong("the movements in the database are not those that were committed one by one")
        for row in stored:
            if any(row[field] != self._transfers[row["id"]][field] for field in (*_TERMS, "at", "seq")):
                self._wrong(f"{row['id']} was changed afterwards: {self._transfers[row['id']]} is {row}")
        sums = {row["account"]: row["total"] for row in rows(SUMS)}
        if sum(sums.values()) != 0 or sums != self._balances:
            self._wrong(f"debits and credits are apart: {_difference(sums, self._balances)}")
        accounts = rows(ACCOUNTS)
        for row in accounts:
            self._rows[row["id"]] = row
            self._compare(row["id"])
        held = sum(row["amount"] for row in rows(HOLDS) if row["state"] == "pending")
        if held != sum(row["held"] for row in accounts):
            self._wrong(f"{held} is set aside in all, and the accounts show something else")
        for found in verify(_Reader(self.world)):
            self._wrong(
                f"the service's own verification disagrees with the oracle: {found.rule}: {found.sentence}"
            )

    def unsettled(self) -> list[str]:
        """Holds that nobody has decided."""
        return [
            f"{name} is still set aside" for name, hold in self._holds.items() if hold["state"] == "pending"
        ]

    def _wrong(self, text: str) -> NoReturn:
        self.world.violation("books", text)


class _Reader:
    """The committed rows, as the ledger's verification reads them."""

    def __init__(self, world: "World") -> None:
        self._world = world

    def execute(self, sql: str, params: Mapping[str, Any] = MappingProxyType({}), /) -> int:
        raise TypeError("a verification writes nothing")

    def one(self, sql: str, params: Mapping[str, Any] = MappingProxyType({}), /) -> Row | None:
        found = self._world.rows(sql, **params)
        return found[0] if found else None

    def all(self, sql: str, params: Mapping[str, Any] = MappingProxyType({}), /) -> list[Any]:
        return self._world.rows(sql, **params)


def _month(at: int) -> tuple[int, int]:
    day = datetime.fromtimestamp(at, UTC)
    return day.year, day.month


def _difference(left: dict[str, int], right: dict[str, int]) -> dict[str, tuple[int, int]]:
    accounts = sorted({*left, *right})
    return {a: (left.get(a, 0), right.get(a, 0)) for a in accounts if left.get(a, 0) != right.get(a, 0)}


PARTS: Final = (Books,)
