"""Streams through the relay's sockets: checked here, carried whole, held back by slow ends, and bounded."""

import asyncio
import hashlib
import os
import socket as socketlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from spawn_hostagent import tunnel as tunnel_module
from spawn_hostagent.link.duties import Refusal
from spawn_hostagent.streams.bandwidth import BYTES_PER_MBIT, Bucket
from spawn_hostagent.streams.relay import PIECE, Relay
from spawn_hostagent.tunnel import TunnelManager
from spawn_schemas.ids import RentalId
from spawn_schemas.link import END_OF_STREAM, Dial
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from tests.hostagent.clocks import VirtualClock, settle, until
from tests.hostagent.fake_machines import FakeMachines
from tests.hostagent.fake_service import FakeService
from tests.hostagent.orders import A, B, start

pytest_plugins = "tests.hostagent.fixtures"

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Way:
    """A tenant that listens, the tunnel to it, and the service at the other end."""

    def __init__(self, service: FakeService, clock: VirtualClock, **options: Any) -> None:
        self.service = service
        self.clock = clock
        self.machines = FakeMachines(clock.true_s)
        self.machines.put(start(ports=(22,)))
        idle = {name: options.pop(name) for name in ("idle_s", "half_idle_s") if name in options}
        self.tunnels = TunnelManager(self.machines, Relay(service.url, clock, **idle), clock, **options)
        self._servers: list[asyncio.Server] = []
        self._handlers: set[asyncio.Task[None]] = set()

    async def listen(self, serve: Serve, rental_id: RentalId = A, port: int = 22) -> None:
        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._guard(serve, reader, writer))
            self._handlers.add(task)
            task.add_done_callback(self._handlers.discard)

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self._servers.append(server)
        self.machines.listeners[rental_id, port] = server.sockets[0].getsockname()[:2]

    async def _guard(self, serve: Serve, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except OSError:
            pass  # what the far end did is what the test is about
        finally:
            writer.close()

    async def dial(self, rental_id: RentalId = A, port: int = 22) -> ServerConnection:
        frame = await self.frame(rental_id, port)
        await self.tunnels.dial(frame)
        return await self.service.streams[frame.stream_id]

    async def frame(self, rental_id: RentalId = A, port: int = 22, token: str | None = None) -> Dial:
        stream_id = await self.service.dial(rental_id, port)
        return Dial(
            host_id="-",  # type: ignore[arg-type]
            session_epoch=1,
            seq=1,
            ts=0,
            stream_id=stream_id,
            token=token or self.service.tokens[stream_id],
            rental_id=rental_id,
            port=port,
        )

    async def close(self) -> None:
        await self.tunnels.close()
        await settle()
        for server in self._servers:
            server.close()
        for task in self._handlers:
            task.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)


@pytest.fixture
async def way(service: FakeService, clock: VirtualClock) -> AsyncIterator[Way]:
    way = Way(service, clock)
    await way.listen(echo)
    yield way
    await way.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say it back, and end when the other has ended."""
    while piece := await reader.read(PIECE):
        writer.write(piece)
        await writer.drain()
    writer.write_eof()


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def all_of(socket: ServerConnection) -> bytes:
    """What comes until the other side's end."""
    parts = []
    while (message := await socket.recv()) != END_OF_STREAM:
        assert isinstance(message, bytes)
        parts.append(message)
    return b"".join(parts)


async def test_bytes_pass_both_ways_and_are_counted(way: Way) -> None:
    socket = await way.dial()
    sent = os.urandom(3_000_000)

    async def send() -> None:
        for begin in range(0, len(sent), 100_000):
            await socket.send(sent[begin : begin + 100_000])
        await socket.send(END_OF_STREAM)

    sending = asyncio.create_task(send())
    got = await asyncio.wait_for(all_of(socket), 20)
    await sending
    assert hashlib.sha256(got).digest() == hashlib.sha256(sent).digest()
    await until(lambda: not way.tunnels.usage()[A].open)
    usage = way.tunnels.usage()[A]
    assert (usage.bytes_in, usage.bytes_out, usage.streams) == (len(sent), len(sent), 1)
    await socket.wait_closed()
    assert socket.close_code == 1000


async def test_one_side_may_end_and_still_hear(way: Way) -> None:
    async def answer_after_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.read()
        writer.write(b"you said " + asked)
        await writer.drain()

    await way.listen(answer_after_the_end)
    socket = await way.dial()
    await socket.send(b"hello")
    await socket.send(END_OF_STREAM)
    assert await asyncio.wait_for(all_of(socket), 10) == b"you said hello"


