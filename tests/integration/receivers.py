"""Receivers of webhooks on loopback: one that verifies what it gets, one that only counts, and one that says anything.

Invariant: a signature is judged by the Standard Webhooks library, at the time that the world's clock shows.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from typing import Any

import standardwebhooks.webhooks
from aiohttp import web
from standardwebhooks import Webhook


@dataclass(frozen=True)
class Message:
    """What arrived, as it was on the wire."""

    headers: Mapping[str, str]
    body: bytes
    path: str

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def event(self) -> dict[str, Any]:
        decoded: dict[str, Any] = json.loads(self.body)
        return decoded

    def verify(self, secret: str, now: int) -> dict[str, Any]:
        """The event; raises standardwebhooks.WebhookVerificationError."""
        with _library_clock(now):
            verified: dict[str, Any] = Webhook(secret).verify(self.body, dict(self.headers))
        return verified


@contextmanager
def _library_clock(now: int) -> Iterator[None]:
    """The library compares a timestamp with the machine's clock, and takes no other."""

    class Then(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Then":
            return cls.fromtimestamp(now, tz or UTC)

    module: Any = standardwebhooks.webhooks
    original, module.datetime = module.datetime, Then
    try:
        yield
    finally:
        module.datetime = original


@dataclass
class Receiver:
    """An endpoint. `status` is what it answers, or what `decide` says of a message; `got` all that arrived."""

    url: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    decide: Callable[[Message], int] | None = None
    got: list[Message] = field(default_factory=list)
    accepted: list[Message] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.Response:
        message = Message(dict(request.headers), await request.read(), request.path)
        self.got.append(message)
        status = self.status if self.decide is None else self.decide(message)
        if 200 <= status < 300:
            self.accepted.append(message)
        return web.Response(status=status, headers=self.headers)


@asynccontextmanager
async def receiving(port: int = 0) -> AsyncIterator[Receiver]:
    """A receiver on a port of loopback."""
    receiver = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", receiver.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hooks"
        yield receiver
    finally:
        await runner.cleanup()


@dataclass
class Canary:
    """A listener that nobody must reach."""

    port: int = 0
    connections: int = 0


@asynccontextmanager
async def canary(host: str = "127.0.0.1") -> AsyncIterator[Canary]:
    bird = Canary()

    async def sing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bird.connections += 1
        writer.close()

    server = await asyncio.start_server(sing, host, 0)
    bird.port = server.sockets[0].getsockname()[1]
    async with server:
        yield bird


@asynccontextmanager
async def saying(*parts: bytes, pause_s: float = 0.0, for_ever: bool = False) -> AsyncIterator[list[int]]:
    """A receiver that says these bytes whatever it is asked, pausing before each; with `for_ever` the last on and on.

    Yields its port, and then how many bytes each connection was sent.
    """
    said: list[int] = []
    over = asyncio.Event()
    speaking: set[asyncio.Task[None]] = set()

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (task := asyncio.current_task()) is not None:
            speaking.add(task)
            task.add_done_callback(speaking.discard)
        said.append(0)
        at = len(said) - 1
        try:
            await reader.readuntil(b"\r\n\r\n")
            for part in _repeated(parts, for_ever=for_ever):
                if await _passes(over, pause_s):
                    return
                writer.write(part)
                await writer.drain()
                said[at] += len(part)
        except (ConnectionError, asyncio.IncompleteReadError):
            return  # whoever hangs up has heard enough
        finally:
            writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    said.append(server.sockets[0].getsockname()[1])
    async with server:
        yield said
    over.set()
    if speaking:
        await asyncio.wait(speaking, timeout=5)


async def _passes(over: asyncio.Event, pause_s: float) -> bool:
    """Pause; True when all is over before that."""
    try:
        async with asyncio.timeout(pause_s):
            return await over.wait()
    except TimeoutError:
        return False


def _repeated(parts: tuple[bytes, ...], *, for_ever: bool) -> Iterator[bytes]:
    yield from parts
    while for_ever:
        yield parts[-1]
