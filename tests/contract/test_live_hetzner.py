"""The operator's script for the real Hetzner, on the emulated one: it finds what differs, and leaves nothing behind."""

import json
import re
import time
from collections.abc import Callable, Iterator
from email import message_from_string
from email.message import Message

import pytest
from hcloud import Client
from hcloud.images import Image
from hcloud.server_types import ServerType
from spawn_providers.hetzner.names import ID_LABEL

from tests.emulators.hetzner.app import TOKEN, Emulator
from tests.emulators.hetzner.faults import ActionFails, Gateway, LostAnswer, Slow
from tests.emulators.hetzner.serving import serving
from tests.emulators.hetzner.world import Server, World
from tests.live import hetzner

SPEED = 300
"""A life takes minutes; the script waits for it in real time."""


def _now_ms() -> int:
    return 1_800_000_000_000 + time.monotonic_ns() * SPEED // 10**6


def guest(world: World) -> Callable[[Server], None]:
    """A guest with cloud-init, as far as the script's user data asks for it."""

    def cloud_init(server: Server) -> None:
        if not server.user_data:
            return
        parts = [
            _text(part) for part in message_from_string(server.user_data).walk() if not part.is_multipart()
        ]
        files, keys = set[str](), {world.ssh_keys[id_].public_key for id_ in server.ssh_keys}
        for config in (json.loads(p.partition("\n")[2]) for p in parts if p.startswith("#cloud-config\n")):
            files |= {file["path"] for file in config.get("write_files", [])}
            if not config.get("allow_public_ssh_keys", True):
                keys = set()
            keys |= set(config.get("ssh_authorized_keys", []))
        blobs = {key.split()[1] for key in keys}
        [script] = [part for part in parts if part.startswith("#!")]
        if all(_holds(check, files, blobs) for check in script.splitlines()[1].split(" && ")[:-1]):
            world.schedule(world.at_ms + 20_000, lambda: setattr(server, "status", "off"))

    return cloud_init


def _text(part: Message) -> str:
    payload = part.get_payload(decode=True)
    assert isinstance(payload, bytes)
    return payload.decode()


def _holds(check: str, files: set[str], keys: set[str]) -> bool:
    if match := re.fullmatch(r"\[ -f (\S+) \]", check):
        return match[1] in files
    match = re.fullmatch(r"(! )?grep -q (\S+) \S+", check)
    assert match is not None, check
    return (match[2] in keys) is (match[1] is None)


@pytest.fixture
def emulator() -> Emulator:
    emulator = Emulator(_now_ms)
    emulator.world.cloud_init = guest(emulator.world)
    return emulator


@pytest.fixture
def endpoint(emulator: Emulator) -> Iterator[str]:
    with serving(emulator) as endpoint:
        yield endpoint


def _run(endpoint: str, *, cap: str = "0.10", token: str = TOKEN) -> int:
    argv = ["--cap", cap, "--endpoint", endpoint, "--pause", "0.01"]
    return hetzner.main(argv, {hetzner.TOKEN: token} if token else {}, lambda: _now_ms() / 1_000)