async def test_the_tenant_may_end_first(way: Way) -> None:
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def end_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        writer.write_eof()
        heard.set_result(await reader.read())

    await way.listen(end_first)
    socket = await way.dial()
    assert await asyncio.wait_for(all_of(socket), 10) == b"bye"
    await socket.send(b"later")
    await socket.send(END_OF_STREAM)
    assert await asyncio.wait_for(heard, 10) == b"later"


async def test_a_broken_end_breaks_the_other(way: Way) -> None:
    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socketlib.SOL_SOCKET, socketlib.SO_LINGER, linger)
        writer.transport.abort()

    await way.listen(break_off)
    socket = await way.dial()
    await socket.send(b"x")
    await asyncio.wait_for(socket.wait_closed(), 10)
    assert socket.close_code == 1011, "half of something is not to be taken for all of it"


async def test_a_broken_relay_resets_the_tenant(way: Way) -> None:
    ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        except ConnectionResetError:
            ended.set_result(True)
        else:
            ended.set_result(False)

    await way.listen(hear)
    socket = await way.dial()
    await socket.send(b"some of it")
    socket.transport.abort()
    assert await asyncio.wait_for(ended, 10), "it was told that this was all"


async def test_a_stalled_reader_holds_up_the_tenant_and_nobody_else(way: Way) -> None:
    written = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        while written < 200_000_000:
            writer.write(b"x" * PIECE)
            await writer.drain()
            written += PIECE

    await way.listen(flood, port=23)
    stalled = await way.dial(port=23)
    seen = -1
    # The kernel's buffers fill up, and then nothing moves any more.
    for _ in range(200):
        await asyncio.sleep(0.02)
        if written == seen:
            break
        seen = written
    assert written == seen < 30_000_000
    other = await way.dial()
    await other.send(b"ping")
    assert await asyncio.wait_for(other.recv(), 10) == b"ping"
    stalled.transport.abort()


async def test_a_tenant_that_does_not_read_holds_up_its_sender(way: Way) -> None:
    async def sleep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport reads
        await asyncio.Event().wait()

    await way.listen(sleep, port=23)
    socket = await way.dial(port=23)
    sent = 0

    async def flood() -> None:
        nonlocal sent
        while True:
            await socket.send(b"x" * PIECE)
            sent += PIECE

    flooding = asyncio.create_task(flood())
    seen = -1
    for _ in range(100):
        await asyncio.sleep(0.02)
        if sent == seen or sent > 100_000_000:
            break
        seen = sent
    assert sent < 30_000_000
    flooding.cancel()
    await asyncio.gather(flooding, return_exceptions=True)


@pytest.mark.parametrize(
    ("rental_id", "port", "message"),
    [(B, 22, "No such rental"), (A, 23, "not among its ports")],
)
async def test_what_is_not_ours_is_refused(way: Way, rental_id: RentalId, port: int, message: str) -> None:
    with pytest.raises(Refusal, match=message):
        await way.dial(rental_id, port)
    assert way.tunnels.usage() == {}


async def test_a_stopped_rental_is_not_reached(way: Way) -> None:
    way.machines.exit(A, 1, "exit")
    with pytest.raises(Refusal, match="does not run"):
        await way.dial()


async def test_nobody_listens(way: Way) -> None:
    [server] = way._servers
    server.close()
    await server.wait_closed()
    with pytest.raises(Refusal, match="Nobody listens on port 22"):
        await way.dial()


async def test_the_relay_does_not_take_a_wrong_token(way: Way) -> None:
    frame = await way.frame(token="stolen")
    try:
        await way.tunnels.dial(frame)
    except Refusal:
        return
    await until(lambda: not way.tunnels.usage()[A].open)
    assert not way.service.streams[frame.stream_id].done()


async def test_a_dial_that_takes_too_long_is_given_up(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel_module, "DIAL_S", 0.05)
    way.machines.gates["address_of"] = asyncio.Event()
    with pytest.raises(Refusal, match="Nothing answered"):
        await way.dial()


async def test_connections_of_a_rental_and_of_the_host_are_bounded(
    service: FakeService, clock: VirtualClock
) -> None:
    way = Way(service, clock, per_rental_max=3, total_max=4)
    way.machines.put(start(B, ports=(22,)))
    await way.listen(silence)
    await way.listen(silence, B)
    for _ in range(3):
        await way.dial()
    with pytest.raises(Refusal, match="3 connections open"):
        await way.dial()
    await way.dial(B)
    with pytest.raises(Refusal, match="carries 4 connections"):
        await way.dial(B)
    await way.close()
    assert way.tunnels.usage()[A].open == 0


