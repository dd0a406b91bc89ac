"""Promise 3, from the rows' side: nobody touches what they do not own.

A thing keeps its wallet for ever. What is a wallet's changes only in a commit that has a finished call of this very
wallet, or by a rule that acts without one (the burn, warnings, ends, prices, a provider's word, an operator's order);
the tables below say which those are. Money never goes from one wallet to another.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn

from tests.sim.client_types import Answer, Request
from tests.sim.oracle.callers import Callers, proof_of
from tests.sim.oracle.ownership import NOBODY, Owners
from tests.sim.oracle.part import Changes, Part, Row
from tests.sim.oracle.sealing import Sealing
from tests.sim.oracle.tellings import Tellings

if TYPE_CHECKING:
    from tests.sim.world import World

ASKED_FOR: Final = frozenset(
    {
        "server.created",
        "server.updated",
        "deposit.funded",
        "suspense.claimed",
        "ssh_key.added",
        "ssh_key.removed",
        "webhook.test",
    }
)
"""Events of what only a wallet's own call does."""
ENDS_UNASKED: Final = frozenset({"deposit_exhausted", "provider_refused"})
"""Reasons for which a server is destroyed though nobody asked for it."""
HEARD_MAX: Final = 200
_ACTED: Final = frozenset({"acted", "done"})
_OF_OWNER: Final[Mapping[str, tuple[str, ...]]] = {
    "server": ("wallet", "name", "auto_renew", "ssh_keys", "network", "location", "created_at"),
    "webhook": ("wallet", "url", "types", "description", "created_at"),
}
"""What of a row only its owner's call changes; some of it nobody."""
_REFERENCE_AT: Final = 19
"""A call's movements are called after its moment (11 hex digits), 8 digits of its fingerprint, and its nonce's name."""


