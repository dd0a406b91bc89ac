"""What the host agent refuses before Docker hears of it, and the text of its walls: pure, without an engine."""

from pathlib import Path

import msgspec
import pytest
from spawn_hostagent.config import Images
from spawn_hostagent.docker.images import check_name
from spawn_hostagent.docker.rentals import bridge_name, container_name
from spawn_hostagent.machines import MachineError
from spawn_hostagent.walls.admission import Lent, Taken, check_room, free
from spawn_hostagent.walls.firewall import (
    RULES,
    connections_each,
    counting,
    resolvers_of_machine,
    ruleset,
)
from spawn_hostagent.walls.isolation import LINES, Wanted, settings_of
from spawn_hostagent.walls.networks import POOL, free_subnets, routes
from spawn_schemas.ids import RentalId
from spawn_schemas.orders import StartInstance

DIGEST = "@sha256:" + "0a" * 32


def allowed(name: str, *allow: str) -> bool:
    try:
        check_name(name, Images(allow=allow))
    except MachineError as error:
        if error.problem.code != "image_refused":
            raise
        return False
    return True


@pytest.mark.parametrize(
    "name",
    ["debian", "debian:12", "debian@sha256:00", "https://ghcr.io/a/b" + DIGEST, "debian:12" + DIGEST, "../etc" + DIGEST,
     "Debian" + DIGEST, "debian" + DIGEST + "\n", "debian" + DIGEST.upper(), "-v" + DIGEST, "a//b" + DIGEST,
     "debian" + DIGEST + " --privileged", "x" * 250 + DIGEST, "", "localhost/x" + DIGEST, "localhost:5000/x" + DIGEST,
     "127.0.0.1:5000/x" + DIGEST, "10.0.0.1/x" + DIGEST, "nas.local/x" + DIGEST, "registry.lan/x" + DIGEST,
     "0x7f.1/x" + DIGEST, "ghcr.io:8443/x" + DIGEST, "metadata.google.internal/x" + DIGEST],
)  # fmt: skip
def test_no_image_but_of_a_public_registry_by_digest(name: str) -> None:
    assert not allowed(name, "")


@pytest.mark.parametrize("name", ["debian", "nvidia/cuda", "ghcr.io/acme/tool", "docker.io/library/debian"])
def test_an_honest_image_is_allowed(name: str) -> None:
    assert allowed(name + DIGEST, "")


@pytest.mark.parametrize(
    ("name", "is_allowed"),
    [
        ("debian", True),
        ("nvidia/cuda", True),
        ("ghcr.io/acme/tool", True),
        ("nvcr.io/nvidia/cuda", True),
        ("169.254.169.254.nip.io/x", False),
        ("registry.example/x", False),
        ("ghcr.io.evil.example/x", False),
    ],
)
def test_by_default_no_stranger_says_where_docker_dials(name: str, is_allowed: bool) -> None:
    assert allowed(name + DIGEST, *Images().allow) is is_allowed


def test_a_refusal_says_what_is_allowed() -> None:
    with pytest.raises(MachineError, match=r"images of ghcr\.io/acme\."):
        check_name("debian" + DIGEST, Images(allow=("ghcr.io/acme",)))


def test_a_list_allows_places_not_beginnings_of_words() -> None:
    assert allowed("ghcr.io/acme/tool" + DIGEST, "ghcr.io/acme")
    assert not allowed("ghcr.io/acme-evil/tool" + DIGEST, "ghcr.io/acme")
    assert not allowed("docker.io/ghcr.io/acme" + DIGEST, "ghcr.io/acme")
    assert allowed("debian" + DIGEST, "docker.io/library")
    assert allowed("127.0.0.1:5000/x" + DIGEST, "127.0.0.1:5000")
    assert not allowed("debian" + DIGEST, "nvidia")


def test_room_is_what_is_lent_and_not_taken() -> None:
    lent = Lent(cpus=4, memory_mib=4096, disk_mib=1000, gpus=("a", "b"), rentals=2)
    taken = Taken(cpus=3.5, memory_mib=1024, disk_mib=100, gpus=("a",))
    left = free(lent, [taken])
    assert (left.cpus, left.memory_mib, left.disk_mib, left.gpus, left.rentals) == (0.5, 3072, 900, ("b",), 1)
    assert free(lent, [taken, taken, taken]).cpus == 0
    order = StartInstance(
        rental_id=RentalId("srv_a"), generation=1, image="x", hostname="x", cpus=0.5, memory_mib=3072, disk_mib=900,
        lease_expires_at=0, gpus=("b",),
    )  # fmt: skip
    check_room(order, lent, [taken])
    for change, code in (
        ({"cpus": 0.51}, "no_room"),
        ({"cpus": 4.1}, "over_limits"),
        ({"memory_mib": 3073}, "no_room"),
        ({"disk_mib": 1001}, "over_limits"),
        ({"gpus": ("a",)}, "gpu_unavailable"),
        ({"gpus": ("c",)}, "over_limits"),
    ):
        with pytest.raises(MachineError) as caught:
            check_room(msgspec.structs.replace(order, **change), lent, [taken])
        assert caught.value.problem.code == code
    with pytest.raises(MachineError) as caught:
        check_room(
            msgspec.structs.replace(order, cpus=0.1), lent, [taken, Taken(cpus=0, memory_mib=0, disk_mib=0)]
        )
    assert caught.value.problem.code == "no_room"


