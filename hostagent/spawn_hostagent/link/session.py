"""One session of the link: log in, then say how the host is, hear what is wanted, and notice silence.

Invariant: a session ends by itself where the service says nothing for as long as `welcome` allows, whatever the network
pretends. Frames of the service are obeyed once each.
"""

import asyncio
import contextlib
import logging
from base64 import b64encode
from collections import deque
from collections.abc import Coroutine
from typing import Any, Final

import msgspec
from spawn_schemas.ids import CommandId
from spawn_schemas.link import (
    AckFrame,
    Challenge,
    CommandFrame,
    DesiredFrame,
    Dial,
    DialFailed,
    Frame,
    Heartbeat,
    HeartbeatAck,
    Hello,
    StateSync,
    ToAgent,
    Welcome,
    authority_of,
    login_text,
)
from spawn_schemas.orders import Ack, Problem
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from spawn_hostagent.clock import Clock, ServiceClock
from spawn_hostagent.link.duties import Duties, Refusal
from spawn_hostagent.link.signer import Signer

LOGIN_S: Final = 15.0
SYNC_EVERY_S: Final = 60.0
SYNC_GAP_S: Final = 0.5
"""Changes within so short a time are told at once."""
WHOLE_EVERY: Final = 10
"""Every so many state syncs carry the inventory, changed or not."""
INTERVAL_MIN_S: Final = 1
INTERVAL_MAX_S: Final = 300
WINDOW: Final = 1024
"""How far a frame may lag behind the newest and still be told from one that was seen."""
SAID_MAX: Final = 1000
"""Answers that may wait for a slow service; the journal has what falls out."""

_log: Final = logging.getLogger(__name__)
_frames: Final = msgspec.json.Decoder(ToAgent)


class BareCommand(msgspec.Struct):
    """What can be read of a command whose order this version does not know."""

    command_id: CommandId


class _BareFrame(msgspec.Struct, tag_field="type", tag="command"):
    """What can be read of a command whose order is of a later version."""

    session_epoch: int
    command: BareCommand


def refused(command: BareCommand, error: Exception) -> Ack:
    """The answer to such a command."""
    words = f"This version of spawn-host does not know the order ({error}). Upgrade it."
    return Ack(command_id=command.command_id, state="failed", problem=Problem(code="invalid", message=words))


class LinkBroken(Exception):
    """The session cannot go on; another may."""


class Window:
    """Which frames of a session were seen: each number passes once, and one that is long past not at all."""

    def __init__(self) -> None:
        self._newest = 0
        self._seen: set[int] = set()

    def is_new(self, seq: int) -> bool:
        if seq <= self._newest - WINDOW or seq in self._seen:
            return False
        self._seen.add(seq)
        if seq > self._newest:
            self._newest = seq
            self._seen = (
                {n for n in self._seen if n > seq - WINDOW} if len(self._seen) > 2 * WINDOW else self._seen
            )
        return True


