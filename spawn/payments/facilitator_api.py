"""One x402 facilitator as it speaks: `/verify`, `/settle` and `/supported` over HTTP (x402 v2, section 7).

Invariant: every call ends within its time and reads a bounded answer; what comes back is an answer of the protocol, or
an exception that says whether the facilitator may have acted on what it was sent. No redirect is followed, because the
operator chooses who is handed payments; and nothing that a stranger wrote gets into an error's text.
"""

import asyncio
import math
from email.utils import parsedate_to_datetime
from typing import Final, Literal, Protocol, TypeVar

import httpx
import msgspec
from spawn_schemas.x402 import (
    SCHEME_EXACT,
    X402_VERSION,
    Authorization,
    ExactEvmPayload,
    PaymentRequirements,
)

from spawn.payments.curve import checksummed
from spawn.payments.exact import ExactPayment, Terms

CONNECT_S: Final = 3.0
"""The longest wait for a connection: who cannot be reached in that time has received nothing."""
ANSWER_MAX_BYTES: Final = 262_144

_NOT_DONE: Final = frozenset({400, 401, 402, 403, 404, 405, 406, 413, 414, 415, 422, 429, 431})
"""Statuses by which a server says that it has not done what it was asked (RFC 9110, 15.5; RFC 6585)."""

Path = Literal["/verify", "/settle", "/supported"]


