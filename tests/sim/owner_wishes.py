"""What a customer may want of the API: every call there is for owners, with good arguments and with bad ones.

Invariant: a wish is drawn from one stream of random numbers and from what its customer knows; it does nothing.
"""

from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from random import Random
from typing import Any, Final

import msgspec

from tests.sim.client import Way
from tests.sim.wallets import Proof, Wallet

TYPES: Final[Mapping[str, Mapping[str, int]]] = {
    place: {"small": 150_000, "medium": 220_000, "large": 400_000, "arm-small": 160_000}
    for place in ("nbg1", "fsn1", "hel1")
} | {place: {"small": 320_000, "medium": 590_000, "large": 1_080_000} for place in ("ash", "hil")}
"""What is sold where, and about what a day of it costs in micro-USDC: as much as an owner remembers of the catalog."""
IMAGES: Final = ("ubuntu-24.04", "ubuntu-22.04", "debian-12", "fedora-41")
NAMES: Final = ("web", "Web", "db", "worker", "agent-1", "agent-2", "a", "build", "cache", "node-7")
PAGES: Final = ("/", "/docs", "/openapi.json", "/health", "/v1/catalog", "/llms.txt", "/favicon.ico")
STATES: Final = ("running", "off", "stopped", "destroyed", "failed", "initializing", "destroying", "unknown")
TYPES_OF_EVENTS: Final = (
    "server.*",
    "deposit.low",
    "deposit.*",
    "payment.settled",
    "operation.*",
    "server.created",
)
NO_SERVER: Final = "srv_aaaaaaaaaaaaaaaaaaaaaaaaaa"

READS: Final = ((Way.SIGN, 5), (Way.PAY, 2), (Way.PAY_V1, 1), (Way.SIGN_IN, 1), (Way.SESSION, 3))
WRITES: Final = ((Way.SIGN, 6), (Way.PAY, 3), (Way.PAY_V1, 1))
PAYMENTS: Final = ((Way.PAY, 3), (Way.PAY_V1, 1))
SIGNED: Final = ((Way.SIGN, 1),)
ANYBODY: Final = ((Way.NOTHING, 1),)
SIGNERS: Final = ((Way.SIGN, 3), (Way.SIGN_IN, 3), (Way.PAY, 1))

Ways = tuple[tuple[Way, int], ...]


@dataclass(kw_only=True)
class Customer:
    """One wallet and what its owner knows.

    `servers` are those it believes alive, oldest first, `gone` the others, `running` those that it saw running last,
    `resized` those that it made larger or smaller.
    `heeds`: whether it pays in when it is warned. `means_usdc`: how much money it has about itself.
    """

    wallet: Wallet
    heeds: bool
    means_usdc: int
    servers: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    session: Proof | None = None
    keys_used: int = 0
    events_after: str | None = None
    statement_after: str | None = None

    @property
    def address(self) -> str:
        return self.wallet.address

    def keyed(self) -> int:
        """The number of its next idempotency key."""
        self.keys_used += 1
        return self.keys_used

    def amount(self, random: Random) -> int:
        """What it pays in at once, in micro-USDC."""
        return max(10_000, int(self.means_usdc * random.uniform(0.01, 0.3)))


@dataclass(frozen=True, kw_only=True)
class Wish:
    """One call that a customer wants to make, and by which proofs it may, with how often it takes each."""

    what: str
    method: str
    path: str
    query: str = ""
    body: bytes = b""
    ways: Ways

    @property
    def is_read(self) -> bool:
        return self.method == "GET"


Wishing = Callable[[Random, Customer], Wish]
"""Draws a wish."""


def read(path: str, query: str = "", *, ways: Ways = READS) -> Wish:
    return Wish(what="read", method="GET", path=path, query=query, ways=ways)


def write(what: str, method: str, path: str, body: object = None, *, ways: Ways = WRITES) -> Wish:
    encoded = b"" if body is None else msgspec.json.encode(body)
    return Wish(what=what, method=method, path=path, body=encoded, ways=ways)


def usdc(amount: int) -> str:
    """Micro-USDC as it is written on the wire."""
    return f"{amount // 1_000_000}.{amount % 1_000_000:06d}"


# --- money ------------------------------------------------------------------------------------------------------


def deposit(random: Random, customer: Customer) -> Wish:
    body = {"amount": usdc(customer.amount(random))} if random.random() < 0.9 else None
    return write("deposit", "POST", "/v1/balance/deposit", body, ways=PAYMENTS)


def balance(random: Random, customer: Customer) -> Wish:
    return read("/v1/balance")


def statement(random: Random, customer: Customer) -> Wish:
    asked = [f"limit={random.choice((1, 3, 25, 100))}"] if random.random() < 0.7 else []
    if customer.statement_after is not None and random.random() < 0.5:
        asked.append(f"cursor={customer.statement_after}")
    return read("/v1/balance/transactions", "&".join(asked))


