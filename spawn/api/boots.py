"""`/v1/boots/{token}`: a machine that we made tells how its first start went.

The token is the right to tell it, and to nothing else: the answer says nothing of whose machine it is.
"""

from typing import Any

from litestar import Request, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from spawn_schemas import boots as wire

from spawn.api.gate import strict
from spawn.api.priced import priced
from spawn.api.services import Services
from spawn.domain import charges
from spawn.services import boots

Http = Request[Any, Any, Any]


@post(
    "/v1/boots/{token:str}",
    status_code=200,
    **priced(charges.FREE, "Report a machine's boot", 400, 404, 413, 429),
)
async def report_boot(
    request: Http, token: FromPath[str], services: NamedDependency[Services], data: JSONBody[wire.BootReport]
) -> wire.BootReported:
    told = strict(await request.body(), type(data))
    await boots.report(services.db, services.clock, token, told)
    return wire.BootReported(status="recorded")


HANDLERS = (report_boot,)
