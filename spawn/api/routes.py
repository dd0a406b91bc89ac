"""Every route of the API in one list, and the price list made from it."""

from collections.abc import Iterator

from litestar.handlers import HTTPRouteHandler
from spawn_schemas import api
from spawn_schemas.money import format_usdc

from spawn.api import balance, keys, public, servers
from spawn.domain.charges import Charge, Kind

HANDLERS: tuple[HTTPRouteHandler, ...] = (
    *servers.HANDLERS,
    *keys.HANDLERS,
    *balance.HANDLERS,
    *public.HANDLERS,
)


def charged_routes() -> Iterator[tuple[str, str, Charge, str]]:
    """Method, path template, charge and summary of each route. KeyError where a route declares no charge."""
    for handler in HANDLERS:
        for path in sorted(handler.paths):
            for method in sorted(handler.http_methods):
                yield str(method), path.replace(":str", ""), handler.opt["charge"], handler.opt["summary"]


def fees() -> tuple[api.FeeView, ...]:
    """The price list, as the catalog shows it."""
    return tuple(
        api.FeeView(method=method, path=path, fee=format_usdc(charge.fee_usdc), summary=summary)
        for method, path, charge, summary in charged_routes()
        if charge.kind is not Kind.FREE
    )