def test_nothing_differs_from_what_the_emulator_was_built_from(
    emulator: Emulator, endpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(endpoint) == 0
    said = capsys.readouterr().out
    assert "nothing of this run is left" in said
    assert "0 differences" in said
    changes = {entry.operation.rpartition("/")[2] for entry in emulator.log if entry.method != "GET"}
    assert {"change_type", "rebuild", "reset_password"} <= changes
    assert emulator.calls("POST /servers")
    assert emulator.calls("DELETE /servers/{id}")
    assert not emulator.world.servers
    assert not emulator.world.ssh_keys
    for assumption in (
        "a name is free when its machine is gone",
        "user data arrives, both parts of it, and the key",
        "it has no IPv4 address",
        "after a rebuild the new key may log in, and the old one may not",
        "DELETE /servers/{id} is refused as protected",
    ):
        assert f"  as assumed  {assumption}\n" in said


@pytest.mark.parametrize("lost", ["user data", "our part", "keys", "rebuild"])
def test_what_does_not_reach_a_machine_is_a_difference(
    emulator: Emulator, endpoint: str, lost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    honest, boots = emulator.world.cloud_init, 0

    def deaf(server: Server) -> None:
        nonlocal boots
        if not server.user_data:
            return
        boots += 1
        if lost == "user data":
            return
        if lost == "our part":
            server.user_data = server.user_data.replace('/var/lib/spawn-live"', '/elsewhere"')
        if lost == "keys":
            server.ssh_keys = []
        if lost == "rebuild" and boots == 2:
            server.user_data = server.user_data.replace("allow_public_ssh_keys", "ignored")
        honest(server)

    emulator.world.cloud_init = deaf
    assert _run(endpoint) == 1
    said = capsys.readouterr().out.rpartition("differences\n")[2].splitlines()
    assert all("no sign of it" in line for line in said)
    assert len(said) == {"user data": 2, "our part": 2, "keys": 1, "rebuild": 1}[lost]
    assert not emulator.world.servers


def test_another_status_is_a_difference(capsys: pytest.CaptureFixture[str]) -> None:
    emulator = Emulator(_now_ms, statuses={"locked": 409})
    emulator.world.cloud_init = guest(emulator.world)
    with serving(emulator) as endpoint:
        assert _run(endpoint) == 1
    last = capsys.readouterr().out.rpartition("differences\n")[2]
    assert last.splitlines() == ["  error locked has status 423: found 409"]
    assert not emulator.world.servers


@pytest.mark.parametrize("operation", ["POST /servers", "POST /servers/{id}/actions/rebuild"])
def test_what_breaks_midway_is_told_and_destroyed(
    emulator: Emulator, endpoint: str, operation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = ActionFails(code="server_error", message="it broke")
    # The first order is the question that is refused.
    emulator.faults.plan(operation, *([None] if operation == "POST /servers" else []), broken)
    assert _run(endpoint) == 1
    assert "it broke" in capsys.readouterr().out
    assert not emulator.world.servers


@pytest.mark.parametrize("fault", [LostAnswer(), Slow(seconds=0.3, late=True)], ids=["lost", "late"])
def test_what_was_made_without_an_answer_is_destroyed(
    emulator: Emulator, endpoint: str, fault: LostAnswer | Slow, capsys: pytest.CaptureFixture[str]
) -> None:
    emulator.faults.plan("POST /ssh_keys", fault)
    emulator.faults.plan("POST /servers", LostAnswer(), fault)
    _run(endpoint)
    assert "nothing of this run is left" in capsys.readouterr().out
    assert not emulator.world.servers
    assert not emulator.world.ssh_keys


def test_a_machine_that_cannot_be_destroyed_at_once_is_destroyed_later(
    emulator: Emulator, endpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    emulator.faults.plan("DELETE /servers/{id}", *[Gateway(status=502)] * 4)
    assert _run(endpoint) == 1
    assert "NOT DESTROYED" not in capsys.readouterr().err
    assert not emulator.world.servers


def test_what_costs_more_than_the_cap_is_not_begun(
    emulator: Emulator, endpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(endpoint, cap="0.01") == 2
    assert "more than --cap 0.01" in capsys.readouterr().err
    assert all(entry.method == "GET" for entry in emulator.log)


def test_a_project_with_machines_of_ours_is_left_alone(
    emulator: Emulator, endpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = Client(TOKEN, api_endpoint=endpoint, timeout=5).servers.create(
        name="sp-one",
        server_type=ServerType(name="cx23"),
        image=Image(name="debian-12"),
        labels={ID_LABEL: "srv_one"},
    )
    seen = len(emulator.log)
    assert _run(endpoint) == 2
    assert "use a project of its own" in capsys.readouterr().err
    assert all(entry.method == "GET" for entry in list(emulator.log)[seen:])
    assert ours.server.id in emulator.world.servers


@pytest.mark.parametrize(("token", "said"), [("", "set SPAWN_HETZNER_TOKEN"), ("wrong", "token")])
def test_who_has_no_token_is_told_so(
    endpoint: str, token: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(endpoint, token=token) == 2
    assert said in capsys.readouterr().err
