"""What can be done to a server, and how long it takes.

Invariant: while an action runs its server is locked. A verb that asks for what already is succeeds without effect.
"""

from collections.abc import Callable
from typing import Final

from tests.emulators.hetzner import views
from tests.emulators.hetzner.calls import Answer, Call, Handler, found, page, sort
from tests.emulators.hetzner.errors import ApiError
from tests.emulators.hetzner.servers import check_user_data, start
from tests.emulators.hetzner.world import Action, Flaw, Seconds, Server, World

_SIGNAL: Final[Seconds] = (1, 2)
_GUEST_STOP: Final[Seconds] = (4, 12)
_BOOT: Final[Seconds] = (3, 8)
_MIGRATE: Final[Seconds] = (15, 30)
_WIPE: Final[Seconds] = (10, 20)


def _accepted(world: World, action: Action, **more: str | None) -> Answer:
    return Answer(201, {"action": views.action(world, action), **more})


def power_on(call: Call) -> Answer:
    world, server = call.world, call.world.unlocked(call.id())
    before = server.status
    if before == "running":
        return _accepted(world, world.begin("start_server", server, seconds=_SIGNAL))

    def stays() -> None:
        server.status = before

    server.status = "starting"
    server.boots += 1
    return _accepted(
        world,
        world.begin("start_server", server, seconds=_BOOT, done=lambda: start(server), undone=stays),
    )


def _off(server: Server) -> None:
    server.status = "off"
    server.boots += 1


def power_off(call: Call) -> Answer:
    world, server = call.world, call.world.unlocked(call.id())
    return _accepted(world, world.begin("stop_server", server, seconds=_SIGNAL, done=lambda: _off(server)))


def _when_guest_hears(world: World, server: Server, reaction: Callable[[], None]) -> Callable[[], None]:
    """What follows from an ACPI signal: nothing, if no guest is there to react."""

    def signal() -> None:
        if server.status == "running" and not server.deaf:
            reaction()

    return signal


def shutdown(call: Call) -> Answer:
    """The action says that the signal was sent, and nothing of what the guest makes of it."""
    world, server = call.world, call.world.unlocked(call.id())

    def stopping() -> None:
        server.status = "stopping"
        boots = server.boots

        def stopped() -> None:
            if server.boots == boots:
                _off(server)

        world.schedule(world.at_ms + world.lasts_ms(_GUEST_STOP), stopped)

    hears = _when_guest_hears(world, server, stopping)
    return _accepted(world, world.begin("shutdown_server", server, seconds=_SIGNAL, done=hears))


def reboot(call: Call) -> Answer:
    world, server = call.world, call.world.unlocked(call.id())
    hears = _when_guest_hears(world, server, lambda: start(server))
    return _accepted(world, world.begin("reboot_server", server, seconds=_SIGNAL, done=hears))


def reset(call: Call) -> Answer:
    world, server = call.world, call.world.unlocked(call.id())

    def again() -> None:
        if server.status != "off":
            start(server)

    return _accepted(world, world.begin("reset_server", server, seconds=_SIGNAL, done=again))


def rebuild(call: Call) -> Answer:
    """The disk is overwritten and the server starts from it, on or off as it was; user data stays unless given."""
    world, server = call.world, call.world.unlocked(call.id())
    check_user_data(call.body)
    if server.protected:
        raise ApiError("protected", "server rebuild is protected")
    image = world.image(call.body["image"], server.server_type.architecture)
    password = None if server.ssh_keys else world.new_password()

    def rebuilt() -> None:
        server.image = image
        server.user_data = call.body.get("user_data", server.user_data)
        server.root_password = password
        start(server)
        world.cloud_init(server)

    action = world.begin("rebuild_server", server, seconds=_WIPE, done=rebuilt, undone=lambda: _off(server))
    server.status = "rebuilding"
    server.boots += 1
    return _accepted(world, action, root_password=password)


