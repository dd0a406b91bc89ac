"""Every route declares what it costs, and every reason to refuse has its status."""

from collections.abc import Iterator
from pathlib import Path

from litestar import Litestar, get
from litestar.handlers import HTTPRouteHandler
from litestar.routes import HTTPRoute
from spawn_schemas.errors import Code

from spawn.api.errors import STATUS
from spawn.api.routes import charged_routes
from spawn.domain.charges import Charge
from tests.harness import open_world


def routes(app: Litestar) -> Iterator[tuple[str, HTTPRouteHandler]]:
    """Every handler that was written by somebody: the framework adds an OPTIONS for each path."""
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                for method in handler.http_methods - {"OPTIONS"}:
                    yield f"{method} {route.path_format}", handler


def uncharged(app: Litestar) -> set[str]:
    return {name for name, handler in routes(app) if not isinstance(handler.opt.get("charge"), Charge)}


async def test_every_route_declares_a_charge(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        assert uncharged(world.service.framework) == set()


async def test_every_route_of_the_api_is_in_the_price_list(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        served = {name for name, _ in routes(world.service.framework)}
    listed = {f"{method} {path}" for method, path, _, _ in charged_routes()}
    assert served - listed == {"GET /", "GET /docs", "GET /openapi.json"}
    assert listed <= served


def test_a_route_without_a_charge_is_found() -> None:
    @get("/planted")
    async def planted() -> str:
        return "free, by mistake"

    assert uncharged(Litestar([planted], openapi_config=None)) == {"GET /planted"}


def test_every_reason_has_a_status_that_says_who_must_react() -> None:
    assert STATUS.keys() == set(Code)
    assert all(400 <= status < 500 or status in {500, 503} for status in STATUS.values())
