"""Answers to callers who send nothing of their own: one is worked out, the next ones are filled in.

Within a second the 402 of a route differs from call to call in its request id and in its nonce.
Invariant: what is filled in is, byte for byte, an answer that working it out could have given.
"""

from base64 import b64decode
from binascii import b2a_base64
from typing import Final

import msgspec
from spawn_schemas.ids import Entropy
from spawn_schemas.sign_in import SIGN_IN_WITH_X

from spawn.api.replies import Reply
from spawn.api.routing import Route
from spawn.clock import Clock
from spawn.payments.challenge import CHALLENGE
from spawn.payments.sign_in import NONCE_BYTES

_SAY_NOTHING: Final = frozenset(
    {
        b"accept",
        b"accept-encoding",
        b"accept-language",
        b"cache-control",
        b"connection",
        b"forwarded",
        b"host",
        b"pragma",
        b"user-agent",
        b"via",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-proto",
        b"x-real-ip",
    }
)
"""Headers of any HTTP library and proxy. They may say who calls, which counts against an address, but never change what
is answered."""

_ONCE: Final = b"host"
"""A header that tells nothing, and must not be there twice (RFC 9112 section 3.2)."""
_LINES_MAX: Final = 30
"""Header lines of a request that is surely none too large to be answered."""
_REQUIRED: Final = b"payment-required"
_ID: Final = b"x-request-id"
_NONCE_CHARS: Final = 2 * NONCE_BYTES


def tells_nothing(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether a request with these headers is like every other for its route."""
    names = [name for name, _ in headers]
    return len(names) <= _LINES_MAX and names.count(_ONCE) < 2 and _SAY_NOTHING.issuperset(names)


class _Info(msgspec.Struct):
    nonce: str


class _WithNonce(msgspec.Struct):
    info: _Info


class _Extensions(msgspec.Struct):
    sign_in: _WithNonce | None = msgspec.field(name=SIGN_IN_WITH_X, default=None)
    challenge: _WithNonce | None = msgspec.field(name=CHALLENGE, default=None)


class _Challenge(msgspec.Struct):
    extensions: _Extensions


_challenges: Final = msgspec.json.Decoder(_Challenge)


class Stencil:
    """One answer with holes.

    `at` is the second (unix time) for which it is right, `is_rate_limited` that of its route.
    """

    def __init__(self, reply: Reply, at: int, *, is_rate_limited: bool) -> None:
        headers = dict(reply.raw_headers)
        self.at = at
        self.is_rate_limited = is_rate_limited
        self._status = reply.status
        self._rest = [header for header in reply.raw_headers if header[0] not in {_REQUIRED, _ID}]
        self._body_before, _, self._body_after = reply.body.partition(headers[_ID])
        text = b64decode(headers[_REQUIRED])
        extensions = _challenges.decode(text).extensions
        with_nonce = extensions.sign_in or extensions.challenge
        if with_nonce is None:
            raise ValueError("a challenge has a nonce")
        self._before, self._after = _cut(text, text.index(with_nonce.info.nonce.encode()))

    def fill(self, entropy: Entropy, request_id: str) -> Reply:
        """The answer for one more call."""
        shown_id = request_id.encode()
        nonce = entropy.bytes(NONCE_BYTES).hex().encode()
        challenge = b"%b%b%b" % (self._before, b2a_base64(nonce + b'"', newline=False), self._after)
        headers = [*self._rest, (_ID, shown_id), (_REQUIRED, challenge)]
        return Reply(self._status, b"%b%b%b" % (self._body_before, shown_id, self._body_after), headers)


def _cut(text: bytes, nonce_at: int) -> tuple[bytes, bytes]:
    """Base64 of what stands before the nonce, and of what follows it and its quote.

    Base64 writes three bytes as four characters: blanks before the nonce, which mean nothing in JSON, bring it to where
    such a group begins; with its quote it has 33 bytes.
    """
    quote_at = nonce_at - 1
    before = text[:quote_at] + b" " * (-nonce_at % 3) + b'"'
    after = text[nonce_at + _NONCE_CHARS + 1 :]
    return b2a_base64(before, newline=False), b2a_base64(after, newline=False)


class Stencils:
    """One for each route that has no parameter in its path, renewed every second."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._of_path: dict[tuple[str, bytes], Stencil] = {}

    def find(self, method: str, path: bytes) -> Stencil | None:
        """What was worked out for this route in this second, or None. `path` is as it was sent: it has one spelling."""
        stencil = self._of_path.get((method, path))
        return None if stencil is None or stencil.at != self._clock.now_s() else stencil

    def keep(self, route: Route, reply: Reply) -> None:
        """Remember the 402 that was worked out for a caller who sent nothing of its own."""
        if route.parameter is None and reply.status == 402:
            stencil = Stencil(reply, self._clock.now_s(), is_rate_limited=route.is_rate_limited)
            self._of_path[route.method, route.template.encode()] = stencil
