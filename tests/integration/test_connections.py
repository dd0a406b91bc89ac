"""What clients do to connections: each gets its answer, holds nothing for long, and disturbs nobody beside it."""

import asyncio
import logging
import struct
from collections.abc import Iterable
from ipaddress import ip_network
from socket import IPPROTO_TCP, SO_LINGER, SOL_SOCKET, TCP_NODELAY

import pytest

from spawn.connections import PIPELINE_MAX, TARGET_MAX_BYTES
from spawn.door import TURNED_AWAY_MAX, in_front, neighbourhood
from tests.integration.raw_connections import GET, Client, on_uvloop, serving

HOST = b"Host: x\r\n"
CHUNKED = b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"


def post(*lines: bytes, body: bytes = b"") -> bytes:
    return b"".join([b"POST / HTTP/1.1\r\n", HOST, *(line + b"\r\n" for line in lines), b"\r\n", body])


def chunk(body: bytes, extension: bytes = b"") -> bytes:
    return b"%x%b\r\n%b\r\n" % (len(body), extension, body)


# --- heads ----------------------------------------------------------------------------------------------------

MALFORMED: dict[str, bytes] = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00",
    "HTTP/2 by prior knowledge": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "line ends of bare LF": b"GET / HTTP/1.1\nHost: x\n\n",
    "one bare LF": b"GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n",
    "a bare CR in a value": b"GET / HTTP/1.1\r\nHost: x\ry\r\n\r\n",
    "NUL in a value": b"GET / HTTP/1.1\r\nHost: x\x00y\r\n\r\n",
    "NUL in the target": b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    "bytes beyond ASCII in the target": b"GET /\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a space in the target": b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
    "a folded line": b"GET / HTTP/1.1\r\nHost: x\r\n y\r\n\r\n",
    "a space before the colon": b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    "a line without a name": b"GET / HTTP/1.1\r\n: x\r\n\r\n",
    "a method in lower case": b"get / HTTP/1.1\r\nHost: x\r\n\r\n",
    "an unknown version": b"GET / HTTP/1.9\r\nHost: x\r\n\r\n",
    "CONNECT": b"CONNECT example.com:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    "an absolute target without a path": b"GET http://example.com HTTP/1.1\r\nHost: x\r\n\r\n",
    "length and chunks": post(b"Content-Length: 3", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "chunks and length": post(b"Transfer-Encoding: chunked", b"Content-Length: 3", body=b"0\r\n\r\n"),
    "two lengths": post(b"Content-Length: 3", b"Content-Length: 4", body=b"abcd"),
    "the same length twice": post(b"Content-Length: 3", b"Content-Length: 3", body=b"abc"),
    "a list of lengths": post(b"Content-Length: 3, 3", body=b"abc"),
    "a signed length": post(b"Content-Length: +3", body=b"abc"),
    "a negative length": post(b"Content-Length: -3", body=b"abc"),
    "a length beyond all numbers": post(b"Content-Length: 99999999999999999999999"),
    "an unknown coding": post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
    "chunks that are not last": post(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n"),
    "chunked twice": post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "a chunk of negative size": CHUNKED + b"-3\r\nabc\r\n",
    "a chunk size in C": CHUNKED + b"0x3\r\nabc\r\n",
    "a chunk size beyond all numbers": CHUNKED + b"fffffffffffffffff\r\n",
    "a chunk that is longer than it says": CHUNKED + b"3\r\nabcd\r\n",
    "a bare LF in a chunk extension": CHUNKED + b"3;a\nabc\r\n0\r\n\r\n",
    "a payment after the body": CHUNKED + b"3\r\nabc\r\n0\r\nPAYMENT-SIGNATURE: x\r\n\r\n",
    "an upgrade that hides a request": post(*UPGRADE.split(b"\r\n")[:2], b"Content-Length: %d" % len(GET))
    + GET,
    "an upgrade with chunks": post(*UPGRADE.split(b"\r\n")[:2], b"Transfer-Encoding: chunked") + GET,
}


@pytest.mark.parametrize("attack", MALFORMED.values(), ids=MALFORMED.keys())
@on_uvloop
async def test_what_is_no_request_is_refused_in_our_envelope(attack: bytes) -> None:
    async with serving() as served:
        client = await served.connect()
        answer = await client.ask(attack + GET)
        assert (answer.status, answer.error["code"], answer.error["status"]) == (400, "invalid_request", 400)
        assert answer.headers["connection"] == "close"
        assert answer.headers["x-request-id"] == answer.error["request_id"] == "req_of_the_door"
        assert await client.closed() == b"", "nothing is said twice"
        assert served.application.calls == []


@pytest.mark.parametrize("attack", MALFORMED.values(), ids=MALFORMED.keys())
@on_uvloop
async def test_the_cut_of_the_segments_changes_nothing(attack: bytes) -> None:
    """A parser that forgets its state between reads is where smuggling begins."""
    async with serving() as served:
        client = await served.connect()
        client.writer.get_extra_info("socket").setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        for at in range(len(attack)):
            await client.send(attack[at : at + 1])
            await asyncio.sleep(0)
        assert (await client.ask(GET)).status == 400
        assert served.application.calls == []


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n" + b"A: " + b"a" * 5000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: a\r\n" * 130 + b"\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: " + b"a" * 5000,
        b"GET / HTTP/1.1\r\n" + b"A: a\r\n" * 900,
        b"GET /" + b"a" * 5000,
        b"\r\n" * 2500,
    ],
    ids=[
        "a long line",
        "many lines",
        "an endless line",
        "endless lines",
        "an endless target",
        "endless nothing",
    ],
)
@pytest.mark.parametrize("pieces", [1, 7])
@on_uvloop
async def test_a_head_has_a_size(head: bytes, pieces: int) -> None:
    step = -(-len(head) // pieces)
    async with serving() as served:
        client = await served.connect()
        answer = await client.ask(*(head[at : at + step] for at in range(0, len(head), step)))
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")
        assert answer.error["details"] == {"limit_bytes": 4096}
        assert await client.closed() == b""
        assert served.application.calls == []


@on_uvloop
async def test_a_target_has_a_length() -> None:
    async with serving(head_max_bytes=32_768) as served:
        fits, long = b"/" + b"a" * (TARGET_MAX_BYTES - 1), b"/" + b"a" * TARGET_MAX_BYTES
        assert (await served.ask(b"GET %b HTTP/1.1\r\n\r\n" % fits)).status == 200
        answer = await served.ask(b"GET %b HTTP/1.1\r\n\r\n" % long)
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")


@on_uvloop
async def test_a_head_of_the_largest_size_is_taken_again_and_again() -> None:
    line = b"a: %b\r\n" % (b"b" * (4096 - 1 - 32))
    async with serving() as served:
        client = await served.connect()
        for _ in range(3):
            assert (await client.ask(b"GET / HTTP/1.1\r\n" + line + b"\r\n")).status == 200
        assert (await client.ask(b"GET / HTTP/1.1\r\n" + line + b"c: \r\n\r\n")).status == 413


@on_uvloop
async def test_an_absolute_target_names_no_other_host() -> None:
    """RFC 9112 section 3.2.2: it must be understood. What it and `Host` name is not what a request is checked with."""
    async with serving() as served:
        await served.ask(b"GET http://evil.example/v1/servers?x=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert [path for path, _, _ in served.application.calls] == ["/v1/servers"]


@on_uvloop
async def test_an_upgrade_that_is_not_spoken_is_passed_over_and_nothing_after_it_is_read() -> None:
    """As `curl --http2` asks for it: answered in HTTP/1.1 (RFC 9110 section 7.8)."""
    async with serving() as served:
        client = await served.connect()
        answer = await client.ask(b"GET / HTTP/1.1\r\n" + HOST + UPGRADE + b"\r\n" + GET, GET)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await client.closed() == b""
        assert len(served.application.calls) == 1


# --- bodies ---------------------------------------------------------------------------------------------------


@on_uvloop
async def test_a_body_in_chunks_is_whole() -> None:
    async with serving() as served:
        answer = await served.ask(CHUNKED, chunk(b"a" * 100), chunk(b"b", b";name=value"), b"0\r\n\r\n")
        assert answer.body == b"101"


@pytest.mark.parametrize(
    "endless",
    [chunk(b"a" * 1000), chunk(b"a", b";" + b"x" * 1000), b"1;" + b"x" * 1000, b"1\r\na\r\n"],
    ids=["chunks", "chunk extensions", "an extension", "smallest chunks"],
)
@on_uvloop
async def test_a_body_that_does_not_end_is_ended(endless: bytes) -> None:
    async with serving() as served:
        client = await served.connect()
        await client.send(CHUNKED)
        flood = asyncio.create_task(client.send(*[endless] * (40_000_000 // len(endless) // 100)))
        answer = await client.answer()
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")
        assert await client.closed() == b""
        await flood
        assert served.application.calls == []


@on_uvloop
async def test_a_refused_upload_that_goes_on_is_cut_off() -> None:
    """The application answered early; what still comes is thrown away, up to a bound."""
    async with serving() as served:
        client = await served.connect()
        answer = await client.ask(b"POST /early HTTP/1.1\r\nContent-Length: 100000000\r\n\r\n")
        assert answer.status == 200
        await client.send(*[b"a" * 65536] * 100)
        assert await client.closed() == b""


@on_uvloop
async def test_an_early_answer_leaves_the_connection_usable() -> None:
    async with serving() as served:
        client = await served.connect()
        assert (await client.ask(b"POST /early HTTP/1.1\r\nContent-Length: 5000\r\n\r\n")).body == b"0"
        assert (await client.ask(b"a" * 5000 + GET)).body == b"0"
        assert [path for path, _, _ in served.application.calls] == ["/early", "/"]


# --- time -----------------------------------------------------------------------------------------------------


async def dribble(client: Client, parts: Iterable[bytes]) -> None:
    """A byte now and then, which keeps any timer alive that starts anew with each."""
    for part in parts:
        if client.reader.at_eof():
            return
        await client.send(part)
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("start", "drip", "part"),
    [
        (b"GET / HTTP/1.1\r\n", b"a: b\r\n", "head"),
        (b"G", b"", "head"),
        (b"\r\n", b"\r\n", "head"),
        (b"POST / HTTP/1.1\r\nContent-Length: 5000\r\n\r\n", b"a", "body"),
        (CHUNKED, b"1\r\na\r\n", "body"),
        (CHUNKED, b"", "body"),
    ],
    ids=["lines", "one byte", "empty lines", "a body", "chunks", "no body"],
)
@on_uvloop
async def test_who_is_slow_is_told_and_cut_off(start: bytes, drip: bytes, part: str) -> None:
    async with serving(head_s=0.3, body_s=0.3) as served:
        client = await served.connect()
        await client.send(start)
        dribbling = asyncio.create_task(dribble(client, [drip] * 200))
        answer = await client.answer()
        assert (answer.status, answer.error["code"], answer.error["retryable"]) == (
            408,
            "request_timeout",
            True,
        )
        assert part in answer.error["message"]
        assert answer.headers["connection"] == "close"
        assert await client.closed() == b""
        await dribbling
        assert served.application.calls == []


@on_uvloop
async def test_who_is_cut_off_in_a_body_leaves_no_task() -> None:
    async with serving(body_s=0.2) as served:
        await served.ask(b"POST / HTTP/1.1\r\nContent-Length: 5000\r\n\r\nabc")
        await served.until(lambda: served.application.disconnects == 1)
        assert not served.state.tasks


@on_uvloop
async def test_who_never_says_a_word_is_closed() -> None:
    async with serving(head_s=0.2) as served:
        assert await (await served.connect()).closed() == b""


@on_uvloop
async def test_an_idle_connection_is_closed() -> None:
    async with serving(idle_s=0.2) as served:
        client = await served.connect()
        assert (await client.ask(GET)).status == 200
        assert await client.closed() == b""


@on_uvloop
async def test_a_used_connection_is_not_closed() -> None:
    async with serving(head_s=0.4, idle_s=0.4, body_s=0.4) as served:
        client = await served.connect()
        for _ in range(20):
            assert (await client.ask(GET)).status == 200
            await asyncio.sleep(0.05)


@on_uvloop
async def test_nobody_is_cut_off_for_our_slowness() -> None:
    async with serving(head_s=0.1, idle_s=0.1, body_s=0.1, answer_s=0.1) as served:
        waiting, impatient = await served.connect(), await served.connect()
        await waiting.send(b"GET /wait HTTP/1.1\r\n\r\n")
        await impatient.send(b"GET /wait HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n")
        await asyncio.sleep(0.5)
        served.application.go_on.set()
        assert (await waiting.answer()).status == 200
        assert (await impatient.answer()).status == 200
        assert (await impatient.answer()).error["code"] == "request_timeout", (
            "from then on it keeps us waiting"
        )


@on_uvloop
async def test_who_does_not_read_its_answers_is_cut_off() -> None:
    async with serving(answer_s=0.3) as served:
        client = await served.connect(buffer_bytes=1024)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport reads, too
        await client.send(b"GET /large HTTP/1.1\r\n\r\n" * 12)
        await served.until(lambda: not served.state.connections)
        assert len(served.application.calls) < 12, "no answer is made while another cannot be sent"


@on_uvloop
async def test_who_does_not_read_its_last_answer_is_cut_off() -> None:
    async with serving(answer_s=0.3) as served:
        client = await served.connect(buffer_bytes=1024)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport reads, too
        request = b"GET /large HTTP/1.1\r\n\r\n" * 5 + b"GET /large HTTP/1.1\r\nConnection: close\r\n\r\n"
        await client.send(request)
        await served.until(lambda: not served.state.connections)


# --- numbers --------------------------------------------------------------------------------------------------


@on_uvloop
async def test_pipelined_requests_are_answered_in_order() -> None:
    async with serving() as served:
        client = await served.connect()
        await client.send(
            b"".join(post(b"Content-Length: %d" % n, body=b"a" * n) for n in range(PIPELINE_MAX))
        )
        assert [(await client.answer()).body for _ in range(PIPELINE_MAX)] == [
            b"%d" % n for n in range(PIPELINE_MAX)
        ]


@on_uvloop
async def test_a_flood_of_pipelined_requests_ends_after_those_that_may_wait() -> None:
    async with serving() as served:
        client = await served.connect()
        await client.send(b"GET /wait HTTP/1.1\r\n\r\n" + GET * 20_000)
        await served.until(lambda: bool(served.state.tasks))
        assert len(served.state.tasks) == 1
        served.application.go_on.set()
        for _ in range(1 + PIPELINE_MAX):
            assert (await client.answer()).status == 200
        answer = await client.answer()
        assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (
            429,
            "rate_limited",
            "1",
        )
        assert await client.closed() == b""
        assert len(served.application.calls) == 1 + PIPELINE_MAX


@pytest.mark.parametrize("bad", [b"junk", CHUNKED + b"junk"], ids=["a head", "a body"])
@on_uvloop
async def test_a_refusal_waits_for_the_answers_before_it(bad: bytes) -> None:
    async with serving() as served:
        client = await served.connect()
        await client.send(b"GET /wait HTTP/1.1\r\n\r\n" + GET + bad + b"\r\n\r\n" + GET)
        await served.until(lambda: bool(served.state.tasks))
        served.application.go_on.set()
        assert [(await client.answer()).status for _ in range(3)] == [200, 200, 400]
        assert await client.closed() == b""


@pytest.mark.parametrize("reset", [False, True], ids=["ends", "resets"])
@on_uvloop
async def test_who_goes_with_answers_due_leaves_neither_task_nor_error(
    caplog: pytest.LogCaptureFixture, reset: bool
) -> None:
    async with serving() as served:
        client = await served.connect()
        await client.send(b"GET /wait HTTP/1.1\r\n\r\n" + GET)
        await served.until(lambda: bool(served.state.tasks))
        if reset:
            client.writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        await served.until(lambda: not served.state.connections)
        served.application.go_on.set()
        await served.until(lambda: not served.state.tasks)
        assert len(served.application.calls) == 1, "what waited behind it was never begun"
    assert caplog.records == []


@on_uvloop
async def test_connections_have_a_number() -> None:
    async with serving(open_max=3) as served:
        clients = [await served.connect() for _ in range(3)]
        for client in clients:
            assert (await client.ask(GET)).status == 200
        answer = await served.ask(GET)
        assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (
            503,
            "overloaded",
            "1",
        )
        assert (await clients[0].ask(GET)).status == 200, "those who are in stay in"
        clients[1].close()
        await served.until(lambda: len(served.state.connections) == 2)
        assert (await served.ask(GET)).status == 200


@on_uvloop
async def test_connections_of_an_address_have_a_number() -> None:
    async with serving(lambda address: address == "127.0.0.3", open_per_address_max=2) as served:
        for _ in range(2):
            assert (await (await served.connect("127.0.0.2")).ask(GET)).status == 200
        answer = await (await served.connect("127.0.0.2")).ask(GET)
        assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (
            429,
            "rate_limited",
            "1",
        )
        assert (await served.ask(GET)).status == 200, "another address is another caller"
        served.clients[0].close()
        await served.until(lambda: len(served.state.connections) == 1)
        assert (await (await served.connect("127.0.0.2")).ask(GET)).status == 200, "one has left"
        for _ in range(4):
            assert (await (await served.connect("127.0.0.3")).ask(GET)).status == 200


@on_uvloop
async def test_a_crowd_at_the_door_is_not_talked_to() -> None:
    async with serving(open_max=1) as served:
        inside = await served.connect()
        assert (await inside.ask(GET)).status == 200
        crowd = [await served.connect() for _ in range(TURNED_AWAY_MAX + 20)]
        told = [await client.closed() for client in crowd]
        assert sum(said.startswith(b"HTTP/1.1 503") for said in told) == TURNED_AWAY_MAX
        assert (await inside.ask(GET)).status == 200


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
    ],
)
def test_an_ipv6_network_is_one_neighbour(address: str, place: str) -> None:
    assert neighbourhood(address) == place


def test_who_stands_in_front_of_us_speaks_for_many() -> None:
    front = in_front([ip_network("10.0.0.0/8"), ip_network("2001:db8::/32")])
    ours = ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "10.1.2.3", "::ffff:10.1.2.3", "2001:db8::1")
    others = ("192.0.2.1", "11.0.0.1", "fe80::1%eth0", "::ffff:192.0.2.1", "2001:db9::1")
    assert [front(address) for address in ours + others] == [True] * len(ours) + [False] * len(others)


# --- beside all that ------------------------------------------------------------------------------------------


@on_uvloop
async def test_a_well_behaved_client_beside_all_of_it_is_served(caplog: pytest.LogCaptureFixture) -> None:
    floods = [
        *MALFORMED.values(),
        b"GET / HTTP/1.1\r\na: " + b"a" * 100_000,
        GET * 500,
        CHUNKED + chunk(b"a", b";" + b"x" * 1000) * 200,
        b"POST / HTTP/1.1\r\nContent-Length: 5000\r\n\r\n",
    ]
    caplog.set_level(logging.INFO)
    async with serving(head_s=0.3, body_s=0.3, idle_s=0.3, open_max=200) as served:
        client = await served.connect()
        for _ in range(3):
            for flood in floods:
                await (await served.connect()).send(flood)
                answer = await client.ask(post(b"Content-Length: 3", body=b"abc"))
                assert (answer.status, answer.body) == (200, b"3")
        client.close()
        await served.empties()
    assert caplog.records == [], "a log line for each would fill the disk"
