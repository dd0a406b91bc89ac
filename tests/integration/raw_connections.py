"""A server with short bounds and a small application, and clients that speak to it in bytes.

Invariant: every wait here is bounded by `PATIENCE_S`.
"""

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, ParamSpec

import msgspec
import uvicorn
import uvloop
from uvicorn.server import ServerState

from spawn.api.front import Front
from spawn.connections import Connection, behind
from spawn.door import Bounds, Door
from spawn.quick import asking_first

PATIENCE_S: Final = 10.0
GET: Final = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"

BOUNDS: Final = Bounds(
    head_max_bytes=4096,
    body_max_bytes=8192,
    head_s=5.0,
    body_s=5.0,
    idle_s=5.0,
    answer_s=5.0,
    open_max=64,
    open_per_address_max=64,
)


@dataclass
class Application:
    """Answers with what it read. `/wait` answers when `go_on` is set, `/large` with a megabyte, `/early` at once."""

    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    calls: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    disconnects: int = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, whole = b"", scope["path"] == "/early"
        while not whole:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnects += 1
                return
            body += message["body"]
            whole = not message["more_body"]
        if scope["path"] == "/wait":
            await self.go_on.wait()
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.calls.append((scope["path"], headers, body))
        said = b"." * 1_000_000 if scope["path"] == "/large" else b"%d" % len(body)
        length = (b"content-length", b"%d" % len(said))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": said})


@dataclass(kw_only=True)
class Answer:
    """What came back: `error` is the envelope's, or empty."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.json.decode(self.body)["error"]
        return found


@dataclass
class Client:
    """One TCP connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, *parts: bytes) -> None:
        """Write each part by itself. A server that has closed is no error: what it said is what counts."""
        for part in parts:
            try:
                self.writer.write(part)
                await asyncio.wait_for(self.writer.drain(), PATIENCE_S)
            except ConnectionError:
                return

    async def answer(self) -> Answer:
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
        first, *lines = head.decode().strip().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        body = await asyncio.wait_for(self.reader.readexactly(int(headers["content-length"])), PATIENCE_S)
        return Answer(status=int(first.split()[1]), headers=headers, body=body)

    async def ask(self, *parts: bytes) -> Answer:
        await self.send(*parts)
        return await self.answer()

    async def closed(self) -> bytes:
        """What still comes until the server ends the connection."""
        try:
            return await asyncio.wait_for(self.reader.read(), PATIENCE_S)
        except ConnectionError:
            return b""

    def close(self) -> None:
        self.writer.close()


@dataclass
class Served:
    """A listening server and what it holds."""

    port: int
    application: Application
    door: Door
    state: ServerState
    clients: list[Client] = field(default_factory=list)

    async def connect(self, source: str = "127.0.0.1", *, buffer_bytes: int = 2**16) -> Client:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, local_addr=(source, 0), limit=buffer_bytes
        )
        self.clients.append(Client(reader, writer))
        return self.clients[-1]

    async def ask(self, *parts: bytes) -> Answer:
        """An exchange on a connection of its own."""
        client = await self.connect()
        answer = await client.ask(*parts)
        client.close()
        return answer

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until the server has come to this."""
        async with asyncio.timeout(PATIENCE_S):
            while not true():  # noqa: ASYNC110 - what is waited for is inside uvicorn, which sets no event
                await asyncio.sleep(0.01)

    async def empties(self) -> None:
        """Nothing of what was done to the server is left in it."""
        await self.until(lambda: not self.state.connections and not self.state.tasks and not self.door.open)


P = ParamSpec("P")


def on_uvloop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test on the loop that the service runs on, whose transports are its own."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        uvloop.run(test(*args, **kwargs))

    return run


@asynccontextmanager
async def serving(
    exempt: Callable[[str], bool] = lambda _: True,
    *,
    served_by: Any = None,
    port: int = 0,
    access_log: bool = False,
    **bounds: Any,
) -> AsyncIterator[Served]:
    """Serve on a port of loopback, a free one unless told; afterwards nothing may be left of any connection.

    `served_by` is another application than the small one; the service's own is asked first, as `spawn.server` does.
    """
    application = Application()
    door = Door(
        msgspec.structs.replace(BOUNDS, **bounds), exempt=exempt, new_request_id=lambda: "req_of_the_door"
    )
    protocol: type[Connection] = behind(door)
    if isinstance(served_by, Front):
        protocol = asking_first(served_by, protocol)
    # uvicorn silences this logger of the whole process where one server wants no access log, and never undoes it.
    logging.getLogger("uvicorn.access").propagate = True
    config = uvicorn.Config(
        served_by or application,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=access_log,
    )
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: protocol(config=config, server_state=state, app_state={}), "127.0.0.1", port
    )
    served = Served(server.sockets[0].getsockname()[1], application, door, state)
    try:
        yield served
        application.go_on.set()
        for client in served.clients:
            client.close()
        await served.empties()
    finally:
        server.close()
        for connection in [*state.connections]:
            connection.transport.abort()
