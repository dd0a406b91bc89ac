"""Orders that a hostile or stolen service could send: each is refused, and does harm without what refuses it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import pytest
from spawn_hostagent import docker_manager
from spawn_hostagent.docker import images, room
from spawn_hostagent.machines import MachineError
from spawn_hostagent.walls.admission import Lent
from spawn_schemas.ids import RentalId
from spawn_schemas.orders import StartInstance

from tests.hostagent.namespaces import METADATA, NEIGHBOUR
from tests.isolation.arena import CARDS, Arena, ignore

RENTAL: Final = RentalId("srv_greedy")
DIGEST: Final = "sha256:" + "0" * 64


@dataclass(frozen=True)
class Order:
    """`harms` says whether it did what it is after, once `line` is taken away; `lent` is what is lent then."""

    name: str
    changes: Callable[[Arena], dict[str, Any]]
    code: str
    line: str
    harms: Callable[[Arena], bool]
    lent: Callable[[Arena], Lent] = lambda ground: ground.lent


def runs(ground: Arena) -> bool:
    return any(report.rental_id == RENTAL for report in ground.run(ground.manager().list_rentals()))


def inside(script: str, expected: str) -> Callable[[Arena], bool]:
    def look(ground: Arena) -> bool:
        result = ground.run(ground.manager().exec(RENTAL, 1, ("sh", "-c", script), 30))
        return expected in result.stdout

    return look


def met(*addresses: str) -> Callable[[Arena], bool]:
    return lambda ground: set(addresses) <= set(ground.engine.world.met)


def asked_for(path: str) -> Callable[[Arena], bool]:
    return lambda ground: any(path in asked for asked in ground.engine.registry.asked)


def registry(ground: Arena) -> str:
    return f"127.0.0.1:{ground.engine.registry.port}"


def lending(**less: Any) -> Callable[[Arena], Lent]:
    return lambda ground: msgspec.structs.replace(ground.lent, **less)


ORDERS: Final = (
    Order("more processors than are lent", lambda _: {"cpus": 0.75}, "over_limits", "check_room", runs,
          lending(cpus=0.5)),
    Order("one rental too many", lambda g: {"hostname": f"beside-{g.tenant()}".replace("_", "-")}, "no_room",
          "check_room", runs, lending(rentals=1)),
    Order("more memory than is lent", lambda g: {"memory_mib": g.lent.memory_mib + 1}, "over_limits",
          "check_room", runs),
    Order("more disk than is lent", lambda g: {"disk_mib": g.lent.disk_mib + 1}, "over_limits", "check_room", runs),
    Order("a card that is not lent", lambda g: {"gpus": ("GPU-00000000-0000-0000-0000-00000000000f",)}, "over_limits",
          "check_room", runs),
    Order("all cards by name", lambda g: {"gpus": ("all",)}, "invalid", "check_form check_room", runs),
    Order("no memory at all", lambda g: {"memory_mib": 8, "gpus": CARDS[:1]}, "invalid", "check_form", runs),
    Order("a variable of NVIDIA's", lambda g: {"env": {"NVIDIA_DRIVER_CAPABILITIES": "all"}}, "invalid", "check_form",
          inside("env", "NVIDIA_DRIVER_CAPABILITIES=all")),
    Order("a library for the host's hooks", lambda g: {"env": {"LD_PRELOAD": "/root/evil.so"}}, "invalid", "check_form",
          inside("tr '\\0' '\\n' < /proc/1/environ", "LD_PRELOAD=/root/evil.so")),
    Order("our own variables", lambda g: {"env": {"SPAWN_SSH_KEYS": "mine"}}, "invalid", "check_form",
          inside("tr '\\0' '\\n' < /proc/1/environ", "SPAWN_SSH_KEYS=mine")),
    Order("a name of a variable that is none", lambda g: {"env": {"A\nB": "x"}}, "invalid", "check_form",
          inside("tr '\\0' '\\n' < /proc/1/environ", "A\nB=x")),
    Order("a thousand ports", lambda g: {"ports": tuple(range(2000, 2100))}, "invalid", "check_form", runs),
    Order("another host's name", lambda g: {"hostname": "metadata.google.internal"}, "invalid", "check_form",
          inside("hostname", "metadata.google.internal")),
    Order("an SSH key with a second line", lambda g: {"ssh_keys": ("ssh-ed25519 AAAA\nssh-ed25519 BBBB mine",),
          "host_key": "-----BEGIN OPENSSH PRIVATE KEY-----\n"}, "invalid", "check_form", runs),
    Order("an image by tag", lambda g: {"image": f"{registry(g)}/spawn/base:latest"}, "image_refused", "check_name",
          asked_for("/manifests/latest")),
    Order("an image that the owner does not allow",
          lambda g: {"image": f"{registry(g)}/spawn-evil/base@{g.engine.base_digest}"},
          "image_refused", "check_name", runs),
    Order("an image on the owner's LAN", lambda g: {"image": f"{NEIGHBOUR}:443/x@{DIGEST}"}, "image_refused",
          "check_name", met(f"{NEIGHBOUR}:443")),
    Order("an image at the cloud's metadata", lambda g: {"image": f"{METADATA}:443/x@{DIGEST}"}, "image_refused",
          "check_name", met(f"{METADATA}:443")),
    Order("an image with volumes of its own", lambda g: {"image": g.engine.image({"Volumes": {"/a": {}, "/b": {}}})},
          "image_refused", "settings",
          inside("head -c 96M /dev/zero > /a/bomb && echo BROKEN; rm -f /a/bomb", "BROKEN")),
    Order("an image whose disk is the system's",
          lambda g: {"image": g.engine.image({"Labels": {"sh.spawn.disk": "/dev"}})},
          "image_refused", "settings", runs),
    Order("an image that preloads a library",
          lambda g: {"image": g.engine.image({"Env": ["LD_PRELOAD=/x"]}), "gpus": CARDS[:1]},
          "image_refused", "settings", lambda g: "LD_PRELOAD=/x" in g.engine.gpu_requests.read_text()),
)  # fmt: skip


@pytest.fixture
def cleared(ground: Arena) -> Iterator[Arena]:
    ground.engine.world.met.clear()
    ground.engine.registry.asked.clear()
    yield ground
    ground.manager().lend(ground.lent)
    ground.run(ground.manager().destroy(RENTAL, 1))


def refusal(ground: Arena, order: StartInstance) -> MachineError | None:
    try:
        ground.run(ground.manager().start(order, ignore))
    except MachineError as error:
        return error
    return None


def take_away(line: str, patch: pytest.MonkeyPatch) -> None:
    def let_all_pass(*_: Any, **__: Any) -> None:
        return

    def believe(inspected: dict[str, Any], **_: bool) -> images.Settings:
        labels = inspected["Config"].get("Labels") or {}
        return images.Settings(has_sshd=True, disk_path=labels.get("sh.spawn.disk", "/root") + "/x")

    for name in line.split():
        if name == "settings":
            patch.setattr(images, "settings", believe)
        elif name == "check_name":
            patch.setattr(images, "check_name", let_all_pass)
        else:
            patch.setattr(room if name == "check_room" else docker_manager, name, let_all_pass)


each = pytest.mark.parametrize("asked", ORDERS, ids=lambda asked: asked.name.replace(" ", "-"))


@each
def test_is_refused(cleared: Arena, asked: Order) -> None:
    order = cleared.order(RENTAL, **asked.changes(cleared))
    cleared.manager().lend(asked.lent(cleared))
    error = refusal(cleared, order)
    assert error is not None
    assert error.problem.code == asked.code, error.problem
    assert not runs(cleared)
    assert cleared.engine.world.met == []
    assert not asked_for("/manifests/latest")(cleared)


@each
def test_does_harm_without_what_refuses_it(
    cleared: Arena, asked: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = cleared.order(RENTAL, **asked.changes(cleared))
    take_away(asked.line, monkeypatch)
    cleared.manager().lend(asked.lent(cleared))
    refusal(cleared, order)
    assert asked.harms(cleared)


@pytest.mark.parametrize(
    "rental_id", ["../../../etc/cron.d/x", "srv_a/../../b", "-rf", "srv_\n", "srv_ä", "", "srv_" + "a" * 80]
)
def test_no_name_leads_out_of_the_agents_folder(cleared: Arena, rental_id: str) -> None:
    error = refusal(cleared, cleared.order(rental_id))
    assert error is not None
    assert error.problem.code == "invalid"
    with pytest.raises(MachineError):
        cleared.run(cleared.manager().destroy(RentalId(rental_id), 1))


def test_an_image_cannot_pass_a_container_of_the_owners_off_as_ours(cleared: Arena) -> None:
    labels = {"sh.spawn.rental": "srv_owner", "sh.spawn.facts": "{}"}
    client = cleared.engine.client()
    try:
        made = client.create_container(cleared.engine.base, ["sleep", "60"], name="owner", labels=labels)
        client.start(made["Id"])
        assert "srv_owner" not in {
            report.rental_id for report in cleared.run(cleared.manager().list_rentals())
        }
        cleared.run(cleared.manager().destroy(RentalId("srv_owner"), 1))
        cleared.run(cleared.manager().sweep())
        assert client.inspect_container("owner")["State"]["Running"]
    finally:
        client.remove_container("owner", force=True)
        client.close()
