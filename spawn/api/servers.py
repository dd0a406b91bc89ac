"""`/v1/servers`: rent, look at, change, fund, act upon and destroy."""

from typing import Annotated, Any

from litestar import Response, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter
from spawn_schemas import api
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.ids import ServerId

from spawn.api.arrivals import Arrival
from spawn.api.priced import priced
from spawn.api.services import Services
from spawn.domain import charges
from spawn.domain.servers import Command, Status
from spawn.services import server_actions, servers
from spawn.services.create_server import CreateServer

Limit = Annotated[int, QueryParameter(ge=1, le=100, description="Results per page.")]
Page = Annotated[int, QueryParameter(ge=1, le=1_000_000, description="Page number, from 1.")]
Wait = Annotated[
    int, QueryParameter(ge=0, le=60, description="Seconds to wait for the running operation first.")
]
StatusFilter = Annotated[
    str | None,
    QueryParameter(
        name="status",
        description="A server state; `stopped` means `off`.",
        schema_extra={"enum": ["stopped", *(status.value for status in Status)]},
    ),
]


@post("/v1/servers", status_code=201, **priced(charges.CREATE_SERVER, "Rent a server", 403, 404, 409, 422))
async def create_server(
    arrival: NamedDependency[Arrival],
    services: NamedDependency[Services],
    data: JSONBody[api.CreateServer | None] = None,
) -> Response[api.ServerCreated]:
    return await services.gate.run_with_body(
        arrival, data, lambda body: CreateServer(services.shop, body), fund=lambda body: body.fund
    )


@get("/v1/servers", **priced(charges.READ, "List your servers"))
async def list_servers(
    arrival: NamedDependency[Arrival],
    services: NamedDependency[Services],
    status: StatusFilter = None,
    limit: Limit = 25,
    page: Page = 1,
) -> Response[api.ServerList]:
    wanted = _status(status)
    return await services.gate.run(
        arrival, lambda: servers.ListServers(status=wanted, limit=limit, page=page)
    )


@get("/v1/servers/{server_id:str}", **priced(charges.READ, "Show a server", 403, 404))
async def show_server(
    arrival: NamedDependency[Arrival],
    server_id: FromPath[str],
    services: NamedDependency[Services],
    wait: Wait = 0,
) -> Response[api.ServerShown]:
    return await services.gate.run(
        arrival,
        lambda: servers.ShowServer(ServerId(server_id), services.operator, services.shop.vault, wait_s=wait),
    )


@patch(
    "/v1/servers/{server_id:str}",
    **priced(charges.UPDATE, "Rename a server, or stop its renewal", 403, 404, 409),
)
async def update_server(
    arrival: NamedDependency[Arrival],
    server_id: FromPath[str],
    services: NamedDependency[Services],
    data: JSONBody[api.UpdateServer | None] = None,
) -> Response[api.ServerShown]:
    return await services.gate.run_with_body(
        arrival, data, lambda body: servers.UpdateServer(ServerId(server_id), body, services.billing)
    )


@delete(
    "/v1/servers/{server_id:str}",
    status_code=200,
    **priced(charges.DESTROY, "Destroy a server", 403, 404, 409),
)
async def destroy_server(
    arrival: NamedDependency[Arrival], server_id: FromPath[str], services: NamedDependency[Services]
) -> Response[api.ServerDestroyed]:
    return await services.gate.run(
        arrival, lambda: servers.DestroyServer(ServerId(server_id), services.billing, services.shop.entropy)
    )


@post(
    "/v1/servers/{server_id:str}/deposit",
    status_code=200,
    **priced(charges.UPDATE, "Add to a server's deposit", 403, 404, 409, 422),
)
async def fund_server(
    arrival: NamedDependency[Arrival],
    server_id: FromPath[str],
    services: NamedDependency[Services],
    data: JSONBody[api.FundServer | None] = None,
) -> Response[api.ServerFunded]:
    return await services.gate.run_with_body(
        arrival, data, lambda body: servers.FundServer(ServerId(server_id), body, services.billing)
    )


async def _power(arrival: Arrival, server_id: str, command: Command, services: Services) -> Response[Any]:
    return await services.gate.run(
        arrival, lambda: server_actions.Power(ServerId(server_id), command, services.shop)
    )


@post(
    "/v1/servers/{server_id:str}/start",
    status_code=200,
    **priced(charges.POWER, "Start a server", 403, 404, 409),
)
async def start_server(
    arrival: NamedDependency[Arrival], server_id: FromPath[str], services: NamedDependency[Services]
) -> Response[api.ActionStarted]:
    return await _power(arrival, server_id, Command.START, services)


@post(
    "/v1/servers/{server_id:str}/stop",
    status_code=200,
    **priced(charges.POWER, "Shut a server down", 403, 404, 409),
)
async def stop_server(
    arrival: NamedDependency[Arrival], server_id: FromPath[str], services: NamedDependency[Services]
) -> Response[api.ActionStarted]:
    return await _power(arrival, server_id, Command.STOP, services)


@post(
    "/v1/servers/{server_id:str}/poweroff",
    status_code=200,
    **priced(charges.POWER, "Cut a server's power", 403, 404, 409),
)
async def poweroff_server(
    arrival: NamedDependency[Arrival], server_id: FromPath[str], services: NamedDependency[Services]
) -> Response[api.ActionStarted]:
    return await _power(arrival, server_id, Command.POWEROFF, services)


@post(
    "/v1/servers/{server_id:str}/reboot",
    status_code=200,
    **priced(charges.POWER, "Reboot a server", 403, 404, 409),
)
async def reboot_server(
    arrival: NamedDependency[Arrival], server_id: FromPath[str], services: NamedDependency[Services]
) -> Response[api.ActionStarted]:
    return await _power(arrival, server_id, Command.REBOOT, services)


@post(
    "/v1/servers/{server_id:str}/resize",
    status_code=200,
    **priced(charges.RESIZE, "Change a server's type", 403, 404, 409, 422),
)
async def resize_server(
    arrival: NamedDependency[Arrival],
    server_id: FromPath[str],
    services: NamedDependency[Services],
    data: JSONBody[api.ResizeServer | None] = None,
) -> Response[api.ServerResized]:
    return await services.gate.run_with_body(
        arrival, data, lambda body: server_actions.Resize(ServerId(server_id), body, services.shop)
    )


@post(
    "/v1/servers/{server_id:str}/rebuild",
    status_code=200,
    **priced(charges.REBUILD, "Reinstall a server", 403, 404, 409),
)
async def rebuild_server(
    arrival: NamedDependency[Arrival],
    server_id: FromPath[str],
    services: NamedDependency[Services],
    data: JSONBody[api.RebuildServer | None] = None,
) -> Response[api.ServerRebuilt]:
    return await services.gate.run_with_body(
        arrival, data, lambda body: server_actions.Rebuild(ServerId(server_id), body, services.shop)
    )


def _status(text: str | None) -> Status | None:
    if text is None:
        return None
    try:
        return Status("off" if text == "stopped" else text)
    except ValueError as error:
        raise SpawnError(
            Code.INVALID_REQUEST,
            f"{text} is no server state.",
            details={"states": [status.value for status in Status]},
            next="Use one of the states, or leave status out.",
        ) from error


HANDLERS = (
    create_server,
    list_servers,
    show_server,
    update_server,
    destroy_server,
    fund_server,
    start_server,
    stop_server,
    poweroff_server,
    reboot_server,
    resize_server,
    rebuild_server,
)
