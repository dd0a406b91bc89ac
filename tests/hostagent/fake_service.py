"""The service's end of the link, small and honest, with faults: duplicates, reordering, replays, cuts and silence.

It logs hosts in as the real one must (a signature over its nonce and its own address), numbers sessions, lets the
newest win, and sends each command until its end is acknowledged.
"""

import asyncio
import contextlib
import secrets
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from hashlib import sha256
from typing import Any, Final

import httpx
import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from spawn_schemas import hosts
from spawn_schemas.ids import CommandId, HostId, RentalId
from spawn_schemas.link import (
    CLOSE_REFUSED,
    CLOSE_SUPERSEDED,
    CLOSE_UPGRADE,
    DATA_PATH,
    VERSION,
    AckFrame,
    Challenge,
    CommandFrame,
    DesiredFrame,
    Dial,
    DialFailed,
    Heartbeat,
    HeartbeatAck,
    Hello,
    StateSync,
    ToService,
    Welcome,
    authority_of,
    login_text,
)
from spawn_schemas.orders import Ack, Command, Desired
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tests.hostagent.clocks import TrueTime, until

ENDED: Final = ("succeeded", "failed")


class Session:
    """One open link."""

    def __init__(self, socket: ServerConnection, epoch: int) -> None:
        self.socket = socket
        self.epoch = epoch
        self.seq = 0
        self.heard = 0
        self.sent: list[str] = []


