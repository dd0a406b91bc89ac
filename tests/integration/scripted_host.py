"""A lent machine as a test has it: registers, dials out, obeys in memory, and carries streams to a port of the test.

It is no agent: it has no journal and no Docker, and does what a test tells it, the wrong thing included.
"""

import asyncio
import contextlib
import hashlib
import itertools
from base64 import b64encode
from collections.abc import AsyncIterator
from typing import Any, Final

import httpx
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from spawn_schemas import hosts as wire
from spawn_schemas import inventory, link, orders
from spawn_schemas.ids import CommandId, HostId, RentalId
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

_frames: Final[msgspec.json.Decoder[link.ToAgent]] = msgspec.json.Decoder(link.ToAgent)

PATIENCE_S: Final = 30
INVENTORY: Final = inventory.Inventory(
    hostname="attic",
    os="Debian GNU/Linux 12",
    kernel="6.1.0",
    architecture="x86",
    cpu_model="a test's",
    cpu_cores=8,
    cpu_threads=16,
    total_memory_mib=32_000,
    total_disk_mib=500_000,
    cpus=8.0,
    memory_mib=24_000,
    disk_mib=400_000,
)


class ScriptedHost:
    """One machine with one key. `now_s` is the service's clock."""

    def __init__(self, name: str, now_s: Any) -> None:
        self.name = name
        self.now_s = now_s
        self.key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())
        self.host_id = HostId("")
        self.link_url = ""
        self._nonces = itertools.count(1)

    @property
    def public_key(self) -> str:
        return b64encode(self.key.public_key().public_bytes_raw()).decode()

    def sign(self, text: bytes) -> str:
        return b64encode(self.key.sign(text)).decode()

    def registration(self, token: str) -> dict[str, Any]:
        proof = self.sign(wire.registration_text(token, self.public_key))
        asked = wire.RegisterHost(
            token=token, public_key=self.public_key, proof=proof, inventory=INVENTORY, agent_version="0.1.0"
        )
        body: dict[str, Any] = msgspec.to_builtins(asked)
        return body

    async def register(self, http: httpx.AsyncClient, token: str) -> httpx.Response:
        answer = await http.post(wire.REGISTER_PATH, json=self.registration(token))
        if answer.status_code == 200:
            self.host_id, self.link_url = HostId(answer.json()["host_id"]), answer.json()["link_url"]
        return answer

    def headers(self, method: str, path: str, body: bytes, **instead: str) -> dict[str, str]:
        """The proof of a plain call; `instead` replaces parts of what is signed."""
        nonce = instead.get("nonce", f"{self.name}-{next(self._nonces)}")
        at = int(instead.get("at", self.now_s()))
        text = wire.request_text(
            method=method,
            path=path,
            body_sha256=hashlib.sha256(body).hexdigest(),
            timestamp_s=at,
            nonce=nonce,
            host_id=self.host_id,
        )
        return {
            wire.HOST_HEADER: self.host_id,
            wire.TIMESTAMP_HEADER: str(at),
            wire.NONCE_HEADER: nonce,
            wire.SIGNATURE_HEADER: self.sign(text),
            "Content-Type": "application/json",
        }

    async def call(self, http: httpx.AsyncClient, path: str, body: object, **instead: str) -> httpx.Response:
        content = msgspec.json.encode(body)
        return await http.post(path, content=content, headers=self.headers("POST", path, content, **instead))

    async def beat(self, http: httpx.AsyncClient, beat: wire.Beat | None = None) -> wire.BeatAnswered:
        answer = await self.call(http, wire.HEARTBEAT_PATH, beat or wire.Beat())
        assert answer.status_code == 200, answer.text
        return msgspec.json.decode(answer.content, type=wire.BeatAnswered)


class Connected:
    """A host's session, its frames by hand."""

    def __init__(self, host: ScriptedHost, socket: ClientConnection) -> None:
        self.host = host
        self.socket = socket
        self.epoch = 0
        self.seq = 0
        self.welcome: link.Welcome | None = None

    async def receive(self) -> link.ToAgent:
        return _frames.decode(await asyncio.wait_for(self.socket.recv(), PATIENCE_S))

    async def receive_kind(self, kind: type[Any]) -> Any:
        """The next frame of this kind; others are passed over."""
        for _ in range(100):
            frame = await self.receive()
            if isinstance(frame, kind):
                return frame
        raise AssertionError(f"a hundred frames, and no {kind.__name__}")

    def frame(self, kind: type[Any], **fields: Any) -> bytes:
        self.seq += 1
        common: dict[str, Any] = {
            "host_id": self.host.host_id,
            "session_epoch": self.epoch,
            "seq": self.seq,
            "ts": self.host.now_s() * 1000,
        }
        return msgspec.json.encode(kind(**(common | fields)))

    async def send(self, kind: type[Any], **fields: Any) -> None:
        await self.socket.send(self.frame(kind, **fields), text=True)

    async def heartbeat(self, rentals: int = 0, **fields: Any) -> link.HeartbeatAck:
        await self.send(
            link.Heartbeat,
            **({"status": "online", "metrics": inventory.Metrics(), "rentals": rentals} | fields),
        )
        answer: link.HeartbeatAck = await self.receive_kind(link.HeartbeatAck)
        return answer

    async def ack(self, command_id: CommandId, state: orders.AckState, **fields: Any) -> None:
        await self.send(link.AckFrame, ack=orders.Ack(command_id=command_id, state=state, **fields))

    async def sync(self, *reports: orders.RentalReport) -> link.DesiredFrame:
        await self.send(link.StateSync, rentals=reports)
        answer: link.DesiredFrame = await self.receive_kind(link.DesiredFrame)
        return answer

    async def closed(self) -> int:
        """The code that the service closed it with, once it did."""
        with contextlib.suppress(ConnectionClosed):
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    await self.socket.recv()
        code = self.socket.close_code
        assert code is not None
        return code


