"""Whatever is asked of the emulated Hetzner Cloud, in whatever order, while everything goes wrong: it answers as
described, its world stays whole, and the same seed is the same story."""

import random
from collections.abc import Sequence
from typing import Any, Final, TypeVar, get_args
from urllib.parse import urlencode

import httpx
import pytest

from tests.contract.hetzner_scene import public_key
from tests.emulators.hetzner import catalog
from tests.emulators.hetzner.app import _ROUTES, READ_ONLY_TOKEN, TOKEN, ConnectionLost, Emulator
from tests.emulators.hetzner.faults import KINDS, Drained, Fault
from tests.harness import VirtualClock

CALLS: Final = 1_500
CATALOG: Final = {
    "datacenters": (1,),
    "images": tuple(image.id for image in catalog.IMAGES),
    "locations": tuple(place.id for place in catalog.LOCATIONS),
    "server_types": tuple(one.id for one in catalog.SERVER_TYPES),
}
Json = dict[str, Any]
T = TypeVar("T")


class Storm:
    """Calls that are drawn from a seed: most of them make sense, some do not."""

    def __init__(self, seed: int, emulator: Emulator, clock: VirtualClock) -> None:
        self.dice = random.Random(seed)
        self.emulator = emulator
        self.clock = clock

    def some_id(self, kind: str) -> int:
        known = list(CATALOG.get(kind) or getattr(self.emulator.world, kind))
        return self.dice.choice(known) if known and self.dice.random() < 0.9 else self.dice.randrange(10**6)

    def body(self, operation: str) -> Json:
        def draw(wishes: Sequence[T]) -> T:
            """Mostly the first, which is one that can be fulfilled."""
            return wishes[0] if self.dice.random() < 0.85 else self.dice.choice(wishes)

        name = f"name-{self.dice.randrange(100)}"
        labels = draw(({}, {"wallet": "0xaa"}, {"wallet": "not a label"}, {"hetzner.cloud/x": ""}))
        bodies: dict[str, Json] = {
            "POST /servers": {
                "name": draw((name, "under_score")),
                "server_type": draw(("cx23", "cax11", "cpx21", "cx22", 114)),
                "image": draw(("ubuntu-24.04", "fedora-41", "nothing", 67_794_396)),
                "location": draw(("nbg1", "fsn1", "ash", "atlantis")),
                "labels": labels,
                "ssh_keys": draw(([], [self.some_id("ssh_keys")])),
                "start_after_create": self.dice.random() < 0.8,
                "user_data": draw(("", "#cloud-config", "x" * 40_000)),
                "public_net": draw(({}, {"enable_ipv4": False}, {"ipv4": self.some_id("primary_ips")})),
                "networks": draw(([], [self.some_id("networks")])),
                "firewalls": draw(([], [{"firewall": self.some_id("firewalls")}])),
            },
            "PUT /servers/{id}": draw(({"name": name}, {"labels": labels}, {})),
            "POST /servers/{id}/actions/rebuild": {"image": draw(("debian-12", "nothing"))},
            "POST /servers/{id}/actions/change_type": {
                "server_type": draw(("cx33", "cx23", "cx53", "cax21", "cpx31")),
                "upgrade_disk": self.dice.random() < 0.5,
            },
            "POST /servers/{id}/actions/change_protection": draw(
                ({"delete": False, "rebuild": False}, {"delete": True, "rebuild": True}, {"delete": True})
            ),
            "POST /ssh_keys": {
                "name": name,
                "public_key": public_key(self.dice.randrange(40)),
                "labels": labels,
            },
            "PUT /ssh_keys/{id}": {"name": name, "labels": labels},
            "POST /primary_ips": {
                "name": name,
                "type": draw(("ipv4", "ipv6", "ipv5")),
                "assignee_type": "server",
                "location": draw(("nbg1", "atlantis")),
            },
            "PUT /primary_ips/{id}": {"auto_delete": self.dice.random() < 0.5, "labels": labels},
        }
        body = bodies.get(operation, {})
        if body and self.dice.random() < 0.05:
            body |= {"colour": "red"}
        return body

    def query(self, operation: str) -> list[tuple[str, str]]:
        draw = self.dice.choice
        if operation == "GET /actions":
            return [("id", str(self.some_id("actions"))) for _ in range(self.dice.randrange(4))]
        if operation.endswith("metrics"):
            times = [("start", "2026-09-21T00:00:00Z"), ("end", draw(("2026-09-22T00:00:00+00:00", "never")))]
            return [("type", draw(("cpu", "disk,network", "sound"))), *times]
        if operation.endswith("}"):
            return []
        wishes = (
            ("page", draw("0123x")),
            ("per_page", draw(("1", "50", "99"))),
            ("sort", draw(("id:desc", "name", "created:desc", "size"))),
            ("label_selector", draw(("wallet=0xaa", "!wallet", "wallet in (0xaa,0xbb)", "a,,b"))),
            ("name", f"name-{self.dice.randrange(30)}"),
            ("status", draw(("running", "off", "asleep"))),
        )
        return self.dice.sample(wishes, self.dice.randrange(3))

    def path(self, operation: str) -> str:
        template = operation.split(" ")[1]
        kind = template.split("/")[1]
        known = "actions" if template.startswith("/servers/actions") else kind
        if operation.endswith("change_type"):
            return template.format(id=self.resizable())
        id_ = self.some_id(known) if "{id}" in template else 0
        return template.format(id=id_, action_id=self.action_of(id_) if "{action_id}" in template else 0)

    def resizable(self) -> int:
        """A server that is off, if there is one."""
        off = [server.id for server in self.emulator.world.servers.values() if server.status == "off"]
        return self.dice.choice(off) if off else self.some_id("servers")

    def action_of(self, server: int) -> int:
        actions = self.emulator.world.actions.values()
        of_it = [action.id for action in actions if ("server", server) in action.resources]
        return self.dice.choice(of_it) if of_it else self.some_id("actions")

    async def call(self, client: httpx.AsyncClient) -> str:
        weighted = ["POST /servers", "POST /servers/{id}/actions/poweroff"] * 6 + sorted(_ROUTES)
        operation = self.dice.choice(weighted)
        token = self.dice.choices((TOKEN, READ_ONLY_TOKEN, "nobody"), (50, 1, 1))[0]
        try:
            answer = await client.request(
                operation.split(" ")[0],
                "/v1" + self.path(operation),
                params=urlencode(self.query(operation)),
                json=self.body(operation),
                headers={"Authorization": f"Bearer {token}"},
            )
        except ConnectionLost:
            return f"{operation} lost"
        self.clock.advance(self.dice.choice((0, 1, 20)))
        return f"{operation} {answer.status_code} {answer.text}"


