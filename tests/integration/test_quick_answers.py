"""Answers that go out in one piece are what uvicorn would have sent, in the order in which they were asked for."""

import asyncio
import socket
from pathlib import Path

import msgspec

from spawn.door import bounds_of
from tests.harness import open_world
from tests.integration.raw_connections import Client, on_uvloop, serving

ASK = b"GET /v1/servers HTTP/1.1\r\nHost: spawn.test\r\n%b\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: spawn.test\r\n\r\n"
BODY = b"a" * 200_000
UPLOAD = (
    b"POST /v1/ssh-keys HTTP/1.1\r\nHost: spawn.test\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    % len(BODY)
)


async def ask(client: Client, *parts: bytes) -> int:
    return (await client.ask(*parts)).status


@on_uvloop
async def test_a_connection_is_kept_or_closed_as_it_was_asked_for(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, serving(served_by=world.service.app) as served:
        client = await served.connect()
        assert [await ask(client, ASK % b"") for _ in range(3)] == [402] * 3
        assert await ask(client, ASK % b"Connection: close\r\n") == 402
        assert await client.closed() == b""
        old = await served.connect()
        assert await ask(old, b"GET /v1/servers HTTP/1.0\r\n\r\n") == 402
        assert await old.closed() == b""


@on_uvloop
async def test_quick_answers_wait_for_slow_ones_before_them(tmp_path: Path) -> None:
    """`/health` asks the database, in a task; what comes behind it could be answered at once."""
    async with open_world(tmp_path) as world, serving(served_by=world.service.app) as served:
        client = await served.connect()
        await client.send(HEALTH + ASK % b"" + HEALTH + ASK % b"" + ASK % b"X-Request-Id: last\r\n")
        statuses = [(await client.answer()).status for _ in range(5)]
        assert statuses == [200, 402, 200, 402, 402]


@on_uvloop
async def test_many_requests_of_one_read_are_answered_each(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, serving(served_by=world.service.app) as served:
        client = await served.connect()
        await client.send((ASK % b"") * 30)
        assert [(await client.answer()).status for _ in range(30)] == [402] * 30


@on_uvloop
async def test_a_refused_upload_can_be_sent_to_its_end(tmp_path: Path) -> None:
    """Ending the connection under what is still on its way would reset it, and with it the answer."""

    def upload(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(UPLOAD + BODY[:150_000])
            received = b""
            while part := connection.recv(65_536):
                received += part
            for start in range(150_000, len(BODY), 10_000):
                connection.sendall(BODY[start : start + 10_000])
        return received

    async with open_world(tmp_path) as world:
        # The connection takes more than the service does: it is the service that refuses.
        bounds = msgspec.structs.asdict(bounds_of(world.settings))
        async with serving(served_by=world.service.app, **bounds) as served:
            received = await asyncio.to_thread(upload, served.port)
    assert received.startswith(b"HTTP/1.1 413 ")
    assert b"request_too_large" in received


@on_uvloop
async def test_head_and_access_log_are_left_to_uvicorn(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world, serving(served_by=world.service.app) as served:
        client = await served.connect()
        await client.send(b"HEAD /v1/servers HTTP/1.1\r\nHost: spawn.test\r\n\r\n" + ASK % b"")
        assert await status_line(client) == 405
        assert (await client.answer()).status == 402


async def status_line(client: Client) -> int:
    """The status of an answer without a body, whatever length it announces."""
    head = await client.reader.readuntil(b"\r\n\r\n")
    return int(head[9:12])


async def test_the_harness_and_the_wire_give_the_same_answer(tmp_path: Path) -> None:
    """Through plain ASGI nothing is written at once; callers cannot tell."""
    async with open_world(tmp_path) as world:
        plain = await world.ask("GET", "/v1/servers")
        assert plain.status_code == 402
        assert int(plain.headers["Content-Length"]) == len(plain.content)
