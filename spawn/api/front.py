"""The thin layer ahead of the framework: finds the route, reads who calls, and answers what needs no decoding.

A call without body and query has nothing that a framework could decode, so its handler is called at once; a forged
payment is refused before anything else happens. Everything else goes on to Litestar with what was found out.
Invariant: a request is read, and its proof verified, once.
"""

from collections.abc import Callable
from typing import Final

from spawn_schemas.errors import SpawnError

from spawn.api import arrivals
from spawn.api.addresses import Proxies, caller_address
from spawn.api.arrivals import Arrival
from spawn.api.callers import Callers
from spawn.api.errors import defect, refusal
from spawn.api.limits import Limits
from spawn.api.replies import App, Receive, Reply, Scope, Send
from spawn.api.routing import Routes
from spawn.api.services import Services

_COUNTED: Final = "/v1/"
"""Where a call for what does not exist counts against its address."""
_ID_MAX: Final = 64
"""The longest request id that is taken over from the caller."""


class Front:
    """The ASGI application."""

    def __init__(
        self,
        framework: App,
        routes: Routes,
        callers: Callers,
        services: Services,
        limits: Limits,
        proxies: Proxies,
        *,
        new_request_id: Callable[[], str],
        exposed: bytes,
    ) -> None:
        self._framework = framework
        self._routes = routes
        self._callers = callers
        self._services = services
        self._limits = limits
        self._proxies = proxies
        self._new_request_id = new_request_id
        self._body_max_bytes = services.settings.body_max_bytes
        self._cors = [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", exposed)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._framework(scope, receive, send)
            return
        try:
            app, receive = await self._app(scope, receive)
        except ConnectionAbortedError:
            return  # nobody is there to be answered
        await app(scope, receive, send)

    async def _app(self, scope: Scope, receive: Receive) -> tuple[App, Receive]:
        """What answers this request, and what it reads the body from."""
        state = arrivals.state_of(scope)
        state["request_id"] = request_id = self._new_request_id()
        headers: dict[str, str] = {}
        try:
            arrivals.refuse_other_spellings(scope["raw_path"])
            route = self._routes.find(scope["method"], scope["path"])
            headers = arrivals.combined(scope["headers"])
            state["request_id"] = request_id = _own_id(headers) or request_id
            address = caller_address(scope, self._proxies)
            if route is None or not route.is_priced:
                if route is None and scope["path"].startswith(_COUNTED):
                    self._limits.take_address(address)
                return self._framework, receive
            arrival = Arrival(
                route=route,
                method=scope["method"],
                path=scope["path"],
                query=scope["query_string"].decode("latin-1"),
                headers=headers,
                request_id=request_id,
                address=address,
            )
            state["arrival"] = arrival
            reply, receive = await self._answer(arrival, receive)
        except SpawnError as error:
            reply = refusal(request_id, error)
        except ConnectionAbortedError:
            raise
        except Exception as error:  # noqa: BLE001 - the last stop: whatever it is, the caller gets an answer
            reply = defect(request_id, error)
        if reply is None:
            return self._framework, receive
        if "origin" in headers:
            reply.raw_headers.extend(self._cors)
        return reply, receive

    async def _answer(self, arrival: Arrival, receive: Receive) -> tuple[Reply | None, Receive]:
        """The answer, or None where the framework has something to decode first."""
        if arrival.has_body:
            arrival.body = await arrivals.read_body(receive, limit=self._body_max_bytes)
            receive = arrivals.again(arrival.body, receive)
        try:
            self._callers.identify(arrival)
        except SpawnError:
            self._count_unproven(arrival)
            raise
        if arrival.identity is None:
            self._count_unproven(arrival)
        if arrival.invalid is not None and arrival.route.has_fixed_price:
            return await self._services.gate.run(arrival, None), receive
        if arrival.body or arrival.query:
            return None, receive
        handler = arrival.route.handler.fn
        reply = await handler(
            **arrival.route.arguments(arrival.path), arrival=arrival, services=self._services
        )
        return reply, receive

    def _count_unproven(self, arrival: Arrival) -> None:
        """Raise `rate_limited` at an address that had too many calls without a good proof."""
        if arrival.route.is_rate_limited:
            self._limits.take_address(arrival.address)


def _own_id(headers: dict[str, str]) -> str | None:
    """The id that the caller gave this request, if it is one that can be written into a log."""
    given = headers.get("x-request-id", "")
    fit = 0 < len(given) <= _ID_MAX and given.isascii() and given.replace("-", "").isalnum()
    return given if fit else None
