"""Servers: ordered, found, renamed and deleted.

Invariant: an order is refused before anything of it exists.
"""

from typing import Final, Literal

from tests.emulators.hetzner import catalog, views
from tests.emulators.hetzner.calls import Answer, Call, Handler, Json, listing, require_unique
from tests.emulators.hetzner.errors import ApiError, invalid
from tests.emulators.hetzner.labels import check_hostname, check_labels
from tests.emulators.hetzner.world import PrimaryIp, Seconds, Server, World

MAX_USER_DATA_BYTES: Final = 32 * 1024

_INSTALL: Final[Seconds] = (5, 15)
_BOOT: Final[Seconds] = (3, 8)
_DELETE: Final[Seconds] = (1, 3)


def check_user_data(body: Json) -> None:
    if len(body.get("user_data", "").encode()) > MAX_USER_DATA_BYTES:
        raise invalid("user_data", "is longer than 32 KiB")


def _location(wanted: str | int | None, server_type: catalog.ServerType) -> catalog.Location:
    if wanted is None:
        wanted = server_type.sold_in[0]
    for known in catalog.LOCATIONS:
        if str(wanted) in (known.name, str(known.id)):
            return known
    raise ApiError("invalid_input", f"location '{wanted}' not found")


def _ssh_keys(world: World, wanted: list[str | int]) -> list[int]:
    found = []
    for wish in wanted:
        key = next((key for key in world.ssh_keys.values() if str(wish) in (str(key.id), key.name)), None)
        if key is None:
            raise invalid("ssh_keys", f"SSH key '{wish}' not found")
        found.append(key.id)
    return found


def _require_free(world: World, id_: int, type_: str, location: catalog.Location) -> PrimaryIp:
    """A primary IP that this server may have."""
    address = world.primary_ips.get(id_)
    if address is None:
        raise invalid("public_net", f"primary IP '{id_}' not found")
    if address.server is not None:
        raise ApiError("primary_ip_assigned", "primary IP is already assigned")
    if address.type != type_:
        raise ApiError("primary_ip_version_mismatch", "primary IP has the wrong IP version")
    if address.location != location:
        raise ApiError("primary_ip_datacenter_mismatch", "primary IP is in another location")
    return address


def _check_surroundings(world: World, body: Json, location: catalog.Location) -> None:
    """Raise `invalid_input` unless what the server is to be attached to exists, where it can be reached."""
    for id_ in body.get("networks", ()):
        network = world.networks.get(id_)
        if network is None:
            raise invalid("networks", f"network '{id_}' not found")
        if network.network_zone != location.network_zone:
            raise invalid("networks", f"network '{id_}' has no subnet in {location.network_zone}")
    for wish in body.get("firewalls", ()):
        if wish["firewall"] not in world.firewalls:
            raise invalid("firewalls", f"firewall '{wish['firewall']}' not found")
    for field in ("volumes", "placement_group"):
        if body.get(field):
            raise invalid(field, "not found: the emulated project has none")
    public = body.get("public_net", {})
    for type_ in ("ipv4", "ipv6"):
        if public.get(type_) is not None:
            _require_free(world, public[type_], type_, location)


def _assign(world: World, server: Server, type_: Literal["ipv4", "ipv6"], public: Json) -> int | None:
    if not public.get(f"enable_{type_}", True):
        return None
    given = public.get(type_)
    if given is None:
        address = world.add_primary_ip(type_, server.location)
    else:
        address = _require_free(world, given, type_, server.location)
    address.server = server.id
    return address.id


