"""What hosts measure their connection against: so many bytes down, bytes up, and an answer as small as there is.

Invariant: only a registered host gets more than an error, one test at a time; what it sends is counted and thrown away.
A call is signed as every plain call of a host is, the bytes of an upload included.
"""

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qs, urlsplit

import msgspec
from spawn_schemas import hosts as wire
from spawn_schemas.errors import SpawnError
from spawn_schemas.ids import HostId

from spawn.services.hosts import Hosts, SignedCall

log = logging.getLogger(__name__)

PREFIX: Final = "/v1/hosts/speed/"
BYTES_MAX: Final = 64 * 1024 * 1024
CALL_S: Final = 120.0
HEAD_S: Final = 10.0
"""How long a call's head may take: who it is by is not known before."""
_CHUNK: Final = bytes(64 * 1024)
_PROOF_HEADERS: Final = (
    wire.HOST_HEADER,
    wire.TIMESTAMP_HEADER,
    wire.NONCE_HEADER,
    wire.SIGNATURE_HEADER,
)
_NO_BODY: Final = hashlib.sha256(b"").hexdigest()
_REASONS: Final = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 409: "Conflict"}


class _Answer(Exception):
    """Ends a call with this status and sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class SpeedTests:
    """Serves one call on each connection."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts
        self._testing: set[HostId] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            async with asyncio.timeout(CALL_S):
                await self._serve(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.info("a speed test was cut short: %s", type(error).__name__)
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(HEAD_S):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        try:
            await self._answer(head, reader, writer)
        except _Answer as refusal:
            _write(writer, refusal.status, msgspec.json.encode({"message": str(refusal)}))
        except SpawnError as error:
            _write(writer, 401, msgspec.json.encode({"message": error.message, "next": error.next}))
        await writer.drain()

    async def _answer(self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *lines = head.split("\r\n")
        parts = first.split(" ")
        if len(parts) != 3:
            raise _Answer(400, "This is no request.")
        method, target, _ = parts
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
        }
        call = _signed(method, target, headers)
        host = await self._hosts.claimed(call)
        if host.id in self._testing:
            raise _Answer(409, "A test of this host is under way: wait until it has ended.")
        self._testing.add(host.id)
        try:
            await self._measure(call, headers, reader, writer)
        finally:
            self._testing.discard(host.id)

    async def _measure(
        self,
        call: SignedCall,
        headers: Mapping[str, str],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        url = urlsplit(call.path)
        match call.method, url.path.removeprefix(PREFIX):
            case "GET", "ping":
                await self._hosts.authenticate(call)
                _write(writer, 200, b"{}")
            case "GET", "down":
                count = _count(parse_qs(url.query).get("bytes", ["25000000"])[0])
                await self._hosts.authenticate(call)
                await _send(writer, count)
            case "POST", "up":
                count = _count(headers.get("content-length", "none"))
                if headers.get("expect", "").lower() == "100-continue":
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                began = asyncio.get_running_loop().time()
                digest = await _received(reader, count)
                seconds = asyncio.get_running_loop().time() - began
                await self._hosts.authenticate(msgspec.structs.replace(call, body_sha256=digest))
                _write(writer, 200, msgspec.json.encode({"bytes": count, "seconds": seconds}))
            case _:
                raise _Answer(404, "There are GET ping, GET down?bytes= and POST up.")


def _signed(method: str, target: str, headers: Mapping[str, str]) -> SignedCall:
    values = [headers.get(name.lower(), "") for name in _PROOF_HEADERS]
    return SignedCall(
        method=method,
        path=target,
        body_sha256=_NO_BODY,
        host_id=values[0],
        timestamp=values[1],
        nonce=values[2],
        signature=values[3],
    )


def _count(text: str) -> int:
    count = int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else -1
    if not 0 <= count <= BYTES_MAX:
        raise _Answer(400, f"A test has 0 to {BYTES_MAX} bytes, said by ?bytes= or Content-Length.")
    return count


async def _received(reader: asyncio.StreamReader, count: int) -> str:
    digest = hashlib.sha256()
    while count > 0:
        data = await reader.read(min(count, len(_CHUNK)))
        if not data:
            raise asyncio.IncompleteReadError(b"", count)
        digest.update(data)
        count -= len(data)
    return digest.hexdigest()


async def _send(writer: asyncio.StreamWriter, count: int) -> None:
    writer.write(
        f"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {count}\r\n"
        "Connection: close\r\n\r\n".encode()
    )
    while count > 0:
        writer.write(_CHUNK[:count])
        await writer.drain()
        count -= len(_CHUNK)


def _write(writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
    with contextlib.suppress(OSError):
        writer.write(
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
            + body
        )
