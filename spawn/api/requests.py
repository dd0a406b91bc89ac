"""How the framework reads a request: whatever cannot be read is the caller's mistake, and is answered as one."""

from typing import Any

from litestar import Request, Response
from litestar.exceptions import SerializationException
from spawn_schemas.errors import Code, SpawnError

from spawn.api.arrivals import Arrival


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


def answer_options(request: Request[Any, Any, Any]) -> Response[None] | None:
    """Answer OPTIONS with the methods of the path (RFC 9110 section 9.3.7), and leave the rest to the handlers.

    The framework's own answer knows only the first method that it was told of.
    """
    if request.method != "OPTIONS":
        return None
    template = request.scope["path_template"]
    (route,) = (route for route in request.app.routes if route.path_format == template)
    return Response(None, status_code=204, headers={"Allow": ", ".join(sorted(route.methods))})


def arrival_of(request: Request[Any, Any, Any]) -> Arrival:
    """What was found out about this request before the framework had it."""
    arrival: Arrival = request.scope["state"]["arrival"]
    return arrival