def change_type(call: Call) -> Answer:
    world, server = call.world, call.world.unlocked(call.id())
    wanted, upgrade = world.server_type(call.body["server_type"]), call.body["upgrade_disk"]
    if server.status != "off":
        raise ApiError("server_not_stopped", "server must be stopped")
    if wanted == server.server_type:
        raise ApiError("invalid_server_type", "server is of this type already")
    if wanted.architecture != server.server_type.architecture:
        raise ApiError("invalid_server_type", "the type has another architecture")
    if wanted.disk_gb < server.disk_gb:
        raise ApiError("invalid_server_type", "the type's disk is smaller than the server's")
    world.require_capacity(wanted, server.location)

    def changed() -> None:
        server.server_type = wanted
        if upgrade:
            server.disk_gb = wanted.disk_gb
        start(server)

    action = world.begin(
        "change_server_type", server, seconds=_MIGRATE, done=changed, undone=lambda: _off(server)
    )
    server.status = "migrating"
    return _accepted(world, action)


def change_protection(call: Call) -> Answer:
    world, server = call.world, call.world.unlocked(call.id())
    delete = call.body.get("delete", server.protected)
    if call.body.get("rebuild", server.protected) != delete:
        raise ApiError("invalid_input", "delete and rebuild protection must have the same value")

    def changed() -> None:
        server.protected = delete

    return _accepted(world, world.begin("change_protection", server, done=changed))


def reset_password(call: Call) -> Answer:
    """The password is told before it is known whether the guest took it."""
    world, server = call.world, call.world.unlocked(call.id())
    password = world.new_password()
    if server.status != "running" and world.flaw is None:
        world.flaw = Flaw(error=("action_failed", "the server does not run"))

    def changed() -> None:
        server.root_password = password

    action = world.begin("reset_password", server, seconds=_SIGNAL, done=changed)
    return _accepted(world, action, root_password=password)


def _listed(call: Call, actions: list[Action]) -> Answer:
    statuses = set(call.many("status"))
    chosen = [action for action in actions if not statuses or action.status in statuses]
    return page(call, "actions", sort(call, chosen), lambda action: views.action(call.world, action))


def of_server(call: Call) -> Answer:
    server = call.world.server(call.id())
    return _listed(call, [a for a in call.world.actions.values() if ("server", server.id) in a.resources])


def of_all_servers(call: Call) -> Answer:
    return _listed(call, list(call.world.actions.values()))


def one_of_server(call: Call) -> Answer:
    server, action = call.world.server(call.id()), call.world.actions.get(call.id("action_id"))
    if action is None or ("server", server.id) not in action.resources:
        raise ApiError("not_found", "the server has no such action")
    return Answer(200, {"action": views.action(call.world, action)})


def read(call: Call) -> Answer:
    return Answer(200, {"action": views.action(call.world, found(call.world.actions, call.id(), "action"))})


def read_many(call: Call) -> Answer:
    """By id, and only so; an id that is unknown is left out."""
    wanted = sorted({int(text) for text in call.many("id")})
    chosen = [call.world.actions[id_] for id_ in wanted if id_ in call.world.actions]
    return Answer(200, {"actions": [views.action(call.world, action) for action in chosen]})


_VERBS: Final[dict[str, Handler]] = {
    "poweron": power_on,
    "poweroff": power_off,
    "shutdown": shutdown,
    "reboot": reboot,
    "reset": reset,
    "rebuild": rebuild,
    "change_type": change_type,
    "change_protection": change_protection,
    "reset_password": reset_password,
}

ROUTES: Final[dict[str, Handler]] = {
    **{f"POST /servers/{{id}}/actions/{verb}": handler for verb, handler in _VERBS.items()},
    "GET /servers/{id}/actions": of_server,
    "GET /servers/{id}/actions/{action_id}": one_of_server,
    "GET /servers/actions": of_all_servers,
    "GET /servers/actions/{id}": read,
    "GET /actions": read_many,
    "GET /actions/{id}": read,
}
