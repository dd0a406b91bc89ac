"""A reader of server-sent events that knows the bytes (WHATWG HTML, section 9.2), and servers to read from."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
from signing import SignedRequestAuth

from spawn.api.streams import Streams
from tests.harness import CHAIN_ID, World, open_world
from tests.integration.event_steps import PATIENCE_S, session
from tests.integration.raw_connections import Client, Served, serving
from tests.integration.test_gate_findings import sign_in
from tests.wallets import Wallet


@dataclass
class Message:
    """One message of a stream; without data it only moves the id."""

    id: str | None = None
    event: str = "message"
    data: str = ""
    comments: list[str] = field(default_factory=list)
    retry: int | None = None

    @property
    def name(self) -> str:
        name: str = msgspec.json.decode(self.data)["data"]["name"]
        return name


@dataclass
class Reader:
    """One stream, read as it comes. `head` is the answer's first line and headers."""

    client: Client
    head: str = ""

    async def open(self, request: bytes) -> None:
        await self.client.send(request)
        head = await asyncio.wait_for(self.client.reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
        self.head = head.decode().lower()

    @property
    def status(self) -> int:
        return int(self.head.split()[1])

    async def chunk(self) -> bytes:
        """The next chunk of the body (RFC 9112, section 7.1); empty at its end."""
        async with asyncio.timeout(PATIENCE_S):
            size = int((await self.client.reader.readline()).strip(), 16)
            return (await self.client.reader.readexactly(size + 2))[:-2]

    async def messages(self) -> list[Message]:
        """Those of the next chunk."""
        return [_message(block) for block in (await self.chunk()).decode().split("\n\n") if block]

    async def message(self) -> Message:
        """The next one, which comes alone."""
        (message,) = await self.messages()
        return message

    async def names(self, count: int) -> list[str]:
        """The names that the next so many events carry."""
        found: list[str] = []
        while len(found) < count:
            found += [
                message.name for message in await self.messages() if message.event != "gap" and message.data
            ]
        return found

    async def ends(self) -> None:
        """Nothing but heartbeats comes until the stream is over, as it should be."""
        while messages := await self.messages():
            assert not any(message.data for message in messages)


def _message(block: str) -> Message:
    message = Message()
    for line in block.split("\n"):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "":
                message.comments.append(value)
            case "id" | "event" | "data":
                setattr(message, name, value)
            case "retry":
                message.retry = int(value)
            case _:
                raise AssertionError(f"a line of no known field: {line!r}")
    return message


@dataclass
class Scene:
    """A world, and a server in front of it."""

    world: World
    served: Served

    @property
    def streams(self) -> Streams:
        return self.world.service.services.streams

    async def request(self, wallet: Wallet, query: str = "", **headers: str) -> bytes:
        """The head of a request for a stream, by a session of the wallet's."""
        lines = {
            "Host": "spawn.test",
            "Accept": "text/event-stream",
            "Authorization": f"Bearer {await session(self.world, wallet)}",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return f"GET /v1/events{query} HTTP/1.1\r\n{head}\r\n".encode()

    async def follow(self, wallet: Wallet, query: str = "", **headers: str) -> Reader:
        """An open stream, its first words read."""
        reader = Reader(await self.served.connect())
        await reader.open(await self.request(wallet, query, **headers))
        assert reader.status == 200, reader.head
        assert (await reader.message()).retry == 3000
        return reader

    def http(self) -> httpx.AsyncClient:
        """A stock client of the server."""
        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.served.port}",
            headers={"Host": "spawn.test"},
            timeout=PATIENCE_S,
            trust_env=False,
        )

    async def proofs(self, wallet: Wallet) -> list[dict[str, str]]:
        """A payment, a signature and a sign-in for `/v1/events?limit=1`: headers that are good once."""
        target = "/v1/events?limit=1"
        clock = self.world.clock
        auth = SignedRequestAuth(wallet.account, CHAIN_ID, clock=clock.now_s)
        signed = next(auth.auth_flow(httpx.Request("GET", f"http://spawn.test{target}")))
        names = [name for name in signed.headers if name.startswith(("signature", "content-digest"))]
        return [
            {"PAYMENT-SIGNATURE": await self.world.payment(wallet, "GET", target)},
            {name: signed.headers[name] for name in names},
            sign_in(self.world, wallet, "a" * 17),
        ]

    async def free(self) -> None:
        """No stream is open any more."""
        await self.served.until(lambda: self.streams.open == 0)


async def data(answer: httpx.Response) -> str:
    """The first line of data."""
    async for line in answer.aiter_lines():
        if line.startswith("data:"):
            return line
    raise AssertionError("the stream ended without any")


@asynccontextmanager
async def scene(
    folder: Path, *, heartbeat_s: float = 15.0, bounds: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Scene]:
    async with open_world(folder, **settings) as world:
        world.service.services.streams.heartbeat_s = heartbeat_s
        # A payment alone is more than the small heads of `raw_connections`.
        bounds = {"head_max_bytes": world.settings.head_max_bytes, **(bounds or {})}
        async with serving(served_by=world.service.app, **bounds) as served:
            yield Scene(world, served)
            world.service.services.streams.watch.stop()
