"""The emulated Hetzner Cloud as its stock client finds it: what can be ordered and done, and what is refused."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from hcloud import APIException
from hcloud.actions import ActionFailedException
from hcloud.images import Image
from hcloud.locations import Location
from hcloud.server_types import ServerType
from hcloud.servers import ServerCreatePublicNetwork
from hcloud.ssh_keys import SSHKey

from tests.contract.hetzner_scene import LABELS, Scene, open_scene, public_key
from tests.emulators.hetzner.app import READ_ONLY_TOKEN


@pytest.fixture
def scene() -> Iterator[Scene]:
    with open_scene() as scene:
        yield scene


def add_key(scene: Scene, number: int = 1) -> Any:
    return scene.client.ssh_keys.create(name=f"key-{number}", public_key=public_key(number))


def refused(code: str) -> Any:
    """The block ends in an error of this code."""
    return pytest.raises(APIException, match=rf"\({code}\b")


# --- a server's life ------------------------------------------------------------------------------------------------


def test_a_server_is_ordered_boots_and_is_deleted(scene: Scene) -> None:
    response = scene.order()
    server = response.server
    assert (server.status, server.locked, server.labels) == ("initializing", True, LABELS)
    assert [response.action.command, *(a.command for a in response.next_actions)] == [
        "create_server",
        "start_server",
    ]
    seen = [(server.status, server.ingoing_traffic)]
    for _ in range(30):
        scene.clock.advance(1)
        server.reload()
        seen.append((server.status, server.ingoing_traffic))
    assert list(dict.fromkeys(seen)) == [("initializing", None), ("starting", None), ("running", 0)]
    assert (server.locked, server.location.name) == (False, "nbg1")
    assert "datacenter" not in scene.client.request("GET", f"/servers/{server.id}")["server"]
    scene.finish(server.delete())
    with refused("not_found"):
        server.reload()
    with refused("not_found"):
        server.delete()


def test_it_stays_off_if_it_is_not_to_be_started(scene: Scene) -> None:
    response = scene.order(start_after_create=False)
    assert response.next_actions == []
    scene.finish(response.action)
    response.server.reload()
    assert response.server.status == "off"


def test_who_gives_no_key_gets_a_password_once(scene: Scene) -> None:
    key = add_key(scene)
    assert scene.order("with-key", ssh_keys=[key]).root_password is None
    assert scene.order("with-key-by-name", ssh_keys=[SSHKey(name=key.name)]).root_password is None
    response = scene.order("without")
    assert response.root_password
    assert response.root_password not in str(scene.client.request("GET", f"/servers/{response.server.id}"))
    with refused("invalid_input"):
        scene.order("with-none", ssh_keys=[SSHKey(name="nobody's")])


def test_rebuilding_gives_a_new_password_by_the_same_rule(scene: Scene) -> None:
    server, other = scene.running("without"), scene.running("with", ssh_keys=[add_key(scene)])
    rebuilt = server.rebuild(Image(name="debian-12"))
    assert rebuilt.root_password
    assert other.rebuild(Image(name="debian-12")).root_password is None
    server.reload()
    assert server.status == "rebuilding"
    scene.finish(rebuilt.action)
    server.reload()
    assert (server.status, server.image.name) == ("running", "debian-12")
    assert scene.world.servers[server.id].root_password == rebuilt.root_password


def test_rebuilding_keeps_the_user_data_unless_it_gets_other(scene: Scene) -> None:
    server = scene.running(user_data="#!/bin/sh\ntrue\n")
    scene.finish(server.rebuild(Image(name="debian-12")).action)
    assert scene.world.servers[server.id].user_data == "#!/bin/sh\ntrue\n"
    scene.finish(server.rebuild(Image(name="debian-12"), user_data="#cloud-config\n").action)
    assert scene.world.servers[server.id].user_data == "#cloud-config\n"


def test_a_password_is_reset_only_where_a_guest_runs(scene: Scene) -> None:
    server = scene.running(ssh_keys=[add_key(scene)])
    reset = server.reset_password()
    scene.finish(reset.action)
    assert scene.world.servers[server.id].root_password == reset.root_password
    scene.finish(server.power_off())
    refused_later = server.reset_password()
    with pytest.raises(ActionFailedException):
        scene.finish(refused_later.action).wait_until_finished()
    assert scene.world.servers[server.id].root_password == reset.root_password


def test_shutdown_succeeds_before_the_server_is_off(scene: Scene) -> None:
    server = scene.running()
    action = server.shutdown()
    scene.clock.advance(2)
    action.reload()
    server.reload()
    assert (action.status, server.status) == ("success", "stopping")
    scene.clock.advance(12)
    server.reload()
    assert server.status == "off"


def test_a_deaf_guest_takes_no_notice_of_a_shutdown(scene: Scene) -> None:
    server = scene.running()
    scene.world.servers[server.id].deaf = True
    assert scene.finish(server.shutdown()).status == "success"
    server.reload()
    assert server.status == "running"
    scene.finish(server.power_off())
    server.reload()
    assert server.status == "off"


def test_power_verbs_move_between_off_and_running(scene: Scene) -> None:
    server = scene.stopped()
    for verb, status in (
        (server.power_off, "off"),
        (server.reboot, "off"),
        (server.power_on, "running"),
        (server.power_on, "running"),
        (server.reboot, "running"),
        (server.reset, "running"),
    ):
        assert scene.finish(verb()).status == "success"
        server.reload()
        assert server.status == status


@pytest.mark.parametrize("seed", range(4))
def test_started_again_while_it_stops_it_runs(seed: int) -> None:
    with open_scene(seed=seed) as scene:
        server = scene.running()
        server.shutdown()
        scene.clock.advance(3)
        server.reload()
        assert server.status == "stopping"
        server.power_on()
        seen = []
        for _ in range(30):
            scene.clock.advance(1)
            server.reload()
            seen.append(server.status)
        assert list(dict.fromkeys(seen)) == ["starting", "running"]


# --- what an order is refused for -----------------------------------------------------------------------------------


def test_a_name_is_taken_once(scene: Scene) -> None:
    first = scene.running()
    with refused("uniqueness_error"):
        scene.order()
    other = scene.order("other").server
    with refused("uniqueness_error"):
        other.update(name="web")
    scene.finish(first.delete())
    assert scene.order().server.name == "web"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"name": "under_score"}, "invalid_input"),
        ({"name": ""}, "invalid_input"),
        ({"server_type": ServerType(name="cx22")}, "invalid_input"),
        ({"location": Location(name="ash")}, "invalid_input"),
        ({"location": Location(name="sin")}, "invalid_input"),
        ({"location": Location(name="atlantis")}, "invalid_input"),
        ({"server_type": ServerType(name="cpx21")}, "invalid_input"),
        ({"server_type": ServerType(name="cpx22"), "location": Location(name="hil")}, "invalid_input"),
        ({"server_type": ServerType(name="cax11"), "location": Location(name="ash")}, "invalid_input"),
        ({"image": Image(name="windows-11")}, "invalid_input"),
        ({"labels": {"wallet": "not a label"}}, "invalid_input"),
        ({"labels": {"hetzner.cloud/x": "reserved"}}, "invalid_input"),
        ({"labels": {"": "no key"}}, "invalid_input"),
        ({"user_data": "x" * (32 * 1024 + 1)}, "invalid_input"),
    ],
)
def test_an_order_that_cannot_be_filled_leaves_nothing(
    scene: Scene, changes: dict[str, Any], code: str
) -> None:
    with refused(code):
        scene.order(**{"name": "web", **changes})
    assert scene.names() == []
    assert scene.client.primary_ips.get_all() == []


def test_what_is_sold_where(scene: Scene) -> None:
    for type_, place in (
        ("cx33", "hel1"),
        ("cax11", "fsn1"),
        ("cpx21", "ash"),
        ("cpx22", "sin"),
        ("ccx13", "hil"),
    ):
        server = scene.order(
            f"{type_}-{place}", server_type=ServerType(name=type_), location=Location(name=place)
        ).server
        assert server.image.architecture == ("arm" if type_ == "cax11" else "x86")


def test_the_largest_user_data_is_taken(scene: Scene) -> None:
    server = scene.order(user_data="x" * 32 * 1024).server
    assert len(scene.world.servers[server.id].user_data) == 32 * 1024


def test_an_image_of_the_other_architecture_is_refused_by_id(scene: Scene) -> None:
    arm = scene.client.images.get_by_name_and_architecture("ubuntu-24.04", "arm")
    assert arm is not None
    with refused("invalid_input"):
        scene.order(image=arm)
    assert scene.order(image=arm, server_type=ServerType(name="cax11")).server.image.id == arm.id


def test_addresses_are_those_that_were_asked_for(scene: Scene) -> None:
    only_6 = scene.order(
        "six", public_net=ServerCreatePublicNetwork(enable_ipv4=False, enable_ipv6=True)
    ).server
    assert only_6.public_net.ipv4 is None
    assert only_6.public_net.ipv6.ip.endswith("::/64")
    neither = scene.order("none", public_net=ServerCreatePublicNetwork(enable_ipv4=False, enable_ipv6=False))
    assert (neither.server.public_net.ipv4, neither.server.public_net.ipv6) == (None, None)
    both = scene.order("both").server
    assert len({both.public_net.ipv4.ip, both.public_net.ipv6.ip, only_6.public_net.ipv6.ip}) == 3


def test_networks_and_firewalls_are_named_by_id_and_in_reach(scene: Scene) -> None:
    scene.world.add_network("inside")
    scene.world.add_network("over-there", ip_range="10.9.0.0/16", zone="us-east")
    scene.world.add_firewall("wall")
    network, far = (
        scene.client.networks.get_by_name("inside"),
        scene.client.networks.get_by_name("over-there"),
    )
    wall = scene.client.firewalls.get_by_name("wall")
    assert network is not None
    assert far is not None
    assert wall is not None
    server = scene.order(networks=[network], firewalls=[wall]).server
    assert [(net.network.id, net.ip) for net in server.private_net] == [(network.id, "10.0.0.2")]
    assert [firewall.firewall.id for firewall in server.public_net.firewalls] == [wall.id]
    network.reload()
    assert [member.id for member in network.servers] == [server.id]
    with refused("invalid_input"):
        scene.order("far", networks=[far])


# --- primary IPs ----------------------------------------------------------------------------------------------------


def test_its_own_addresses_die_with_the_server(scene: Scene) -> None:
    server = scene.running()
    addresses = scene.client.primary_ips.get_all()
    assert {(ip.type, ip.auto_delete, ip.assignee_id) for ip in addresses} == {
        ("ipv4", True, server.id),
        ("ipv6", True, server.id),
    }
    kept = next(ip for ip in addresses if ip.type == "ipv4").update(auto_delete=False)
    with refused("must_be_unassigned"):
        kept.delete()
    scene.finish(server.delete())
    (left,) = scene.client.primary_ips.get_all()
    assert (left.id, left.assignee_id, left.assignee_type) == (kept.id, None, "unassigned")
    again = scene.order("again", public_net=ServerCreatePublicNetwork(ipv4=left)).server
    assert again.public_net.ipv4.ip == kept.ip
    with refused("primary_ip_assigned"):
        scene.order("both", public_net=ServerCreatePublicNetwork(ipv4=left))


def test_addresses_may_outlive_their_server(scene: Scene) -> None:
    scene.world.auto_deletes = False
    scene.finish(scene.running().delete())
    assert [ip.assignee_id for ip in scene.client.primary_ips.get_all()] == [None, None]


# --- locked and protected -------------------------------------------------------------------------------------------


def test_a_server_is_locked_while_something_is_done_to_it(scene: Scene) -> None:
    server = scene.order().server
    for verb in (server.power_off, server.delete, server.reset_password):
        with refused("locked"):
            verb()
    assert server.update(name="renamed").name == "renamed"
    scene.clock.advance(60)
    scene.finish(server.power_off())


def test_protection_is_for_both_or_neither(scene: Scene) -> None:
    server = scene.running()
    with refused("invalid_input"):
        server.change_protection(delete=True)
    assert server.change_protection(delete=True, rebuild=True).status == "success"
    with refused("protected"):
        server.delete()
    with refused("protected"):
        server.rebuild(Image(name="debian-12"))
    server.change_protection(delete=False, rebuild=False)
    scene.finish(server.delete())
    assert scene.names() == []


# --- resizing -------------------------------------------------------------------------------------------------------


def resized(scene: Scene, server: Any, type_: str, *, upgrade_disk: bool) -> Any:
    assert scene.finish(server.change_type(ServerType(name=type_), upgrade_disk)).status == "success"
    server.reload()
    return server


def test_a_server_is_resized_when_it_is_off_and_then_runs(scene: Scene) -> None:
    server = scene.running()
    with refused("server_not_stopped"):
        server.change_type(ServerType(name="cx33"), upgrade_disk=False)
    scene.finish(server.power_off())
    server = resized(scene, server, "cx33", upgrade_disk=False)
    assert (server.status, server.server_type.name, server.primary_disk_size) == ("running", "cx33", 40)


def test_a_disk_that_grew_bars_the_way_back(scene: Scene) -> None:
    server = resized(scene, scene.stopped(), "cx33", upgrade_disk=False)
    scene.finish(server.power_off())
    server = resized(scene, server, "cx23", upgrade_disk=False)
    scene.finish(server.power_off())
    server = resized(scene, server, "cx33", upgrade_disk=True)
    assert server.primary_disk_size == 80
    scene.finish(server.power_off())
    with refused("invalid_server_type"):
        server.change_type(ServerType(name="cx23"), upgrade_disk=False)


def test_a_server_becomes_nothing_that_does_not_fit_it(scene: Scene) -> None:
    server = scene.stopped()
    for type_, code in (
        ("cx23", "invalid_server_type"),
        ("cax21", "invalid_server_type"),
        ("cpx31", "invalid_input"),
        ("cx99", "invalid_input"),
    ):
        with refused(code):
            server.change_type(ServerType(name=type_), upgrade_disk=False)


# --- keys -----------------------------------------------------------------------------------------------------------


def test_a_key_is_there_once_and_found_by_its_fingerprint(scene: Scene) -> None:
    key = add_key(scene)
    assert key.fingerprint.count(":") == 15
    with refused("uniqueness_error"):
        scene.client.ssh_keys.create(name="the-same-key", public_key=public_key(1))
    with refused("uniqueness_error"):
        scene.client.ssh_keys.create(name="key-1", public_key=public_key(2))
    with refused("invalid_input"):
        scene.client.ssh_keys.create(name="no-key", public_key="ssh-ed25519 AAAA")
    add_key(scene, 2)
    found = scene.client.ssh_keys.get_by_fingerprint(key.fingerprint)
    assert found is not None
    assert found.id == key.id
    assert key.update(name="mine", labels={"managed-by": "spawn"}).name == "mine"
    assert [one.id for one in scene.client.ssh_keys.get_all(label_selector="managed-by")] == [key.id]
    key.delete()
    assert scene.client.ssh_keys.get_by_fingerprint(key.fingerprint) is None
    with refused("not_found"):
        key.delete()


# --- actions, metrics, traffic --------------------------------------------------------------------------------------


def test_actions_are_asked_for_by_id(scene: Scene) -> None:
    first, second = scene.order("one"), scene.order("two")
    ids = [first.action.id, second.action.id, second.next_actions[0].id]
    answer = scene.client.request("GET", "/actions", params={"id": [*ids, 1]})
    assert [action["id"] for action in answer["actions"]] == ids
    assert {action["status"] for action in answer["actions"]} == {"running"}
    scene.clock.advance(60)
    answer = scene.client.request("GET", "/actions", params={"id": ids})
    assert {(action["status"], action["progress"]) for action in answer["actions"]} == {("success", 100)}
    with refused("invalid_input"):
        scene.client.request("GET", "/actions")
    commands = [action.command for action in first.server.get_actions(sort=["id:desc"])]
    assert commands == ["start_server", "create_server"]
    assert first.server.get_actions(status=["running"]) == []


def test_metrics_are_text_and_never_too_many(scene: Scene) -> None:
    server = scene.running()
    end = datetime.fromtimestamp(scene.clock.now_s(), UTC)
    measured = server.get_metrics(["cpu", "network"], end - timedelta(hours=24), end, step=1).metrics
    assert set(measured.time_series) == {"cpu"} | {
        f"network.0.{what}.{way}" for what in ("pps", "bandwidth") for way in ("in", "out")
    }
    values = measured.time_series["cpu"]["values"]
    assert 100 < len(values) <= 500
    assert all(0 <= float(text) <= 100 and isinstance(text, str) for _, text in values)
    with refused("invalid_input"):
        scene.client.request("GET", f"/servers/{server.id}/metrics", params={"type": "cpu"})


def test_traffic_is_what_the_test_says(scene: Scene) -> None:
    server = scene.running()
    with scene.emulator.lock:
        scene.world.servers[server.id].outgoing_traffic = 5 * 2**40
    server.reload()
    assert (server.ingoing_traffic, server.outgoing_traffic, server.included_traffic) == (
        0,
        5 * 2**40,
        20 * 2**40,
    )


def test_a_token_that_only_reads(scene: Scene) -> None:
    reader, stranger = scene.new_client(READ_ONLY_TOKEN), scene.new_client("nobody")
    assert len(reader.locations.get_all()) == 6
    with refused("token_readonly"):
        reader.ssh_keys.create(name="key", public_key=public_key())
    with refused("unauthorized"):
        stranger.locations.get_all()


LOGGED: Final = ("POST /servers", "POST", "/servers", 201, None)


def test_every_call_is_logged_as_it_came(scene: Scene) -> None:
    server = scene.order().server
    with refused("locked"):
        server.reboot()
    first, second = scene.emulator.log
    assert (first.operation, first.method, first.path, first.status, first.code) == LOGGED
    assert first.labels == LABELS
    assert first.body["server_type"] == "cx23"
    assert second.operation == "POST /servers/{id}/actions/reboot"
    assert (second.path, second.status, second.code) == (
        f"/servers/{server.id}/actions/reboot",
        423,
        "locked",
    )
    assert scene.emulator.calls("POST /servers") == [first]