class Access(Part):
    """Who did what to whose."""

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._owners = Owners(self._break)
        callers = Callers(world.settings, self._stood_by)
        self._tellings = Tellings(self._owners, callers, self._break)
        self._called: dict[str, None] = {}
        """Wallets with a call that acted, in the commit at hand."""
        self._calls: Mapping[Any, Row | None] = {}
        self._seen: dict[str, dict[str, tuple[Any, ...]]] = {}
        self._hooks: dict[str, Row] = {}
        self._keys: dict[str, None] = {}
        self.heard: deque[tuple[Request, Answer]] = deque(maxlen=HEARD_MAX)
        """What was said on the wire with a proof, and answered well: an attacker may have listened."""

    def answered(self, request: Request, answer: Answer) -> None:
        self._tellings.judge(request, answer)
        if answer.status < 300 and proof_of(request) is not None:
            self.heard.append((request, answer))

    def committed(self, changes: Changes) -> None:
        self._owners.learn(changes)
        self._calls = changes.of("reservation")
        self._called = {
            row["wallet"]: None for row in self._calls.values() if row is not None and row["state"] in _ACTED
        }
        for row in changes.transfers:
            self._moved(row)
        for row in changes.events:
            if row["type"] in ASKED_FOR:
                self._require_call(row["wallet"], f"event {row['type']} of {row['resource']}")
        for table, look in self._LOOKS.items():
            for key, now in changes.of(table).items():
                look(self, key, now)

    def restored(self) -> None:
        # What the books do not know any more is new to them.
        self.heard.clear()
        self._tellings.forget()
        self._owners.forget()
        self._seen.clear()
        self._hooks.clear()
        self._keys.clear()
        changes = Changes(events=self.world.rows("SELECT * FROM event ORDER BY seq"))
        for table, key in (
            ("server", "id"),
            ("operation", "id"),
            ("webhook", "id"),
            ("ssh_key", "id"),
            ("reservation", "id"),
            ("arrival", "id"),
        ):
            rows = self.world.rows(f"SELECT * FROM {table}")
            changes.rows[table] = {row[key]: row for row in rows}
        self._owners.learn(changes)
        for table, columns in _OF_OWNER.items():
            found = changes.of(table).items()
            self._seen[table] = {key: _columns(row, columns) for key, row in found if row is not None}
        self._hooks = {key: row for key, row in changes.of("webhook").items() if row is not None}
        self._keys = dict.fromkeys(changes.of("ssh_key"))

    # --- money --------------------------------------------------------------------------------------------------

    def _moved(self, row: Row) -> None:
        """Every way that money may go, by its code and its two ends; any other is a theft."""
        match row["code"], _pot(row["debit"]), _pot(row["credit"]):
            case "topup", "ext:usdc", "wallet":
                self._require_payer(row)
            case "claim", "suspense", "wallet":
                self._require_sender(row)
            case "fee", "wallet", "rev:opfee":
                self._require_cause(row, _who(row["debit"]))
            case "deposit", "wallet", "srv":
                self._require_same(row, _who(row["debit"]), self._owners.of(_who(row["credit"])))
                self._require_cause(row, _who(row["debit"]))
            case "deposit_refund", "srv", "wallet":
                self._require_same(row, _who(row["credit"]), self._owners.of(_who(row["debit"])))
            case ("burn", "wallet", "rev:compute") | ("traffic", "wallet", "rev:traffic"):
                self._require_same(row, _who(row["debit"]), self._owners.of(row["reference"]))
            case (("burn" | "minimum"), "srv", "rev:compute") | ("traffic", "srv", "rev:traffic"):
                self._require_same(row, _who(row["debit"]), row["reference"])
            case ("fee_refund", "rev:opfee", "wallet") | ("burn_refund", "rev:compute", "wallet"):
                self._require_same(row, _who(row["credit"]), self._owners.of(row["reference"]))
            case (
                ("suspense", "ext:usdc", "suspense")
                | ("goodwill", "exp:goodwill", "wallet")
                | ("cost", "cost:provider", "owed:provider")
                | ("cost", "owed:provider", "cost:provider")
                | ("overrun", "exp:overrun", "owed:provider")
                | ("traffic", "cost:provider" | "exp:overrun", "owed:provider")
                | ("traffic", "exp:overrun", "cost:provider")
                | ("gas", "cost:gas", "ext:gas")
            ):
                pass
            case _:
                self._break(f"money took a way that it has not: {row}")

    def _require_payer(self, row: Row) -> None:
        """A payment is its payer's: the call that took its nonce is of the same wallet."""
        self._require_same(row, _who(row["credit"]), self._owners.of(_name(row)) or _who(row["credit"]))

    def _require_sender(self, row: Row) -> None:
        arrival = self._owners.arrivals.get(_name(row))
        if arrival is None or arrival["sender"] != _who(row["credit"]) or arrival["amount"] != row["amount"]:
            self._break(f"claimed by another than its sender, or another sum: {row}, of {arrival}")
        if arrival["nonce_key"] is None:
            self._require_call(_who(row["credit"]), f"claim {row['id']}")

    def _require_cause(self, row: Row, wallet: str) -> None:
        """What a wallet spends has a cause of its own: a call in this commit, or a hold that such a call placed."""
        name = _name(row)
        if name.startswith("act_"):
            self._require_same(row, wallet, self._owners.of(name))
            return
        call = self._calls.get(name[_REFERENCE_AT:])
        if call is None or call["wallet"] != wallet or call["state"] not in _ACTED:
            self._break(f"{row['amount']} of {wallet} went to {row['credit']} without a call of it: {row}")

    def _require_same(self, row: Row, found: str, due: str) -> None:
        if found != due:
            self._break(f"{found or NOBODY} has a part in what is {due or NOBODY}'s: {row}")

    # --- things -------------------------------------------------------------------------------------------------

    def _server(self, key: str, row: Row | None) -> None:
        self._note("server", key, row)
        if row is None:
            self._break(f"server {key} is no more; even a tombstone keeps its owner")

    def _operation(self, key: str, row: Row | None) -> None:
        if row is None or not self._owners.is_new(key):
            return
        server = self._owners.servers.get(row["server_id"])
        if server is None or server["wallet"] != row["wallet"]:
            self._break(f"{row['wallet']} has operation {key} on {row['server_id']}, of {server}")
        if row["command"] == "destroy_server" and server["reason"] in ENDS_UNASKED:
            return
        if row["command"] == "poweroff_server" and self._is_barred(row["wallet"]):
            return
        self._require_call(row["wallet"], f"operation {row['command']} on {row['server_id']}")

    def _hold(self, key: str, row: Row | None) -> None:
        if row is None or row["state"] != "pending":
            return
        wallet = _who(row["debit"])
        self._require_call(wallet, f"hold {key}")
        self._require_same(row, wallet, self._owners.of(row["reference"]))
        if _pot(row["credit"]) == "srv":
            self._require_same(row, wallet, self._owners.of(_who(row["credit"])))
        elif row["credit"] != "rev:opfee":
            self._break(f"held for nobody that it may go to: {row}")

    def _webhook(self, key: str, row: Row | None) -> None:
        before = self._hooks.get(key)
        if row is None:
            if before is not None and before["disabled_reason"] != "deleted":
                self._break(f"webhook {key} was erased before its owner had deleted it")
            return
        self._hooks[key] = row
        self._note("webhook", key, row)
        if before is None:
            return
        if row["enabled"] > before["enabled"]:
            self._require_call(row["wallet"], f"webhook {key} was enabled")
        if (
            row["disabled_reason"] in {"owner", "deleted"}
            and row["disabled_reason"] != before["disabled_reason"]
        ):
            self._require_call(row["wallet"], f"webhook {key} was disabled as {row['disabled_reason']}")

    def _delivery(self, key: Any, row: Row | None) -> None:
        if row is not None:
            told = self._owners.of(f"evt_{row['seq']}")
            self._require_same(row, self._owners.of(row["webhook_id"]), told)

    def _ssh_key(self, key: str, row: Row | None) -> None:
        if row is None:
            self._keys.pop(key, None)
            self._require_call(self._owners.of(key), f"SSH key {key} was deleted")
        elif key not in self._keys:
            self._keys[key] = None
            self._require_call(row["wallet"], f"SSH key {key} was registered")

    def _secret(self, key: tuple[str, str], row: Row | None) -> None:
        owner, kind = key
        if row is None or owner == "spawn":
            return
        wallet = self._owners.of(owner)
        if not wallet:
            self._break(f"a {kind} is sealed for {owner}, which is nobody's")
        if kind != "root_password":
            self._require_call(wallet, f"a {kind} was sealed for {owner}")

    def _idempotency(self, key: tuple[str, str], row: Row | None) -> None:
        if row is not None:
            self._require_same(row, row["wallet"], self._owners.of(row["reservation_id"]))

    def _settlement(self, key: str, row: Row | None) -> None:
        if row is not None:
            self._require_same(row, row["payer"], self._owners.of(key) or row["payer"])

    _LOOKS: Final[Mapping[str, Callable[["Access", Any, Row | None], None]]] = {
        "server": _server,
        "operation": _operation,
        "hold": _hold,
        "webhook": _webhook,
        "delivery": _delivery,
        "ssh_key": _ssh_key,
        "secret": _secret,
        "idempotency": _idempotency,
        "settlement": _settlement,
    }

    def _note(self, table: str, key: str, row: Row | None) -> None:
        """What is its owner's to change is as it was, or its owner has called."""
        seen = self._seen.setdefault(table, {})
        if row is None:
            return
        now = _columns(row, _OF_OWNER[table])
        before = seen.get(key)
        seen[key] = now
        if before != now:
            self._require_call(row["wallet"], f"{table} {key} went from {before} to {now}")

    def _require_call(self, wallet: str, what: str) -> None:
        if wallet not in self._called:
            self._break(f"{what}, of {wallet or NOBODY}, and it made no call")

    def _stood_by(self, account: str) -> str | None:
        """Whose key the code at this account takes for its own."""
        node = self.world.chain.node
        return None if node is None else node.owners.get(account)

    def _is_barred(self, wallet: str) -> bool:
        found = self.world.rows("SELECT barred FROM account WHERE id = :id", id=f"wallet:{wallet}")
        return bool(found) and found[0]["barred"] is not None

    def _break(self, text: str) -> NoReturn:
        self.world.violation("foreign", text)


def _columns(row: Row, names: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(row[name] for name in names)


def _pot(account: str) -> str:
    """What kind of account it is; the operator's own are called by their names."""
    kind, _, _ = account.partition(":")
    return kind if kind in {"wallet", "srv"} else account


def _who(account: str) -> str:
    """The wallet or server of a customer's account."""
    return account.partition(":")[2]


def _name(row: Row) -> str:
    """What a movement is named after, behind the word for what it is."""
    name: str = row["id"].partition("|")[2]
    return name


PARTS: Final = (Access, Sealing)
