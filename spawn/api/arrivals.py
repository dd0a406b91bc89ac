"""A request to a priced route, as it was read before any framework saw it.

Invariant: a thing has one path. A router that is generous about slashes and escapes gives it many, and what is
signed, fingerprinted or priced by path then has to agree on all of them.
"""

from typing import Any, Final

import msgspec
from spawn_schemas.errors import Code, SpawnError

from spawn.api.replies import Receive, Scope
from spawn.api.routing import Route
from spawn.payments.exact import PaymentInvalid
from spawn.services.calls import Identity

_HEADERS_MAX: Final = 100
_HEADER_BYTES_MAX: Final = 65_536
_KEY_MAX: Final = 255
_ONCE: Final = {"host": "Host", "idempotency-key": "Idempotency-Key"}
"""Headers of which two lines would be read as one or the other, depending on who reads (RFC 9112 section 3.2)."""


class Arrival(msgspec.Struct, kw_only=True, eq=False):
    """What came in, and who sent it.

    `identity` is None for a caller who proves nothing, or whose payment is `invalid`: well formed, and no payment on
    our terms. `body` is empty until somebody needed it. `version` is the x402 version the caller speaks.
    """

    route: Route
    method: str
    path: str
    query: str
    headers: dict[str, str]
    request_id: str
    address: str
    body: bytes = b""
    identity: Identity | None = None
    idempotency_key: str | None = None
    invalid: PaymentInvalid | None = None
    version: int = 2

    @property
    def has_body(self) -> bool:
        """Whether a body was announced."""
        return self.headers.get("content-length", "0") != "0" or "transfer-encoding" in self.headers


def combined(raw: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """Header values by name, which ASGI has in lower case; repeated ones joined as RFC 9110 section 5.3 has it."""
    if len(raw) > _HEADERS_MAX or sum([len(name) + len(value) for name, value in raw]) > _HEADER_BYTES_MAX:
        raise SpawnError(
            Code.REQUEST_TOO_LARGE,
            f"A request has at most {_HEADERS_MAX} header lines and {_HEADER_BYTES_MAX} bytes of them.",
            next="Send fewer headers.",
        )
    headers: dict[str, str] = {}
    repeated: set[str] = set()
    for raw_name, raw_value in raw:
        name, value = str(raw_name, "latin-1"), str(raw_value, "latin-1")
        if name in headers:
            value = f"{headers[name]}, {value}"
            repeated.add(name)
        headers[name] = value
    for name in repeated & _ONCE.keys():
        raise SpawnError(
            Code.INVALID_REQUEST,
            f"The request carries two {_ONCE[name]} lines: which of them is meant?",
            next="Send one.",
        )
    return headers


def refuse_other_spellings(path: bytes) -> None:
    """Raise `not_found` for a path with an escape, a doubled or a trailing slash: ours need none of them."""
    if b"%" in path or b"//" in path or (path.endswith(b"/") and path != b"/"):
        raise SpawnError(
            Code.NOT_FOUND,
            f"There is nothing at {path.decode('latin-1')}: paths have no escapes, double or trailing slashes.",
            next="GET / lists what can be called.",
        )


def idempotency_key(text: str | None) -> str | None:
    """The caller's `Idempotency-Key`; raise `invalid_request` for one that is none."""
    if text is None:
        return None
    if not 0 < len(text) <= _KEY_MAX or not text.isascii() or not text.isprintable():
        raise SpawnError(
            Code.INVALID_REQUEST,
            f"An Idempotency-Key is 1 to {_KEY_MAX} printable ASCII characters.",
            next="Use a UUID.",
        )
    return text


async def read_body(receive: Receive, *, limit: int) -> bytes:
    """All of the body. Raises `request_too_large` beyond `limit` bytes."""
    body = b""
    more = True
    while more:
        message: Any = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionAbortedError("the caller left before the body was whole")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > limit:
            raise SpawnError(
                Code.REQUEST_TOO_LARGE,
                "The body is larger than this service takes.",
                details={"limit_bytes": limit},
                next="Send less.",
            )
    return body


def again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that hands out a body that was read already, then what comes after it."""
    pending = [body]

    async def replay() -> Any:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return replay


def state_of(scope: Scope) -> dict[str, Any]:
    """Where a request's facts travel through the framework."""
    state: dict[str, Any] = scope.setdefault("state", {})
    return state
