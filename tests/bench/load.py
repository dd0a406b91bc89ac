"""A closed-loop HTTP/1.1 client that costs little: bytes prepared beforehand, keep-alive, one request in flight each.

A general client takes longer to make a request than our server takes to answer it, and would be what is measured.
Invariant: every request is answered with the status that was asked for, or `run` raises.
"""

import asyncio
from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import cast

import msgspec

TIMEOUT_S = 120


class UnexpectedAnswer(Exception):
    """A server answered something else than the benchmark is about."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What one run saw. Times in seconds, one latency a request."""

    wall_s: float
    latencies_s: list[float]


def get(path: str, authority: str, headers: dict[str, str]) -> bytes:
    """A GET request as it goes over the wire."""
    lines = [f"GET {path} HTTP/1.1", f"Host: {authority}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def status_and_length(head: bytes) -> tuple[int, int]:
    """Status and Content-Length of an answer; raise UnexpectedAnswer for one of unknown length."""
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(head[9:12]), int(value)
    raise UnexpectedAnswer(f"an answer without Content-Length: {head[:200]!r}")


class _Connection(asyncio.Protocol):
    """Sends the next request as soon as the last one is answered, until there are none left."""

    def __init__(self, requests: Iterator[bytes], status: int, latencies_s: list[float]) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._requests = requests
        self._status = status
        self._latencies_s = latencies_s
        self._received = b""
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._next()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, mark, body = self._received.partition(b"\r\n\r\n")
        if not mark:
            return
        try:
            status, length = status_and_length(head)
        except UnexpectedAnswer as error:
            self._end(error)
            return
        if len(body) < length:
            return
        self._latencies_s.append(perf_counter() - self._sent_at)
        self._received = b""
        if status != self._status:
            self._end(UnexpectedAnswer(f"status {status} instead of {self._status}: {body[:500]!r}"))
            return
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or UnexpectedAnswer("the server closed the connection"))

    def _next(self) -> None:
        request = next(self._requests, None)
        if request is None:
            self._end(None)
            return
        self._sent_at = perf_counter()
        self._transport.write(request)

    def _end(self, error: Exception | None) -> None:
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)
        self._transport.close()


async def run(port: int, requests: Sequence[bytes], *, connections: int, status: int) -> Load:
    """Send all `requests` to loopback. Raises UnexpectedAnswer at the first that is not answered with `status`."""
    loop = asyncio.get_running_loop()
    waiting = iter(requests)
    latencies_s: list[float] = []
    start = perf_counter()
    opened = [
        await loop.create_connection(lambda: _Connection(waiting, status, latencies_s), "127.0.0.1", port)
        for _ in range(connections)
    ]
    async with asyncio.timeout(TIMEOUT_S):
        await asyncio.gather(*(connection.done for _, connection in opened))
    return Load(wall_s=perf_counter() - start, latencies_s=latencies_s)
