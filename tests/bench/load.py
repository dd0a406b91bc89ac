"""A closed-loop HTTP/1.1 client that costs little: bytes prepared beforehand, keep-alive, one request in flight each.

A general client takes longer to make a request than a server here takes to answer it, and would be what is measured.
So this is a bare `epoll` loop on one thread, which carries more than any server of the suite.
Invariant: every request is answered with the status that was asked for, or `run` raises.
"""

import re
import select
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from http.client import HTTPResponse
from time import perf_counter, thread_time
from typing import Final

import msgspec

TIMEOUT_S: Final = 30
_CHUNK: Final = 65_536
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)


class UnexpectedAnswer(Exception):
    """A server answered something else than the benchmark is about."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What one run saw: times in seconds, one latency a request; `cpu_s` is what the client itself took."""

    wall_s: float
    cpu_s: float
    latencies_s: list[float]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One whole answer; header names are lower-case."""

    status: int
    headers: dict[str, str]
    body: bytes


def get(path: str, authority: str, headers: dict[str, str]) -> bytes:
    """A GET request as it goes over the wire."""
    lines = [f"GET {path} HTTP/1.1", f"Host: {authority}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def is_whole(received: bytes) -> bool:
    """Whether an answer has come to its end; raise UnexpectedAnswer for one that does not say where that is."""
    mark = received.find(b"\r\n\r\n")
    if mark < 0:
        return False
    if length := _LENGTH.search(received, 0, mark + 2):
        return len(received) >= mark + 4 + int(length[1])
    if _CHUNKED.search(received, 0, mark + 2):
        return received.endswith(b"\r\n0\r\n\r\n")
    raise UnexpectedAnswer(f"an answer of unknown length: {received[:500]!r}")


class _Connection:
    """One connection and the request that is under way on it."""

    __slots__ = ("received", "recv", "send", "sent_at")

    def __init__(self, connected: socket.socket) -> None:
        self.send = connected.sendall
        self.recv = connected.recv
        self.received = b""
        self.sent_at = 0.0


def ask(port: int, request: bytes) -> Answer:
    """Send one request to loopback and read all that comes back."""
    with _connect(port) as connected:
        connected.sendall(request)
        response = HTTPResponse(connected)
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(status=response.status, headers=headers, body=response.read())


def run(
    ports: Sequence[int],
    requests: Sequence[bytes],
    *,
    connections: int,
    status: int,
    seconds: float = TIMEOUT_S,
) -> Load:
    """Send `requests` to loopback, as many as fit into `seconds`, and wait for the answer to each that was sent.

    The connections take turns among the ports, as a balancer would have them.
    Raises UnexpectedAnswer at the first that is not answered with `status`, or not within `TIMEOUT_S`.
    """
    waiting = iter(requests)
    latencies_s: list[float] = []
    with ExitStack() as opened:
        poll = opened.enter_context(select.epoll())
        by_fd: dict[int, _Connection] = {}
        for number in range(min(connections, len(requests))):
            connected = opened.enter_context(_connect(ports[number % len(ports)]))
            by_fd[connected.fileno()] = _Connection(connected)
            poll.register(connected.fileno(), select.EPOLLIN)
        cpu_s, start = thread_time(), perf_counter()
        for connection in by_fd.values():
            connection.sent_at = perf_counter()
            connection.send(next(waiting))
        _answer_all(poll, by_fd, waiting, latencies_s, b"HTTP/1.1 %d " % status, start + seconds)
        return Load(wall_s=perf_counter() - start, cpu_s=thread_time() - cpu_s, latencies_s=latencies_s)


def _connect(port: int) -> socket.socket:
    connected = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


def _answer_all(
    poll: select.epoll,
    by_fd: dict[int, _Connection],
    waiting: Iterator[bytes],
    latencies_s: list[float],
    expected: bytes,
    deadline: float,
) -> None:
    """The loop: every answer sends the next request of its connection, until the deadline or there are none left."""
    under_way = len(by_fd)
    while under_way:
        ready = poll.poll(TIMEOUT_S)
        if not ready:
            raise UnexpectedAnswer(f"no answer within {TIMEOUT_S} seconds")
        for fd, _ in ready:
            connection = by_fd[fd]
            data = connection.recv(_CHUNK)
            if not data:
                raise UnexpectedAnswer(f"the server closed the connection after {connection.received!r}")
            received = connection.received + data if connection.received else data
            if not is_whole(received):
                connection.received = received
                continue
            if not received.startswith(expected):
                raise UnexpectedAnswer(f"not {expected.decode()}but {received[:1000]!r}")
            now = perf_counter()
            latencies_s.append(now - connection.sent_at)
            connection.received = b""
            request = next(waiting, None) if now < deadline else None
            if request is None:
                under_way -= 1
                poll.unregister(fd)  # its server may close it while others are still answered
                continue
            connection.sent_at = now
            connection.send(request)
