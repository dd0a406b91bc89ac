"""What is reached from beside a tenant, and what it leaves on the host: the owner's LAN, neighbours, logs."""

import contextlib
import socket
import subprocess
import time
from pathlib import Path
from typing import Final

import msgspec
from spawn_hostagent.docker.rentals import bridge_name, container_name
from spawn_hostagent.walls.isolation import MIB
from spawn_hostagent.walls.networks import POOL
from spawn_schemas.ids import RentalId
from spawn_schemas.inventory import DiskLimit
from spawn_schemas.orders import RentalReport

from tests.hostagent.namespaces import HOST, inside
from tests.isolation.arena import Arena, ignore
from tests.isolation.attacks import DISK_MIB, connect

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
        script % address_in(ground, serving(ground, shared)), frozenset({"own bridge", "out-of-memory order"})
    )


def give_ipv6(ground: Arena, rental: RentalId) -> str:
    """As a later Docker may, or its owner. Neighbours are known, since the host answers no tenant who asks for them."""
    world, bridge = ground.engine.world, bridge_name(container_name(rental, 1))
    client = ground.engine.client()
    with contextlib.closing(client):
        found = client.inspect_container(f"spawn-{rental}-1")
    pid, (wire,) = found["State"]["Pid"], found["NetworkSettings"]["Networks"].values()
    host, outside = (["ip", "netns", "exec", name] for name in (world.host, world.outside))
    tenant = ["nsenter", f"--target={pid}", "--net"]

    def do(where: list[str], *words: str) -> str:
        done = subprocess.run([*where, *words], capture_output=True, text=True, check=True, timeout=30)
        return done.stdout.strip()

    do(host, "sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
    do(tenant, "sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=0")
    do(host, "ip", "address", "replace", "fd00:1::1/64", "dev", bridge, "nodad")
    do(host, "ip", "address", "replace", "fd00:2::1/64", "dev", "up0", "nodad")
    do(outside, "ip", "address", "replace", "fd00:2::9/64", "dev", "up0", "nodad")
    do(outside, "ip", "route", "replace", "fd00:1::/64", "via", "fd00:2::1")
    do(tenant, "ip", "address", "replace", "fd00:1::2/64", "dev", "eth0", "nodad")
    do(tenant, "ip", "route", "replace", "default", "via", "fd00:1::1")
    do(host, "ip", "neighbour", "replace", "fd00:1::2", "lladdr", wire["MacAddress"], "dev", bridge)
    near = do(host, "cat", f"/sys/class/net/{bridge}/address")
    do(tenant, "ip", "neighbour", "replace", "fd00:1::1", "lladdr", near, "dev", "eth0")
    world.listen(world.outside, "fd00:2::9", 80)
    return "fd00:2::9"


def test_a_tenant_with_an_address_of_ipv6_reaches_nobody(ground: Arena) -> None:
    outside = give_ipv6(ground, ground.tenant())
    assert not ground.attack(connect(outside, 80))
    assert ground.attack(connect(outside, 80), frozenset({"ipv6"}))


def begun_again(ground: Arena, without: frozenset[str]) -> int:
    """How often Docker itself began a tenant again whose program ends at once; it is watched until the third time."""
    rental, manager = RentalId("srv_ended"), ground.manager(without)
    ground.run(manager.start(ground.order(rental, command=("sh", "-c", "exit 0")), ignore))
    count, tries = 0, 300
    with contextlib.closing(ground.engine.client()) as client:
        while count < 3 and tries:
            found = client.inspect_container(f"spawn-{rental}-1")
            count, tries = int(found["RestartCount"]), tries - 1
            if found["State"]["Status"] == "exited":
                break
            time.sleep(0.1)
    ground.run(manager.destroy(rental, 1))
    return count


def killed_before_others(ground: Arena, without: frozenset[str]) -> int:
    """By how much the kernel would rather kill a tenant's program than the owner's (proc_pid_oom_score_adj(5))."""
    rental = ground.tenant(without)
    asked = ground.manager(without).exec(rental, 1, ("cat", "/proc/1/oom_score_adj"), 30)
    return int(ground.run(asked).stdout)


def test_a_tenant_goes_before_what_the_owner_runs(ground: Arena) -> None:
    assert killed_before_others(ground, WHOLE) == 500
    assert killed_before_others(ground, frozenset({"out-of-memory order"})) == 0


def test_docker_starts_nobody_again(ground: Arena) -> None:
    assert begun_again(ground, WHOLE) == 0
    assert begun_again(ground, frozenset({"restart"})) >= 3


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


def hosts_mib(ground: Arena, without: frozenset[str], limit: DiskLimit) -> tuple[int, RentalReport]:
    """What a tenant with a writable root gets into Docker's own files on the host, and what becomes of it."""
    rental, manager = RentalId("srv_hosts"), ground.manager(without)
    assert ground.isolation is not None
    manager._isolation = msgspec.structs.replace(ground.isolation, disk_limit=limit)
    ground.run(manager.start(ground.order(rental), ignore))
    try:
        fill = f"head -c {2 * DISK_MIB}M /dev/zero >> /etc/hosts"
        ground.run(manager.exec(rental, 1, ("sh", "-c", fill), 60))
        with contextlib.closing(ground.engine.client()) as client:
            path = Path(client.inspect_container(f"spawn-{rental}-1")["HostsPath"])
        mib = path.stat().st_size // MIB
        ground.run(manager._guard_disks())
        (report,) = [one for one in ground.run(manager.list_rentals()) if one.rental_id == rental]
    finally:
        manager._isolation = ground.isolation
        ground.run(manager.destroy(rental, 1))
    return mib, report


def test_a_list_of_hosts_ends_where_the_disk_ends_and_its_writer_is_stopped(ground: Arena) -> None:
    mib, report = hosts_mib(ground, WHOLE, "poll")
    assert mib <= DISK_MIB
    assert (report.state, report.ended_by) == ("stopped", "disk_full")
    assert report.disk_used_mib is not None
    assert report.disk_used_mib >= DISK_MIB
    mib, _ = hosts_mib(ground, frozenset({"file size"}), "poll")
    assert mib >= 2 * DISK_MIB


def test_who_rented_no_card_is_given_none(ground: Arena) -> None:
    asked = ground.engine.gpu_requests
    for name, without in (("srv_nocard", WHOLE), ("srv_allcards", frozenset({"gpus"}))):
        asked.unlink(missing_ok=True)
        ground.run(ground.manager(without).start(ground.order(name), ignore))
        ground.run(ground.manager(without).destroy(RentalId(name), 1))
        assert asked.exists() == bool(without), "the program that gives out cards was called"
    assert "NVIDIA_VISIBLE_DEVICES=all" in asked.read_text()


def test_a_variable_of_the_images_gives_no_cards(ground: Arena) -> None:
    image = ground.engine.image({"Env": ["NVIDIA_VISIBLE_DEVICES=all"]})
    rental = RentalId("srv_cards")
    ground.run(ground.manager().start(ground.order(rental, image=image), ignore))
    result = ground.run(
        ground.manager().exec(rental, 1, ("sh", "-c", "tr '\\0' '\\n' < /proc/1/environ"), 30)
    )
    ground.run(ground.manager().destroy(rental, 1))
    assert "NVIDIA_VISIBLE_DEVICES=void" in result.stdout