def test_the_profile_mounts_nothing_of_the_host_and_says_each_setting_once() -> None:
    wanted = Wanted(
        cpus=1.5, memory_mib=64, disk_mib=64, network="spawn-x-1", resolvers=("9.9.9.9",), disk_limit="loop",
        volume=("spawn-x-1", "/root"), ports=(22,), gpus=("GPU-1",),
    )  # fmt: skip
    settings = settings_of(LINES, wanted)
    assert settings["mem_limit"] == settings["memswap_limit"] == 64 * 1024 * 1024
    assert settings["nano_cpus"] == 1_500_000_000
    assert settings["cap_drop"] == ["ALL"]
    assert settings["binds"] == {"spawn-x-1": {"bind": "/root", "mode": "rw"}}
    assert settings["port_bindings"] == {22: ("127.0.0.1", None)}
    assert settings["device_requests"] == [
        {"Driver": "", "Count": 0, "DeviceIDs": ["GPU-1"], "Capabilities": [["gpu"]], "Options": {}}
    ]
    assert all(line.reason for line in LINES)
    with pytest.raises(ValueError, match="nano_cpus"):
        settings_of((*LINES, LINES[1]), wanted)


def test_the_walls_are_one_table_with_a_reason_for_each_rule() -> None:
    text = ruleset(RULES, ("192.168.1.1",), 100, {"spw-0123": 8, "spw-4567": None})
    assert text.startswith('define tenants = "spw-*"\ntable inet spawn {}\ndelete table inet spawn\n')
    assert text.count("priority -10") == 3
    assert 'iifname "spw-0123" limit rate over 1000000 bytes/second' in text
    assert "iifname $tenants limit rate over 12500000 bytes/second" in text
    assert 'iifname "spw-4567" limit' not in text
    counts = counting(RULES, 4096)
    assert counts.startswith("table inet spawn_counts {}\ndelete table inet spawn_counts\n")
    assert 'iifname "spw-*" ct state new add @counted { iifname ct count over 4096 } counter drop' in counts
    assert all(rule.reason for rule in RULES)
    with pytest.raises(ValueError, match="accept"):
        ruleset(RULES, ("1.1.1.1 } ; accept",), None, {})


@pytest.mark.parametrize(
    ("followed", "rentals", "each"),
    [
        ("262144\n", 16, 4096),
        ("262144\n", 1, 4096),
        ("65536\n", 16, 2048),
        ("65536\n", 4, 4096),
        ("65536\n", 256, 128),
        ("100\n", 256, 1),
        ("0\n", 16, 2048),
        ("?", 16, 2048),
        (None, 16, 2048),
    ],
)
def test_all_tenants_together_leave_half_of_the_connections_to_the_owner(
    tmp_path: Path, followed: str | None, rentals: int, each: int
) -> None:
    file = tmp_path / "nf_conntrack_max"
    if followed is not None:
        file.write_text(followed)
    assert connections_each(rentals, file) == each


def test_addresses_are_chosen_beside_what_is_used() -> None:
    table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\n"
    table += "up0\t00000000\t014DA8C0\t0003\t0\t0\t0\t00000000\t0\n"
    table += "up0\t0000D50A\t00000000\t0001\t0\t0\t0\tF8FFFFFF\t0\n"
    (used,) = routes(table)
    assert str(used) == "10.213.0.0/29"
    assert str(next(free_subnets([used]))) == "10.213.0.8/29"
    assert next(free_subnets([POOL]), None) is None


def test_a_bridge_has_a_name_that_linux_takes() -> None:
    names = {
        bridge_name(container_name(RentalId("srv_" + "a" * 26), generation)) for generation in range(100)
    }
    assert len(names) == 100
    assert all(len(name) <= 15 and name.startswith("spw-") for name in names)


def test_a_resolver_on_loopback_is_no_use_to_a_container(tmp_path: Path) -> None:
    folder = tmp_path
    (folder / "stub").write_text("nameserver 127.0.0.53\nnameserver ::1\nnameserver\n")
    (folder / "real").write_text("# home\nnameserver 192.168.1.1\nnameserver fe80::1\nsearch lan\n")
    assert resolvers_of_machine([folder / "missing", folder / "stub", folder / "real"]) == (
        "192.168.1.1",
        "1.1.1.1",
    )
    (folder / "many").write_text("".join(f"nameserver 192.168.1.{last}\n" for last in (1, 1, 2, 3)))
    assert resolvers_of_machine([folder / "many"]) == ("192.168.1.1", "192.168.1.2", "1.1.1.1")
    assert resolvers_of_machine([folder / "stub"]) == ("1.1.1.1", "9.9.9.9")
