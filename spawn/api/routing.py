"""Which priced route a request is for, found without a framework: a look into one dictionary.

Invariant: what is found here is what the framework would find, because both are made from the same handlers.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from litestar.handlers import HTTPRouteHandler

from spawn.domain.charges import Charge, Kind

_FREE, _IDENTIFIED, _FEE, _DEPOSIT = Kind.FREE, Kind.IDENTIFIED, Kind.FEE, Kind.DEPOSIT
# As names of the module, because looking a member up in its class is slow, and is done several times a request.
_PARAMETER_AT: Final = 3
"""`/v1/servers/{id}` and what is below it: the parameter of a path is its third segment."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Route:
    """One method and path template, with what it costs. `parameter` names what the third segment is, if anything."""

    method: str
    template: str
    charge: Charge
    summary: str
    handler: HTTPRouteHandler
    parameter: str | None

    @property
    def function(self) -> Callable[..., Any]:
        """What was decorated, to be called without the framework."""
        return self.handler.fn

    @property
    def is_priced(self) -> bool:
        return self.charge.kind is not _FREE

    @property
    def has_fixed_price(self) -> bool:
        """Whether the price is the same whatever the body says."""
        return self.charge.kind is _FEE or self.charge.kind is _IDENTIFIED

    @property
    def is_rate_limited(self) -> bool:
        """Paying in and destroying always work: they are what ends a debt."""
        return self.method != "DELETE" and self.charge.kind is not _DEPOSIT

    @property
    def is_free(self) -> bool:
        """Whether the caller only has to say who it is."""
        return self.charge.kind is _IDENTIFIED

    @property
    def takes_sign_in(self) -> bool:
        """Whether a proof that does not bind the request will do: for reading, and for opening a session."""
        return self.method == "GET" or self.opens_session

    @property
    def opens_session(self) -> bool:
        return bool(self.handler.opt.get("opens_session"))

    @property
    def success_status(self) -> int:
        return self.handler.status_code

    def arguments(self, path: str) -> dict[str, Any]:
        """What the handler takes from the path."""
        return {} if self.parameter is None else {self.parameter: path.split("/")[_PARAMETER_AT]}


class Routes:
    """All routes by method and path."""

    def __init__(self, handlers: Iterable[HTTPRouteHandler]) -> None:
        """Raises ValueError for a path whose parameter is elsewhere."""
        self._all = tuple(_routes(handlers))
        self._exact: dict[tuple[str, str], Route] = {}
        self._by_shape: dict[tuple[str, str, str], Route] = {}
        for route in self._all:
            if route.parameter is None:
                self._exact[route.method, route.template] = route
                continue
            before, _, after = route.template.partition("{" + route.parameter + "}")
            if before.count("/") != _PARAMETER_AT or "{" in after:
                raise ValueError(f"{route.template} has a parameter where Routes does not look for one")
            self._by_shape[route.method, before, after] = route

    def __iter__(self) -> Iterator[Route]:
        return iter(self._all)

    def find(self, method: str, path: str) -> Route | None:
        """The route, or None. The path has no escapes, double or trailing slashes."""
        route = self._exact.get((method, path))
        if route is not None:
            return route
        segments = path.split("/", _PARAMETER_AT + 1)
        if len(segments) <= _PARAMETER_AT or segments[0] or not segments[_PARAMETER_AT]:
            return None
        before = f"/{segments[1]}/{segments[2]}/"
        after = f"/{segments[4]}" if len(segments) > _PARAMETER_AT + 1 else ""
        return self._by_shape.get((method, before, after))


def _routes(handlers: Iterable[HTTPRouteHandler]) -> Iterable[Route]:
    for handler in handlers:
        for path in sorted(handler.paths):
            template = path.replace(":str", "")
            names = [part[1:-1] for part in template.split("/") if part.startswith("{")]
            if len(names) > 1:
                raise ValueError(f"{template} has more than one parameter")
            for method in sorted(handler.http_methods):
                yield Route(
                    method=str(method),
                    template=template,
                    charge=handler.opt["charge"],
                    summary=handler.opt["summary"],
                    handler=handler,
                    parameter=names[0] if names else None,
                )
