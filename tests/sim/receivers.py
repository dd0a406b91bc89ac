"""The part of the internet that webhooks lead to: names, machines, and programs that take events or do not.

What runs here is the service's own way out, with its checks of targets and its HTTP; only the sockets are made up.
Invariant: a receiver lives outside of the process and keeps what it got, in true time; nothing but a public address
is ever dialled.
"""

import asyncio
import ssl
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from email.utils import formatdate
from enum import StrEnum
from hashlib import sha256
from hmac import digest as hmac_digest
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

import httpcore

from spawn.domain.targets import Address
from spawn.outbound.outbound import Outbound
from spawn.outbound.resolver import LOOKUP_S, Unresolvable
from tests.sim.weather import Fate

if TYPE_CHECKING:
    from tests.sim.feed_readers import Reader
    from tests.sim.world import World

PORT: Final = 443
OVERLAP_S: Final = 24 * 3_600
"""For how long the secret before the last is good beside it (docs/webhooks.md)."""
IN_FLIGHT_S: Final = 120
"""What was signed so long ago may still be on its way."""
STALE_S: Final = 3 * 3_600
"""A call that is so old will have no effect any more: its proof is void, and nobody has it under way."""
CLOCK_ERROR_S: Final = 12 * 3_600
"""How wrong the service's clock may be when it decides that a secret is old."""
_HEAD_END: Final = b"\r\n\r\n"
_PRIVATE: Final = (
    "127.0.0.1",
    "10.0.0.7",
    "169.254.169.254",
    "192.168.1.1",
    "::1",
    "fd00::1",
    "::ffff:127.0.0.1",
)


class Mood(StrEnum):
    """How a receiver answers."""

    WELL = "well"
    SICK = "sick"
    """It says 429 or 5xx, and sometimes when to come back."""
    PICKY = "picky"
    """It takes some events, and others never."""
    SLOW = "slow"
    """It takes what it gets, and says so when nobody may listen any more."""
    MOVED = "moved"
    GARBLED = "garbled"
    """What it says is no HTTP."""
    CHATTY = "chatty"
    """Its answer has no end."""
    GONE = "gone"
    """410: it wants nothing more."""


class Names(StrEnum):
    """What a receiver's name leads to."""

    RIGHT = "right"
    NOWHERE = "nowhere"
    PRIVATE = "private"
    """It was rebound to where only we can go."""
    MIXED = "mixed"
    STRANGER = "stranger"
    """A public machine whose certificate is another's."""


@dataclass(frozen=True)
class Message:
    """One request as it came in. Header names are in lower case; `at_ms` is the true time."""

    url: str
    headers: dict[str, str]
    body: bytes
    at_ms: int

    @property
    def id(self) -> str:
        return self.headers.get("webhook-id", "")


@dataclass
class Secret:
    """A signing secret that the owner was shown, and when (true time). `replaced_at` is when it saw the next one."""

    text: str
    since_s: int
    replaced_at_s: int | None = None


@dataclass(eq=False)
class Hook:
    """What an owner knows of one of its webhooks.

    `is_certain`: the owner knows which secret is the newest, because no call that makes one is open or was lost. Such
    a call is noted in `asked` (true time) until its answer shows the secret.
    """

    wallet: str
    id: str | None = None
    secrets: list[Secret] = field(default_factory=list)
    is_certain: bool = False
    asked: dict[int, int] = field(default_factory=dict)
    last_learnt_s: int = 0

    def ask(self, now_s: int) -> int:
        """The owner asks for a new secret; answers by which name to tell what came of it."""
        self.is_certain = False
        number = len(self.secrets) + len(self.asked)
        self.asked[number] = now_s
        return number

    def learn(self, number: int, secret: str | None, now_s: int) -> None:
        """What came of it: a secret, or None where the answer that had it was lost, or there was none."""
        if secret is None:
            return
        began = self.asked.pop(number)
        if self.secrets:
            self.secrets[-1].replaced_at_s = now_s
        self.secrets.append(Secret(secret, now_s))
        # Of two calls at once nobody knows which was the later, nor of one that may still be on its way.
        self.is_certain = self.last_learnt_s < began and all(
            at < now_s - STALE_S for at in self.asked.values()
        )
        self.last_learnt_s = now_s

    def doubt(self) -> None:
        """The service went back to a backup: its newest secret may be one of the lost, and an old one the newest."""
        self.is_certain = False
        for secret in self.secrets:
            secret.replaced_at_s = None

    def flaw_of(self, message: Message) -> str | None:
        """What is wrong with a message's signatures (Standard Webhooks 1.0), as far as the owner can know."""
        signatures = message.headers.get("webhook-signature", "").split(" ")
        if not 1 <= len(signatures) <= 2 or not all(s.startswith("v1,") for s in signatures):
            return f"signatures are {signatures}"
        now_s = message.at_ms // 1000
        fits = [s for s in self.secrets if signature(s.text, message) in signatures]
        for known in fits if self.is_certain else ():
            old_at = known.replaced_at_s
            if old_at is not None and now_s > old_at + OVERLAP_S + CLOCK_ERROR_S:
                return f"signed with a secret that was replaced {now_s - old_at} s ago"
        newest = self.secrets[-1] if self.secrets else None
        if (
            self.is_certain
            and newest not in fits
            and not (fits and now_s <= self.secrets[-1].since_s + IN_FLIGHT_S)
        ):
            return "not signed with the newest secret"
        return None


