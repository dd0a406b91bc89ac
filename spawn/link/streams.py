"""One tenant's connection, from the public side to a socket that the host brings for it, byte by byte.

Invariant: one stream has one socket, so that whoever reads slowly slows nobody else; at most a few buffers of it are in
memory, whatever either side sends. A socket is for the stream whose token it has, and for that once.
"""

import asyncio
import hmac
import logging
from collections import Counter
from typing import Any, Final, Protocol

from spawn_schemas import link
from spawn_schemas.ids import Entropy, HostId, RentalId
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from spawn.link.hub import Hub
from spawn.link.session import ended

log = logging.getLogger(__name__)

DIAL_S: Final = 10.0
"""How long a host may take to bring a socket."""
PER_RENTAL_MAX: Final = 128
IN_ALL_MAX: Final = 4_096
_CHUNK: Final = 64 * 1024


class NoStream(Exception):
    """There is no way to the port; the message says why."""


class Sink(Protocol):
    """Where bytes for the public side go; an `asyncio.StreamWriter` is one."""

    def write(self, data: bytes) -> None:
        """Take them."""
        ...

    async def drain(self) -> None:
        """Wait while the other side does not read."""
        ...

    def can_write_eof(self) -> bool:
        """Whether an end can be said by itself."""
        ...

    def write_eof(self) -> None:
        """Say it."""
        ...


class _Pending:
    """A stream that was asked for: the socket, once its host has brought it, and whether it is over."""

    def __init__(self, host_id: HostId, token: str) -> None:
        self.host_id = host_id
        self.token = token
        self.socket: asyncio.Future[ServerConnection] = asyncio.get_running_loop().create_future()
        self.over = asyncio.Event()


class Counted:
    """Bytes of each rental that were not written down yet, seen from the tenant."""

    def __init__(self) -> None:
        self.ingoing: Counter[RentalId] = Counter()
        self.outgoing: Counter[RentalId] = Counter()

    def take(self) -> dict[RentalId, tuple[int, int]]:
        """What there is, counted no more."""
        taken = {name: (self.ingoing[name], self.outgoing[name]) for name in {*self.ingoing, *self.outgoing}}
        self.ingoing.clear()
        self.outgoing.clear()
        return taken

    def put_back(self, taken: dict[RentalId, tuple[int, int]]) -> None:
        for name, (ingoing, outgoing) in taken.items():
            self.ingoing[name] += ingoing
            self.outgoing[name] += outgoing


