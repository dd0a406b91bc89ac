"""What is reached from beside a tenant, and what it leaves on the host: the owner's LAN, neighbours, logs."""

import contextlib
import socket
import subprocess
from pathlib import Path
from typing import Final

from spawn_hostagent.networks import POOL
from spawn_schemas.ids import RentalId

from tests.hostagent.namespaces import HOST, inside
from tests.isolation.arena import Arena, ignore
from tests.isolation.attacks import connect

WHOLE: Final[frozenset[str]] = frozenset()
LISTENER: Final = (
    "pgrep -x perl >/dev/null || { setsid perl -MIO::Socket::INET -e '"
    "$s = IO::Socket::INET->new(LocalPort => 22, Listen => 8, ReuseAddr => 1) or die; "
    'while ($c = $s->accept) { print $c "reached\\n"; close $c }\' </dev/null >/dev/null 2>&1 & }; '
    "for i in $(seq 50); do (exec 3<>/dev/tcp/127.0.0.1/22) 2>/dev/null && break; sleep 0.1; done"
)


def serving(ground: Arena, without: frozenset[str]) -> RentalId:
    """A tenant with a service of its own on port 22."""
    rental = ground.tenant(without)
    result = ground.run(ground.manager(without).exec(rental, 1, ("bash", "-c", LISTENER), 30))
    assert result.exit_code == 0, result
    return rental


def address_in(ground: Arena, rental: RentalId) -> str:
    """A container's own address."""
    client = ground.engine.client()
    with contextlib.closing(client):
        networks = client.inspect_container(f"spawn-{rental}-1")["NetworkSettings"]["Networks"]
    return str(next(iter(networks.values()))["IPAddress"])


def answers(ground: Arena, address: str, port: int) -> bool:
    """Whether another machine of the LAN reaches that."""
    with inside(ground.engine.world.outside):
        caller = socket.socket()
    with caller:
        caller.settimeout(2)
        try:
            caller.connect((address, port))
            return caller.recv(7) == b"reached"
        except OSError:
            return False


def published(ground: Arena, without: frozenset[str]) -> int:
    rental = serving(ground, without)
    return ground.run(ground.manager(without).address_of(rental, 22))[1]


def test_the_lan_does_not_reach_a_published_port(ground: Arena) -> None:
    assert not answers(ground, HOST, published(ground, WHOLE))
    port = published(ground, frozenset({"ports"}))
    assert not answers(ground, HOST, port), "the wall stands behind the line"
    with ground.walls(frozenset({"from the LAN"})):
        assert answers(ground, HOST, port)


def test_the_lan_does_not_reach_a_container(ground: Arena) -> None:
    address = address_in(ground, serving(ground, WHOLE))
    route = ["ip", "-n", ground.engine.world.outside, "route", "replace", str(POOL), "via", HOST]
    subprocess.run(route, check=True, timeout=30)
    assert not answers(ground, address, 22)
    with ground.walls(frozenset({"from the LAN"})):
        assert answers(ground, address, 22)


def test_neighbours_do_not_meet(ground: Arena) -> None:
    own, shared = frozenset({"init"}), frozenset({"own bridge"})
    script = "address=%s; export address; " + connect("$address", 22)
    assert not ground.attack(script % address_in(ground, serving(ground, own)))
    assert ground.attack(
        script % address_in(ground, serving(ground, shared)), frozenset({"own bridge", "restart"})
    )


def log_bytes(ground: Arena, without: frozenset[str]) -> int:
    """How much a tenant that prints without end leaves on the host."""
    shout = "head -c 24M /dev/zero | tr '\\0' x | fold -w 4000 > /proc/1/fd/1"
    rental = ground.tenant(without)
    assert ground.run(ground.manager(without).exec(rental, 1, ("sh", "-c", shout), 60)).exit_code == 0
    client = ground.engine.client()
    with contextlib.closing(client):
        path = Path(client.inspect_container(f"spawn-{rental}-1")["LogPath"])
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


def test_a_log_bomb_ends_at_its_cap(ground: Arena) -> None:
    # Two files of four MiB; each may be over by what was written at once.
    assert log_bytes(ground, WHOLE) < 10 * 1024 * 1024
    assert log_bytes(ground, frozenset({"logs"})) > 20 * 1024 * 1024


def test_a_variable_of_the_images_gives_no_cards(ground: Arena) -> None:
    image = ground.engine.image({"Env": ["NVIDIA_VISIBLE_DEVICES=all"]})
    rental = RentalId("srv_cards")
    ground.run(ground.manager().start(ground.order(rental, image=image), ignore))
    result = ground.run(
        ground.manager().exec(rental, 1, ("sh", "-c", "tr '\\0' '\\n' < /proc/1/environ"), 30)
    )
    ground.run(ground.manager().destroy(rental, 1))
    assert "NVIDIA_VISIBLE_DEVICES=void" in result.stdout