def signature(secret: str, message: Message) -> str:
    """What Standard Webhooks 1.0 asks for: HMAC-SHA256 over id, timestamp and body, with dots between."""
    key = b64decode(secret.removeprefix("whsec_"))
    head = f"{message.id}.{message.headers.get('webhook-timestamp', '')}.".encode()
    return f"v1,{b64encode(hmac_digest(key, head + message.body, sha256)).decode()}"


@dataclass
class Receiver:
    """One machine of an owner's, with one name."""

    host: str
    address: str
    mood: Mood = Mood.WELL
    names: Names = Names.RIGHT
    down_until_s: int = 0


class Receivers:
    """All of them. `listeners` are told of each message, and of the status that it is answered with."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.machines: list[Receiver] = []
        self.hooks: dict[str, Hook] = {}
        """By URL. One URL belongs to one webhook for ever; a webhook may move from one to another."""
        self.listeners: list[Callable[[Message, int], None]] = []
        self.taken: dict[str, dict[str, None]] = {}
        """By URL the ids of all messages that were answered with 2xx."""
        self.readers: list[Reader] = []
        """Who follows a feed of events."""
        self._by_host: dict[str, Receiver] = {}
        self._by_address: dict[str, Receiver] = {}
        self._aliases: dict[str, tuple[str, ...]] = {}

    def outbound(self) -> Outbound:
        """The service's way out, for one process."""
        rules = self._world.settings.outbound_rules
        return Outbound(rules, _Resolver(self._world, self), tls=_TRUST, network=_Network(self._world, self))

    def open(self) -> Receiver:
        """Somebody puts up a new machine with a name of its own."""
        number = len(self.machines) + 1
        host = f"r{number}.hooks.example.org"
        receiver = Receiver(host, f"45.33.{number // 250}.{number % 250 + 1}")
        self.machines.append(receiver)
        self._by_host[host] = self._by_address[receiver.address] = receiver
        return receiver

    def open_url(self, hook: Hook, receiver: Receiver) -> str:
        """A new URL at this machine, for this webhook."""
        url = f"https://{receiver.host}/hooks/{len(self.hooks) + 1}"
        self.hooks[url] = hook
        return url

    def lead(self, host: str, *addresses: str) -> None:
        """Let a name lead to these addresses, whatever they are: for who wants us to go there."""
        self._aliases[host] = addresses

    def is_alive(self, url: str) -> bool:
        """Whether what is sent there in calm arrives."""
        return url.startswith("https://") and url.split("/", 3)[2] in self._by_host

    # --- what the service meets ---

    def addresses_of(self, host: str) -> tuple[str, ...]:
        """What the name servers say just now; nothing where nobody knows the name."""
        if host in self._aliases:
            return self._aliases[host]
        receiver = self._by_host.get(host)
        if receiver is None:
            return ()
        world = self._world
        match Names.RIGHT if world.calm else receiver.names:
            case Names.RIGHT:
                return (receiver.address,)
            case Names.NOWHERE:
                return ()
            case Names.PRIVATE:
                return (world.random.choice(_PRIVATE),)
            case Names.MIXED:
                return (receiver.address, world.random.choice(_PRIVATE))
            case Names.STRANGER:
                return (world.random.choice(self.machines).address,)

    def at(self, address: str) -> Receiver | None:
        """The machine at an address, if one answers there now."""
        receiver = self._by_address.get(address)
        if receiver is None or (not self._world.calm and self._world.true_s() < receiver.down_until_s):
            return None
        return receiver

    def take(self, receiver: Receiver, request: bytes) -> "Response":
        """A request is there: keep it, and decide how it is answered."""
        world = self._world
        head, _, body = request.partition(_HEAD_END)
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        url = f"https://{headers.get('host', '')}{first.split(' ')[1]}"
        message = Message(url, headers, body, world.true_ms())
        response = _respond(world, Mood.WELL if world.calm else receiver.mood, message)
        if response.is_ok:
            self.taken.setdefault(url, {})[message.id] = None
        for listener in self.listeners:
            listener(message, response.status)
        world.step(f"receiver {receiver.host} {message.id} {response.status}")
        return response


@dataclass
class Response:
    """What a receiver says, after `wait_s`. `head` is all of it, unless `goes_on`."""

    status: int
    head: bytes
    wait_s: float = 0.0
    goes_on: bool = False

    @property
    def is_ok(self) -> bool:
        return 200 <= self.status < 300


