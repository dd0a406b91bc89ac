"""Every answer is a right one: it is what the books say, and a proof buys one thing once.

Invariants, with "a call" for what one nonce names: a call has one answer, however often and by whatever retry it is
asked for; it orders at most one operation; an idempotency key of a wallet has one good answer while it is remembered; a
payment that is on its way or taken is never asked for again; a root password is handed out once, to its owner; nothing
that was answered well is forgotten before its time.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

from tests.sim.client import Intent, code_of
from tests.sim.client_types import Answer, Request
from tests.sim.oracle.balances import Balances
from tests.sim.oracle.forms import Forms
from tests.sim.oracle.part import Changes, Part, Row
from tests.sim.wallets import Kind, Proof

if TYPE_CHECKING:
    from tests.sim.world import World

DAY: Final = 86_400
FORGET_S: Final = 300
"""How long a payment that was refused is known after it expired."""
_FINAL: Final = frozenset({"done", "refused"})
_ANSWER: Final = ("state", "answer", "fee")
_BY_ITSELF: Final = frozenset({"destroy_server", "poweroff_server"})
"""What the service may order without a call: the end of the money, and a wallet's suspension."""
_FIXED: Final = (
    "wallet",
    "rail",
    "idempotency_key",
    "fingerprint",
    "amount",
    "seal",
    "valid_before",
    "created_ms",
)
_PASSING: Final = frozenset({"rate_limited", "overloaded"})
"""Refusals that say nothing about the call."""
_NOT_YET: Final = frozenset({"in_progress", "settlement_pending"})
"""What sends the caller back for the answer."""
_LATELY_S: Final = 400
"""The longest that something which was decided by the clock waits for its commit."""
_ANSWERING_MS: Final = 100
"""The longest that an answer is on its way once it is decided: what was recorded later, it could not know."""
_NULLED: Final = (
    ("root_password",),
    ("server", "root_password"),
    ("server", "ready", "log"),
    ("session", "token"),
    ("secret",),
)
"""Where an answer has a secret that its stored copy has not."""

RESERVATIONS: Final = "SELECT * FROM reservation"
KEYS: Final = "SELECT * FROM idempotency"
OPERATIONS: Final = "SELECT id, server_id, wallet, command, status FROM operation"
SERVERS: Final = "SELECT id, wallet FROM server"


@dataclass(kw_only=True)
class Call:
    """What the books say of one call, and since when (true milliseconds) it has been there, and been answered."""

    row: Row
    since_ms: int
    answered_ms: int | None = None

    @property
    def is_good(self) -> bool:
        return _is_good(self.row)


