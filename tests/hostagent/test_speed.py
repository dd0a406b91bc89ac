"""The connection is measured by proven calls, bounded in time, and each figure by itself."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from spawn_hostagent.hardware import load_network, save_network
from spawn_hostagent.preflight.speed import PINGS, SpeedTest
from spawn_schemas.hosts import NONCE_HEADER, SIGNATURE_HEADER
from spawn_schemas.inventory import Network

SIZE = 1_000_000


class ASigner:
    """Signs by writing down what it was asked to sign."""

    service = "https://api.example.org"

    def __init__(self) -> None:
        self.signed: list[tuple[str, str, int, str]] = []

    def headers(self, method: str, path: str, body: bytes, *, now_s: int, nonce: str) -> dict[str, str]:
        self.signed.append((method, path, len(body), nonce))
        return {NONCE_HEADER: nonce, SIGNATURE_HEADER: f"{method} {path} {now_s}"}


class ARelay:
    """A server of speed tests on the loopback. `refuses` are paths that answer 503; `stalls` sends half, then nothing.

    One answer a connection, as a relay may do it.
    """

    def __init__(
        self, *, refuses: str | None = None, stalls: bool = False, seconds: float | None = None
    ) -> None:
        self.refuses = refuses
        self.stalls = stalls
        self.seconds = seconds
        self.seen: list[str] = []
        self.received = 0
        self.over = asyncio.Event()
        self.calls: list[asyncio.Task[None]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.calls.append(task)
        try:
            await self._serve(reader, writer)
        except ConnectionError:
            pass  # a client that has seen enough
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, target, _ = head.split("\r\n")[0].split(" ")
        headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:-2])
        assert headers[SIGNATURE_HEADER.lower()].startswith(f"{method} {target} ".lower())
        self.seen.append(f"{method} {target}")
        await self._answer(target, int(headers.get("content-length", "0")), reader, writer)
        await writer.drain()

    async def _answer(
        self, target: str, length: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        name = target.rpartition("/")[2].partition("?")[0]
        if name == self.refuses:
            if length:
                await reader.readexactly(length)
            writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        if name == "down":
            count = int(target.rpartition("=")[2])
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {count}\r\nConnection: close\r\n\r\n".encode())
            writer.write(bytes(count // 2))
            await writer.drain()
            if self.stalls:
                await self.over.wait()
                return
            writer.write(bytes(count - count // 2))
            return
        while self.received < length and (part := await reader.read(65536)):
            self.received += len(part)
        body = b"{}" if self.seconds is None else b'{"seconds": %f}' % self.seconds
        writer.write(
            f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
        )


@asynccontextmanager
async def listening(relay: ARelay) -> AsyncIterator[str]:
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        yield f"ws://127.0.0.1:{port}/v1/hosts/link"
    finally:
        relay.over.set()
        server.close()
        await asyncio.gather(*relay.calls)
        await server.wait_closed()


def a_test(
    link: str, client: httpx.AsyncClient, signer: ASigner, now: Callable[[], float] | None = None
) -> SpeedTest:
    nonces = iter(range(1000))
    clock = asyncio.get_running_loop().time
    return SpeedTest(
        link,
        signer,
        client,
        wall=lambda: 1_800_000_000.0,
        nonce=lambda: f"n{next(nonces)}",
        now=now or clock,
        size=SIZE,
    )


async def measured(
    relay: ARelay, check: Callable[[SpeedTest], Awaitable[None]], signer: ASigner | None = None
) -> None:
    async with listening(relay) as link, httpx.AsyncClient(timeout=10) as client:
        await check(a_test(link, client, signer or ASigner()))


async def test_all_three_figures_are_measured_and_every_call_is_proven() -> None:
    relay, signer = ARelay(), ASigner()

    async def check(test: SpeedTest) -> None:
        found = await test.measure()
        assert found.problem is None
        assert (found.network.down_mbit or 0) > 1
        assert (found.network.up_mbit or 0) > 1
        assert (found.network.latency_ms or 0) > 0

    await measured(relay, check, signer)
    assert relay.seen == [
        *["GET /v1/hosts/speed/ping"] * PINGS,
        f"GET /v1/hosts/speed/down?bytes={SIZE}",
        "POST /v1/hosts/speed/up",
    ]
    assert relay.received == SIZE
    assert [call[:3] for call in signer.signed[-2:]] == [
        ("GET", f"/v1/hosts/speed/down?bytes={SIZE}", 0),
        ("POST", "/v1/hosts/speed/up", SIZE),
    ]
    assert len({call[3] for call in signer.signed}) == PINGS + 2, "a nonce was used twice"


async def test_the_relays_own_watch_counts_for_an_upload() -> None:
    async def check(test: SpeedTest) -> None:
        assert (await test.measure()).network.up_mbit == 2.0

    await measured(ARelay(seconds=4.0), check)


@pytest.mark.parametrize(
    ("refuses", "missing"), [("ping", "latency_ms"), ("down", "down_mbit"), ("up", "up_mbit")]
)
async def test_a_part_that_is_refused_costs_one_figure(refuses: str, missing: str) -> None:
    async def check(test: SpeedTest) -> None:
        found = await test.measure()
        absent = {name for name in Network.__struct_fields__ if getattr(found.network, name) is None}
        assert absent == {missing}
        assert "503" in (found.problem or "")

    await measured(ARelay(refuses=refuses), check)


async def test_a_slow_line_is_measured_by_what_came_in_time() -> None:
    """Half arrives, and then the clock runs past the limit: what came counts, and nobody waits for the rest."""
    relay = ARelay(stalls=True)
    times = iter([0.0, 40.0])

    async with listening(relay) as link, httpx.AsyncClient(timeout=10) as client:
        test = a_test(link, client, ASigner(), now=lambda: next(times, 40.0))
        figure = await test._down()
    assert figure is None or 0 < figure < 1


async def test_an_upload_past_the_limit_is_cut_off() -> None:
    relay = ARelay()
    times = iter([0.0, *[1.0] * 8, 31.0, 31.0])
    async with listening(relay) as link, httpx.AsyncClient(timeout=10) as client:
        test = a_test(link, client, ASigner(), now=lambda: next(times, 31.0))
        figure = await test._up()
    assert figure == pytest.approx(8 * 65536 * 8 / 31 / 1e6, abs=0.06)
    assert relay.received < SIZE


async def test_a_relay_that_is_not_there_costs_the_figures_only() -> None:
    async with listening(ARelay()) as link:
        pass
    async with httpx.AsyncClient(timeout=10) as client:
        found = await a_test(link, client, ASigner()).measure()
    assert found.network == Network()
    assert found.problem


def test_figures_are_kept_for_the_daemon(tmp_path: Path) -> None:
    assert load_network(tmp_path) == Network()
    save_network(tmp_path, Network(down_mbit=94.1, up_mbit=11.2, latency_ms=23.0))
    assert load_network(tmp_path).up_mbit == 11.2
    (tmp_path / "network.json").write_text("{")
    assert load_network(tmp_path) == Network()
