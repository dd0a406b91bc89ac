"""Every route of the API in one list, and the price list made from it."""

from collections.abc import Iterator
from typing import Final

from litestar.handlers import HTTPRouteHandler
from spawn_schemas import catalog
from spawn_schemas.money import format_usdc

from spawn.api import (
    balance,
    boots,
    events,
    hosts,
    inside,
    keys,
    public,
    servers,
    sessions,
    suspense,
    webhooks,
)
from spawn.api.routing import Routes
from spawn.domain.charges import Charge, Kind

HANDLERS: tuple[HTTPRouteHandler, ...] = (
    *servers.HANDLERS,
    *inside.HANDLERS,
    *keys.HANDLERS,
    *balance.HANDLERS,
    *suspense.HANDLERS,
    *events.HANDLERS,
    *webhooks.HANDLERS,
    *sessions.HANDLERS,
    *boots.HANDLERS,
    *hosts.HANDLERS,
    *public.HANDLERS,
)


ROUTES: Final = Routes(HANDLERS)


def charged_routes() -> Iterator[tuple[str, str, Charge, str]]:
    """Method, path template, charge and summary of each route."""
    for route in ROUTES:
        yield route.method, route.template, route.charge, route.summary


def fees() -> tuple[catalog.FeeView, ...]:
    """The price list, as the catalog shows it."""
    return tuple(
        catalog.FeeView(method=method, path=path, fee=format_usdc(charge.fee_usdc), summary=summary)
        for method, path, charge, summary in charged_routes()
        if charge.kind is not Kind.FREE
    )