class Answers(Part):
    """The calls of the books beside what their callers were told."""

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._passwords: dict[str, str] = {}
        self._sign_ins: dict[str, None] = {}
        self._known: dict[str | tuple[str, str], None] = {}
        """Every nonce and every key of a wallet that a call ever had."""
        self._load()

    def _load(self) -> None:
        rows = self.world.rows
        self._calls: dict[str, Call] = {}
        self._gone_ms: dict[str, int] = {}
        """When calls were forgotten whose time was over."""
        self._keys: dict[tuple[str, str], Row] = {}
        self._good: dict[tuple[str, str], str] = {}
        self._operations: dict[str, Row] = {row["id"]: row for row in rows(OPERATIONS)}
        self._servers: dict[str, str] = {row["id"]: row["wallet"] for row in rows(SERVERS)}
        self._sold: dict[str, str] = {}
        self._wrong_by_s, self._stepped_back_at = (0, 0), 0
        for row in rows(RESERVATIONS):
            call = self._calls[row["id"]] = Call(row=row, since_ms=0)
            call.answered_ms = 0 if row["state"] in _FINAL else None
        for row in rows(KEYS):
            self._keys[row["wallet"], row["key"]] = row
            if self._calls[row["reservation_id"]].is_good:
                self._good[row["wallet"], row["key"]] = row["reservation_id"]

    def stepped(self) -> None:
        """Note where the clock was before it was set: what was decided by that may only now be committed."""
        before, now = self._wrong_by_s[1], self.world.clock.wrong_by_s
        if before != now:
            self._wrong_by_s, self._stepped_back_at = (before, now), self.world.true_s()

    def _latest_s(self) -> int:
        """What the service may have taken for the time a moment ago, at the most."""
        before, now = self._wrong_by_s
        lately = self.world.true_s() <= self._stepped_back_at + _LATELY_S
        return self.world.true_s() + max(self.world.clock.wrong_by_s, now, before if lately else now)

    def restored(self) -> None:
        """What was told since the backup is not known any more, nor which password was handed out."""
        self._passwords.clear()
        self._load()

    # --- what is committed ----------------------------------------------------------------------------------------

    def committed(self, changes: Changes) -> None:
        for server_id, server in changes.of("server").items():
            if server is not None:
                self._servers[server_id] = server["wallet"]
        answered = [name for name, row in changes.of("reservation").items() if self._taken(name, row)]
        for (wallet, key), row in changes.of("idempotency").items():
            self._key((wallet, key), row)
        for name in answered:
            self._bought(self._calls[name].row)
        for name, row in changes.of("operation").items():
            if row is not None:
                self._ordered(name, row, changes)

    def _taken(self, name: str, row: Row | None) -> bool:
        """A call is new, has come further, or is forgotten; True when it has its answer from now on."""
        if row is None:
            self._forgotten(name)
            return False
        call = self._calls.get(name)
        if call is None:
            call = self._calls[name] = Call(row=row, since_ms=self.world.true_ms())
            self._known[name] = None
            if row["idempotency_key"] is not None:
                self._known[row["wallet"], row["idempotency_key"]] = None
            self._check_memory(row)
        before, call.row = call.row, row
        changed = [field for field in _FIXED if before[field] != row[field]]
        if changed:
            self._wrong(f"the call {name} has become another: {changed} of {before}")
        if before["operation_id"] not in {None, row["operation_id"]}:
            self._wrong(f"{name} ordered {before['operation_id']}, and then {row['operation_id']}")
        if call.answered_ms is not None:
            if any(before[field] != row[field] for field in _ANSWER):
                self._wrong(f"the answer of {name} was {before['answer']!r}, and is {row['answer']!r}")
            return False
        if row["state"] in _FINAL:
            call.answered_ms = self.world.true_ms()
        return call.answered_ms is not None

    def _check_memory(self, row: Row) -> None:
        """What was paid for, or has a key, is remembered for a day after its proof is worth nothing any more."""
        least_s = DAY if row["rail"] == "x402" or row["idempotency_key"] is not None else 0
        if row["state"] != "refused" and row["keep_until"] < row["valid_before"] + least_s:
            self._wrong(
                f"{row['id']} is good until {row['valid_before']}, and known until {row['keep_until']}"
            )

    def _bought(self, row: Row) -> None:
        """A key has its good answer: there is no other, as long as the first is remembered."""
        key = row["wallet"], row["idempotency_key"]
        if key[1] is None or not _is_good(row):
            return
        first = self._good.setdefault(key, row["id"])
        if first != row["id"]:
            self._wrong(f"{key} bought {first}, and {row['id']} as well")

    def _forgotten(self, name: str) -> None:
        call = self._calls.pop(name, None)
        if call is None:
            return
        self._gone_ms[name] = self.world.true_ms()
        now = self._latest_s()
        if (
            self.has_thawed()
            and call.row["state"] == "reserved"
            and call.row["valid_before"] + FORGET_S <= now
        ):
            return  # what waited for a pause to end is one commit: it was refused, and had its time
        if call.row["keep_until"] > now:
            self._wrong(f"{name} was to be kept until {call.row['keep_until']}, and is forgotten at {now}")
        if call.row["state"] == "reserved":
            self._wrong(f"{name} is forgotten, and nobody knows whether it was paid")

    def _key(self, key: tuple[str, str], row: Row | None) -> None:
        """A key is taken, or forgotten: after its time, or because the call came to nothing."""
        known, now = self._keys.get(key), self._latest_s()
        if known is not None and (row is None or row["reservation_id"] != known["reservation_id"]):
            call = self._calls.get(known["reservation_id"])
            failed = call is not None and call.row["state"] in _FINAL and not call.is_good
            if not failed and known["keep_until"] > now:
                self._wrong(
                    f"{key} stood for {known['reservation_id']} until {known['keep_until']}, and is {row}"
                )
            self._good.pop(key, None)
        if row is None:
            self._keys.pop(key, None)
        elif row["keep_until"] < self._calls[row["reservation_id"]].row["created_ms"] // 1000 + DAY:
            self._wrong(f"{key} is known for less than a day: {row}")
        else:
            self._keys[key] = row

    def _ordered(self, name: str, row: Row, changes: Changes) -> None:
        """A new operation was ordered by one call, in this very commit, or by the service itself."""
        if name not in self._operations:
            by = [
                call
                for call, taken in changes.of("reservation").items()
                if taken and taken["operation_id"] == name
            ]
            by += [call for call in self._no_operations(row) if call not in by]
            if len(by) > 1 or (not by and row["command"] not in _BY_ITSELF):
                self._wrong(f"{row['command']} {name} was ordered by {by or 'nobody'}")
        self._operations[name] = row

    def _no_operations(self, row: Row) -> list[str]:
        """Calls that are answered without an operation to wait for: starting what runs is done at once."""
        return ["at once"] if row["command"] == "start_server" and row["status"] == "success" else []

    # --- what is answered -------------------------------------------------------------------------------------------

    def answered(self, request: Request, answer: Answer) -> None:
        if answer.status < 300:
            self._check_passwords(request, answer)
        found = self.world.town.calls.whose(request)
        if found is not None:
            self._check_call(*found, request, answer)

    def _check_passwords(self, request: Request, answer: Answer) -> None:
        """Handed out once. To whom is looked at below, where it is known who asks."""
        if b'"root_password":"' not in answer.body:
            return
        password, server = self._password(answer.json())
        if password in self._passwords:
            self._wrong(f"a root password was handed out twice, of {self._passwords[password]} and {server}")
        self._passwords[password] = server
        found = self.world.town.calls.whose(request)
        owner = self._servers.get(server)
        if found is not None and (
            found[1].wallet != owner or found[1].kind not in {Kind.PAYMENT, Kind.SIGNED}
        ):
            self._wrong(
                f"the root password of {owner}'s {server} was told to {found[1].wallet} by {found[1].kind}"
            )

    def _password(self, told: dict[str, Any]) -> tuple[str, str]:
        """The password in an answer, and the server that it is of."""
        server = told.get("server")
        if server is None:
            return told["root_password"], self._operations[told["action"]["id"]]["server_id"]
        return told.get("root_password") or server["root_password"], server["id"]

    def _check_call(self, intent: Intent, proof: Proof, request: Request, answer: Answer) -> None:
        own = self._calls.get(proof.name)
        now_ms = self.world.true_ms()
        if own is not None and "payment-required" in answer.headers and proof.kind is Kind.PAYMENT:
            self._check_challenge(own, intent)
        if proof.kind is Kind.SESSION:
            return
        is_good = answer.status < 300 and "spawn-fee" in answer.headers
        if proof.kind is Kind.SIGN_IN and is_good:
            if proof.text in self._sign_ins:
                self._wrong(f"a sign-in was good twice ({intent.what})")
            self._sign_ins[proof.text] = None
        if is_good:
            self._check_good(intent, proof, request, answer)
            return
        self._check_conflict(proof, request, answer)
        calls = self._repeated(proof, request)
        if self._key_is_old(proof, request):
            return  # a fresh nonce beside it may be a call of its own by now
        if len(calls) == 1 and (calls[0].answered_ms or now_ms) <= answer.asked_ms:
            self._check_refusal(calls[0], proof, answer)

    def _check_challenge(self, own: Call, intent: Intent) -> None:
        """Whoever signs anew for a payment that is under way pays twice."""
        if own.row["state"] != "refused" and own.since_ms <= self.world.true_ms() - _ANSWERING_MS:
            self._wrong(f"{own.row['id']} is {own.row['state']}, and asked for again ({intent.what})")

    def _check_good(self, intent: Intent, proof: Proof, request: Request, answer: Answer) -> None:
        """What is answered well is in the books: by its caller, in these words, for this fee."""
        call = next((call for call in self._repeated(proof, request) if call.is_good), None)
        if call is None:
            if self._gone_ms.get(proof.name, -1) >= answer.asked_ms:
                return  # its time was over while its answer was on the way
            known = self._calls.get(proof.name)
            self._wrong(
                f"{intent.what} {proof.name} was answered {answer.status}, and the books have {known}"
            )
        row = call.row
        if row["wallet"] != proof.wallet:
            self._wrong(f"{proof.wallet} was answered what {row['wallet']} asked: {row['id']}")
        if _micro(answer.headers["spawn-fee"]) != row["fee"]:
            self._wrong(
                f"{row['id']} cost {row['fee']}, and its caller was told {answer.headers['spawn-fee']}"
            )
        if not answer.headers.get("content-type", "").startswith("application/json"):
            return
        told, stored = answer.json(), json.loads(row["answer"])["body"]
        if "idempotent-replayed" not in answer.headers:
            _null(told)
        if told != stored:
            self._wrong(f"{intent.what} {row['id']} was answered {told}, and the books have {stored}")
        if intent.what == "create":
            self._sold[told["server"]["id"]] = proof.wallet
        self._check_receipt(row, answer)

    def _check_conflict(self, proof: Proof, request: Request, answer: Answer) -> None:
        """What is said to be used already was used: this nonce, or this key by this very wallet."""
        key = request.headers.get("Idempotency-Key", proof.key)
        is_known = proof.name in self._known or (key is not None and (proof.wallet, key) in self._known)
        if code_of(answer) == "idempotency_conflict" and not is_known:
            self._wrong(f"{proof.name} with {key} is new to {proof.wallet}, and said to be used already")

    def _repeated(self, proof: Proof, request: Request) -> list[Call]:
        """The calls that this request is, or repeats: the one that its key stands for, and that of its own nonce."""
        key = request.headers.get("Idempotency-Key", proof.key)
        named = None if key is None else self._keys.get((proof.wallet, key))
        calls = [self._calls.get(proof.name if named is None else named["reservation_id"])]
        if self._key_is_old(proof, request):
            calls.append(self._calls.get(proof.name))
        return [call for call in calls if call is not None and _is_of(call, proof, request)]

    def _key_is_old(self, proof: Proof, request: Request) -> bool:
        """Whether what its key stood for may be forgotten by now."""
        key = request.headers.get("Idempotency-Key", proof.key)
        named = None if key is None else self._keys.get((proof.wallet, key))
        return named is not None and named["keep_until"] <= self._latest_s()

    def _check_receipt(self, row: Row, answer: Answer) -> None:
        has_receipt = "payment-response" in answer.headers or "x-payment-response" in answer.headers
        if has_receipt != (row["rail"] == "x402"):
            self._wrong(
                f"{row['id']} by {row['rail']} was answered with{'' if has_receipt else 'out'} a receipt"
            )

    def _check_refusal(self, call: Call, proof: Proof, answer: Answer) -> None:
        """A call that has its answer is not answered otherwise, unless nobody looked at it at all."""
        code = code_of(answer)
        if code in _PASSING or (code == "invalid_signature" and proof.kind is not Kind.PAYMENT):
            return
        if code in _NOT_YET and self.has_thawed():
            return  # it was paused for longer than its claim lasts: a copy, or the other process, has taken over
        if call.is_good or json.loads(call.row["answer"])["code"] != code:
            self._wrong(
                f"{call.row['id']} was answered {call.row['answer']!r}, and now {answer.status} {answer.body!r}"
            )

    # --- at the end -------------------------------------------------------------------------------------------------

    def unsettled(self) -> list[str]:
        return [f"{name} is {call.row['state']}" for name, call in self._calls.items() if self._is_open(call)]

    def _is_open(self, call: Call) -> bool:
        """A call whose payment is credited waits for its caller; all else goes on by itself."""
        row = call.row
        if row["state"] == "acted":
            return bool(self._operations[row["operation_id"]]["status"] == "running")
        return bool(row["state"] == "reserved")

    def at_rest(self) -> None:
        """Whatever was committed is still there, crashes or not; and so is what its caller was told."""
        rows = {row["id"]: row for row in self.world.rows(RESERVATIONS)}
        known = {name: call.row for name, call in self._calls.items()}
        if rows != known:
            apart = [name for name in sorted({*rows, *known}) if rows.get(name) != known.get(name)]
            self._wrong(
                f"calls are not what was committed: {[(rows.get(n), known.get(n)) for n in apart[:2]]}"
            )
        for name, call in self._calls.items():
            operation = call.row["operation_id"]
            if operation is not None and operation not in self._operations:
                self._wrong(f"{name} was told of {operation}, which is nowhere")
        for server, wallet in self._sold.items():
            if self._servers.get(server) != wallet:
                self._wrong(f"{server} was sold to {wallet}, and is {self._servers.get(server)}'s")
        for intent in self.world.town.calls.intents:
            if not intent.is_over:
                self._wrong(f"{intent.what} {intent.number} never came to an end")

    def _wrong(self, text: str) -> NoReturn:
        self.world.violation("answers", text)