class Session:
    """One socket. `log_in`, then `run` until it ends."""

    def __init__(
        self,
        socket: ClientConnection,
        signer: Signer,
        duties: Duties,
        *,
        clock: Clock,
        service_clock: ServiceClock,
        agent_version: str,
    ) -> None:
        self._socket = socket
        self._signer = signer
        self._duties = duties
        self._clock = clock
        self._service_clock = service_clock
        self._agent_version = agent_version
        self._epoch = 0
        self._seq = 0
        self._window = Window()
        self._heard_at = clock.elapsed_s()
        self._beat_at: float | None = None
        self._interval_s = INTERVAL_MAX_S
        self._desired_generation = 0
        self._said: deque[Ack] = deque(maxlen=SAID_MAX)
        self._has_said = asyncio.Event()
        self._has_changed = asyncio.Event()
        self._dials: set[asyncio.Task[None]] = set()

    async def log_in(self) -> Welcome:
        """Answer the challenge. Raises LinkBroken, ConnectionClosed, TimeoutError."""
        return await asyncio.wait_for(self._log_in(), LOGIN_S)

    async def run(self, welcome: Welcome) -> None:
        """Do what the link is for until it ends. Raises LinkBroken where the service fell silent, ConnectionClosed."""
        parts = (
            self._listen(),
            self._beat(),
            self._show(),
            self._answer(),
            self._watch(welcome.silence_s),
        )
        try:
            await first_of(*parts)
        finally:
            for task in self._dials:
                task.cancel()
            await asyncio.gather(*self._dials, return_exceptions=True)

    def say(self, ack: Ack) -> None:
        """Tell the service of a command; a figure of progress takes the place of the one before."""
        last = self._said[-1] if self._said else None
        if ack.state == "progress" and last and (last.state, last.command_id) == ("progress", ack.command_id):
            self._said.pop()
        self._said.append(ack)
        self._has_said.set()

    def sync(self) -> None:
        self._has_changed.set()

    # --- login ------------------------------------------------------------------------------------------------

    async def _log_in(self) -> Welcome:
        challenge = await self._receive()
        if not isinstance(challenge, Challenge):
            raise LinkBroken("the service began with something else than a challenge")
        text = login_text(
            host_id=self._signer.host_id, nonce=challenge.nonce, authority=authority_of(self._signer.link_url)
        )
        sent_at = self._clock.elapsed_s()
        signature = b64encode(self._signer.sign(text)).decode()
        await self._send(Hello, signature=signature, agent_version=self._agent_version, seq=0)
        # Whatever overtakes the welcome is of a session that is not open yet; what matters is sent again after it.
        while not isinstance(welcome := await self._receive(), Welcome):
            pass
        self._epoch = welcome.session_epoch
        self._desired_generation = welcome.desired_generation
        self._hear(welcome, sent_at)
        self._set_interval(welcome.heartbeat_interval_s)
        return welcome

    async def _receive(self) -> ToAgent:
        message = await self._socket.recv()
        try:
            frame: ToAgent = _frames.decode(message)
        except msgspec.DecodeError as error:
            raise LinkBroken(f"the service sent what is no frame: {error}") from error
        return frame

    # --- what runs beside each other --------------------------------------------------------------------------

    async def _listen(self) -> None:
        async for message in self._socket:
            self._heard_at = self._clock.elapsed_s()
            try:
                frame = _frames.decode(message)
            except msgspec.DecodeError as error:
                self._refuse(message, error)
                continue
            if frame.session_epoch == self._epoch and self._window.is_new(frame.seq):
                await self._obey(frame)
        raise LinkBroken("the service closed the link")

    async def _beat(self) -> None:
        while True:
            pulse = await self._duties.pulse()
            self._beat_at = self._clock.elapsed_s()
            await self._send(
                Heartbeat,
                status=pulse.status,
                metrics=pulse.metrics,
                rentals=pulse.rentals,
                traffic=pulse.traffic,
            )
            await self._clock.sleep(self._interval_s)

    async def _show(self) -> None:
        count = 0
        while True:
            self._has_changed.clear()
            picture = await self._duties.picture(whole=count % WHOLE_EVERY == 0)
            await self._send(
                StateSync, rentals=picture.rentals, inventory=picture.inventory, draining=picture.draining
            )
            count += 1
            await first_of(self._has_changed.wait(), self._clock.sleep(SYNC_EVERY_S))
            await self._clock.sleep(SYNC_GAP_S)

    async def _answer(self) -> None:
        for ack in self._duties.untold():
            self.say(ack)
        while True:
            await self._has_said.wait()
            self._has_said.clear()
            while self._said:
                ack = self._said.popleft()
                await self._send(AckFrame, ack=ack)
                if ack.state in ("succeeded", "failed"):
                    self._duties.told((ack.command_id,))

    async def _watch(self, silence_s: float) -> None:
        while (left := self._heard_at + silence_s - self._clock.elapsed_s()) > 0:
            await self._clock.sleep(left)
        # No close handshake with whoever does not answer.
        self._socket.transport.abort()
        raise LinkBroken(f"the service said nothing for {silence_s} s")

    # --- what the service says --------------------------------------------------------------------------------

    async def _obey(self, frame: ToAgent) -> None:
        match frame:
            case HeartbeatAck():
                self._set_interval(frame.heartbeat_interval_s)
                if self._beat_at is not None:
                    self._hear(frame, self._beat_at)
                    self._beat_at = None
            case CommandFrame():
                self._duties.obey(frame.command)
            case DesiredFrame():
                if frame.generation >= self._desired_generation:
                    self._desired_generation = frame.generation
                    await self._duties.want(frame.rentals)
            case Dial():
                task = asyncio.create_task(self._dial(frame))
                self._dials.add(task)
                task.add_done_callback(self._dials.discard)
            case Challenge() | Welcome():
                _log.warning("The service began the login again; this is dropped.")

    async def _dial(self, frame: Dial) -> None:
        try:
            await self._duties.dial(frame)
        except Refusal as error:
            await self._fail_dial(frame, str(error))
        except Exception:  # noqa: BLE001 - one stream fails, whyever, and the link goes on
            _log.exception("A stream of %s could not be brought.", frame.rental_id)
            await self._fail_dial(frame, "The daemon failed at it; its log says where.")

    async def _fail_dial(self, frame: Dial, message: str) -> None:
        with contextlib.suppress(ConnectionClosed):
            await self._send(DialFailed, stream_id=frame.stream_id, message=message)

    def _refuse(self, message: str | bytes, error: Exception) -> None:
        _log.warning("The service sent what this version does not know: %s", error)
        try:
            frame = msgspec.json.decode(message, type=_BareFrame)
        except msgspec.DecodeError:
            return
        if frame.session_epoch == self._epoch:
            self.say(refused(frame.command, error))

    # --- small things -----------------------------------------------------------------------------------------

    def _hear(self, frame: Frame, sent_at: float) -> None:
        self._service_clock.hear(frame.ts, self._clock.elapsed_s() - sent_at)

    def _set_interval(self, seconds: int) -> None:
        self._interval_s = max(INTERVAL_MIN_S, min(seconds, INTERVAL_MAX_S))

    async def _send(self, kind: type[Frame], *, seq: int | None = None, **fields: Any) -> None:
        if seq is None:
            self._seq += 1
            seq = self._seq
        frame = kind(
            host_id=self._signer.host_id,
            session_epoch=self._epoch,
            seq=seq,
            ts=self._clock.now_ms(),
            **fields,
        )
        await self._socket.send(msgspec.json.encode(frame).decode())


async def first_of(*parts: Coroutine[Any, Any, Any]) -> None:
    """Run all until one ends, end the others, and raise what that one raised."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
