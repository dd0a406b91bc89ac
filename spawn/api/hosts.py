"""`/v1/hosts`: a lent machine registers, changes its key, and says that it is there when it cannot hold a socket.

A token or a signature of the machine's own key says who calls; no wallet does. The link itself, the streams of tenants
and the speed tests have a listener of their own (`spawn.link`).
"""

from hashlib import sha256
from typing import Any

from litestar import Request, post
from litestar.di import NamedDependency
from litestar.params import JSONBody
from spawn_schemas import hosts as wire
from spawn_schemas.errors import Code, SpawnError

from spawn.api.gate import strict
from spawn.api.priced import priced
from spawn.api.services import HostServices, Services
from spawn.domain import charges
from spawn.domain.hosts import Host
from spawn.services import beats
from spawn.services.hosts import SignedCall, unproven

Http = Request[Any, Any, Any]


def _hosts(services: Services) -> HostServices:
    if services.hosts is None:
        raise SpawnError(
            Code.NOT_FOUND,
            "This service rents out no lent machines.",
            next="Ask its operator, who sets SPAWN_PROVIDERS=community for it.",
        )
    return services.hosts


async def _caller(request: Http, services: HostServices) -> Host:
    """Raises invalid_signature."""
    query = request.scope["query_string"].decode("latin-1")
    path = request.scope["path"]
    call = SignedCall(
        method=request.method,
        path=f"{path}?{query}" if query else path,
        body_sha256=sha256(await request.body()).hexdigest(),
        host_id=request.headers.get(wire.HOST_HEADER, ""),
        timestamp=request.headers.get(wire.TIMESTAMP_HEADER, ""),
        nonce=request.headers.get(wire.NONCE_HEADER, ""),
        signature=request.headers.get(wire.SIGNATURE_HEADER, ""),
    )
    return await services.hosts.authenticate(call)


@post(
    wire.REGISTER_PATH,
    status_code=200,
    **priced(charges.FREE, "Register a lent machine", 400, 401, 403, 404, 409, 413, 429),
)
async def register_host(
    request: Http, services: NamedDependency[Services], data: JSONBody[wire.RegisterHost]
) -> wire.HostRegistered:
    hosts = _hosts(services)
    return await hosts.hosts.register(strict(await request.body(), type(data)))


@post(
    wire.KEY_PATH,
    status_code=200,
    **priced(charges.FREE, "Change a lent machine's key", 400, 401, 404, 409, 413, 429),
)
async def change_host_key(
    request: Http, services: NamedDependency[Services], data: JSONBody[wire.ChangeKey]
) -> wire.KeyChanged:
    hosts = _hosts(services)
    wanted = strict(await request.body(), type(data))
    await hosts.hosts.change_key(await _caller(request, hosts), wanted)
    return wire.KeyChanged(status="changed")


@post(
    wire.HEARTBEAT_PATH,
    status_code=200,
    **priced(charges.FREE, "Say that a lent machine is there", 400, 401, 404, 413, 429),
)
async def host_heartbeat(
    request: Http,
    services: NamedDependency[Services],
    data: JSONBody[wire.Beat],  # noqa: ARG001 - describes ours of the three forms that are read
) -> wire.BeatAnswered:
    hosts = _hosts(services)
    host = await _caller(request, hosts)
    told = beats.read(await request.body())
    if told.host_id is not None and told.host_id != host.id:
        raise unproven()
    now = services.clock.now_s()
    answer = await services.db.write(lambda tx: beats.heard(tx, hosts.vault, hosts.entropy, host, told, now))
    hosts.changed()
    return answer


HANDLERS = (register_host, change_host_key, host_heartbeat)