class Streams:
    """Every stream of this process."""

    def __init__(
        self, hub: Hub, entropy: Entropy, *, dial_s: float = DIAL_S, idle_s: float = link.STREAM_IDLE_S
    ) -> None:
        self._hub = hub
        self._entropy = entropy
        self._dial_s = dial_s
        self._idle_s = idle_s
        self._pending: dict[str, _Pending] = {}
        self._open: dict[RentalId, set[asyncio.Task[Any]]] = {}
        self.counted = Counted()

    def knows(self, stream_id: str, authorization: str) -> bool:
        """Whether a socket that names this stream, with this header, may be brought."""
        pending = self._pending.get(stream_id)
        return pending is not None and hmac.compare_digest(
            authorization.encode(), f"Bearer {pending.token}".encode()
        )

    async def brought(self, stream_id: str, socket: ServerConnection) -> None:
        """A host has brought a socket: it is used until the stream is over."""
        pending = self._pending.pop(stream_id, None)
        if pending is None or pending.socket.done():
            return
        pending.socket.set_result(socket)
        await pending.over.wait()

    def failed(self, frame: link.DialFailed, host_id: HostId) -> None:
        """A host could not bring one. Another host's stream is none of its business."""
        pending = self._pending.get(frame.stream_id)
        if pending is not None and pending.host_id == host_id and not pending.socket.done():
            pending.socket.set_exception(NoStream(frame.message[:200]))

    async def carry(
        self,
        host_id: HostId,
        rental_id: RentalId,
        port: int,
        reader: asyncio.StreamReader,
        writer: Sink,
        *,
        first: bytes = b"",
    ) -> None:
        """Carry a public connection to a port of a rental, until either side ends it. Raises NoStream before a byte
        was carried.
        """
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a stream is carried by a task")
        if len(self._open.get(rental_id, ())) >= PER_RENTAL_MAX or self.open_count() >= IN_ALL_MAX:
            raise NoStream("too many connections at once")
        its = self._open.setdefault(rental_id, set())
        its.add(task)
        try:
            await self._dialled(host_id, rental_id, port, reader, writer, first)
        finally:
            its.discard(task)
            if not its:
                self._open.pop(rental_id, None)

    def open_count(self) -> int:
        return sum(map(len, self._open.values()))

    def cut(self, rental_id: RentalId) -> None:
        """End what is carried for it: it is its tenant's no more, whatever its host does."""
        for task in tuple(self._open.get(rental_id, ())):
            task.cancel()

    async def _dialled(
        self,
        host_id: HostId,
        rental_id: RentalId,
        port: int,
        reader: asyncio.StreamReader,
        writer: Sink,
        first: bytes,
    ) -> None:
        session = self._hub.sessions.get(host_id)
        if session is None:
            raise NoStream("its host is not connected")
        stream_id, token = self._entropy.bytes(16).hex(), self._entropy.bytes(32).hex()
        pending = self._pending[stream_id] = _Pending(host_id, token)
        try:
            await session.send(link.Dial, stream_id=stream_id, token=token, rental_id=rental_id, port=port)
            async with asyncio.timeout(self._dial_s):
                socket = await pending.socket
            await self._splice(rental_id, socket, reader, writer, first)
        except TimeoutError:
            raise NoStream("its host brought no connection in time") from None
        except ConnectionClosed:
            raise NoStream("its host went away") from None
        finally:
            self._pending.pop(stream_id, None)
            pending.over.set()

    async def _splice(
        self,
        rental_id: RentalId,
        socket: ServerConnection,
        reader: asyncio.StreamReader,
        writer: Sink,
        first: bytes,
    ) -> None:
        """Both ways at once; each ends by itself, and both when one breaks or nothing was carried for too long."""
        idle = _Idle(self._idle_s)
        ways = {
            asyncio.create_task(self._inwards(rental_id, socket, reader, first, idle)),
            asyncio.create_task(self._outwards(rental_id, socket, writer, idle)),
        }
        watch = asyncio.create_task(idle.passed())
        try:
            left = set(ways)
            while left:
                done, _ = await asyncio.wait({*left, watch}, return_when=asyncio.FIRST_COMPLETED)
                left -= done
                if watch in done or any(task.exception() is not None for task in done & ways):
                    break
        finally:
            for task in (*ways, watch):
                task.cancel()
            await asyncio.gather(*ways, watch, return_exceptions=True)
            await ended(socket)

    async def _inwards(
        self,
        rental_id: RentalId,
        socket: ServerConnection,
        reader: asyncio.StreamReader,
        first: bytes,
        idle: "_Idle",
    ) -> None:
        data = first or await reader.read(_CHUNK)
        while data:
            await socket.send(data)
            self.counted.ingoing[rental_id] += len(data)
            idle.touch()
            data = await reader.read(_CHUNK)
        await socket.send(link.END_OF_STREAM, text=True)

    async def _outwards(
        self, rental_id: RentalId, socket: ServerConnection, writer: Sink, idle: "_Idle"
    ) -> None:
        async for message in socket:
            if isinstance(message, str):
                if message == link.END_OF_STREAM and writer.can_write_eof():
                    writer.write_eof()
                    return
                raise NoStream("its host sent text that is no end of a stream")
            if len(message) > link.DATA_BYTES_MAX:
                raise NoStream("its host sent too much at once")
            writer.write(message)
            await writer.drain()
            self.counted.outgoing[rental_id] += len(message)
            idle.touch()
        raise NoStream("its host closed the stream")


class _Idle:
    """Passes when nothing was carried for so long."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._at = self._loop.time()

    def touch(self) -> None:
        self._at = self._loop.time()

    async def passed(self) -> None:
        left = self._seconds
        while left > 0:
            await asyncio.sleep(left)
            left = self._at + self._seconds - self._loop.time()
