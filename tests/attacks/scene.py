"""Where attacks are made: a world with a victim and a thief, and requests that go to the application as bytes.

Invariant: nothing here tidies up what makes a request hostile, as a client would; and the books are right when a scene
ends, whatever was done in it.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import httpx
import msgspec
from spawn_schemas.ids import Address
from spawn_schemas.money import parse_usdc

from spawn.door import bounds_of
from spawn.payments import exact
from spawn.payments.exact import ExactPayment
from tests.attacks.lent_scene import open_lent, rented
from tests.harness import BASE_URL, CHAIN_ID, ORDER, World, open_world
from tests.integration.hosts_world import Lent
from tests.integration.paid_calls import PUBLIC_KEY, challenge, everything, machines
from tests.integration.raw_connections import Served, serving
from tests.integration.scripted_host import ScriptedHost
from tests.unit import bad_payments, bad_signatures
from tests.wallets import Wallet, encode

LIST: Final = ("GET", "/v1/servers")
CREATE: Final = ("POST", "/v1/servers")
DEPOSIT: Final = ("POST", "/v1/balance/deposit")
BUY: Final = ORDER | {"fund": "6.00"}
"""An order that brings its own money."""
SMALL: Final = {"type": "small", "image": "ubuntu-24.04", "location": "nbg1", "deposit": "0.50"}
"""An order without a name: add one."""

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Wire:
    """A request as it is on the wire. `target` is path and query of the request line, unchanged by anybody."""

    method: str
    target: str
    headers: Headers = ()
    body: bytes = b""
    client: str = "198.51.100.7"

    def plus(self, *headers: tuple[str, str]) -> "Wire":
        """These header lines as well, after those that are there."""
        return replace(self, headers=(*self.headers, *headers))

    def less(self, name: str) -> "Wire":
        """Without the header lines of this name."""
        return replace(self, headers=tuple(line for line in self.headers if line[0].lower() != name.lower()))

    def edited(self, name: str, change: Callable[[str], str]) -> "Wire":
        """The lines of this name with another value."""
        return replace(self, headers=tuple((n, change(v) if n == name else v) for n, v in self.headers))

    def value(self, name: str) -> str:
        return next(value for line, value in self.headers if line.lower() == name.lower())


@dataclass(frozen=True)
class Bytes:
    """What is sent on a connection of its own, each part by itself, whatever it is."""

    parts: tuple[bytes, ...]


@dataclass(kw_only=True)
class Scene:
    """A world with an owner who has a server, a key and a balance, and a thief who has money and bad intentions.

    `caller` is the customer whose signatures `bad_signatures` makes. Where machines are lent (`lent_scene`),
    the server is on that of `lends`, and the thief's is another.
    """

    world: World
    owner: Wallet
    thief: Wallet
    caller: Wallet
    server: str
    ssh_key: str
    listening: Served
    lends: tuple[Lent, ScriptedHost] | None = None
    _signed: int = field(default=0)

    @property
    def now(self) -> int:
        return self.world.clock.now_s()

    @property
    def lent(self) -> Lent:
        """The service with the host that the owner's server is on."""
        assert self.lends is not None
        return self.lends[0]

    @property
    def foreign_host(self) -> ScriptedHost:
        """The machine that the thief lends."""
        assert self.lends is not None
        return self.lends[1]

    async def send(self, wire: Wire) -> httpx.Response:
        """Hand the request to the application as a web server would."""
        path, _, query = wire.target.partition("?")
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": wire.method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode("latin-1"),
            "query_string": query.encode("latin-1"),
            "root_path": "",
            "headers": _header_lines(wire),
            "server": ("127.0.0.1", 80),
            "client": (wire.client, 40_000),
        }
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": wire.body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        app: Any = self.world.service.app
        await app(scope, receive, send)
        content = b"".join(message.get("body", b"") for message in sent[1:])
        return httpx.Response(sent[0]["status"], headers=sent[0]["headers"], content=content)

    async def converse(self, sent: Bytes) -> list[httpx.Response]:
        """Send bytes to the server that listens in front of the application, and read until it hangs up."""
        client = await self.listening.connect()
        await client.send(*sent.parts)
        said = await client.closed()
        client.close()
        return _responses(said)

    async def honest(self, wire: Wire) -> dict[str, Any]:
        """A call that must succeed, because an attack is built on it; answers its body."""
        answer = await self.send(wire)
        assert answer.is_success, answer.text
        body: dict[str, Any] = answer.json()
        return body

    def fresh_nonce(self) -> str:
        """Letters and digits that this scene has not seen."""
        self._signed += 1
        return f"scene{self._signed:011}"

    def rest(self) -> None:
        """A minute, in which every rate recovers and no job runs."""
        self.world.clock.advance(60)

    # --- how to make requests ---------------------------------------------------------------------------------

    def ask(self, method: str, target: str, body: object = None, *headers: tuple[str, str]) -> Wire:
        """A call that proves nothing."""
        return Wire(method=method, target=target, headers=headers, body=_encoded(body))

    async def offer(self, method: str, target: str, body: object = None) -> dict[str, Any]:
        """What the challenge of this call offers."""
        answer = await self.send(self.ask(method, target, body))
        first: dict[str, Any] = challenge(answer)["accepts"][0]
        return first

    async def payload(
        self, wallet: Wallet, method: str, target: str, body: object = None, **changes: Any
    ) -> dict[str, Any]:
        """The payment that this call asks for, before it becomes a header; see `Wallet.payload`."""
        return wallet.payload(await self.offer(method, target, body), now=self.now, **changes)

    async def pay(
        self, wallet: Wallet, method: str, target: str, body: object = None, **changes: Any
    ) -> Wire:
        """This call with the payment that it asks for."""
        return self.paid(await self.payload(wallet, method, target, body, **changes), method, target, body)

    def paid(self, payload: Mapping[str, Any] | str, method: str, target: str, body: object = None) -> Wire:
        """This call with that payment, whatever it was made for."""
        header = payload if isinstance(payload, str) else encode(dict(payload))
        return self.ask(method, target, body, ("PAYMENT-SIGNATURE", header))

    def sign(
        self,
        wallet: Wallet,
        method: str,
        target: str,
        body: object = None,
        *headers: tuple[str, str],
        **options: Any,
    ) -> Wire:
        """This call signed by the wallet; `options` are those of `bad_signatures.sign`."""
        path, mark, query = target.partition("?")
        call = bad_signatures.Call(
            method=method,
            path=path,
            query=mark + query,
            body=_encoded(body),
            authority=options.pop("authority", self.world.settings.authority),
            chain_id=CHAIN_ID,
            now=self.now,
        )
        ours: dict[str, Any] = {
            "by": wallet.account,
            "keyid": f'"erc8128:{CHAIN_ID}:{wallet.address}"',
            "nonce": f'"{self.fresh_nonce()}"',
        }
        made = bad_signatures.sign(call, **(ours | options))
        return from_call(made).plus(*headers)

    def authorization(self, wire: Wire) -> ExactPayment:
        """What a stranger who sees this paid call on its way can take to the chain."""
        payload = exact.decode_payment(wire.value("PAYMENT-SIGNATURE"))
        return exact.identify(payload, self.world.service.services.terms)

    # --- what can be moved ------------------------------------------------------------------------------------

    async def snapshot(self) -> dict[str, Any]:
        """Everything that anybody could want to change."""
        cloud = [msgspec.to_builtins(machine) async for machine in self.world.cloud.list_owned()]
        return await everything(self.world) | {"the cloud": cloud}

    async def totals(self) -> Counter[str]:
        """What there is of everything, in micro-USDC or pieces: for attacks in which something may happen once."""
        world = self.world
        counted = await world.rows(
            "SELECT (SELECT COUNT(*) FROM reservation) AS calls, (SELECT COUNT(*) FROM server) AS servers, "
            "(SELECT COUNT(*) FROM idempotency) AS keys, (SELECT COUNT(*) FROM host_call) AS host_calls, "
            "(SELECT COUNT(*) FROM command WHERE finished_at IS NOT NULL) AS orders_ended"
        )
        return Counter(
            chain=await world.chain.balance_of(world.settings.pay_to),
            owner=await self._balance(self.owner.address),
            thief=await self._balance(self.thief.address),
            fees=await world.account("rev:opfee"),
            machines=await machines(world),
            **dict(counted[0]),
        )

    async def _balance(self, wallet: Address) -> int:
        """Available, and reserved for servers."""
        reserved = await self.world.rows(
            "SELECT COALESCE(SUM(a.balance), 0) AS usdc FROM account a JOIN server s ON a.id = 'srv:' || s.id "
            "WHERE s.wallet = :wallet",
            wallet=wallet,
        )
        return int(await self.world.available(wallet)) + int(reserved[0]["usdc"])


