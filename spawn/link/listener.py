"""The listener for hosts: links and data sockets are WebSockets, speed tests plain HTTP, all on one port.

Invariant: nothing here is compressed, and nobody who is not let in costs more than a socket for ten seconds. It starts
after what it needs and stops before it; sessions that it cuts are dialled again by their hosts.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import Any, Final, cast

from spawn_schemas import link
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from spawn.domain.community import InnerPort
from spawn.link import login
from spawn.link.hub import Hub
from spawn.link.relay import Names, PublicPorts
from spawn.link.session import CLOSING_S, BadFrame, Session
from spawn.link.speed import PREFIX, SpeedTests
from spawn.link.streams import Streams
from spawn.services.hosts import Hosts
from spawn.store import rentals
from spawn.store.database import StoreError

log = logging.getLogger(__name__)

HEAD_MAX: Final = 16 * 1024
OPENING_S: Final = 10.0
"""How long a host that is let go may take to say goodbye: one that floods us is not read any more."""
NOT_LET_IN_MAX: Final = 512
"""Sockets that may be on their way to a login at once."""
_READ_FRAMES: Final = 4
_WRITE_BYTES: Final = 64 * 1024

Plain = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Sorted(ServerConnection):
    """A connection that looks at its first line, and is a WebSocket only where that is no speed test's."""

    def __init__(self, *args: Any, plain: Plain, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._plain = plain
        self._head = b""
        self._early: asyncio.Transport | None = None
        self._giving_up: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._early = cast("asyncio.Transport", transport)
        self._giving_up = asyncio.get_running_loop().call_later(OPENING_S, self._early.abort)

    def data_received(self, data: bytes) -> None:
        if self._early is None:
            super().data_received(data)
            return
        self._head += data
        if b"\r\n" not in self._head and len(self._head) < HEAD_MAX:
            return
        transport, head = self._decided(), self._head
        if f" {PREFIX}".encode() in head.partition(b"\r\n")[0]:
            reader = asyncio.StreamReader(limit=HEAD_MAX)
            protocol = asyncio.StreamReaderProtocol(reader, cast("Any", self._plain))
            transport.set_protocol(protocol)
            protocol.connection_made(transport)
            protocol.data_received(head)
        else:
            super().connection_made(transport)
            super().data_received(head)

    def eof_received(self) -> None:
        if self._early is None:
            super().eof_received()
        else:
            self._decided().abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._early is None and hasattr(self, "transport"):
            super().connection_lost(exc)
        elif self._giving_up is not None:
            self._giving_up.cancel()

    def _decided(self) -> asyncio.Transport:
        if self._early is None or self._giving_up is None:
            raise RuntimeError("this connection was sorted already")
        self._giving_up.cancel()
        transport, self._early = self._early, None
        return transport


class Listener:
    """Everything that hosts and their tenants connect to."""

    def __init__(
        self,
        hub: Hub,
        hosts: Hosts,
        ports: tuple[InnerPort, ...],
        *,
        link_url: str,
        relay_address: str,
    ) -> None:
        self.hub = hub
        self.streams = Streams(hub, hub.entropy)
        self.public = PublicPorts(hub.db, self.streams, relay_address)
        self.names = Names(hub.db, self.streams, ports)
        self._speed = SpeedTests(hosts)
        self._link_url = link_url
        self._server: Server | None = None
        self._outside = 0

    @asynccontextmanager
    async def running(self, link: tuple[str, int], http: tuple[str, int]) -> AsyncIterator[None]:
        """Listen on these addresses. Raises StoreError where one is taken."""
        try:
            self._server = await self._serve(*link)
            await self.names.start(*http)
        except OSError as error:
            await self._close()
            raise StoreError(
                f"SPAWN_LINK_LISTEN or SPAWN_RELAY_HTTP_LISTEN cannot be listened on ({error.strerror}): choose other "
                "ports, and run the hosts' link in one process."
            ) from error
        self.hub.start()
        self.hub.on_change = self.public.look
        self.hub.also_flush = self.write_counts
        self.public.start()
        try:
            yield
        finally:
            await self._close()

    def address(self) -> tuple[str, int]:
        """Where it listens for hosts. Raises RuntimeError when it does not."""
        if self._server is None:
            raise RuntimeError("the listener is not running")
        host, port, *_ = next(iter(self._server.sockets)).getsockname()
        return host, port

    async def _close(self) -> None:
        await self.public.stop()
        await self.names.stop()
        await self.hub.stop()
        await self.write_counts()
        await self._speed.stop()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, address: str, port: int) -> Server:
        return await serve(
            self._attend,
            address,
            port,
            create_connection=cast("Any", partial(Sorted, plain=self._speed.serve)),
            process_request=self._let_in,
            compression=None,
            open_timeout=OPENING_S,
            close_timeout=CLOSING_S,
            ping_interval=None,
            max_size=link.FRAME_BYTES_MAX,
            max_queue=_READ_FRAMES,
            write_limit=_WRITE_BYTES,
            server_header=None,
            logger=logging.getLogger("spawn.link.sockets"),
        )

    def _let_in(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == link.LINK_PATH:
            if self._outside < NOT_LET_IN_MAX:
                return None
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "Too many are logging in: try again.\n")
        if request.path.startswith(link.DATA_PATH):
            stream_id = request.path.removeprefix(link.DATA_PATH)
            if self.streams.knows(stream_id, request.headers.get("Authorization", "")):
                connection.protocol.max_message_size = link.DATA_BYTES_MAX
                return None
            return connection.respond(HTTPStatus.UNAUTHORIZED, "Nobody waits for this stream.\n")
        return connection.respond(HTTPStatus.NOT_FOUND, f"Hosts connect to {link.LINK_PATH}.\n")

    async def _attend(self, socket: ServerConnection) -> None:
        path = "" if socket.request is None else socket.request.path
        if path.startswith(link.DATA_PATH):
            await self.streams.brought(path.removeprefix(link.DATA_PATH), socket)
            return
        try:
            session = await self._logged_in(socket)
        except login.Refused as refusal:
            await socket.close(refusal.code, str(refusal)[:120])
        except (BadFrame, TimeoutError) as error:
            await socket.close(1002, str(error)[:120] or "no hello came in time")
        except ConnectionClosed:
            return
        else:
            await self._converse(session, socket)

    async def _logged_in(self, socket: ServerConnection) -> Session:
        self._outside += 1
        try:
            return await login.log_in(self.hub, socket, self._link_url)
        finally:
            self._outside -= 1

    async def _converse(self, session: Session, socket: ServerConnection) -> None:
        try:
            await login.attend(self.hub, session, socket, self.streams.failed)
        except ConnectionClosed:
            log.info("host %s went away", session.host_id)
        except BadFrame as error:
            log.warning("host %s is let go: %s", session.host_id, error)
            await socket.close(1002, str(error)[:120])
        finally:
            self.hub.closed(session)

    async def write_counts(self) -> None:
        """Write down what the relay carried since the last time."""
        taken = self.streams.counted.take()
        for rental_id, (ingoing, outgoing) in taken.items():
            params = {"id": rental_id, "ingoing": ingoing, "outgoing": outgoing}
            try:
                await self.hub.db.write(lambda tx, p=params: tx.execute(rentals.COUNT_BYTES, p))  # type: ignore[misc]  # bound
            except Exception:
                log.exception("what the relay carried for %s is written down later", rental_id)
                self.streams.counted.put_back({rental_id: (ingoing, outgoing)})