def suspense(random: Random, customer: Customer) -> Wish:
    if random.random() < 0.4:
        return read("/v1/suspense")
    return write("claim", "POST", "/v1/suspense/claim")


def session(random: Random, customer: Customer) -> Wish:
    return write("session", "POST", "/v1/sessions", ways=SIGNERS)


# --- servers ----------------------------------------------------------------------------------------------------


def create(random: Random, customer: Customer) -> Wish:
    """Its reserve lasts for some days; one that is bought by payment alone brings its money along."""
    place = random.choice(tuple(TYPES))
    kind = random.choice(tuple(TYPES[place]))
    body: dict[str, Any] = {
        "name": f"{random.choice(NAMES)}" if random.random() < 0.5 else f"n{random.randrange(10**6)}",
        "type": kind,
        "image": image(random),
        "location": place,
    }
    days = random.choice((1, 1, 1, 1.2, 1.5, 2, 3, 5, 10, 12, 30))
    reserve = int(TYPES[place][kind] * days)
    if random.random() < 0.93:
        body["deposit"] = usdc(reserve)
    if random.random() < 0.6:
        body["auto_renew"] = random.random() < 0.7
    if random.random() < 0.3:
        body["ssh_keys"] = random.sample(customer.keys, min(len(customer.keys), 2)) if customer.keys else []
    if random.random() < 0.2:
        body["user_data"] = f"#cloud-config\n# {random.getrandbits(64):x}\n"
    if random.random() < 0.1:
        body["network"] = "ipv6"
    if random.random() < 0.5:
        body["fund"] = usdc(int((reserve + 20_000) * random.choice((0.2, 1, 1.1, 2))))
        return write("create", "POST", "/v1/servers", body, ways=PAYMENTS)
    return write("create", "POST", "/v1/servers", body)


def list_servers(random: Random, customer: Customer) -> Wish:
    asked = []
    if random.random() < 0.4:
        asked.append(f"status={random.choice(STATES)}")
    if random.random() < 0.3:
        asked.append(f"limit={random.choice((1, 2, 25, 100))}")
    if random.random() < 0.2:
        asked.append(f"page={random.choice((1, 1, 2, 3))}")
    return read("/v1/servers", "&".join(asked))


def show(random: Random, customer: Customer) -> Wish:
    wait = f"wait={random.choice((0, 1, 30, 60))}" if random.random() < 0.4 else ""
    return read(f"/v1/servers/{_server(random, customer)}", wait)


def update(random: Random, customer: Customer) -> Wish:
    body: dict[str, Any] = {}
    if random.random() < 0.6:
        body["auto_renew"] = random.random() < 0.5
    if random.random() < 0.5:
        body["name"] = random.choice(NAMES)
    return write("update", "PATCH", f"/v1/servers/{_server(random, customer)}", body)


def fund(random: Random, customer: Customer) -> Wish:
    amount = usdc(max(1, int(customer.amount(random) * random.choice((0.1, 0.5, 1)))))
    return write("fund", "POST", f"/v1/servers/{_server(random, customer)}/deposit", {"amount": amount})


def power(random: Random, customer: Customer) -> Wish:
    verb = random.choice(("start", "stop", "poweroff", "reboot"))
    return write(verb, "POST", f"/v1/servers/{_running(random, customer)}/{verb}")


def resize(random: Random, customer: Customer) -> Wish:
    if customer.resized and random.random() < 0.6:
        # Back to what it was: only what has kept its small disk can.
        server = random.choice(customer.resized)
        return write("resize", "POST", f"/v1/servers/{server}/resize", {"type": "small"})
    body: dict[str, Any] = {
        "type": random.choice(("small", "medium", "medium", "large", "large", "arm-small"))
    }
    if random.random() < 0.15:
        body["upgrade_disk"] = True
    return write("resize", "POST", f"/v1/servers/{_running(random, customer)}/resize", body)


def rebuild(random: Random, customer: Customer) -> Wish:
    body = {"image": image(random)}
    return write("rebuild", "POST", f"/v1/servers/{_running(random, customer)}/rebuild", body)


def image(random: Random) -> str:
    """Mostly the usual one: who rebuilds mostly wants the same again."""
    return IMAGES[0] if random.random() < 0.5 else random.choice(IMAGES)


def destroy(random: Random, customer: Customer) -> Wish:
    return write("destroy", "DELETE", f"/v1/servers/{_server(random, customer)}")


def action(random: Random, customer: Customer) -> Wish:
    known = random.choice(customer.actions) if customer.actions else "act_aaaaaaaaaaaaaaaaaaaaaaaaaa"
    wait = f"wait={random.choice((0, 5, 60))}" if random.random() < 0.5 else ""
    return read(f"/v1/actions/{known}", wait, ways=ANYBODY)


