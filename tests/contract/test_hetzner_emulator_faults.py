"""Everything that goes wrong at the emulated Hetzner Cloud is seen through its stock client, and comes from a seed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import requests
from hcloud import APIException, Client
from hcloud.server_types import ServerType

from tests.contract.hetzner_scene import Scene, open_scene
from tests.emulators.hetzner.app import TOKEN, ConnectionLost, Emulator
from tests.emulators.hetzner.faults import (
    ANY,
    KINDS,
    ActionFails,
    ActionSticks,
    Drained,
    Gateway,
    LostAnswer,
    LostRequest,
    Refuse,
    Slow,
    StaleList,
    Truncated,
    Vanish,
)
from tests.engines import ROOT
from tests.harness import VirtualClock

CREATE = "POST /servers"


@pytest.fixture
def scene() -> Iterator[Scene]:
    with open_scene() as scene:
        yield scene


# --- answers that do not come ---------------------------------------------------------------------------------------


def test_an_answer_is_lost_after_its_effect(scene: Scene) -> None:
    scene.emulator.faults.plan(CREATE, LostAnswer())
    with pytest.raises(requests.ConnectionError):
        scene.order()
    assert scene.names() == ["web"]
    (entry,) = scene.emulator.calls(CREATE)
    assert (entry.status, entry.fault) == (None, LostAnswer())


def test_a_request_is_lost_before_it_has_any(scene: Scene) -> None:
    scene.emulator.faults.plan(CREATE, LostRequest())
    with pytest.raises(requests.ConnectionError):
        scene.order()
    assert scene.names() == []
    assert scene.order().server.name == "web"


def test_half_an_answer_is_no_json(scene: Scene) -> None:
    scene.emulator.faults.plan(CREATE, Truncated())
    with pytest.raises(APIException) as caught:
        scene.order()
    assert caught.value.code == 201
    with pytest.raises(json.JSONDecodeError):
        json.loads(caught.value.details["content"])
    assert scene.names() == ["web"]


@pytest.mark.parametrize("late", [False, True])
def test_a_slow_answer_outlasts_the_client(scene: Scene, *, late: bool) -> None:
    scene.emulator.bucket.limit = 10**6
    impatient = scene.new_client(TOKEN, timeout_s=0.2)
    impatient._client._retry_max_retries = 0
    scene.emulator.faults.plan("DELETE /servers/{id}", Slow(seconds=1, late=late))
    server = scene.running()
    with pytest.raises(requests.Timeout):
        impatient.servers.delete(server)
    server.reload()
    if late:
        assert server.status == "running", "it has not happened yet"
    for _ in range(100_000):
        if server.status == "deleting":
            break
        server.reload()
    assert server.status == "deleting"


def test_the_stock_client_repeats_a_lost_order_by_itself(scene: Scene) -> None:
    scene.emulator.faults.plan(CREATE, Refuse(code="timeout", after_effect=True))
    with pytest.raises(APIException) as caught:
        scene.order()
    assert caught.value.code == "uniqueness_error"
    assert [entry.code for entry in scene.emulator.calls(CREATE)] == ["timeout", "uniqueness_error"]
    assert scene.names() == ["web"]


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after_effect", [False, True])
@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("server_error", 500),
        ("unavailable", 503),
        ("bad_gateway", 502),
        ("timeout", 504),
        ("conflict", 409),
        ("locked", 423),
        ("rate_limit_exceeded", 429),
        ("resource_unavailable", 412),
    ],
)
def test_an_error_before_or_after_the_effect(
    scene: Scene, code: str, status: int, *, after_effect: bool
) -> None:
    scene.client._client._retry_max_retries = 0
    scene.emulator.faults.plan(CREATE, Refuse(code=code, after_effect=after_effect))
    with pytest.raises(APIException) as caught:
        scene.order()
    assert caught.value.code == code
    assert scene.emulator.log[-1].status == status
    assert scene.names() == (["web"] if after_effect else [])


def test_a_gateway_speaks_no_json(scene: Scene) -> None:
    scene.client._client._retry_max_retries = 0
    scene.emulator.faults.plan(CREATE, Gateway(status=502, after_effect=True))
    with pytest.raises(APIException) as caught:
        scene.order()
    assert (caught.value.code, caught.value.details["content"][:6]) == (502, b"<html>")
    assert scene.names() == ["web"]


def test_a_code_may_come_with_another_status() -> None:
    with open_scene(statuses={"not_found": 400}) as scene:
        with pytest.raises(APIException, match="not_found"):
            scene.client.servers.get_by_id(1)
        assert scene.emulator.log[-1].status == 400


def test_a_burst_ends_when_time_has_brought_new_calls(scene: Scene) -> None:
    scene.client._client._retry_max_retries = 0
    scene.emulator.faults.plan("GET /locations", Drained())
    for _ in range(3):
        with pytest.raises(APIException, match="rate_limit_exceeded"):
            scene.client.locations.get_all()
    scene.clock.advance(1)
    assert len(scene.client.locations.get_all()) == 6


def test_capacity_ends_and_comes_back(scene: Scene) -> None:
    server = scene.stopped()
    scene.world.depleted = {("cx23", "nbg1"), ("cx33", "nbg1")}
    with pytest.raises(APIException, match="resource_unavailable"):
        scene.order("other")
    with pytest.raises(APIException, match="resource_unavailable"):
        server.change_type(ServerType(name="cx33"), upgrade_disk=False)
    assert scene.names() == ["web"]
    small = scene.client.server_types.get_by_name("cx23")
    assert small is not None
    assert all(place.available for place in small.locations or []), "what is available is a hint"
    scene.world.depleted = set()
    assert scene.order("other").server.name == "other"


def test_a_project_has_a_limit(scene: Scene) -> None:
    scene.world.server_limit = 1
    scene.order("one")
    with pytest.raises(APIException) as caught:
        scene.order("two")
    assert caught.value.code == "resource_limit_exceeded"
    assert caught.value.details == {"limits": [{"name": "server_limit"}]}


# --- actions and servers --------------------------------------------------------------------------------------------


def test_an_action_fails_midway_and_leaves_things_as_they_were(scene: Scene) -> None:
    server = scene.stopped()
    scene.emulator.faults.plan(
        "POST /servers/{id}/actions/poweron", ActionFails(code="timeout", message="No.")
    )
    action = server.power_on()
    server.reload()
    assert (action.status, server.status) == ("running", "starting")
    action = scene.finish(action)
    assert (action.status, action.error) == ("error", {"code": "timeout", "message": "No."})
    server.reload()
    assert (server.status, server.locked) == ("off", False)


def test_midway_is_half_the_time() -> None:
    lasting = []
    for fault in (None, ActionFails()):
        with open_scene() as scene:
            scene.emulator.faults.plan(CREATE, fault)
            action = scene.world.actions[scene.order().action.id]
            assert action.ends_ms is not None
            lasting.append(action.ends_ms - action.started_ms)
    assert lasting[1] == lasting[0] // 2


def test_a_creation_that_fails_leaves_a_server_that_is_off(scene: Scene) -> None:
    scene.emulator.faults.plan(CREATE, ActionFails())
    response = scene.order()
    for action in (response.action, *response.next_actions):
        assert scene.finish(action).status == "error"
    response.server.reload()
    assert response.server.status == "off"
    scene.finish(response.server.delete())
    assert scene.names() == []


def test_an_action_sticks_and_locks_its_server(scene: Scene) -> None:
    server = scene.running()
    scene.emulator.faults.plan("POST /servers/{id}/actions/reboot", ActionSticks())
    action = server.reboot()
    scene.clock.advance(86_400)
    action.reload()
    assert (action.status, action.progress, action.finished) == ("running", 50, None)
    with pytest.raises(APIException, match="locked"):
        server.delete()
    scene.emulator.unstick()
    action.reload()
    assert (action.status, action.error["code"]) == ("error", "timeout")
    scene.finish(server.delete())


def test_an_order_that_sticks_for_a_while_fails_as_a_whole(scene: Scene) -> None:
    scene.emulator.faults.plan(CREATE, ActionSticks(seconds=600))
    response = scene.order()
    scene.clock.advance(599)
    response.server.reload()
    assert (response.server.status, response.server.locked) == ("initializing", True)
    scene.clock.advance(1)
    for action in (response.action, *response.next_actions):
        assert scene.finish(action).status == "error"
    response.server.reload()
    assert (response.server.status, response.server.locked) == ("off", False)


def test_a_server_vanishes(scene: Scene) -> None:
    server = scene.running()
    scene.emulator.faults.plan("POST /servers/{id}/actions/reboot", Vanish())
    action = server.reboot()
    with pytest.raises(APIException, match="not_found"):
        server.reload()
    assert scene.names() == []
    assert scene.client.primary_ips.get_all() == []
    action.reload()
    assert action.status == "error"
    other = scene.running()
    scene.emulator.vanish(other.id)
    assert scene.names() == []


def test_a_list_lags_behind(scene: Scene) -> None:
    old = scene.running("old")
    scene.finish(old.delete())
    new = scene.order("new").server
    scene.emulator.faults.plan("GET /servers", StaleList(seconds=90))
    assert scene.names() == ["old"]
    assert scene.names() == ["new"]
    scene.emulator.stale_ms = 5_000
    assert scene.names(name="new") == []
    assert scene.client.servers.get_by_id(new.id).name == "new"
    with pytest.raises(APIException, match="uniqueness_error"):
        scene.order("new")
    scene.clock.advance(5)
    assert scene.names() == ["new"]


# --- plans and chance -----------------------------------------------------------------------------------------------


def test_a_fault_that_could_not_be_seen_is_refused() -> None:
    faults = Emulator(VirtualClock().now_ms).faults
    for operation, fault in (
        ("GET /servers", ActionFails()),
        ("PUT /servers/{id}", ActionSticks()),
        ("GET /ssh_keys", Vanish()),
        ("GET /images", StaleList()),
        ("GET /servers", Refuse(code="timeout", after_effect=True)),
    ):
        with pytest.raises(ValueError, match="cannot show"):
            faults.plan(operation, fault)
    with pytest.raises(ValueError, match="no such faults: gremlins"):
        faults.set_rates(gremlins=1)


def test_a_fault_for_any_call_waits_for_one_that_can_show_it() -> None:
    faults = Emulator(VirtualClock().now_ms).faults
    faults.plan(ANY, ActionFails())
    assert [
        faults.draw(operation) for operation in ("GET /servers", "PUT /servers/{id}", CREATE, CREATE)
    ] == [
        None,
        None,
        ActionFails(),
        None,
    ]


def test_plans_come_in_order_and_let_calls_pass(scene: Scene) -> None:
    scene.client._client._retry_max_retries = 0
    scene.emulator.faults.plan("GET /locations", None, Refuse(code="server_error"))
    scene.emulator.faults.plan(ANY, Refuse(code="unavailable"))
    assert len(scene.client.locations.get_all()) == 6
    for code in ("server_error", "unavailable"):
        with pytest.raises(APIException, match=code):
            scene.client.locations.get_all()
    assert len(scene.client.locations.get_all()) == 6


def met(seed: int, kind: str, permille: int) -> list[str | None]:
    faults = Emulator(VirtualClock().now_ms, seed=seed).faults
    faults.set_rates(**{kind: permille})
    drawn = []
    for number in range(300):
        for operation in (CREATE, "POST /servers/{id}/actions/change_type", "GET /servers"):
            fault = faults.draw(operation)
            drawn.append(None if fault is None else repr(fault))
        if number % 3 == 0:
            faults.draw("GET /images")
    return drawn


@pytest.mark.parametrize("kind", KINDS)
def test_chance_meets_each_kind_and_follows_its_seed(kind: str) -> None:
    drawn = met(1, kind, 100)
    assert drawn == met(1, kind, 100)
    assert drawn != met(2, kind, 100)
    assert 10 < sum(fault is not None for fault in drawn) < 150
    assert set(met(1, kind, 0)) == {None}


def test_what_is_called_in_between_does_not_change_what_is_met() -> None:
    drawn: list[list[object]] = []
    for between in (0, 7):
        faults = Emulator(VirtualClock().now_ms, seed=3).faults
        faults.set_rates(lost_answer=300)
        drawn.append([])
        for _ in range(50):
            drawn[-1].append(faults.draw(CREATE))
            for _ in range(between):
                faults.draw("GET /images")
    assert drawn[0] == drawn[1]


# --- in one process, and in another ---------------------------------------------------------------------------------


async def test_without_a_socket_a_lost_answer_is_an_exception() -> None:
    emulator = Emulator(VirtualClock().now_ms)
    emulator.faults.plan("GET /locations", LostAnswer())
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=emulator),
        base_url="http://hetzner.test/v1",
        headers={"Authorization": f"Bearer {TOKEN}"},
    ) as client:
        with pytest.raises(ConnectionLost):
            await client.get("/locations")
        assert (await client.get("/locations")).status_code == 200


def test_the_same_seed_is_the_same_world() -> None:
    def told(seed: int) -> object:
        with open_scene(seed=seed) as scene:
            response = scene.order()
            return response.server.id, response.action.id, response.root_password

    assert told(1) == told(1) != told(2)


def test_it_runs_as_a_process_with_faster_time() -> None:
    command = [
        sys.executable,
        "-m",
        "tests.emulators.hetzner",
        "--speed",
        "100000",
        "--fault",
        "lost_answer=0",
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            endpoint, token = process.stdout.readline().split()
            client: Any = Client(token, api_endpoint=endpoint, timeout=10, poll_interval=0)
            response = client.servers.create(
                name="web",
                server_type=ServerType(name="cx23"),
                image=client.images.get_all(name="debian-12")[0],
            )
            response.next_actions[0].wait_until_finished()
            assert client.servers.get_by_id(response.server.id).status == "running"
        finally:
            process.terminate()