def assert_whole(emulator: Emulator) -> None:
    world = emulator.world
    names = [server.name for server in world.servers.values()]
    assert len(set(names)) == len(names)
    fingerprints = [key.fingerprint for key in world.ssh_keys.values()]
    assert len(set(fingerprints)) == len(fingerprints)
    assert {ip.server for ip in world.primary_ips.values()} <= {None, *world.servers}
    assert 0 <= emulator.bucket.remaining <= emulator.bucket.limit
    for action in world.actions.values():
        assert (action.status == "running") == (action.finished_ms is None)
        assert (action.status == "error") == (action.error is not None)


async def story(seed: int, *, faulty: bool) -> tuple[list[str], Emulator]:
    clock = VirtualClock()
    emulator = Emulator(clock.now_ms, seed=seed)
    emulator.faults.slow_s = 0
    emulator.world.add_network("inside")
    emulator.world.add_firewall("wall")
    if faulty:
        emulator.faults.set_rates(**dict.fromkeys(KINDS, 30) | {"drained": 0})
    storm = Storm(seed, emulator, clock)
    transport = httpx.ASGITransport(app=emulator)
    told = []
    async with httpx.AsyncClient(transport=transport, base_url="http://hetzner.test") as client:
        for _ in range(CALLS):
            told.append(await storm.call(client))
            assert_whole(emulator)
    return told, emulator


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_is_asked_the_answer_is_as_described(seed: int) -> None:
    _, emulator = await story(seed, faulty=False)
    assert emulator.violations == []
    assert not any(entry.status is None or entry.status >= 500 for entry in emulator.log)
    assert {entry.operation for entry in emulator.log} == set(_ROUTES)
    done = {entry.operation for entry in emulator.log if entry.status in (200, 201, 204)}
    assert set(_ROUTES) - done == {"GET /datacenters", "GET /datacenters/{id}"}


async def test_whatever_goes_wrong_the_same_seed_is_the_same_story() -> None:
    told, emulator = await story(7, faulty=True)
    assert emulator.violations == []
    assert {type(entry.fault) for entry in emulator.log} == {type(None), *get_args(Fault)} - {Drained}
    again, _ = await story(7, faulty=True)
    assert again == told
    other, _ = await story(8, faulty=True)
    assert other != told
