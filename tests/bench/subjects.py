"""What is measured: a paid read of ours by every rail, the peers' paid read, and the 402 of each for who does not pay.

Invariant: every paid request carries a signature of its own, made just before its round, since a signed request
lives 60 seconds; no server ever sees one twice.
"""

import time
from collections.abc import Callable
from typing import Final, Literal

import msgspec

from tests.bench.load import Answer, UnexpectedAnswer, ask, get
from tests.bench.peer import PATH
from tests.bench.processes import Process
from tests.bench.signatures import Offer, signed_get
from tests.bench.tenants import wallets
from tests.harness import CHAIN_ID

Kind = Literal["signed", "payment", "payment-v1", "unpaid", "plain"]

Requests = Callable[[int], list[bytes]]
"""Makes this many requests, each to be sent once, soon."""


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of request to a server; `what` says it in words."""

    name: str
    what: str
    server: str
    kind: Kind

    @property
    def status(self) -> int:
        return 402 if self.kind == "unpaid" else 200


def _ours(name: str, what: str, server: str, kind: Kind) -> Subject:
    return Subject(name=name, what=f"spawn: {what}", server=server, kind=kind)


def _peers() -> list[Subject]:
    packages = {"fastapi": "x402[fastapi]", "express": "@x402/express", "hono": "@x402/hono"}
    checks = {
        "process": "facilitator in process",
        "http": "facilitator over HTTP",
        "none": "checks nothing",
    }
    paid = [
        Subject(name=f"{peer}-{who}", what=f"{package}: {how}", server=f"{peer}-{who}", kind="payment")
        for who, how in checks.items()
        for peer, package in packages.items()
    ]
    unpaid = [
        Subject(name=f"{peer}-unpaid", what=f"{package}: unpaid 402", server=f"{peer}-none", kind="unpaid")
        for peer, package in packages.items()
    ]
    return paid + unpaid


SUBJECTS: Final = (
    _ours("ours-signed", "signed request", "ours", "signed"),
    _ours("ours-x402", "x402, chain answers at once", "ours", "payment"),
    _ours("ours-v1", "x402 version 1, chain answers at once", "ours", "payment-v1"),
    _ours("ours-devnet", "x402 on the embedded devnet", "devnet", "payment"),
    _ours("ours-unpaid", "unpaid 402", "ours", "unpaid"),
    *_peers(),
    _ours("delayed-signed", "signed request, +1 ms a sync", "delayed", "signed"),
    _ours("delayed-x402", "x402 at once, +1 ms a sync", "delayed", "payment"),
    Subject(name="limit", what="of the load itself: a trivial server", server="trivial", kind="plain"),
)
"""Everything that is measured over HTTP, in the order of the table."""


def requests(kind: Kind, server: Process) -> Requests:
    """The requests of a kind, the wallets taking turns."""
    keys = wallets()
    match kind:
        case "plain" | "unpaid":
            return lambda count: [get(PATH, server.authority, {})] * count
        case "signed":

            def signed(index: int, now: int) -> bytes:
                key = keys[index % len(keys)]
                headers = signed_get(key, chain_id=CHAIN_ID, authority=server.authority, path=PATH, now=now)
                return get(PATH, server.authority, headers)

            return lambda count: [signed(index, int(time.time())) for index in range(count)]
        case "payment" | "payment-v1":
            offer = Offer(_challenge(server))
            header = "PAYMENT-SIGNATURE" if kind == "payment" else "X-PAYMENT"
            pay = offer.pay if kind == "payment" else offer.pay_v1

            def paid(index: int, now: int) -> bytes:
                return get(PATH, server.authority, {header: pay(keys[index % len(keys)], now)})

            return lambda count: [paid(index, int(time.time())) for index in range(count)]


_HEADERS: Final = {
    "payment": "payment-response",
    "payment-v1": "x-payment-response",
    "unpaid": "payment-required",
}
"""What the answer to a kind of request must have."""


def look(subject: Subject, server: Process, request: bytes) -> None:
    """Send one request and look at all of the answer; raise UnexpectedAnswer unless it is what it should be."""
    answer = ask(server.port, request)
    header = _HEADERS.get(subject.kind)
    wrong = answer.status != subject.status or (header is not None and header not in answer.headers)
    if wrong or (subject.status == 200 and subject.kind != "plain" and not _lists_a_server(answer)):
        raise UnexpectedAnswer(f"{subject.name}: {answer}")


def _lists_a_server(answer: Answer) -> bool:
    try:
        return bool(msgspec.json.decode(answer.body)["servers"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return False


def _challenge(server: Process) -> str:
    answer = ask(server.port, get(PATH, server.authority, {}))
    challenge = answer.headers.get("payment-required")
    if challenge is None:
        raise UnexpectedAnswer(f"a challenge without PAYMENT-REQUIRED: {answer}")
    return challenge