class VerifyAnswer(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """`VerifyResponse`, as much of it as we use."""

    is_valid: bool
    invalid_reason: str | None = None


class SettleAnswer(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """`SettleResponse`, as much of it as we use. `transaction` is empty where there is none."""

    success: bool
    transaction: str | None = None
    network: str | None = None
    payer: str | None = None
    error_reason: str | None = None


class Kind(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One way to pay that a facilitator settles."""

    x402_version: int
    scheme: str
    network: str


class Supported(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """`SupportedResponse`."""

    kinds: tuple[Kind, ...]

    def has(self, network: str) -> bool:
        """Whether `exact` payments of version 2 are settled on this network; a family may be named as a whole."""
        family = network.partition(":")[0] + ":*"
        return any(
            kind.x402_version == X402_VERSION
            and kind.scheme == SCHEME_EXACT
            and kind.network in {network, family}
            for kind in self.kinds
        )


class _Paid(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    x402_version: int
    accepted: PaymentRequirements
    payload: ExactEvmPayload


class _Asked(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    x402_version: int
    payment_payload: _Paid
    payment_requirements: PaymentRequirements


class NoAnswer(Exception):
    """It gave no answer of the protocol, and may have acted all the same."""


class NotDone(NoAnswer):
    """It has done nothing: it could not be reached, or said so. `retry_after_s` is when to ask again, if it told.

    `status` is that of its refusal, None if nothing came back.
    """

    def __init__(self, message: str, *, status: int | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class Bearer(Protocol):
    """Signs calls to those facilitators that want it."""

    def headers(self, method: str, url: httpx.URL) -> dict[str, str]:
        """What to add to the head of this call: nothing, for a host that it is not meant for."""
        ...


Answer = TypeVar("Answer", VerifyAnswer, SettleAnswer, Supported)

# Made at import: two threads that make the first decoder of a type at once crash the process.
_verify: Final = msgspec.json.Decoder(VerifyAnswer)
_settle: Final = msgspec.json.Decoder(SettleAnswer)
_supported: Final = msgspec.json.Decoder(Supported)
_encoder: Final = msgspec.json.Encoder()


def request_body(payment: ExactPayment, terms: Terms) -> bytes:
    """The body of `/verify` and `/settle`: the payment as its payer would send it, and what we asked for."""
    wanted = PaymentRequirements(
        scheme=SCHEME_EXACT,
        network=terms.network,
        amount=str(payment.value),
        asset=checksummed(terms.asset),
        pay_to=checksummed(terms.pay_to),
        max_timeout_seconds=terms.max_timeout_s,
        extra={"name": terms.asset_name, "version": terms.asset_version},
    )
    signed = ExactEvmPayload(
        signature=payment.signature,
        authorization=Authorization(
            from_=checksummed(payment.payer),
            to=checksummed(payment.pay_to),
            value=str(payment.value),
            valid_after=str(payment.valid_after),
            valid_before=str(payment.valid_before),
            nonce=payment.nonce,
        ),
    )
    paid = _Paid(x402_version=X402_VERSION, accepted=wanted, payload=signed)
    return _encoder.encode(
        _Asked(x402_version=X402_VERSION, payment_payload=paid, payment_requirements=wanted)
    )


class FacilitatorApi:
    """The HTTP client of one facilitator. Every method raises NotDone or NoAnswer."""

    def __init__(self, client: httpx.AsyncClient, url: str, *, bearer: Bearer | None = None) -> None:
        """`url` is what `/verify` is appended to. Part of it may be a secret (a key in the path): log `name`."""
        self._client = client
        self._url = httpx.URL(url)
        self._bearer = bearer
        self.name = self._url.netloc.decode()

    async def verify(self, body: bytes, *, timeout_s: float) -> VerifyAnswer:
        """What it thinks of a payment. Moves nothing."""
        return await self._ask("/verify", body, _verify, timeout_s)

    async def settle(self, body: bytes, *, timeout_s: float) -> SettleAnswer:
        """Have it bring the payment to the chain."""
        return await self._ask("/settle", body, _settle, timeout_s)

    async def supported(self, *, timeout_s: float) -> Supported:
        """What it settles."""
        return await self._ask("/supported", None, _supported, timeout_s)

    async def _ask(
        self, path: Path, body: bytes | None, decoder: "msgspec.json.Decoder[Answer]", timeout_s: float
    ) -> Answer:
        try:
            async with asyncio.timeout(timeout_s):
                status, headers, said = await self._exchange(path, body, timeout_s)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise NotDone(f"{self.name} cannot be reached") from error
        except TimeoutError as error:
            raise NoAnswer(f"{self.name} did not answer {path} within {timeout_s:g} s") from error
        except httpx.HTTPError as error:
            raise NoAnswer(f"{self.name} broke off at {path} ({type(error).__name__})") from error
        return _read(self.name, path, status, headers, said, decoder)

    async def _exchange(
        self, path: Path, body: bytes | None, timeout_s: float
    ) -> tuple[int, httpx.Headers, bytes]:
        """Status, head and body; a body beyond `ANSWER_MAX_BYTES` is cut there, and so is no JSON any more."""
        method = "GET" if body is None else "POST"
        reach_s = min(timeout_s, CONNECT_S)
        url = self._url.copy_with(path=self._url.path.rstrip("/") + path)
        # What is compressed may be far larger than what was read: it is not asked for, nor unpacked.
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._bearer is not None:
            headers |= self._bearer.headers(method, url)
        async with self._client.stream(
            method,
            url,
            content=body,
            headers=headers,
            auth=None,
            follow_redirects=False,
            timeout=httpx.Timeout(timeout_s, connect=reach_s, pool=reach_s),
        ) as response:
            said = bytearray()
            async for chunk in response.aiter_raw():
                said += chunk
                if len(said) > ANSWER_MAX_BYTES:
                    break
            return response.status_code, response.headers, bytes(said[:ANSWER_MAX_BYTES])


def _read(
    name: str,
    path: Path,
    status: int,
    headers: httpx.Headers,
    said: bytes,
    decoder: "msgspec.json.Decoder[Answer]",
) -> Answer:
    """A facilitator may answer a refusal with 200 or with 4xx; in either case what counts is what it says."""
    answer = _decoded(decoder, said) if 200 <= status < 300 or 400 <= status < 500 else None
    if answer is not None:
        return answer
    if 300 <= status < 400:
        raise NotDone(f"{name} redirects {path}, and is not followed (HTTP {status})", status=status)
    if status in _NOT_DONE:
        after_s = _retry_after_s(headers)
        raise NotDone(f"{name} refuses {path} (HTTP {status})", status=status, retry_after_s=after_s)
    raise NoAnswer(f"{name} answers {path} with nothing that can be used (HTTP {status})")


def _decoded(decoder: "msgspec.json.Decoder[Answer]", said: bytes) -> Answer | None:
    try:
        return decoder.decode(said)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _retry_after_s(headers: httpx.Headers) -> int | None:
    """Seconds, or a date beside the server's own `Date` (RFC 9110, 10.2.3)."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    try:
        wait = parsedate_to_datetime(text) - parsedate_to_datetime(headers.get("Date", ""))
    except (ValueError, TypeError):
        return None
    return math.ceil(wait.total_seconds())