class FakeService:
    """`keys` are the public keys of the hosts that it knows."""

    def __init__(self, clock: TrueTime) -> None:
        self.clock = clock
        self.keys: dict[HostId, Ed25519PublicKey] = {}
        self.epoch = 0
        self.sessions: list[Session] = []
        self.live: dict[HostId, Session] = {}
        self.logins = 0
        self.beats: list[Heartbeat] = []
        self.syncs: list[StateSync] = []
        self.acks: list[Ack] = []
        self.failed_dials: list[DialFailed] = []
        self.posts: list[hosts.Beat] = []
        self.queue: dict[CommandId, Command] = {}
        self.desired: dict[RentalId, Desired] = {}
        self.generation = 1
        self.interval_s, self.silence_s = 5, 20
        self.is_silent = False
        self.refuses_sockets = False
        self.version = VERSION
        self.http_works = True
        self.is_hasty = False
        """It says what it wants before it says welcome."""
        self.raw_commands: tuple[Any, ...] = ()
        self.streams: dict[str, asyncio.Future[ServerConnection]] = {}
        self.tokens: dict[str, str] = {}
        self.nonces: set[str] = set()
        self._servers: list[Server] = []
        self._handlers: set[asyncio.Task[Any]] = set()

    # --- its life ---------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    async def open(self, port: int = 0) -> None:
        self._servers.append(server := await self._listen(port))
        self.port: int = next(iter(server.sockets)).getsockname()[1]

    async def also_listen(self) -> None:
        """At the same port of the network that this thread is in now."""
        self._servers.append(await self._listen(self.port))

    async def _listen(self, port: int) -> Server:
        return await serve(
            self._serve,
            "127.0.0.1",
            port,
            compression=None,
            ping_interval=None,
            close_timeout=1,
            max_size=2**20,
        )

    async def close(self) -> None:
        self.cut()
        for server in self._servers:
            server.close()
            await server.wait_closed()

    # --- what tests make it do --------------------------------------------------------------------------------

    async def order(self, command: Command) -> None:
        """Keep it, and send it to who is connected."""
        self.queue[command.command_id] = command
        for session in self.live.values():
            await self.send(session, CommandFrame, command=command)

    async def want(self, *entries: Desired) -> None:
        self.desired = {entry.rental_id: entry for entry in entries}
        self.generation += 1
        for session in self.live.values():
            await self._desire(session)

    async def dial(self, rental_id: RentalId, port: int, stream_id: str | None = None) -> str:
        """Ask for a stream's socket; it comes as `streams[…]`."""
        stream_id = stream_id or secrets.token_hex(8)
        self.streams[stream_id] = asyncio.get_running_loop().create_future()
        self.tokens[stream_id] = secrets.token_hex(8)
        for session in self.live.values():
            token = self.tokens[stream_id]
            await self.send(session, Dial, stream_id=stream_id, token=token, rental_id=rental_id, port=port)
        return stream_id

    async def send(self, session: Session, kind: Any, **fields: Any) -> None:
        session.seq += 1
        await self._put(session, kind, seq=session.seq, **fields)

    async def repeat(self, session: Session, index: int) -> None:
        """Send a frame of this session again, as it was."""
        await session.socket.send(session.sent[index])

    def cut(self) -> None:
        """Every connection breaks off, without a word."""
        for session in self.live.values():
            session.socket.transport.abort()

    def state_of(self, command: Command) -> str | None:
        return next((ack.state for ack in reversed(self.acks) if ack.command_id == command.command_id), None)

    def results(self, command: Command) -> list[Ack]:
        return [ack for ack in self.acks if ack.command_id == command.command_id and ack.state in ENDED]

    async def ended(self, command: Command) -> Ack:
        await until(lambda: self.results(command), f"an end of {command.command_id}")
        return self.results(command)[-1]

    # --- the link ---------------------------------------------------------------------------------------------

    async def _put(self, session: Session, kind: Any, **fields: Any) -> None:
        frame = kind(
            v=VERSION, host_id=HostId("-"), session_epoch=session.epoch, ts=self.clock.true_ms(), **fields
        )
        text = msgspec.json.encode(frame).decode()
        session.sent.append(text)
        with contextlib.suppress(ConnectionClosed):
            await session.socket.send(text)

    async def _serve(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        if socket.request.path.startswith(DATA_PATH):
            await self._bring(socket, socket.request.path.removeprefix(DATA_PATH))
            return
        if self.refuses_sockets:
            socket.transport.abort()
            return
        with contextlib.suppress(ConnectionClosed):
            session, host_id = await self._log_in(socket)
            if session is not None:
                await self._talk(session, host_id)

    async def _log_in(self, socket: ServerConnection) -> tuple[Session | None, HostId]:
        nonce = secrets.token_hex(32)
        session = Session(socket, 0)
        await self._put(session, Challenge, seq=0, nonce=nonce)
        hello = msgspec.json.decode(await socket.recv(), type=Hello)
        self.logins += 1
        text = login_text(host_id=hello.host_id, nonce=nonce, authority=authority_of(self.url))
        if hello.v != self.version:
            await socket.close(CLOSE_UPGRADE)
        elif not self._is_signed(hello.host_id, text, b64decode(hello.signature)):
            await socket.close(CLOSE_REFUSED)
        else:
            return await self._welcome(session, hello.host_id), hello.host_id
        return None, hello.host_id

    async def _welcome(self, session: Session, host_id: HostId) -> Session:
        self.epoch += 1
        session.epoch = self.epoch
        older = self.live.get(host_id)
        self.live[host_id] = session
        if older is not None:
            closing = asyncio.ensure_future(older.socket.close(CLOSE_SUPERSEDED))
            self._handlers.add(closing)
            closing.add_done_callback(self._handlers.discard)
        self.sessions.append(session)
        if self.is_hasty:
            await self._desire(session)
        await self._put(
            session,
            Welcome,
            seq=0,
            heartbeat_interval_s=self.interval_s,
            silence_s=self.silence_s,
            desired_generation=self.generation,
        )
        return session

    async def _talk(self, session: Session, host_id: HostId) -> None:
        try:
            for command in tuple(self.queue.values()):
                await self.send(session, CommandFrame, command=command)
            async for message in session.socket:
                session.heard += 1
                if not self.is_silent:
                    await self._hear(session, msgspec.json.decode(message, type=ToService))
        finally:
            if self.live.get(host_id) is session:
                del self.live[host_id]

    async def _hear(self, session: Session, frame: ToService) -> None:
        match frame:
            case Heartbeat():
                self.beats.append(frame)
                await self.send(session, HeartbeatAck, heartbeat_interval_s=self.interval_s)
            case StateSync():
                self.syncs.append(frame)
                await self._desire(session)
            case AckFrame():
                self._acknowledge(frame.ack)
            case DialFailed():
                self.failed_dials.append(frame)
            case Hello():
                raise AssertionError("a second hello")

    def _acknowledge(self, ack: Ack) -> None:
        self.acks.append(ack)
        if ack.state in ENDED:
            self.queue.pop(ack.command_id, None)

    async def _desire(self, session: Session) -> None:
        await self.send(
            session, DesiredFrame, generation=self.generation, rentals=tuple(self.desired.values())
        )

    async def _bring(self, socket: ServerConnection, stream_id: str) -> None:
        assert socket.request is not None
        if socket.request.headers["Authorization"] != f"Bearer {self.tokens.get(stream_id)}":
            await socket.close(1008)
            return
        self.streams[stream_id].set_result(socket)
        await socket.wait_closed()

    def _is_signed(self, host_id: HostId, text: bytes, signature: bytes) -> bool:
        try:
            self.keys[host_id].verify(signature, text)
        except (KeyError, InvalidSignature):
            return False
        return True

    # --- plain HTTP -------------------------------------------------------------------------------------------

    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if not self.http_works:
            raise httpx.ConnectError("no route to host")
        date = formatdate(self.clock.true_s(), usegmt=True)
        if not self._is_proven(request):
            return httpx.Response(401, headers={"Date": date})
        beat = msgspec.json.decode(request.content, type=hosts.Beat)
        self.posts.append(beat)
        for ack in beat.acks:
            self._acknowledge(ack)
        answer = {
            "ok": True,
            "commands": (*self.raw_commands, *self.queue.values()),
            "desired": tuple(self.desired.values()),
            "desired_generation": self.generation,
            "next_s": 60,
        }
        return httpx.Response(200, content=msgspec.json.encode(answer), headers={"Date": date})

    def _is_proven(self, request: httpx.Request) -> bool:
        told_s, nonce = int(request.headers[hosts.TIMESTAMP_HEADER]), request.headers[hosts.NONCE_HEADER]
        if abs(told_s - self.clock.true_s()) > hosts.CLOCK_SKEW_S or nonce in self.nonces:
            return False
        self.nonces.add(nonce)
        host_id = HostId(request.headers[hosts.HOST_HEADER])
        text = hosts.request_text(
            method=request.method,
            path=request.url.path,
            body_sha256=sha256(request.content).hexdigest(),
            timestamp_s=told_s,
            nonce=nonce,
            host_id=host_id,
        )
        return self._is_signed(host_id, text, b64decode(request.headers[hosts.SIGNATURE_HEADER]))


@asynccontextmanager
async def fake_service(clock: TrueTime) -> AsyncIterator[FakeService]:
    service = FakeService(clock)
    await service.open()
    try:
        yield service
    finally:
        await service.close()
