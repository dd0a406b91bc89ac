"""Streams of tenants through the relay, and the speed tests of hosts, over real sockets on loopback."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from spawn_schemas import link, orders
from websockets.asyncio.client import connect

from spawn.link import streams
from tests.integration.hosts_world import Lent, open_hosts
from tests.integration.scripted_host import Obedient, ScriptedHost, dialled, obedient


@contextlib.asynccontextmanager
async def serving(machine: Obedient, answer: Any) -> AsyncIterator[None]:
    """What listens inside of the machine's containers."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        machine.target = server.sockets[0].getsockname()[:2]
        yield


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def rented(lent: Lent) -> dict[str, Any]:
    view = await lent.rent(await lent.world.customer("20.00"))
    await lent.link.listener.public.refresh()
    return view


async def exchanged(port: int, sent: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    writer.write_eof()
    received = await asyncio.wait_for(reader.read(-1), 30)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return received


async def test_many_streams_at_once_each_carry_their_own(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent, obedient(lent.host) as machine, serving(machine, echo):
        port = (await rented(lent))["ssh"]["port"]
        sent = [bytes([number]) * 300_000 for number in range(20)]
        assert await asyncio.gather(*(exchanged(port, each) for each in sent)) == sent


async def test_who_does_not_read_holds_up_nobody_and_little_is_kept_of_it(tmp_path: Path) -> None:
    poured = 0

    async def pour(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal poured
        with contextlib.suppress(OSError):
            while poured < 2**30:
                writer.write(bytes(65_536))
                await writer.drain()
                poured += 65_536
        writer.close()

    async with open_hosts(tmp_path) as lent, obedient(lent.host) as machine, serving(machine, pour):
        port = (await rented(lent))["ssh"]["port"]
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # it is a read transport, too
        seen = -1
        while poured != seen:
            seen = poured
            await asyncio.sleep(0.3)
        assert 0 < poured < 32 * 2**20, "it is written as fast as it is read"
        async with serving(machine, echo):
            assert await exchanged(port, b"meanwhile") == b"meanwhile"
        writer.transport.abort()


async def test_a_port_nobody_listens_on_is_closed(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent, obedient(lent.host):
        port = (await rented(lent))["ssh"]["port"]
        assert await exchanged(port, b"") == b"", "the host said dial_failed"


async def test_a_port_of_a_host_that_is_away_is_closed(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent:
        async with obedient(lent.host):
            port = (await rented(lent))["ssh"]["port"]
        assert await exchanged(port, b"") == b""


class Keeping(Obedient):
    """Destroys nothing, and never answers that it was told to."""

    async def obey(self, command: orders.Command) -> None:
        if not isinstance(command.order, orders.DestroyInstance):
            await super().obey(command)


async def test_what_is_destroyed_is_not_reached_whatever_its_host_does(tmp_path: Path) -> None:
    """Or a host and its tenant could keep a public port between them, and the relay, for nothing."""
    async with open_hosts(tmp_path) as lent, dialled(lent.host) as connected:
        machine = Keeping(connected)
        obeying = asyncio.create_task(machine.serve())
        async with serving(machine, echo):
            wallet = await lent.world.customer("20.00")
            view = await lent.rent(wallet)
            await lent.link.listener.public.refresh()
            reader, writer = await asyncio.open_connection("127.0.0.1", view["ssh"]["port"])
            writer.write(b"hello")
            assert await asyncio.wait_for(reader.readexactly(5), 30) == b"hello"
            (name,) = [port["host"] for port in view["ports"] if port["kind"] == "http"]
            gone = await lent.world.sign(wallet, "DELETE", f"/v1/servers/{view['id']}")
            assert gone.status_code == 200, gone.text
            await lent.until(lambda: _is_let_go(lent))
            assert await asyncio.wait_for(reader.read(), 30) == b"", "what was open is over"
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", view["ssh"]["port"])
            assert (await asked(lent, name)).status_code == 404
            assert view["id"] in machine.rentals
            writer.close()
        await machine.stop(obeying)


async def _is_let_go(lent: Lent) -> bool:
    lent.world.clock.advance(1)
    await lent.world.tick("operations")
    await lent.link.listener.public.refresh()
    return not lent.link.listener.public._servers


async def test_a_host_that_brings_nothing_is_waited_for_no_longer_than_allowed(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent:
        async with obedient(lent.host):
            port = (await rented(lent))["ssh"]["port"]
        lent.link.listener.streams._dial_s = 0.1
        async with dialled(lent.host):
            assert await exchanged(port, b"") == b""
        assert lent.link.listener.streams._pending == {}


async def test_an_idle_stream_ends(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent, obedient(lent.host) as machine, serving(machine, echo):
        port = (await rented(lent))["ssh"]["port"]
        lent.link.listener.streams._idle_s = 0.2
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await asyncio.wait_for(reader.read(-1), 10) == b""
        writer.close()
        await writer.wait_closed()


async def test_a_rental_has_so_many_connections_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "PER_RENTAL_MAX", 2)
    async with open_hosts(tmp_path) as lent, obedient(lent.host) as machine, serving(machine, echo):
        port = (await rented(lent))["ssh"]["port"]
        kept = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        for reader, writer in kept:
            writer.write(b"x")
            assert await asyncio.wait_for(reader.readexactly(1), 10) == b"x"
        assert await exchanged(port, b"") == b""
        for _, writer in kept:
            writer.close()
            await writer.wait_closed()
        await lent.until(lambda: _none_open(lent))
        assert await exchanged(port, b"again") == b"again"


async def _none_open(lent: Lent) -> bool:
    return not lent.link.listener.streams._open


async def test_another_host_can_neither_bring_nor_fail_a_stream(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent:
        async with obedient(lent.host):
            port = (await rented(lent))["ssh"]["port"]
        other = ScriptedHost("cellar", lent.world.clock.now_s)
        await lent.register(other, "cellar")
        async with dialled(lent.host) as connected, dialled(other) as thief:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            dial: link.Dial = await connected.receive_kind(link.Dial)
            await thief.send(link.DialFailed, stream_id=dial.stream_id, message="no")
            await thief.heartbeat()
            assert dial.stream_id in lent.link.listener.streams._pending
            assert not lent.link.listener.streams.knows(dial.stream_id, "Bearer wrong")
            url = other.link_url.removesuffix(link.LINK_PATH) + link.DATA_PATH + dial.stream_id
            headers = {"Authorization": f"Bearer {dial.token}"}
            async with connect(url, additional_headers=headers, compression=None) as socket:
                await socket.send(b"hello")
                assert await asyncio.wait_for(reader.readexactly(5), 10) == b"hello"
                assert not lent.link.listener.streams.knows(dial.stream_id, headers["Authorization"])
            writer.close()
            await writer.wait_closed()


# --- by name --------------------------------------------------------------------------------------------------------


async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    body = b"closes" if b"Connection: close" in head else b"stays"
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    await writer.drain()
    writer.close()


async def asked(lent: Lent, host: str) -> httpx.Response:
    _, _, port = lent.world.settings.relay_http_listen.rpartition(":")
    async with httpx.AsyncClient() as http:
        return await http.get(f"http://127.0.0.1:{port}/", headers={"Host": host})


async def test_a_name_leads_to_the_port_of_its_rental(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent, obedient(lent.host) as machine, serving(machine, page):
        view = await rented(lent)
        (name,) = [port["host"] for port in view["ports"] if port["kind"] == "http"]
        answer = await asked(lent, name)
        assert (answer.status_code, answer.text) == (200, "closes")
        for other in ("apps.test", f"x{name}", name.replace("p8888", "p22"), "p8888-nobody.apps.test"):
            assert (await asked(lent, other)).status_code == 404


async def test_no_connection_is_kept_for_a_strangers_request(tmp_path: Path) -> None:
    """A proxy that keeps it would send the next tenant's request to this one's container."""
    seen: list[bytes] = []

    async def greedy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                seen.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(
                    b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nConnection: keep-alive\r\n"
                    b"Content-Length: 2\r\n\r\nok"
                )
                await writer.drain()
        writer.close()

    async with open_hosts(tmp_path) as lent, obedient(lent.host) as machine, serving(machine, greedy):
        view = await rented(lent)
        (name,) = [port["host"] for port in view["ports"] if port["kind"] == "http"]
        for more in ("", "Connection: keep-alive\r\n", "Connection: Upgrade\r\nUpgrade: x\r\n"):
            _, _, port = lent.world.settings.relay_http_listen.rpartition(":")
            reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
            writer.write(f"GET / HTTP/1.1\r\nHost: {name}\r\n{more}\r\n".encode())
            interim = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            assert b"103" in interim
            assert head == b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n"
            assert await asyncio.wait_for(reader.readexactly(2), 10) == b"ok"
            writer.close()
            await writer.wait_closed()


@pytest.mark.parametrize("answer", [b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 101 Switching Protocols\r\n\r\n"])
async def test_what_is_no_answer_is_not_passed_on(tmp_path: Path, answer: bytes) -> None:
    async def wrong(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with open_hosts(tmp_path) as lent, obedient(lent.host) as machine, serving(machine, wrong):
        view = await rented(lent)
        (name,) = [port["host"] for port in view["ports"] if port["kind"] == "http"]
        with pytest.raises(httpx.RemoteProtocolError):
            await asked(lent, name)


async def test_an_upgrade_becomes_its_own_protocols(tmp_path: Path) -> None:
    async def upgraded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
        await echo(reader, writer)

    async with open_hosts(tmp_path) as lent, obedient(lent.host) as machine, serving(machine, upgraded):
        view = await rented(lent)
        (name,) = [port["host"] for port in view["ports"] if port["kind"] == "http"]
        _, _, port = lent.world.settings.relay_http_listen.rpartition(":")
        reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
        writer.write(
            f"GET / HTTP/1.1\r\nHost: {name}\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n".encode()
        )
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert b"Connection: Upgrade" in head
        writer.write(b"and back")
        assert await asyncio.wait_for(reader.readexactly(8), 10) == b"and back"
        writer.close()
        await writer.wait_closed()


async def test_a_name_whose_host_is_away_says_so(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent:
        async with obedient(lent.host):
            view = await rented(lent)
        (name,) = [port["host"] for port in view["ports"] if port["kind"] == "http"]
        answer = await asked(lent, name)
        assert (answer.status_code, answer.text) == (
            502,
            "The port cannot be reached: its host is not connected.\n",
        )


@pytest.mark.parametrize(
    "head", [b"\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"x" * 40_000]
)
async def test_a_head_that_names_nothing_is_answered(tmp_path: Path, head: bytes) -> None:
    async with open_hosts(tmp_path) as lent:
        _, _, port = lent.world.settings.relay_http_listen.rpartition(":")
        reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
        writer.write(head)
        line = await asyncio.wait_for(reader.readline(), 10)
        assert line in {b"HTTP/1.1 404 Not Found\r\n", b"HTTP/1.1 400 Bad Request\r\n"}
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


# --- speed ----------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def measuring(lent: Lent) -> AsyncIterator[httpx.AsyncClient]:
    address, port = lent.link.listener.address()
    async with httpx.AsyncClient(base_url=f"http://{address}:{port}") as http:
        yield http


async def test_a_host_measures_its_connection(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent, measuring(lent) as http:
        for path, length in (("/v1/hosts/speed/ping", 2), ("/v1/hosts/speed/down?bytes=3000000", 3_000_000)):
            answer = await http.get(path, headers=lent.host.headers("GET", path, b""))
            assert (answer.status_code, len(answer.content)) == (200, length), answer.text
        body = bytes(2_000_000)
        path = "/v1/hosts/speed/up"
        answer = await http.post(path, content=body, headers=lent.host.headers("POST", path, body))
        assert (answer.status_code, answer.json()["bytes"]) == (200, len(body))


async def test_only_a_host_measures(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent, measuring(lent) as http:
        path = "/v1/hosts/speed/down?bytes=1000"
        headers = lent.host.headers("GET", path, b"")
        assert (await http.get(path)).status_code == 401
        assert (await http.get(path.replace("1000", "9999"), headers=headers)).status_code == 401
        assert (await http.get(path, headers=headers)).status_code == 200
        assert (await http.get(path, headers=headers)).status_code == 401, "its nonce was used"
        huge = "/v1/hosts/speed/down?bytes=999999999"
        assert (await http.get(huge, headers=lent.host.headers("GET", huge, b""))).status_code == 400
        other = "/v1/hosts/speed/else"
        assert (await http.get(other, headers=lent.host.headers("GET", other, b""))).status_code == 404
        body = b"x" * 1000
        forged = lent.host.headers("POST", "/v1/hosts/speed/up", hashlib.sha256(body).digest())
        assert (await http.post("/v1/hosts/speed/up", content=body, headers=forged)).status_code == 401