def _server(random: Random, customer: Customer) -> str:
    """Mostly one that is believed alive; sometimes one that is gone, or never was."""
    throw = random.random()
    if customer.servers and throw < 0.93:
        return random.choice(customer.servers)
    if customer.gone and throw < 0.985:
        return random.choice(customer.gone)
    return NO_SERVER


def _running(random: Random, customer: Customer) -> str:
    """Mostly one that was seen running."""
    if customer.running and random.random() < 0.8:
        return random.choice(customer.running)
    return _server(random, customer)


# --- keys, events, pages ------------------------------------------------------------------------------------------


def ssh_key(random: Random, customer: Customer) -> Wish:
    throw = random.random()
    if throw < 0.25:
        return read("/v1/ssh-keys")
    if throw < 0.45 and customer.keys:
        return write("forget_key", "DELETE", f"/v1/ssh-keys/{random.choice(customer.keys)}")
    # From few, and shared with others: the same key may belong to several wallets, and be registered twice.
    number = random.randrange(6)
    body = {"name": f"laptop {random.randrange(3)}", "public_key": public_key(number)}
    return write("key", "POST", "/v1/ssh-keys", body)


def public_key(number: int) -> str:
    """An ed25519 key (RFC 8709 section 4), the same for the same number."""
    parts = (b"ssh-ed25519", sha256(f"ssh {number}".encode()).digest())
    blob = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return f"ssh-ed25519 {b64encode(blob).decode()} owner@example"


def events(random: Random, customer: Customer) -> Wish:
    asked = []
    if customer.events_after is not None and random.random() < 0.8:
        asked.append(f"after={customer.events_after}")
    if random.random() < 0.3:
        asked.append(f"wait={random.choice((1, 20, 60))}")
    if random.random() < 0.3:
        asked.append(f"type={random.choice(TYPES_OF_EVENTS)}")
    if random.random() < 0.1 and customer.servers:
        asked.append(f"resource={random.choice(customer.servers)}")
    if random.random() < 0.5:
        asked.append(f"limit={random.choice((1, 10, 100))}")
    return read("/v1/events", "&".join(asked))


def page(random: Random, customer: Customer) -> Wish:
    return read(random.choice(PAGES), ways=ANYBODY)


# --- mistakes -----------------------------------------------------------------------------------------------------

_ORDER: Final = {"name": "web", "type": "small", "image": "ubuntu-24.04", "location": "nbg1"}


def mistake(random: Random, customer: Customer) -> Wish:
    """What an honest client with a defect sends: all of it is refused, and costs nothing."""
    server = f"/v1/servers/{_server(random, customer)}"
    method, path, body = random.choice(
        (
            ("POST", "/v1/servers", b'{"name": "web",'),
            ("POST", "/v1/servers", _ORDER | {"color": "red"}),
            ("POST", "/v1/servers", _ORDER | {"type": "enormous"}),
            ("POST", "/v1/servers", _ORDER | {"type": "arm-small", "location": "ash"}),
            ("POST", "/v1/servers", _ORDER | {"location": "moon1"}),
            ("POST", "/v1/servers", _ORDER | {"image": "windows"}),
            ("POST", "/v1/servers", _ORDER | {"name": "-web-"}),
            ("POST", "/v1/servers", _ORDER | {"deposit": "0.10"}),
            ("POST", "/v1/servers", _ORDER | {"deposit": "-1"}),
            ("POST", "/v1/servers", _ORDER | {"fund": "2000.01"}),
            ("POST", "/v1/servers", _ORDER | {"ssh_keys": ["sk_aaaaaaaaaaaaaaaaaaaaaaaaaa"]}),
            ("POST", "/v1/servers", _ORDER | {"user_data": "x" * 40_000}),
            ("POST", "/v1/servers", None),
            ("POST", "/v1/balance/deposit", {"amount": "0.001"}),
            ("POST", "/v1/balance/deposit", {"amount": "1e3"}),
            ("POST", "/v1/balance/deposit", {"amount": "5000.00"}),
            ("POST", f"{server}/deposit", {"amount": "0.00"}),
            ("POST", f"{server}/resize", {"type": "enormous"}),
            ("POST", f"{server}/rebuild", {"image": "windows"}),
            ("POST", f"{server}/hibernate", None),
            ("PATCH", server, {}),
            ("PUT", server, {}),
            ("POST", "/v1/ssh-keys", {"name": "x", "public_key": "ssh-rsa AAAA"}),
            ("GET", "/v1/nothing", None),
            ("GET", f"{server}/", None),
        )
    )
    query = random.choice(("", "", "limit=0", "wait=61", "cursor=x", "after=x", "status=asleep", "page=0"))
    encoded = body if isinstance(body, bytes) else b"" if body is None else msgspec.json.encode(body)
    ways = (*WRITES, (Way.NOTHING, 3))
    return Wish(
        what="mistake",
        method=method,
        path=path,
        query=query if method == "GET" else "",
        body=encoded,
        ways=ways,
    )
