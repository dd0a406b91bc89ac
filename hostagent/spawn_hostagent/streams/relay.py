"""The tunnel through the service's own relay: for each stream one WebSocket, brought when the service asks for it.

Invariant: what one end sends slowly or not at all holds up its own stream and no other, and no more than some hundred
KiB of it are in memory. When one side ends its bytes the other hears so and may go on; when one breaks, both do.
"""

import asyncio
import contextlib
import struct
from socket import SO_LINGER, SOL_SOCKET
from typing import Final

from spawn_schemas.ids import RentalId
from spawn_schemas.link import DATA_BYTES_MAX, END_OF_STREAM, STREAM_IDLE_S, Dial
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.frames import CloseCode

from spawn_hostagent.clock import Clock
from spawn_hostagent.link.dialling import data_url, dial
from spawn_hostagent.link.duties import Refusal
from spawn_hostagent.streams.bandwidth import Bucket
from spawn_hostagent.tunnel import Usage

PIECE: Final = 64 * 1024
"""Bytes read from a container at once."""
HALF_IDLE_S: Final = 300.0
"""A stream of which one side has ended waits no longer than this for the other."""


class Relay:
    """The driver. `link_url` as the host was told at registration."""

    def __init__(
        self, link_url: str, clock: Clock, *, idle_s: float = STREAM_IDLE_S, half_idle_s: float = HALF_IDLE_S
    ) -> None:
        self._link_url = link_url
        self._clock = clock
        self._idle = (idle_s, half_idle_s)

    async def publish(self, rental_id: RentalId) -> None:
        """The relay has the ports, and asks for each stream."""

    async def withdraw(self, rental_id: RentalId) -> None:
        """The manager cuts the streams, and there is nothing else of it here."""

    async def connect(self, dial_frame: Dial, address: tuple[str, int]) -> "RelayStream":
        try:
            reader, writer = await asyncio.open_connection(*address, limit=PIECE)
        except OSError as error:
            raise Refusal(f"Nobody listens on port {dial_frame.port}.") from error
        try:
            socket = await dial(
                data_url(self._link_url, dial_frame.stream_id),
                max_size=DATA_BYTES_MAX,
                max_queue=(4, 1),
                write_limit=2 * PIECE,
                additional_headers={"Authorization": f"Bearer {dial_frame.token}"},
            )
        except (WebSocketException, OSError, asyncio.TimeoutError) as error:
            _reset(writer)
            raise Refusal(f"The relay did not take the stream's socket: {error}") from error
        except asyncio.CancelledError:
            _reset(writer)
            raise
        return RelayStream(socket, reader, writer, self._clock, self._idle)


class RelayStream:
    """One stream: a container's connection and the relay's socket."""

    def __init__(
        self,
        socket: ClientConnection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        clock: Clock,
        idle: tuple[float, float],
    ) -> None:
        self._socket = socket
        self._reader = reader
        self._writer = writer
        self._clock = clock
        self._idle_s, self._half_idle_s = idle
        self._moved_at = clock.elapsed_s()
        self._ended = 0

    async def carry(self, usage: Usage, buckets: tuple[Bucket, ...]) -> None:
        ways = {
            asyncio.ensure_future(self._inwards(usage)),
            asyncio.ensure_future(self._outwards(usage, buckets)),
        }
        watch = asyncio.ensure_future(self._watch())
        left = set(ways)
        is_whole = False
        try:
            while left and not watch.done() and not any(map(_is_broken, ways - left)):
                done, _ = await asyncio.wait({*left, watch}, return_when=asyncio.FIRST_COMPLETED)
                left -= done
            is_whole = not left and not any(map(_is_broken, ways))
        finally:
            for part in (*ways, watch):
                part.cancel()
            await asyncio.gather(*ways, watch, return_exceptions=True)
            await self._close(is_whole=is_whole)

    def abort(self) -> None:
        _reset(self._writer)
        self._socket.transport.abort()

    async def _inwards(self, usage: Usage) -> None:
        """From the world to the tenant."""
        while (message := await self._socket.recv()) != END_OF_STREAM:
            if isinstance(message, str):
                raise ConnectionResetError("the relay sent a word that is none of ours")
            self._moved_at = self._clock.elapsed_s()
            usage.bytes_in += len(message)
            self._writer.write(message)
            await self._writer.drain()
        self._ended += 1
        self._writer.write_eof()

    async def _outwards(self, usage: Usage, buckets: tuple[Bucket, ...]) -> None:
        """From the tenant to the world."""
        while piece := await self._reader.read(PIECE):
            for bucket in buckets:
                await bucket.take(len(piece))
            await self._socket.send(piece)
            self._moved_at = self._clock.elapsed_s()
            usage.bytes_out += len(piece)
        self._ended += 1
        await self._socket.send(END_OF_STREAM)

    async def _watch(self) -> None:
        while True:
            allowed_s = self._half_idle_s if self._ended else self._idle_s
            left_s = self._moved_at + allowed_s - self._clock.elapsed_s()
            if left_s <= 0:
                return
            # Not longer than the shorter one: a side may end while we wait for the longer.
            await self._clock.sleep(min(left_s, self._half_idle_s))

    async def _close(self, *, is_whole: bool) -> None:
        if is_whole:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
            code = CloseCode.NORMAL_CLOSURE
        else:
            # The tenant must not take half of something for all of it.
            _reset(self._writer)
            code = CloseCode.INTERNAL_ERROR
        with contextlib.suppress(ConnectionClosed, OSError):
            await self._socket.close(code)


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection so that its peer reads an error; `abort` alone would send a clean end (socket(7), SO_LINGER)."""
    socket = writer.get_extra_info("socket")
    if not writer.transport.is_closing():
        socket.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _is_broken(way: "asyncio.Future[None]") -> bool:
    return way.cancelled() or way.exception() is not None
