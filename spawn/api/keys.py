"""`/v1/ssh-keys`: register, list and delete public keys."""

from litestar import Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from spawn_schemas import api
from spawn_schemas.ids import SshKeyId

from spawn.api.arrivals import Arrival
from spawn.api.priced import priced
from spawn.api.services import Services
from spawn.domain import charges
from spawn.services import ssh_keys


@post("/v1/ssh-keys", status_code=201, **priced(charges.SSH_KEY, "Register an SSH key", 409))
async def register_ssh_key(
    arrival: NamedDependency[Arrival],
    services: NamedDependency[Services],
    data: JSONBody[api.RegisterSshKey | None] = None,
) -> Response[api.SshKeyShown]:
    return await services.gate.run_with_body(
        arrival, data, lambda body: ssh_keys.RegisterSshKey(body, services.shop.entropy)
    )


@get("/v1/ssh-keys", **priced(charges.SSH_KEY, "List your SSH keys"))
async def list_ssh_keys(
    arrival: NamedDependency[Arrival], services: NamedDependency[Services]
) -> Response[api.SshKeyList]:
    return await services.gate.run(arrival, ssh_keys.ListSshKeys)


@delete(
    "/v1/ssh-keys/{key_id:str}", status_code=200, **priced(charges.SSH_KEY, "Delete an SSH key", 403, 404)
)
async def delete_ssh_key(
    arrival: NamedDependency[Arrival], key_id: FromPath[str], services: NamedDependency[Services]
) -> Response[api.Deleted]:
    return await services.gate.run(arrival, lambda: ssh_keys.DeleteSshKey(SshKeyId(key_id)))


HANDLERS = (register_ssh_key, list_ssh_keys, delete_ssh_key)
