"""`/v1/suspense`: USDC that a wallet sent us outside a call, and taking it into the balance."""

from litestar import Response, get, post
from litestar.di import NamedDependency
from spawn_schemas import suspense as wire

from spawn.api.arrivals import Arrival
from spawn.api.priced import priced
from spawn.api.services import Services
from spawn.domain import charges
from spawn.services import suspense


@get("/v1/suspense", **priced(charges.IDENTIFIED, "List what you sent outside a call"))
async def list_suspense(
    arrival: NamedDependency[Arrival], services: NamedDependency[Services]
) -> Response[wire.SuspenseView]:
    return await services.gate.run(arrival, suspense.ListSuspense)


@post(
    "/v1/suspense/claim", status_code=200, **priced(charges.IDENTIFIED, "Claim what you sent outside a call")
)
async def claim_suspense(
    arrival: NamedDependency[Arrival], services: NamedDependency[Services]
) -> Response[wire.SuspenseClaimed]:
    return await services.gate.run(arrival, suspense.ClaimSuspense)


HANDLERS = (list_suspense, claim_suspense)
