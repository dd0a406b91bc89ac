"""One connected host: its login, and the frames that it and we exchange.

Invariant: a frame counts once, in its own session: one of another epoch, or not newer than the last, is dropped. Nobody
is believed before it signed this very socket's nonce for the address that it dialled.
"""

import asyncio
import contextlib
import logging
from typing import Any, Final, Protocol

import msgspec
from spawn_schemas import link
from spawn_schemas.ids import HostId

from spawn.domain.hosts import BEAT_IDLE_S

log = logging.getLogger(__name__)

_frames: Final[msgspec.json.Decoder[link.ToService]] = msgspec.json.Decoder(link.ToService)
_encode: Final = msgspec.json.Encoder().encode
FRAMES_MAX: Final = 600
"""Frames that a host may send within `FRAMES_WINDOW_S`: a hundred times what it has to say."""
SYNCS_MAX: Final = 40
"""Of these, those that say all that a host has: each is a transaction, and an agent does it twice a second at most."""
FRAMES_WINDOW_S: Final = 10
CLOSING_S: Final = 2.0
"""How long a closing handshake may take."""


class Socket(Protocol):
    """What is asked of a WebSocket; `ConnectionClosed` of the library is raised by all but `close`."""

    transport: asyncio.Transport

    async def send(self, message: str | bytes, *, text: bool | None = None) -> None:
        """One message; waits while the other side does not read."""
        ...

    async def recv(self) -> str | bytes:
        """The next message."""
        ...

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Idempotent."""
        ...


class BadFrame(Exception):
    """What came is no frame of this protocol; the message says why."""


class Session:
    """The newest known connection of `host_id`; `epoch` is 0 before its login."""

    def __init__(self, socket: Socket, host_id: HostId, epoch: int, now_ms: "Milliseconds") -> None:
        self.host_id = host_id
        self.epoch = epoch
        self.heard_at = now_ms() // 1000
        self.beat_s = BEAT_IDLE_S
        self.agent_status: str | None = None
        self.metrics: str | None = None
        self._socket = socket
        self._now_ms = now_ms
        self._sent = 0
        self._seen = 0
        self._window_at = self.heard_at
        self._in_window = 0
        self._syncs = 0

    async def send(self, kind: type[Any], **fields: Any) -> None:
        """Number a frame and send it. Raises what the socket raises when it is closed."""
        self._sent += 1
        frame = kind(
            host_id=self.host_id, session_epoch=self.epoch, seq=self._sent, ts=self._now_ms(), **fields
        )
        await self._socket.send(_encode(frame), text=True)

    def read(self, message: str | bytes) -> link.ToService | None:
        """The frame, or None for one that does not count. Raises BadFrame."""
        self.heard_at = self._now_ms() // 1000
        self._count()
        frame = decoded(message)
        if frame.host_id != self.host_id or frame.session_epoch != self.epoch or frame.seq <= self._seen:
            return None
        self._seen = frame.seq
        self._syncs += isinstance(frame, link.StateSync)
        if self._syncs > SYNCS_MAX:
            raise BadFrame(f"more than {SYNCS_MAX} times all that it has in {FRAMES_WINDOW_S} s")
        return frame

    def _count(self) -> None:
        if self.heard_at - self._window_at >= FRAMES_WINDOW_S:
            self._window_at, self._in_window, self._syncs = self.heard_at, 0, 0
        self._in_window += 1
        if self._in_window > FRAMES_MAX:
            raise BadFrame(f"more than {FRAMES_MAX} frames in {FRAMES_WINDOW_S} s")

    async def close(self, code: int, reason: str) -> None:
        await ended(self._socket, code, reason)


async def ended(socket: Socket, code: int = 1000, reason: str = "") -> None:
    """Close it, within seconds.

    The library bounds the handshake, but waits before it until the other side has read what was sent.
    """
    with contextlib.suppress(OSError):
        try:
            async with asyncio.timeout(2 * CLOSING_S):
                await socket.close(code, reason)
        except TimeoutError:
            socket.transport.abort()


class Milliseconds(Protocol):
    """Unix time."""

    def __call__(self) -> int: ...


def decoded(message: str | bytes) -> link.ToService:
    """Raises BadFrame."""
    try:
        return _frames.decode(message)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadFrame(f"not a frame: {error}") from error