async def test_what_no_longer_runs_is_forgotten(service: FakeService, clock: VirtualClock) -> None:
    way = Way(service, clock)
    await way.listen(echo)
    await way.tunnels.follow(frozenset({A}))
    await (await way.dial()).close()
    await until(lambda: not way.tunnels.usage()[A].open)
    await way.tunnels.follow(frozenset({A}))
    assert way.tunnels.usage()[A].streams == 1
    await way.tunnels.follow(frozenset())
    assert way.tunnels.usage() == {}
    for number in range(20):
        with pytest.raises(Refusal):
            await way.tunnels.dial(await way.frame(RentalId(f"srv_{number}")))
    assert not way.tunnels._dialling
    assert len(way.tunnels._dialling) == 0
    await way.close()


async def test_an_idle_stream_is_ended_and_a_busy_one_is_not(
    service: FakeService, clock: VirtualClock
) -> None:
    way = Way(service, clock, idle_s=100, half_idle_s=20)
    await way.listen(echo)
    busy, idle = await way.dial(), await way.dial()
    for _ in range(9):
        await busy.send(b"x")
        assert await busy.recv() == b"x"
        await clock.advance(15)
    await asyncio.wait_for(idle.wait_closed(), 10)
    assert idle.close_code == 1011
    await busy.send(b"y")
    assert await busy.recv() == b"y"
    await way.close()


async def test_a_stream_with_one_end_left_is_idle_sooner(service: FakeService, clock: VirtualClock) -> None:
    way = Way(service, clock, idle_s=1000, half_idle_s=20)

    async def end_and_wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write_eof()
        await reader.read()

    await way.listen(end_and_wait)
    socket = await way.dial()
    assert await all_of(socket) == b""
    await clock.advance(19)
    _ = await socket.ping()
    await clock.advance(21)
    await asyncio.wait_for(socket.wait_closed(), 10)
    await way.close()


async def test_a_rental_that_ends_loses_its_streams(way: Way) -> None:
    way.machines.put(start(B, ports=(22,)))
    await way.listen(echo, B)
    await way.tunnels.follow(frozenset({A, B}))
    gone, stays = await way.dial(), await way.dial(B)
    await way.tunnels.follow(frozenset({B}))
    await asyncio.wait_for(gone.wait_closed(), 10)
    await stays.send(b"here")
    assert await stays.recv() == b"here"


async def test_a_large_message_of_the_relay_is_not_taken(way: Way) -> None:
    socket = await way.dial()
    await socket.send(b"x" * 300_000)
    with pytest.raises(ConnectionClosed):
        await asyncio.wait_for(socket.recv(), 10)
    assert socket.close_code == 1009


async def test_the_owners_bandwidth_is_shared_evenly() -> None:
    clock = VirtualClock()
    bucket = Bucket(8, clock)
    taken = [0, 0, 0]

    async def pump(index: int) -> None:
        while True:
            await bucket.take(PIECE)
            taken[index] += PIECE

    pumps = [asyncio.create_task(pump(index)) for index in range(3)]
    await settle()
    for _ in range(100):
        await clock.advance(0.1)
    total = sum(taken)
    rate = 8 * BYTES_PER_MBIT
    assert rate * 10 <= total <= rate * 11 + 3 * PIECE
    assert max(taken) - min(taken) <= 2 * PIECE + rate
    for task in pumps:
        task.cancel()
    await asyncio.gather(*pumps, return_exceptions=True)


@pytest.mark.parametrize("options", [{"up_mbit": 1}, {"limit_of": lambda _: 1}])
async def test_a_limit_holds_back_what_leaves(
    service: FakeService, clock: VirtualClock, options: Any
) -> None:
    way = Way(service, clock, **options)

    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * (4 * BYTES_PER_MBIT))
        await writer.drain()
        writer.write_eof()
        await reader.read()

    await way.listen(send)
    socket = await way.dial()
    got = 0

    async def hear() -> None:
        nonlocal got
        while isinstance(message := await socket.recv(), bytes):
            got += len(message)

    hearing = asyncio.create_task(hear())
    usage = way.tunnels.usage()
    await until(lambda: usage[A].bytes_out >= BYTES_PER_MBIT)
    await settle()
    assert usage[A].bytes_out <= BYTES_PER_MBIT + PIECE, "a second's worth, and no more until time passes"
    for _ in range(8):
        await clock.advance(1)
        await asyncio.sleep(0.02)
    await asyncio.wait_for(hearing, 10)
    assert got == 4 * BYTES_PER_MBIT
    await way.close()