@asynccontextmanager
async def open_scene(folder: Path, **changes: Any) -> AsyncIterator[Scene]:
    """A scene of one's own; `changes` are settings. Afterwards the books must be right."""
    # Hundreds of attacks come from one address while no time passes; those on the rates set their own.
    unlimited = {"rate_address_per_minute": 0, "rate_wallet_per_minute": 0}
    async with _world(folder, unlimited | changes) as (world, lends), _listening(world) as listening:
        owner, thief, caller = await world.customer("60.00"), await world.customer("20.00"), _caller()
        for address in (caller.address, Wallet(bad_payments.ATTACKER).address):
            await world.chain.mint(address, parse_usdc("100"))
        funded = await world.pay(caller, "POST", "/v1/balance/deposit", {"amount": "20.00"})
        assert funded.is_success, funded.text
        server = await _owned(world, owner) if lends is None else await rented(lends[0], owner)
        key = await world.sign(owner, "POST", "/v1/ssh-keys", {"name": "laptop", "public_key": PUBLIC_KEY})
        scene = Scene(
            world=world,
            owner=owner,
            thief=thief,
            caller=caller,
            server=server,
            ssh_key=key.json()["ssh_key"]["id"],
            listening=listening,
            lends=lends,
        )
        yield scene
        await world.check_books()


