"""Facilitators that fail: how they are left alone and tried again, what a broken connection means, who gets a token."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import httpx
import pytest

from spawn.payments.breaker import FIRST_S, THRESHOLD
from spawn.payments.cdp import CDP_HOST
from tests.integration.remote_world import (
    FIRST,
    SECOND,
    World,
    open_world,
    settled,
    signed,
    standing,
    unclear,
)
from tests.payments import NOW


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path / "chain.db") as there:
        yield there


# --- whom the token is for ------------------------------------------------------------------------------------


class Bearer:
    """Signs for one host, as CDP's key does."""

    def headers(self, method: str, url: httpx.URL) -> dict[str, str]:
        return {"Authorization": f"Bearer {method} {url.path}"} if url.host == CDP_HOST else {}


async def test_only_the_facilitator_it_is_meant_for_gets_the_token(world: World) -> None:
    ours = world.open(FIRST, f"https://{CDP_HOST}/platform/v2/x402", cdp=Bearer())
    world.first.say("/verify", status=500)
    await settled(ours, signed())
    assert not any("authorization" in call.headers for call in world.first.calls)
    assert [call.headers["authorization"] for call in world.second.calls] == [
        "Bearer GET /platform/v2/x402/supported",
        "Bearer POST /platform/v2/x402/verify",
        "Bearer POST /platform/v2/x402/settle",
    ]


# --- how they fare --------------------------------------------------------------------------------------------


async def test_whoever_keeps_failing_is_left_alone_and_tried_again(world: World) -> None:
    world.first.say("/verify", status=500, times=THRESHOLD + 1)
    for nonce in range(THRESHOLD + 2):
        await settled(world.ours, signed(nonce))
    assert world.first.asked("/verify") == THRESHOLD
    assert standing(world.ours).open_until == NOW + FIRST_S
    world.clock.advance(FIRST_S)
    await settled(world.ours, signed(10))
    await settled(world.ours, signed(11))
    assert world.first.asked("/verify") == THRESHOLD + 1
    world.clock.advance(2 * FIRST_S)
    await settled(world.ours, signed(12))
    assert standing(world.ours).open_until == 0
    assert standing(world.ours).settled == 1


async def test_whoever_says_when_to_come_back_is_believed(world: World) -> None:
    world.first.say("/verify", status=429, retry_after="90")
    await settled(world.ours, signed(1))
    world.clock.advance(89)
    await settled(world.ours, signed(2))
    assert world.first.asked("/verify") == 1
    world.clock.advance(1)
    await settled(world.ours, signed(3))
    assert world.first.asked("/settle") == 1


async def test_a_date_to_come_back_at_is_counted_from_theirs(world: World) -> None:
    then, now = "Sat, 01 Jan 2000 00:01:30 GMT", "Sat, 01 Jan 2000 00:00:00 GMT"
    world.first.say("/verify", status=429, retry_after=then, date=now)
    await settled(world.ours, signed())
    assert standing(world.ours).open_until == NOW + 90


async def test_a_payment_that_they_cannot_read_opens_no_breaker(world: World) -> None:
    """Else whoever finds such a payment takes the facilitator from everybody."""
    world.first.say("/verify", status=400, times=10)
    for nonce in range(2 * THRESHOLD):
        await settled(world.ours, signed(nonce, value=1))
    assert world.first.asked("/verify") == 2 * THRESHOLD
    assert standing(world.ours).open_until == 0


async def test_a_later_call_comes_to_the_next_once_the_first_is_set_aside(world: World) -> None:
    payment = signed()
    world.first.say("/settle", status=500, times=THRESHOLD)
    for _ in range(THRESHOLD):
        await unclear(world.ours, payment)
    await settled(world.ours, payment)
    assert world.second.asked("/settle") == 1
    assert await world.moved() == 1


async def test_no_log_has_more_of_a_facilitator_than_its_name(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="spawn")
    world.first.say("/settle", b"hunter2", status=500)
    await unclear(world.ours, signed())
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("spawn")]
    assert ours
    assert not any("hunter2" in line or "/x402" in line for line in ours)


# --- over sockets ---------------------------------------------------------------------------------------------

Connection = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
SUPPORTS = b'{"kinds":[{"x402Version":2,"scheme":"exact","network":"eip155:84532"}]}'


def _url(server: asyncio.Server) -> str:
    port: int = server.sockets[0].getsockname()[1]
    return f"http://127.0.0.1:{port}"


def _ok(said: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said)


@asynccontextmanager
async def _listening(at: dict[str, Connection]) -> AsyncIterator[str]:
    """A server in bytes: what it does with each path, once it has read the request. Everything else it takes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = head.split(" ")[1]
            length = [line for line in head.split("\r\n") if line.lower().startswith("content-length:")]
            await reader.readexactly(int(length[0].partition(":")[2]) if length else 0)
            if path in at:
                await at[path](reader, writer)
            else:
                said = SUPPORTS if path == "/supported" else b'{"isValid":true}'
                writer.write(_ok(said))
                await writer.drain()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield _url(server)


async def _drops(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The connection ends without an answer."""


async def _breaks_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"success":true,')
    await writer.drain()


async def _talks_nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 mail.test ESMTP\r\n")
    await writer.drain()


async def _never_ends(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    try:
        while True:
            writer.write(b" " * 65_536)
            await writer.drain()
    except ConnectionError:
        return


async def _drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Each byte comes in time, and the answer never does."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    try:
        while not reader.at_eof():
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.01)
    except ConnectionError:
        return


FAULTS = [_drops, _breaks_off, _talks_nonsense, _never_ends, _drips]


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_connection_that_fails_after_handing_over_is_unclear(world: World, fault: Connection) -> None:
    async with _listening({"/settle": fault}) as url:
        ours = world.open(url, SECOND, timeout_s=1.0)
        await unclear(ours, signed())
        assert standing(ours).failed == 1
    assert world.second.calls == []
    assert await world.moved() == 0


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("path", ["/supported", "/verify"])
async def test_a_connection_that_fails_before_that_harms_nobody(
    world: World, fault: Connection, path: str
) -> None:
    async with _listening({path: fault}) as url:
        await settled(world.open(url, SECOND, timeout_s=1.0), signed())
    assert await world.moved() == 1


async def test_an_answer_without_end_is_cut_long_before_its_time(world: World) -> None:
    async with asyncio.timeout(10), _listening({"/settle": _never_ends}) as url:
        await unclear(world.open(url, timeout_s=60), signed())


async def test_a_facilitator_that_is_down_is_passed_over(world: World) -> None:
    async with _listening({}) as url:
        pass
    ours = world.open(url, SECOND)
    await settled(ours, signed())
    assert standing(ours).failed == 1


async def test_whoever_goes_down_before_it_is_handed_the_payment_has_not_got_it(world: World) -> None:
    """Refused at the door, there is nothing unclear: the next is asked in the same call."""
    server: asyncio.Server | None = None

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert server is not None
        with closing(writer):
            path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1]
            said = SUPPORTS if path == b"/supported" else b'{"isValid":true}'
            if path == b"/verify":
                server.close()
            writer.write(_ok(said))
            await writer.drain()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    ours = world.open(_url(server), SECOND)
    await settled(ours, signed())
    await server.wait_closed()
    assert standing(ours).failed == 1
    assert world.second.asked("/settle") == 1