def _respond(world: "World", mood: Mood, message: Message) -> Response:
    draw = world.random
    match mood:
        case Mood.WELL:
            return _said(draw.choice((200, 202, 204)))
        case Mood.SICK:
            status = draw.choice((429, 500, 502, 503))
            return _said(
                status, _retry_after(draw.choice(("", "seconds", "date")), draw.randint(1, 90_000), world)
            )
        case Mood.PICKY:
            return _said(204 if sha256(message.id.encode()).digest()[0] % 3 else 422)
        case Mood.SLOW:
            response = _said(200)
            response.wait_s = draw.uniform(1.0, 40.0)
            return response
        case Mood.MOVED:
            return _said(draw.choice((301, 302, 307)), "Location: https://169.254.169.254/\r\n")
        case Mood.GARBLED:
            return Response(0, draw.choice((b"SSH-2.0-OpenSSH_9.6\r\n", b"", b"HTTP/1.1 2x0 Fine\r\n\r\n")))
        case Mood.CHATTY:
            return Response(200, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", goes_on=True)
        case Mood.GONE:
            return _said(410)


def _said(status: int, more: str = "") -> Response:
    return Response(status, f"HTTP/1.1 {status} So\r\n{more}Content-Length: 0\r\n\r\n".encode())


def _retry_after(form: str, wait_s: int, world: "World") -> str:
    if not form:
        return ""
    now = world.true_s()
    value = str(wait_s) if form == "seconds" else formatdate(now + wait_s, usegmt=True)
    return f"Date: {formatdate(now, usegmt=True)}\r\nRetry-After: {value}\r\n"


class _Resolver:
    """The name servers; `spawn.outbound.resolver.Resolver`."""

    def __init__(self, world: "World", receivers: Receivers) -> None:
        self._world = world
        self._receivers = receivers

    async def resolve(self, host: str) -> tuple[Address, ...]:
        try:
            async with asyncio.timeout(LOOKUP_S):
                fate = await self._world.weather.on_the_way("resolver", host)
                found = self._receivers.addresses_of(host) if fate is Fate.ARRIVES else ()
                await self._world.weather.on_the_way_back("resolver", host)
        except TimeoutError as error:
            raise Unresolvable(host) from error
        if not found:
            raise Unresolvable(host)
        return tuple(map(ip_address, found))


class _Network(httpcore.AsyncNetworkBackend):
    """Connections to receivers."""

    def __init__(self, world: "World", receivers: Receivers) -> None:
        self._world = world
        self._receivers = receivers

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the signature is httpcore's
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Raises httpcore.ConnectError, httpcore.ConnectTimeout; a violation where no receiver may be."""
        self._check(host, port)
        try:
            async with asyncio.timeout(timeout):
                fate = await self._world.weather.on_the_way("receivers", f"connect {host}")
                if fate in {Fate.LOST_REQUEST, Fate.LOST_ANSWER}:
                    await asyncio.Event().wait()
        except TimeoutError as error:
            raise httpcore.ConnectTimeout from error
        receiver = self._receivers.at(host)
        if receiver is None or fate is not Fate.ARRIVES:
            raise httpcore.ConnectError("connection refused")
        return _Stream(self._world, self._receivers, receiver)

    def _check(self, host: str, port: int) -> None:
        address = ip_address(host)
        allowed = any(address in network for network in self._world.settings.outbound_rules.networks)
        mapped = getattr(address, "ipv4_mapped", None)
        if not allowed and (mapped is not None or not address.is_global or address.is_multicast):
            self._world.violation(
                "foreign", f"the service dialled {host}:{port}, which is not on the internet"
            )


class _Stream(httpcore.AsyncNetworkStream):
    """One connection: a request goes out, an answer comes back, perhaps."""

    def __init__(self, world: "World", receivers: Receivers, receiver: Receiver) -> None:
        self._world = world
        self._receivers = receivers
        self._receiver = receiver
        self._sent = bytearray()
        self._answer: Response | None = None

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the signature is httpcore's
    ) -> httpcore.AsyncNetworkStream:
        if server_hostname != self._receiver.host:
            raise httpcore.ConnectError("no certificate for that name") from ssl.SSLError("hostname mismatch")
        return self

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as above
        self._sent += buffer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - as above
        if self._answer is not None:
            return b"400\r\n" + b"x" * 1024 + b"\r\n" if self._answer.goes_on else b""
        fate = await self._world.weather.on_the_way("receivers", "post")
        match fate:
            case Fate.LOST_REQUEST:
                await asyncio.Event().wait()
            case Fate.DOWN:
                raise httpcore.ReadError("connection reset")
            case Fate.REFUSED:
                self._answer = _said(503)  # by what stands before the receiver
            case Fate.ARRIVES | Fate.LOST_ANSWER:
                self._answer = await self._taken()
        if fate is Fate.LOST_ANSWER:
            await asyncio.Event().wait()
        await self._world.weather.on_the_way_back("receivers", "post")
        assert self._answer is not None
        return self._answer.head

    async def aclose(self) -> None:
        """Nothing is kept."""

    async def _taken(self) -> Response:
        request = bytes(self._sent)
        answer = self._receivers.take(self._receiver, request)
        if not self._world.calm and self._world.random.random() < _TWICE:
            # A proxy on the way sends it again, and passes on what was said to that.
            answer = self._receivers.take(self._receiver, request)
        await asyncio.sleep(answer.wait_s)
        return answer


_TWICE: Final = 0.01
_TRUST: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Never used: what it would check is decided by `start_tls`."""