def _is_good(row: Row) -> bool:
    return bool(row["state"] == "done" and bytes(row["answer"]).startswith(b'{"type":"body"'))


def _is_of(call: Call, proof: Proof, request: Request) -> bool:
    """Whether the call is this very request; its own payment has to have come in the same bytes."""
    if call.row["fingerprint"] != _fingerprint(request):
        return False
    return bool(call.row["id"] != proof.name or call.row["seal"] == _seal(request))


def _null(told: dict[str, Any]) -> None:
    """Take out what the stored copy has not."""
    for *path, last in _NULLED:
        place: Any = told
        for name in path:
            place = place.get(name) if isinstance(place, dict) else None
        if isinstance(place, dict) and last in place:
            place[last] = None


def _fingerprint(request: Request) -> str:
    """SHA-256 over method, path, query and body, as DESIGN section 3 binds a nonce to its request."""
    line = f"{request.method} {request.path} {request.query}\n"
    return hashlib.sha256(line.encode() + request.body).hexdigest()


def _seal(request: Request) -> str | None:
    """What only the sender of a payment knows: its bytes, and in version 1 where it came from (ADR 0015)."""
    paid = request.headers.get("PAYMENT-SIGNATURE")
    sent = f"{request.address} {request.headers.get('X-PAYMENT')}" if paid is None else paid
    is_paid = paid is not None or "X-PAYMENT" in request.headers
    return hashlib.sha256(sent.encode()).hexdigest()[:32] if is_paid else None


def _micro(text: str) -> int:
    whole, _, decimals = text.partition(".")
    return int(whole) * 1_000_000 + int(decimals.ljust(6, "0"))


PARTS: Final = (Forms, Answers, Balances)
