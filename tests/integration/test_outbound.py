"""Requests to where a customer says: nothing reaches what is not the public internet, and no receiver costs much."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from spawn.domain.targets import Address, BadTarget, Rules, networks
from spawn.outbound.outbound import ANSWER_MAX_BYTES, Answer, NotAnswered, Outbound
from spawn.outbound.resolver import SystemResolver, Unresolvable
from tests.harness import Names
from tests.integration.receivers import canary, receiving, saying

PUBLIC: Final = Rules(networks=(), own_host="api.spawn.example", own_port=8402)
LOOPBACK: Final = Rules(networks=networks("127.0.0.0/8"), own_host="127.0.0.1", own_port=8402)
HANGING_S: Final = 20.0
"""Whatever takes this long waits for ever."""
NAMES: Final = Names({"hooks.example.com": "127.0.0.1"})


def out(rules: Rules = LOOPBACK, names: Names = NAMES, *, timeout_s: float = 2.0) -> Outbound:
    return Outbound(rules, names, timeout_s=timeout_s)


class Rebinding:
    """A name server of an attacker: public when it is asked first, and then something else."""

    def __init__(self, *answers: str) -> None:
        self._answers = [tuple(ip_address(text) for text in answer.split(",")) for answer in answers]
        self.asked = 0

    async def resolve(self, host: str) -> tuple[Address, ...]:
        self.asked += 1
        return self._answers[min(self.asked, len(self._answers)) - 1]


SSRF: Final[dict[str, tuple[str, str]]] = {
    "1 loopback by address": ("https://127.0.0.1:{port}/", ""),
    "2 loopback by a name": ("https://hooks.example.com:{port}/", "127.0.0.1"),
    "3 a name with a good answer first": ("https://hooks.example.com:{port}/", "8.8.8.8,127.0.0.1"),
    "4 a name with a good answer last": ("https://hooks.example.com:{port}/", "127.0.0.1,8.8.8.8"),
    "5 decimal": ("https://2130706433:{port}/", ""),
    "6 hexadecimal": ("https://0x7f000001:{port}/", ""),
    "7 octal": ("https://0177.0.0.1:{port}/", ""),
    "8 short": ("https://127.1:{port}/", ""),
    "9 unspecified": ("https://0.0.0.0:{port}/", ""),
    "10 loopback, IPv6": ("https://[::1]:{port}/", ""),
    "11 IPv4-mapped": ("https://[::ffff:127.0.0.1]:{port}/", ""),
    "12 IPv4-mapped, by a name": ("https://hooks.example.com:{port}/", "::ffff:127.0.0.1"),
    "13 IPv4-compatible": ("https://[::127.0.0.1]:{port}/", ""),
    "14 NAT64": ("https://[64:ff9b::7f00:1]:{port}/", ""),
    "15 6to4": ("https://hooks.example.com:{port}/", "2002:7f00:1::"),
    "16 Teredo": ("https://hooks.example.com:{port}/", "2001:0:7f00:1::1"),
    "17 metadata": ("https://169.254.169.254:{port}/latest/meta-data/", ""),
    "18 metadata by a name": ("https://hooks.example.com:{port}/", "169.254.169.254"),
    "19 metadata, IPv6": ("https://[fd00:ec2::254]:{port}/", ""),
    "20 private by a name": ("https://hooks.example.com:{port}/", "10.0.0.1"),
    "21 localhost": ("https://localhost:{port}/", "127.0.0.1"),
    "22 a trailing dot": ("https://localhost.:{port}/", "127.0.0.1"),
    "23 a user that looks like a host": ("https://hooks.example.com@127.0.0.1:{port}/", ""),
    "24 wide digits": ("https://\uff11\uff12\uff17.0.0.1:{port}/", ""),
    "25 plain http": ("http://127.0.0.1:{port}/", ""),
    "26 another scheme": ("gopher://127.0.0.1:{port}/", ""),
    "27 our own host": ("https://api.spawn.example:{port}/", "127.0.0.1"),
    "28 a backslash": ("https://hooks.example.com\\@127.0.0.1:{port}/", "8.8.8.8"),
}


@pytest.mark.parametrize(("url", "leads_to"), SSRF.values(), ids=SSRF.keys())
async def test_it_is_refused_at_registration_and_at_the_dial_and_never_connected(
    url: str, leads_to: str
) -> None:
    async with canary() as bird:
        url = url.format(port=bird.port)
        outbound = out(PUBLIC, Names(dict.fromkeys(("hooks.example.com", "localhost"), leads_to)))
        with pytest.raises(BadTarget):
            await outbound.addresses(outbound.target(url))
        with pytest.raises(NotAnswered, match="refused"):
            await outbound.post(url, {}, b"{}")
        assert bird.connections == 0


async def test_the_canary_is_there() -> None:
    async with canary() as bird:
        with pytest.raises(NotAnswered, match="the connection broke"):
            await out().post(f"http://hooks.example.com:{bird.port}/", {}, b"{}")
        assert bird.connections == 1


async def test_a_name_that_leads_elsewhere_after_it_was_checked_leads_nowhere() -> None:
    async with canary() as bird:
        names = Rebinding("8.8.8.8", "127.0.0.1")
        outbound = Outbound(PUBLIC, names, timeout_s=2)
        url = f"https://hooks.example.com:{bird.port}/"
        assert await outbound.addresses(outbound.target(url)) == (ip_address("8.8.8.8"),)
        with pytest.raises(NotAnswered, match="refused"):
            await outbound.post(url, {}, b"{}")
        assert (names.asked, bird.connections) == (2, 0)


async def test_what_is_dialled_is_what_was_checked_and_the_name_is_asked_once() -> None:
    async with receiving() as receiver, canary("127.0.0.2") as bird:
        port = int(receiver.url.rpartition(":")[2].partition("/")[0])
        names = Rebinding("127.0.0.1", "10.0.0.1")
        answer = await Outbound(LOOPBACK, names, timeout_s=2).post(
            f"http://hooks.example.com:{port}/", {}, b"{}"
        )
        assert (answer.status, names.asked, bird.connections) == (200, 1, 0)
        assert receiver.got[0].headers["Host"] == f"hooks.example.com:{port}"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_an_answer_and_not_followed(status: int) -> None:
    async with receiving() as receiver, canary() as bird:
        receiver.status = status
        receiver.headers["Location"] = f"http://127.0.0.1:{bird.port}/latest/meta-data/"
        assert (await out().post(receiver.url, {}, b"{}")).status == status
        assert (len(receiver.got), bird.connections) == (1, 0)


async def test_proxies_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiving() as receiver, canary() as bird:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{bird.port}")
        assert (await out().post(receiver.url, {}, b"{}")).status == 200
        assert bird.connections == 0


async def test_this_service_is_not_dialled_even_where_its_network_may_be() -> None:
    async with canary() as bird:
        rules = Rules(networks=LOOPBACK.networks, own_host="127.0.0.1", own_port=bird.port)
        with pytest.raises(NotAnswered, match="this service itself"):
            await out(rules).post(f"http://127.0.0.1:{bird.port}/", {}, b"{}")
        assert bird.connections == 0


async def test_it_goes_on_to_the_next_address_when_one_does_not_answer() -> None:
    async with receiving() as receiver:
        names = Names({"hooks.example.com": "127.0.0.9,127.0.0.1"})
        url = receiver.url.replace("127.0.0.1", "hooks.example.com")
        assert (await out(names=names).post(url, {}, b"{}")).status == 200


# --- what a receiver can cost -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [(b"H", b"T", b"T", b"P", *[b"x"] * 100), (b"HTTP/1.1 200 OK\r\n", *[b"x-drip: 1\r\n"] * 100), (b"",)],
    ids=["before the first line is whole", "header by header", "nothing at all"],
)
async def test_a_receiver_that_drips_is_left(parts: tuple[bytes, ...]) -> None:
    async with saying(*parts, pause_s=0.05, for_ever=True) as said:
        with pytest.raises(NotAnswered, match=r"no answer within 0\.4 s"):
            async with asyncio.timeout(HANGING_S):
                await out(timeout_s=0.4).post(f"http://127.0.0.1:{said[0]}/", {}, b"{}")


async def test_the_first_line_decides_when_the_body_never_ends() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n"
    async with saying(head, b"x", pause_s=0.05, for_ever=True) as said:
        async with asyncio.timeout(HANGING_S):
            answer = await out(timeout_s=0.4).post(f"http://127.0.0.1:{said[0]}/", {}, b"{}")
        assert answer == Answer(status=200, retry_after_s=None)


async def test_a_huge_answer_is_not_read() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 10000000000\r\n\r\n"
    async with saying(head, b"x" * 65_536, for_ever=True) as said:
        assert (await out().post(f"http://127.0.0.1:{said[0]}/", {}, b"{}")).status == 200
        await asyncio.sleep(0)
        # What the kernel's buffers hold was sent, and not a fraction of what was announced.
        assert said[1] < 20_000_000
        assert ANSWER_MAX_BYTES <= 1024


async def test_endless_headers_are_no_answer() -> None:
    async with saying(b"HTTP/1.1 200 OK\r\n", b"x-more: " + b"y" * 9000 + b"\r\n", for_ever=True) as said:
        with pytest.raises(NotAnswered, match="no HTTP"):
            await out().post(f"http://127.0.0.1:{said[0]}/", {}, b"{}")
        assert said[1] < 20_000_000


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH_9.6\r\n", b"\x00\x00\x00", b""])
async def test_what_is_no_http_is_no_answer(said: bytes) -> None:
    async with saying(said) as ports:
        with pytest.raises(NotAnswered, match="the connection broke, or the answer was no HTTP"):
            await out().post(f"http://127.0.0.1:{ports[0]}/", {}, b"{}")


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        (b"Retry-After: 120\r\n", 120),
        (b"Date: Tue, 24 Feb 2026 10:00:00 GMT\r\nRetry-After: Tue, 24 Feb 2026 10:02:00 GMT\r\n", 120),
        (b"Date: Tue, 24 Feb 2026 10:00:00 GMT\r\nRetry-After: Tue, 24 Feb 2026 09:00:00 GMT\r\n", 0),
        (b"Retry-After: Tue, 24 Feb 2026 10:02:00 GMT\r\n", None),
        (b"Retry-After: -5\r\n", None),
        (b"Retry-After: 99999999999999999999\r\n", None),
        (b"Retry-After: soon\r\n", None),
    ],
)
async def test_how_long_it_asks_us_to_wait(headers: bytes, wait_s: int | None) -> None:
    said = b"HTTP/1.1 503 Busy\r\n" + headers + b"content-length: 0\r\n\r\n"
    async with saying(said) as ports:
        answer = await out().post(f"http://127.0.0.1:{ports[0]}/", {}, b"{}")
        assert answer == Answer(status=503, retry_after_s=wait_s)


async def test_nobody_listens() -> None:
    async with canary() as bird:
        port = bird.port
    with pytest.raises(NotAnswered, match="no connection"):
        await out().post(f"http://127.0.0.1:{port}/", {}, b"{}")


async def test_a_name_that_nobody_knows() -> None:
    with pytest.raises(NotAnswered, match="no address"):
        await out().post("https://unknown.example.com/", {}, b"{}")


async def test_the_systems_resolver_refuses_what_is_no_name() -> None:
    resolver = SystemResolver()
    with pytest.raises(Unresolvable):
        await resolver.resolve(f"{'a' * 64}.example.com")
    resolver.close()


# --- TLS ----------------------------------------------------------------------------------------------------------


def certificate(folder: Path, name: str) -> Path:
    """A certificate for this name that vouches for itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{name}.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return path


@pytest.mark.parametrize(
    ("host", "trusted", "error"),
    [
        ("hooks.example.com", True, None),
        ("other.example.com", True, "TLS"),
        ("hooks.example.com", False, "TLS"),
    ],
    ids=["its name", "another's name", "a certificate that nobody vouches for"],
)
async def test_the_certificate_must_be_the_names_although_an_address_is_dialled(
    tmp_path: Path, host: str, *, trusted: bool, error: str | None
) -> None:
    path = certificate(tmp_path, "hooks.example.com")
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(path)
    asked: list[str | None] = []
    server.sni_callback = lambda _, name, __: asked.append(name)
    client = ssl.create_default_context(cafile=path if trusted else None)
    async with tls_server(server) as port:
        outbound = Outbound(LOOPBACK, Names({host: "127.0.0.1"}), timeout_s=2, tls=client)
        if error is None:
            assert (await outbound.post(f"https://{host}:{port}/", {}, b"{}")).status == 204
        else:
            with pytest.raises(NotAnswered, match=error):
                await outbound.post(f"https://{host}:{port}/", {}, b"{}")
    assert asked == [host]


@asynccontextmanager
async def tls_server(context: ssl.SSLContext) -> AsyncIterator[int]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]
