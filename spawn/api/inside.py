"""`/v1/servers/{id}/logs` and `/exec`: a look into a server on a lent machine, by way of its host."""

from typing import Annotated

from litestar import Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter
from spawn_schemas import inside
from spawn_schemas.ids import CommandId, ServerId

from spawn.api.arrivals import Arrival
from spawn.api.priced import priced
from spawn.api.services import Services
from spawn.domain import charges
from spawn.services.asks import Asks, Run, ShowLogs, ShowRan

Lines = Annotated[int, QueryParameter(ge=1, le=inside.LINES_MAX, description="The last lines, at most.")]
Wait = Annotated[
    int,
    QueryParameter(
        ge=0,
        le=60,
        description="Seconds to wait for its host. After that the answer says that it has not come yet.",
    ),
]


@get(
    "/v1/servers/{server_id:str}/logs",
    **priced(charges.READ, "Show what a server on a lent machine wrote", 403, 404, 409),
)
async def show_logs(
    arrival: NamedDependency[Arrival],
    server_id: FromPath[str],
    services: NamedDependency[Services],
    lines: Lines = 100,
    wait: Wait = 30,
) -> Response[inside.LogsShown]:
    return await services.gate.run(
        arrival, lambda: ShowLogs(ServerId(server_id), lines, _asks(services), wait_s=wait)
    )


@post(
    "/v1/servers/{server_id:str}/exec",
    status_code=200,
    **priced(charges.EXEC, "Run a command in a server on a lent machine", 403, 404, 409),
)
async def run_command(
    arrival: NamedDependency[Arrival],
    server_id: FromPath[str],
    services: NamedDependency[Services],
    data: JSONBody[inside.RunCommand | None] = None,
    wait: Wait = 30,
) -> Response[inside.CommandRan]:
    return await services.gate.run_with_body(
        arrival, data, lambda body: Run(ServerId(server_id), body, _asks(services), wait_s=wait)
    )


@get("/v1/commands/{command_id:str}", **priced(charges.IDENTIFIED, "Show what came of a command", 403, 404))
async def show_ran(
    arrival: NamedDependency[Arrival],
    command_id: FromPath[str],
    services: NamedDependency[Services],
    wait: Wait = 30,
) -> Response[inside.CommandRan]:
    return await services.gate.run(
        arrival, lambda: ShowRan(CommandId(command_id), _asks(services), wait_s=wait)
    )


def _asks(services: Services) -> Asks | None:
    return None if services.hosts is None else services.hosts.asks


HANDLERS = (show_logs, run_command, show_ran)
