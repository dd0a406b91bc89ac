"""Finished answers: bytes that were decided here, and that no framework looks at again.

Invariant: header names and values are our own words, numbers and base64, so none of them can end its line.
"""

from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Final

from litestar import Response

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
"""ASGI, without the framework's unions of every message there is."""

AtOnce = Callable[[int, list[tuple[bytes, bytes]], bytes], bool]
AT_ONCE: Final = "spawn.at_once"
"""An extension of our server's connections: writes a whole answer in one piece, or says that it cannot now."""

JSON: Final = (b"content-type", b"application/json")


class Reply(Response[Any]):
    """An answer in its final form. It is an ASGI app; to Litestar it passes for a response of its own.

    One that is not `is_whole` comes in parts, and only calling it brings them.
    """

    is_whole: ClassVar[bool] = True

    def __init__(self, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        # Not the base class's: what it prepares is for content that is still to be encoded.
        self.status = status
        self.status_code = status
        self.body = body
        self.raw_headers = headers

    def to_asgi_response(self, **_: Any) -> Any:  # type: ignore[override]  # nothing is left to be turned into bytes
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        at_once: AtOnce | None = scope.get("extensions", {}).get(AT_ONCE)
        if at_once is not None and at_once(self.status, self.raw_headers, self.body):
            return
        headers = [*self.raw_headers, (b"content-length", b"%d" % len(self.body))]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": False})
