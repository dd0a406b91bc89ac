"""Finished answers: bytes that were decided here, and that no framework looks at again."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from litestar import Response

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
"""ASGI, without the framework's unions of every message there is."""

JSON: Final = (b"content-type", b"application/json")


class Reply(Response[Any]):
    """An answer in its final form. It is an ASGI app; to Litestar it passes for a response of its own."""

    def __init__(self, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        # Not the base class's: what it prepares is for content that is still to be encoded.
        self.status_code = status
        self.body = body
        self.raw_headers = headers

    def to_asgi_response(self, **_: Any) -> Any:  # type: ignore[override]  # nothing is left to be turned into bytes
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [*self.raw_headers, (b"content-length", b"%d" % len(self.body))]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": False})
