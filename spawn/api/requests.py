"""How a request is read: whatever cannot be read is the caller's mistake, and is answered as one.

Invariant: a thing has one path. A router that is generous about slashes and escapes gives it many, and what is
signed, fingerprinted or priced by path then has to agree on all of them.
"""

from typing import Any

from litestar import Request
from litestar.exceptions import SerializationException
from spawn_schemas.errors import Code, SpawnError


def refuse_other_spellings(request: Request[Any, Any, Any]) -> None:
    """Raise `not_found` for a path with an escape, a doubled or a trailing slash: ours need none of them."""
    path = request.scope["raw_path"]
    if b"%" in path or b"//" in path or (path.endswith(b"/") and path != b"/"):
        raise SpawnError(
            Code.NOT_FOUND,
            f"There is nothing at {path.decode('latin-1')}: paths have no escapes, double or trailing slashes.",
            next="GET / lists what can be called.",
        )


class JsonRequest(Request[Any, Any, Any]):
    """A request whose `json` raises `invalid_request` for every kind of broken text.

    The decoder reports bytes that are not UTF-8 and nesting without end as errors of their own, which would
    otherwise look like defects of ours.
    """

    async def json(self) -> Any:
        try:
            return await super().json()
        except (SerializationException, UnicodeDecodeError, RecursionError) as error:
            raise SpawnError(
                Code.INVALID_REQUEST,
                f"The body is not JSON that can be read: {error}.",
                next="GET /openapi.json describes every body.",
            ) from error
