"""`/v1/sessions`: one proof of the wallet, a quarter of an hour of reads."""

from litestar import Response, post
from litestar.di import NamedDependency
from spawn_schemas import api

from spawn.api.arrivals import Arrival
from spawn.api.priced import priced
from spawn.api.services import Services
from spawn.domain import charges
from spawn.services.sessions import OpenSession


@post(
    "/v1/sessions",
    status_code=201,
    opens_session=True,
    **priced(charges.IDENTIFIED, "Open a session for reading"),
)
async def open_session(
    arrival: NamedDependency[Arrival], services: NamedDependency[Services]
) -> Response[api.SessionOpened]:
    return await services.gate.run(arrival, lambda: OpenSession(services.sessions, services.shop.entropy))


HANDLERS = (open_session,)
