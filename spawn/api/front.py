"""The thin layer ahead of the framework: finds the route, reads who calls, and answers what needs no decoding.

A call without body and query has nothing that a framework could decode, so its handler is called at once; a forged
payment is refused before anything else happens. Everything else goes on to Litestar with what was found out.
Invariant: a request is read, and its proof verified, once.
"""

from collections.abc import Coroutine
from typing import Any, Final

from spawn_schemas.errors import SpawnError
from spawn_schemas.ids import Entropy

from spawn.api import arrivals
from spawn.api.addresses import Proxies, caller_address
from spawn.api.arrivals import Arrival
from spawn.api.callers import Callers
from spawn.api.errors import defect, refusal
from spawn.api.limits import Limits
from spawn.api.replies import AT_ONCE, App, Receive, Reply, Scope, Send
from spawn.api.routing import Routes
from spawn.api.services import Services
from spawn.api.stencils import Stencils, tells_nothing

_LOOKED_AT: Final = "looked_at"
"""Under this name a request's state holds the answer that was found for it at once, or None."""
_COUNTED: Final = ("/v1/", "/api/")
"""Where a call for what does not exist, or that changes something for nothing, counts against its address."""
_ORIGIN: Final = b"origin"
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
        stencils: Stencils,
        entropy: Entropy,
        *,
        exposed: bytes,
    ) -> None:
        self._framework = framework
        self._routes = routes
        self._callers = callers
        self._services = services
        self._limits = limits
        self._proxies = proxies
        self._stencils = stencils
        self._entropy = entropy
        self._body_max_bytes = services.settings.body_max_bytes
        self._cors = [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", exposed)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._framework(scope, receive, send)
            return
        state = arrivals.state_of(scope)
        reply = state[_LOOKED_AT] if _LOOKED_AT in state else self.answer_now(scope)
        arrival: Arrival | None = state.get("arrival")
        if reply is None and arrival is not None:
            try:
                reply, receive = await self._answer(arrival, receive)
            except ConnectionAbortedError:
                return  # nobody is there to be answered
        if reply is None and any(name == _ORIGIN for name, _ in scope["headers"]):
            # The framework adds what a browser wants to see, to messages: ours must go out as messages then.
            scope.get("extensions", {}).pop(AT_ONCE, None)
        await (reply or self._framework)(scope, receive, send)

    def answer_now(self, scope: Scope) -> Reply | None:
        """The answer to a request for which nothing has to be waited; None, and what was found out, for any other.

        A server may ask this before it goes to the length of starting a task.
        """
        reply = self._look(scope)
        arrivals.state_of(scope)[_LOOKED_AT] = reply
        return reply

    def answer_soon(self, scope: Scope) -> Coroutine[Any, Any, Reply] | None:
        """What answers a request that `answer_now` did not, where nothing but us has to see it."""
        arrival: Arrival | None = arrivals.state_of(scope).get("arrival")
        if arrival is None or arrival.identity is None or arrival.query:
            return None
        return self._reply(arrival)

    def _look(self, scope: Scope) -> Reply | None:
        state = arrivals.state_of(scope)
        request_id = state["request_id"] = new_request_id(self._entropy)
        headers: dict[str, str] = {}
        method, path = scope["method"], scope["path"]
        nameless = not scope["query_string"] and tells_nothing(scope["headers"])
        try:
            if nameless and (stencil := self._stencils.find(method, scope["raw_path"])) is not None:
                if stencil.is_rate_limited:
                    self._limits.take_address(caller_address(scope, self._proxies))
                return stencil.fill(self._entropy, request_id)
            headers = arrivals.combined(scope["headers"])
            arrivals.refuse_other_spellings(scope["raw_path"])
            route = self._routes.find(method, path)
            request_id = state["request_id"] = _own_id(headers) or request_id
            address = caller_address(scope, self._proxies)
            if route is None or not route.is_priced:
                if path.startswith(_COUNTED) and (route is None or method != "GET"):
                    self._limits.take_address(address)
                return None
            arrival = Arrival(
                route=route,
                method=method,
                path=path,
                query=scope["query_string"].decode("latin-1"),
                headers=headers,
                request_id=request_id,
                address=address,
            )
            state["arrival"] = arrival
            if arrival.has_body:
                return None
            self._identify(arrival)
            if arrival.identity is not None or arrival.query or self._callers.must_ask_chain(arrival):
                return None
            # Who proved nothing is answered without a wait: the handler runs to its end at once.
            reply = _run_now(self._call_handler(arrival))
            if nameless:
                self._stencils.keep(route, reply)
            return self._readable(headers, reply)
        except Exception as error:  # noqa: BLE001 - the last stop: whatever it is, the caller gets an answer
            return self._failed(request_id, headers, error)

    async def _answer(self, arrival: Arrival, receive: Receive) -> tuple[Reply | None, Receive]:
        """The answer, or None where the framework has something to decode first; and where the body is read from."""
        try:
            if arrival.has_body:
                arrival.body = await arrivals.read_body(receive, limit=self._body_max_bytes)
                receive = arrivals.again(arrival.body, receive)
                self._identify(arrival)
            if self._callers.must_ask_chain(arrival):
                await self._callers.ask_chain(arrival)
                if arrival.identity is not None and arrival.route.is_rate_limited:
                    self._limits.give_back_address(arrival.address)
            if arrival.invalid is not None and arrival.route.has_fixed_price:
                return self._readable(arrival.headers, await self._services.gate.run(arrival, None)), receive
            if arrival.body or arrival.query:
                return None, receive
            return await self._reply(arrival), receive
        except ConnectionAbortedError:
            raise
        except Exception as error:  # noqa: BLE001 - the last stop: whatever it is, the caller gets an answer
            return self._failed(arrival.request_id, arrival.headers, error), receive

    async def _reply(self, arrival: Arrival) -> Reply:
        """The answer to a call without body and query. Never raises."""
        try:
            return self._readable(arrival.headers, await self._call_handler(arrival))
        except Exception as error:  # noqa: BLE001 - the last stop: whatever it is, the caller gets an answer
            return self._failed(arrival.request_id, arrival.headers, error)

    def _call_handler(self, arrival: Arrival) -> Coroutine[Any, Any, Reply]:
        route = arrival.route
        called: Coroutine[Any, Any, Reply] = route.function(
            **route.arguments(arrival.path), arrival=arrival, services=self._services
        )
        return called

    def _identify(self, arrival: Arrival) -> None:
        """Find out who calls; raise `rate_limited` at an address that had too many calls without a good proof."""
        try:
            self._callers.identify(arrival)
        finally:
            if arrival.identity is None and arrival.route.is_rate_limited:
                self._limits.take_address(arrival.address)

    def _failed(self, request_id: str, headers: dict[str, str], error: Exception) -> Reply:
        if isinstance(error, SpawnError):
            return self._readable(headers, refusal(request_id, error))
        return self._readable(headers, defect(request_id, error))

    def _readable(self, headers: dict[str, str], reply: Reply) -> Reply:
        """Let a script of another site read it, as the framework does with its own answers."""
        if "origin" in headers:
            reply.raw_headers.extend(self._cors)
        return reply


def _run_now(coroutine: Coroutine[Any, Any, Reply]) -> Reply:
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as finished:
        reply: Reply = finished.value
        return reply
    coroutine.close()
    raise RuntimeError("a call that proved nothing waits for something")


def new_request_id(entropy: Entropy) -> str:
    """What a request is called in its answer and in our log."""
    return f"req_{entropy.bytes(10).hex()}"


def _own_id(headers: dict[str, str]) -> str | None:
    """The id that the caller gave this request, if it is one that can be written into a log."""
    given = headers.get("x-request-id", "")
    fit = 0 < len(given) <= _ID_MAX and given.isascii() and given.replace("-", "").isalnum()
    return given if fit else None
