"""Requests to where a customer says: the one way out of this service that somebody else aims (SSRF, OWASP API7).

Invariant: a name is looked up once for each connection, every address that it led to is checked, and one of the
checked addresses is what is dialled, so that a name which leads elsewhere a moment later leads nowhere. Nothing is
followed: no redirect, no proxy of the environment, no kept connection. What a receiver can cost is bounded in time
and bytes.
"""

import asyncio
import functools
import math
import socket
import ssl
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from ipaddress import IPv6Address
from typing import Final

import httpcore
import msgspec

from spawn.domain.targets import Address, BadTarget, Rules, Target, check_address, parse_target
from spawn.outbound.resolver import Resolver, Unresolvable

TIMEOUT_S: Final = 15.0
"""For all of a request: looking up, connecting, sending, and the answer."""
CONNECT_S: Final = 5.0
"""For one address, so that there is time for another."""
ADDRESSES_MAX: Final = 4
ANSWER_MAX_BYTES: Final = 1024
"""Read of an answer's body before we hang up: enough for a receiver that says thanks."""
_DISCARD_PORT: Final = 9

_NETWORK_ERRORS: Final = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException)


class NotAnswered(Exception):
    """No answer came. The message is short and in our words: it is shown to the customer."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a receiver said. Its body is nobody's business: shown, it would let a customer read through us."""

    status: int
    retry_after_s: int | None


class Outbound:
    """Sends requests to targets that the rules allow."""

    def __init__(
        self,
        rules: Rules,
        resolver: Resolver,
        *,
        timeout_s: float = TIMEOUT_S,
        tls: ssl.SSLContext | None = None,
        network: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        """`tls` says whom to trust, by default those whom browsers do; `network` dials what was checked."""
        self._rules = rules
        self._resolver = resolver
        self._timeout_s = timeout_s
        self._tls = tls or _public_trust()
        self._network = network or httpcore.AnyIOBackend()

    def target(self, url: str) -> Target:
        """Take a customer's URL apart. Raises BadTarget."""
        return parse_target(url, self._rules)

    async def addresses(self, target: Target) -> tuple[Address, ...]:
        """Where the target may be dialled now. Raises BadTarget if any of its addresses may not be; Unresolvable."""
        found = (target.address,) if target.address else await self._resolver.resolve(target.host)
        for address in found:
            check_address(target, address, self._rules, is_own=_is_own(address))
        return found

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Send `body` once. Raises NotAnswered; whether it arrived is unknown then."""
        answer: Answer | None = None
        try:
            target = self.target(url)
            lines = [("Host", target.authority), ("Connection", "close"), *headers.items()]
            where = httpcore.URL(
                scheme=target.scheme, host=target.host, port=target.port, target=target.path.encode()
            )
            async with (
                asyncio.timeout(self._timeout_s),
                httpcore.AsyncHTTPConnection(
                    where.origin, ssl_context=self._tls, network_backend=_Dialler(self, target, self._network)
                ) as connection,
                connection.stream("POST", where, headers=lines, content=body) as response,
            ):
                answer = Answer(status=response.status, retry_after_s=_retry_after_s(response.headers))
                await _taste(response)
        except (BadTarget, Unresolvable, TimeoutError, *_NETWORK_ERRORS) as error:
            # The first line of an answer decides, whatever becomes of the rest.
            if answer is None:
                raise NotAnswered(self._why(error)) from error
        if answer is None:
            raise NotAnswered("no answer")
        return answer

    def _why(self, error: Exception) -> str:
        match error:
            case BadTarget():
                return f"refused: {error}"
            case Unresolvable():
                return "the host has no address"
            case TimeoutError() | httpcore.TimeoutException():
                return f"no answer within {self._timeout_s:g} s"
            case httpcore.ConnectError() if isinstance(error.__cause__ or error.__context__, ssl.SSLError):
                return "the TLS certificate or handshake failed"
            case httpcore.ConnectError():
                return "no connection"
            case _:
                return "the connection broke, or the answer was no HTTP"


class _Dialler(httpcore.AsyncNetworkBackend):
    """Connects to one target, at an address that was checked for this connection."""

    def __init__(self, outbound: Outbound, target: Target, network: httpcore.AsyncNetworkBackend) -> None:
        self._outbound = outbound
        self._target = target
        self._network = network

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the signature is httpcore's
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Raises BadTarget, Unresolvable, httpcore.ConnectError, httpcore.ConnectTimeout."""
        failed: httpcore.ConnectError | httpcore.ConnectTimeout = httpcore.ConnectError("no address")
        for address in (await self._outbound.addresses(self._target))[:ADDRESSES_MAX]:
            try:
                return await self._network.connect_tcp(str(address), self._target.port, CONNECT_S)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
        raise failed


@functools.cache
def _public_trust() -> ssl.SSLContext:
    """Whom browsers trust, made once: it takes longer than a connection."""
    return httpcore.default_ssl_context()


def _is_own(address: Address) -> bool:
    """Whether the address is this machine's: then it is where the kernel would send from. Nothing is sent."""
    if address.is_loopback:
        return True
    family = socket.AF_INET6 if isinstance(address, IPv6Address) else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), _DISCARD_PORT))
            return bool(probe.getsockname()[0] == str(address))
    except OSError:
        return False


async def _taste(response: httpcore.Response) -> None:
    """Let a receiver finish a short answer, since some stop working for who hangs up on them."""
    read = 0
    async for chunk in response.aiter_stream():
        read += len(chunk)
        if read >= ANSWER_MAX_BYTES:
            return


def _retry_after_s(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """Seconds, or a date beside the receiver's own `Date` (RFC 9110, 10.2.3)."""
    named = {name.lower(): value.decode("latin-1").strip() for name, value in headers}
    text = named.get(b"retry-after", "")
    if text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    try:
        wait = parsedate_to_datetime(text) - parsedate_to_datetime(named.get(b"date", ""))
    except (ValueError, TypeError):
        return None
    return max(0, math.ceil(wait.total_seconds()))