def _ordered(call: Call) -> Server:
    """The server that this order describes; raises ApiError, with nothing done, where it cannot be had."""
    world, body = call.world, call.body
    check_hostname(body["name"])
    check_labels(body.get("labels", {}))
    check_user_data(body)
    server_type = world.server_type(body["server_type"])
    location = _location(body.get("location"), server_type)
    image = world.image(body["image"], server_type.architecture)
    keys = _ssh_keys(world, body.get("ssh_keys", []))
    _check_surroundings(world, body, location)
    require_unique(world.servers.values(), body["name"], but=0, word="server")
    if world.server_limit is not None and len(world.servers) >= world.server_limit:
        limits = {"limits": [{"name": "server_limit"}]}
        raise ApiError("resource_limit_exceeded", "server limit reached", limits)
    world.require_capacity(server_type, location)
    return Server(
        id=world.new_id(),
        name=body["name"],
        labels=body.get("labels", {}),
        status="initializing",
        created_ms=world.at_ms,
        server_type=server_type,
        location=location,
        image=image,
        disk_gb=server_type.disk_gb,
        ssh_keys=keys,
        user_data=body.get("user_data", ""),
        # Whoever gave a key needs no password, and gets none.
        root_password=None if keys else world.new_password(),
    )


def create(call: Call) -> Answer:
    world, body = call.world, call.body
    server = _ordered(call)
    world.servers[server.id] = server
    public = body.get("public_net", {})
    server.ipv4 = _assign(world, server, "ipv4", public)
    server.ipv6 = _assign(world, server, "ipv6", public)
    server.networks = {id_: world.networks[id_].next_host() for id_ in body.get("networks", ())}
    server.firewalls = [wish["firewall"] for wish in body.get("firewalls", ())]
    starts = body.get("start_after_create", True)

    def installed() -> None:
        server.status = "starting" if starts else "off"

    def broken() -> None:
        server.status = "off"
        for action in list(world.running(server)):
            world.end(action, ("action_failed", "the server was not created"))

    def booted() -> None:
        start(server)
        world.cloud_init(server)

    first = world.begin("create_server", server, seconds=_INSTALL, done=installed, undone=broken)
    next_actions = []
    if starts:
        next_actions = [world.begin("start_server", server, seconds=_BOOT, done=booted, after=first)]
    return Answer(
        201,
        {
            "server": views.server(world, server),
            "action": views.action(world, first),
            "next_actions": [views.action(world, action) for action in next_actions],
            "root_password": server.root_password,
        },
    )


def start(server: Server) -> None:
    """A guest boots; from then on its traffic is counted."""
    server.status = "running"
    server.boots += 1
    server.ingoing_traffic = server.ingoing_traffic or 0
    server.outgoing_traffic = server.outgoing_traffic or 0


def seen(call: Call) -> list[Server]:
    """The servers as a list of so long ago had them: new ones are missing, and gone ones still there."""
    then = call.world.at_ms - call.stale_ms
    present = [
        server for server in call.world.servers.values() if server.created_ms <= then or not call.stale_ms
    ]
    if not call.stale_ms:
        return present
    return present + [
        server for gone_ms, server in call.world.gone.values() if server.created_ms <= then < gone_ms
    ]


def read_list(call: Call) -> Answer:
    statuses = set(call.many("status"))
    chosen = [server for server in seen(call) if not statuses or server.status in statuses]
    return listing(call, "servers", chosen, lambda server: views.server(call.world, server))


def read(call: Call) -> Answer:
    return Answer(200, {"server": views.server(call.world, call.world.server(call.id()))})


def update(call: Call) -> Answer:
    world, server = call.world, call.world.server(call.id())
    name, labels = call.body.get("name", server.name), call.body.get("labels", server.labels)
    check_hostname(name)
    check_labels(labels)
    require_unique(world.servers.values(), name, but=server.id, word="server")
    server.name, server.labels = name, labels
    return Answer(200, {"server": views.server(world, server)})


def delete(call: Call) -> Answer:
    world, server = call.world, call.world.server(call.id())
    if server.protected:
        raise ApiError("protected", "server deletion is protected")
    before = world.unlocked(server.id).status

    def kept() -> None:
        server.status = before

    server.status = "deleting"
    action = world.begin(
        "delete_server", server, seconds=_DELETE, done=lambda: world.remove(server), undone=kept
    )
    return Answer(200, {"action": views.action(world, action)})


ROUTES: Final[dict[str, Handler]] = {
    "POST /servers": create,
    "GET /servers": read_list,
    "GET /servers/{id}": read,
    "PUT /servers/{id}": update,
    "DELETE /servers/{id}": delete,
}