@contextlib.asynccontextmanager
async def dialled(host: ScriptedHost, **instead: Any) -> AsyncIterator[Connected]:
    """A session that is logged in; `instead` replaces fields of its hello."""
    async with connect(host.link_url, compression=None, ping_interval=None) as socket:
        connected = Connected(host, socket)
        challenge = await connected.receive()
        assert isinstance(challenge, link.Challenge)
        authority = host.link_url.removeprefix("ws://").partition("/")[0]
        text = link.login_text(host_id=host.host_id, nonce=challenge.nonce, authority=authority)
        hello = {"signature": host.sign(text), "agent_version": "0.1.0", "seq": 0, "session_epoch": 0}
        await connected.send(link.Hello, **(hello | instead))
        connected.seq = 0
        try:
            welcome = await connected.receive()
        except ConnectionClosed:
            yield connected
            return
        assert isinstance(welcome, link.Welcome)
        connected.epoch, connected.welcome = welcome.session_epoch, welcome
        yield connected


class Obedient:
    """Does what it is told, at once: containers are entries of `rentals`, their ports lead to `target`."""

    def __init__(self, connected: Connected) -> None:
        self.connected = connected
        self.rentals: dict[RentalId, orders.RentalState] = {}
        self.orders: list[orders.Order] = []
        self.target: tuple[str, int] | None = None
        self.done: dict[CommandId, int] = {}
        self._streams: set[asyncio.Task[None]] = set()

    def report(self) -> tuple[orders.RentalReport, ...]:
        return tuple(
            orders.RentalReport(rental_id=name, generation=1, state=state, since=1)
            for name, state in self.rentals.items()
        )

    async def serve(self) -> None:
        """Until the socket closes."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                frame = _frames.decode(await self.connected.socket.recv())
                if isinstance(frame, link.CommandFrame):
                    await self.obey(frame.command)
                elif isinstance(frame, link.Dial):
                    task = asyncio.create_task(self.carry(frame))
                    self._streams.add(task)
                    task.add_done_callback(self._streams.discard)

    async def stop(self, serving: asyncio.Task[None]) -> None:
        tasks = (serving, *self._streams)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def obey(self, command: orders.Command) -> None:
        times = self.done[command.command_id] = self.done.get(command.command_id, 0) + 1
        if times == 1:
            self.orders.append(command.order)
            self.apply(command.order)
        await self.connected.ack(command.command_id, "received")
        await self.connected.ack(command.command_id, "succeeded")

    def apply(self, order: orders.Order) -> None:
        match order:
            case orders.StartInstance() | orders.ResumeInstance():
                self.rentals[order.rental_id] = "running"
            case orders.StopInstance():
                self.rentals[order.rental_id] = "stopped"
            case orders.DestroyInstance():
                self.rentals.pop(order.rental_id, None)
            case _:
                return

    async def carry(self, dial: link.Dial) -> None:
        if self.target is None or dial.rental_id not in self.rentals:
            await self.connected.send(link.DialFailed, stream_id=dial.stream_id, message="not rented here")
            return
        url = self.connected.host.link_url.removesuffix(link.LINK_PATH) + link.DATA_PATH + dial.stream_id
        headers = {"Authorization": f"Bearer {dial.token}"}
        reader, writer = await asyncio.open_connection(*self.target)
        try:
            async with connect(url, additional_headers=headers, compression=None) as socket:
                await asyncio.gather(_up(reader, socket), _down(socket, writer))
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _up(reader: asyncio.StreamReader, socket: ClientConnection) -> None:
    while data := await reader.read(65_536):
        await socket.send(data)
    with contextlib.suppress(ConnectionClosed):
        await socket.send(link.END_OF_STREAM, text=True)


async def _down(socket: ClientConnection, writer: asyncio.StreamWriter) -> None:
    async for message in socket:
        if isinstance(message, str):
            writer.write_eof()
            return
        writer.write(message)
        await writer.drain()


@contextlib.asynccontextmanager
async def obedient(host: ScriptedHost) -> AsyncIterator[Obedient]:
    """A host that is connected and does what it is told."""
    async with dialled(host) as connected:
        machine = Obedient(connected)
        task = asyncio.create_task(machine.serve())
        try:
            yield machine
        finally:
            await machine.stop(task)
