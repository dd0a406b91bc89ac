"""How fast this machine's connection is, measured against the service's own relay, which tenants will come through.

Invariant: measuring is bounded in bytes and in time, and what could not be measured is None, with a sentence why.
"""

import os
import time
from collections.abc import AsyncIterator, Callable
from statistics import median
from typing import Any, Final

import httpx
import msgspec
from spawn_schemas.inventory import Network

from spawn_hostagent.joining.endpoints import speed_address
from spawn_hostagent.joining.service import Signer

BYTES: Final = 25_000_000
PINGS: Final = 10
LIMIT_S: Final = 30.0
"""A slow connection is measured by what came through in this time."""
_CHUNK_BYTES: Final = 64 * 1024
_ENOUGH_BYTES: Final = 256 * 1024
"""Fewer say more of the connection's beginning than of its width."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """`problem` is why a figure is missing."""

    network: Network = Network()
    problem: str | None = None


class SpeedTest:
    """One measurement. `now` is a monotonic clock in seconds, `wall` the service's clock in unix seconds."""

    def __init__(
        self,
        link_url: str,
        signer: Signer,
        client: httpx.AsyncClient,
        *,
        wall: Callable[[], float],
        nonce: Callable[[], str],
        now: Callable[[], float] = time.monotonic,
        size: int = BYTES,
        limit_s: float = LIMIT_S,
    ) -> None:
        self._address = httpx.URL(speed_address(link_url))
        self._signer = signer
        self._client = client
        self._wall = wall
        self._nonce = nonce
        self._now = now
        self._size = size
        self._limit_s = limit_s

    async def measure(self) -> Measured:
        """Ten pings, then the bytes down and up. Each part may fail without the others."""
        problems = []
        figures: list[float | None] = []
        for part in (self._ping, self._down, self._up):
            try:
                figures.append(await part())
            except _Refused as error:
                figures.append(None)
                problems.append(str(error))
            except httpx.HTTPError as error:
                figures.append(None)
                problems.append(f"the relay broke off ({str(error) or type(error).__name__})")
        latency, down, up = figures
        return Measured(
            network=Network(down_mbit=down, up_mbit=up, latency_ms=latency),
            problem="; ".join(dict.fromkeys(problems)) or None,
        )

    async def _ping(self) -> float:
        """The median in milliseconds from a request to its answer, however long its connection took to open."""
        times = []
        for _ in range(PINGS):
            watch = _Watch(self._now)
            _succeeded(await self._client.send(self._request("GET", "ping", watch=watch)))
            times.append(watch.elapsed_s * 1000)
        return round(median(times), 1)

    async def _down(self) -> float | None:
        answer = await self._client.send(self._request("GET", f"down?bytes={self._size}"), stream=True)
        try:
            _succeeded(answer)
            received, begun = 0, self._now()
            async for chunk in answer.aiter_raw():
                received += len(chunk)
                if received >= self._size or self._now() - begun > self._limit_s:
                    break
            return _mbit(received, self._now() - begun)
        finally:
            await answer.aclose()

    async def _up(self) -> float | None:
        """As the relay timed it; or by what was handed to the network where time ran out, which flatters a little."""
        content, sent, begun = os.urandom(_CHUNK_BYTES) * (self._size // _CHUNK_BYTES + 1), 0, self._now()
        content = content[: self._size]

        async def body() -> AsyncIterator[bytes]:
            nonlocal sent
            while sent < len(content):
                if self._now() - begun > self._limit_s:
                    raise _OutOfTime
                chunk = content[sent : sent + _CHUNK_BYTES]
                yield chunk
                sent += len(chunk)

        try:
            answer = await self._client.send(self._request("POST", "up", content, body()))
        except _OutOfTime:
            return _mbit(sent, self._now() - begun)
        _succeeded(answer)
        return _mbit(sent, _told_seconds(answer) or self._now() - begun)

    def _request(
        self,
        method: str,
        name: str,
        content: bytes = b"",
        body: AsyncIterator[bytes] | None = None,
        watch: "_Watch | None" = None,
    ) -> httpx.Request:
        """A proven call."""
        url = self._address.join(name)
        headers = self._signer.headers(
            method, url.raw_path.decode(), content, now_s=int(self._wall()), nonce=self._nonce()
        )
        if body is not None:
            headers["Content-Length"] = str(len(content))
        extensions = {} if watch is None else {"trace": watch}
        return self._client.build_request(method, url, headers=headers, content=body, extensions=extensions)


class _Watch:
    """Times one request between its first byte out and the answer's head, as httpcore tells of them."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._begun = now()
        self.elapsed_s = 0.0

    async def __call__(self, event: str, _: Any) -> None:
        if event.endswith(".send_request_headers.started"):
            self._begun = self._now()
        elif event.endswith(".receive_response_headers.complete"):
            self.elapsed_s = self._now() - self._begun


class _Refused(Exception):
    """The relay would not measure; the message is its answer."""


class _OutOfTime(Exception):
    """The limit passed while bytes were still to send."""


def _succeeded(answer: httpx.Response) -> None:
    if not answer.is_success:
        raise _Refused(f"the relay answered {answer.status_code} to {answer.request.url.path}")


def _told_seconds(answer: httpx.Response) -> float | None:
    """How long the upload took as its receiver saw it, where it says so."""
    try:
        seconds = answer.json()["seconds"]
    except (ValueError, KeyError, TypeError):
        return None
    return float(seconds) if isinstance(seconds, (int, float)) and seconds > 0 else None


def _mbit(count: int, seconds: float) -> float | None:
    """Megabits a second; None where too little came for a figure."""
    if count < _ENOUGH_BYTES or seconds <= 0:
        return None
    return round(count * 8 / seconds / 1e6, 1)