@asynccontextmanager
async def _world(
    folder: Path, changes: dict[str, Any]
) -> AsyncIterator[tuple[World, tuple[Lent, ScriptedHost] | None]]:
    if changes.get("providers") == "community":
        async with open_lent(folder, **changes) as lends:
            yield lends[0].world, lends
        return
    async with open_world(folder, **changes) as world:
        yield world, None


async def _owned(world: World, owner: Wallet) -> str:
    created = await world.sign(owner, "POST", "/v1/servers", ORDER | {"name": "owned"})
    await world.run_for(60, step_s=10)
    return str(created.json()["server"]["id"])


def _listening(world: World) -> AbstractAsyncContextManager[Served]:
    """The application behind our own door, with the bounds that the settings have, on a port of loopback."""
    return serving(served_by=world.service.app, **msgspec.structs.asdict(bounds_of(world.settings)))


def _caller() -> Wallet:
    return Wallet(bad_signatures.CALLER)


def from_call(call: bad_signatures.Call) -> Wire:
    """A signed call of the verifier's table, as it travels."""
    return Wire(
        method=call.method,
        target=call.path + call.query,
        headers=tuple(call.headers.items()),
        body=call.body,
    )


def _header_lines(wire: Wire) -> list[tuple[bytes, bytes]]:
    named = {name.lower() for name, _ in wire.headers}
    lines = [(name.lower().encode(), value.encode("latin-1")) for name, value in wire.headers]
    if "host" not in named:
        lines.insert(0, (b"host", BASE_URL.removeprefix("http://").encode()))
    if wire.body:
        lines.append((b"content-length", str(len(wire.body)).encode()))
    return lines


def written(wire: Wire, *lines: bytes) -> bytes:
    """The request as a client writes it, with these header lines as well, last on its connection."""
    head = [
        f"{wire.method} {wire.target} HTTP/1.1".encode("latin-1"),
        *(b"%b: %b" % line for line in _header_lines(wire)),
        *lines,
        b"connection: close",
    ]
    return b"\r\n".join(head) + b"\r\n\r\n" + wire.body


def _responses(said: bytes) -> list[httpx.Response]:
    found = []
    while said:
        head, _, said = said.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        headers = [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]
        length = int(dict(headers)[b"content-length"])
        found.append(httpx.Response(int(first.split()[1]), headers=headers, content=said[:length]))
        said = said[length:]
    return found


def _encoded(body: object) -> bytes:
    if body is None:
        return b""
    return body if isinstance(body, bytes) else msgspec.json.encode(body)
