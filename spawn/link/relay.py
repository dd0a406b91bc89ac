"""The public side: a TCP port for each leased one, and one listener for all HTTP ports, told apart by host name.

Invariant: a connection leads to the rental that its port or name is leased to now, or nowhere; a port whose lease ended
is closed before it leads anywhere else.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable, Coroutine
from typing import Any, Final

import msgspec
from spawn_schemas.ids import HostId, RentalId

from spawn.domain.community import InnerPort, parse_name
from spawn.domain.rentals import Desired
from spawn.link.one_request import OneAnswer, is_upgrade, lone
from spawn.link.streams import NoStream, Streams
from spawn.store import rentals
from spawn.store.database import Database

log = logging.getLogger(__name__)

HEAD_MAX: Final = 32 * 1024
HEAD_S: Final = 10.0
LOOK_S: Final = 30.0
"""How often it is looked what is leased, if nobody says that it changed."""
_HOST: Final = re.compile(rb"\r\nhost:[ \t]*([^\r\n]*?)[ \t]*\r\n", re.IGNORECASE)

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


class Leased(msgspec.Struct, frozen=True):
    """Where a public port leads."""

    host_id: HostId
    rental_id: RentalId
    inner_port: int


class PublicPorts:
    """Listens on what is leased, and on nothing else."""

    def __init__(self, db: Database, streams: Streams, address: str) -> None:
        self._db = db
        self._streams = streams
        self._address = address
        self._servers: dict[int, asyncio.Server] = {}
        self._leased: dict[int, Leased] = {}
        self._changed = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._connections: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._looking = asyncio.create_task(self._look_forever(), name="relay ports")

    async def stop(self) -> None:
        for task in filter(None, (self._looking, *self._connections)):
            task.cancel()
        await asyncio.gather(*filter(None, (self._looking, *self._connections)), return_exceptions=True)
        for server in self._servers.values():
            server.close()
        self._servers.clear()

    def look(self) -> None:
        """What is leased may have changed."""
        self._changed.set()

    async def refresh(self) -> None:
        """Open and close ports as they are leased now."""
        rows = await self._db.read(rentals.SELECT_LEASED, {})
        leased = {
            row["port"]: Leased(HostId(row["host_id"]), RentalId(row["rental_id"]), row["inner_port"])
            for row in rows
        }
        for port in self._servers.keys() - leased.keys():
            self._servers.pop(port).close()
        for rental_id in {one.rental_id for one in self._leased.values()} - {
            one.rental_id for one in leased.values()
        }:
            self._streams.cut(rental_id)
        self._leased = leased
        for port in leased.keys() - self._servers.keys():
            await self._open(port)

    async def _open(self, port: int) -> None:
        try:
            self._servers[port] = await asyncio.start_server(
                self._serving(port), self._address, port, limit=HEAD_MAX
            )
        except OSError as error:
            # No traceback: the address is taken, and the next look tries again.
            log.error("public port %d cannot be listened on: %s", port, error)  # noqa: TRY400

    def _serving(self, port: int) -> Serve:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            leased = self._leased.get(port)
            if leased is None:
                writer.close()
                return
            await kept(self._connections, self._carry(leased, reader, writer))

        return serve

    async def _carry(
        self, leased: Leased, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            await self._streams.carry(leased.host_id, leased.rental_id, leased.inner_port, reader, writer)
        except NoStream as error:
            log.info("a connection to %s port %d ended: %s", leased.rental_id, leased.inner_port, error)
        finally:
            await closed(writer)

    async def _look_forever(self) -> None:
        while True:
            self._changed.clear()
            try:
                await self.refresh()
            except Exception:
                log.exception("what is leased of the relay's ports could not be read; the next look does")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._changed.wait()


class Names:
    """Carries HTTP by host name: one head of a connection is read for it, and one request served (`one_request`)."""

    def __init__(self, db: Database, streams: Streams, ports: tuple[InnerPort, ...]) -> None:
        self._db = db
        self._streams = streams
        self._ports = {port.number for port in ports if port.kind == "http"}
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, address: str, port: int) -> None:
        """Raises OSError."""
        self._server = await asyncio.start_server(self._serve, address, port, limit=HEAD_MAX)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await kept(self._connections, self._carry(reader, writer))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(HEAD_S):
                head = await reader.readuntil(b"\r\n\r\n")
            found = await self._find(head)
            if found is None:
                writer.write(_answer(404, "Nothing that is rented has this name."))
                return
            answer = OneAnswer(writer, upgrade=is_upgrade(head))
            await self._streams.carry(
                found.host_id, found.rental_id, found.inner_port, reader, answer, first=lone(head)
            )
        except NoStream as error:
            writer.write(_answer(502, f"The port cannot be reached: {error}."))
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.write(_answer(400, "A request has a head of at most 32 KiB."))
        finally:
            await closed(writer)

    async def _find(self, head: bytes) -> Leased | None:
        names = _HOST.findall(head)
        if len(names) != 1:
            return None
        named = parse_name(names[0].decode("latin-1").lower().partition(".")[0])
        if named is None or named[0] not in self._ports:
            return None
        rows = await self._db.read(rentals.SELECT_RENTAL, {"id": named[1]})
        rental = rentals.rental_from(rows[0]) if rows else None
        if rental is None or rental.gone_at is not None or rental.desired is Desired.GONE:
            return None
        return Leased(rental.host_id, rental.id, named[0])


def _answer(status: int, text: str) -> bytes:
    body = f"{text}\n".encode()
    reason = {400: "Bad Request", 404: "Not Found", 502: "Bad Gateway"}[status]
    return (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode() + body


async def kept(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
    """Do it under a task that whoever stops can cancel; what it raises is logged."""
    task = asyncio.current_task()
    if task is not None:
        tasks.add(task)
    try:
        await work
    except OSError as error:
        log.info("a public connection broke: %s", error)
    except asyncio.CancelledError:
        # It ends here, and a server's task that ends as cancelled is logged as a defect by Python 3.11.
        log.debug("a public connection was ended")
    finally:
        if task is not None:
            tasks.discard(task)


async def closed(writer: asyncio.StreamWriter) -> None:
    """Close it, and let what was written go out, for a while."""
    with contextlib.suppress(OSError, TimeoutError):
        writer.close()
        async with asyncio.timeout(HEAD_S):
            await writer.wait_closed()
