"""`spawn serve` on the emulated Hetzner, bought from by a stock x402 client: what each bought call makes us call there.

Invariant: the service is a process of its own, which knows an endpoint and a token and nothing else; what it asked of
Hetzner is read from the emulator's log, call by call.
"""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import httpx
from spawn_providers.hetzner.names import fingerprint_of, key_name, server_name, uses_label
from spawn_schemas.ids import ServerId

from spawn.domain.host_keys import public_of
from spawn.setting_reader import read_settings
from spawn.store.migrate import migrate
from tests.emulators.hetzner import catalog
from tests.emulators.hetzner.app import TOKEN, Emulator, Entry
from tests.emulators.hetzner.serving import serving as emulating
from tests.interop.clients import BUYERS, TIMEOUT_S, Client
from tests.interop.service import RunningService, in_folder, serving
from tests.interop.story import ORDER, Route, Shopper, live_a_life
from tests.wallets import Wallet

SPEED: Final = 100
"""A boot of half a minute in a third of a second; we look at a running action each three seconds."""
SCRIPT: Final = "#!/bin/sh\napt-get install -y no-such-package\n"
ACTION: Final = "POST /servers/{{id}}/actions/{}".format
CHANGED: Final[dict[Route, tuple[str, ...]]] = {
    ("POST", "/v1/servers"): ("POST /ssh_keys", "POST /servers"),
    ("POST", "/v1/servers/{server_id}/start"): (ACTION("poweron"),),
    ("POST", "/v1/servers/{server_id}/stop"): (ACTION("shutdown"),),
    ("POST", "/v1/servers/{server_id}/poweroff"): (ACTION("poweroff"),),
    ("POST", "/v1/servers/{server_id}/reboot"): (ACTION("reboot"),),
    # It starts by itself afterwards.
    ("POST", "/v1/servers/{server_id}/resize"): (ACTION("shutdown"), ACTION("change_type")),
    ("POST", "/v1/servers/{server_id}/rebuild"): (ACTION("rebuild"),),
    ("DELETE", "/v1/servers/{server_id}"): ("DELETE /servers/{id}",),
}
"""The specification's mapping, row by row, as what each makes us change at Hetzner.

Any other call changes nothing there, a key's registration included: a key is brought along by the first server that is
ordered with it, because two wallets may have the same one and Hetzner keeps it once; and it goes by an inventory after
the last.
"""


@dataclass(frozen=True, kw_only=True)
class Bought:
    """One bought call, and what it made the service ask of Hetzner until its action had ended."""

    route: Route
    body: Any
    answer: Any
    asked: tuple[Entry, ...]

    @property
    def changed(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.asked if entry.method != "GET")


class Watched(Shopper):
    """A shopper of whose purchases the other end is seen, too."""

    emulator: Emulator
    calls: list[Bought]

    async def buy(
        self,
        method: str,
        template: str,
        body: object = None,
        *,
        query: str = "",
        credited: str = "0",
        **ids: str,
    ) -> Any:
        before = len(self.emulator.log)
        answer = await super().buy(method, template, body, query=query, credited=credited, **ids)
        with self.emulator.lock:
            asked = tuple(self.emulator.log)[before:]
        self.calls.append(Bought(route=(method, template), body=body, answer=answer, asked=asked))
        return answer

    def one(self, method: str, template: str) -> Bought:
        """The only call of that route."""
        (bought,) = (call for call in self.calls if call.route == (method, template))
        return bought


@contextmanager
def on_hetzner(
    folder: Path, settings: Mapping[str, str] = MappingProxyType({})
) -> Iterator[tuple[RunningService, Emulator]]:
    """A service whose machines are at Hetzner, whose time runs `SPEED` times as fast."""
    began_ms, began = time.time_ns() // 10**6, time.monotonic()
    emulator = Emulator(lambda: began_ms + int((time.monotonic() - began) * 1_000 * SPEED))
    with emulating(emulator) as endpoint:
        ours = {
            **in_folder(folder),
            "SPAWN_PROVIDERS": "hetzner",
            "SPAWN_HETZNER_ENDPOINT": endpoint,
            "SPAWN_HETZNER_TOKEN": TOKEN,
            "SPAWN_WEBHOOK_NETWORKS": "127.0.0.0/8",
            **settings,
        }
        migrate(ours["SPAWN_DATABASE_URL"])
        with serving(folder, ours, "serve") as listen:
            yield (
                RunningService(url=f"http://{listen}", settings=read_settings(ours, listen=listen)),
                emulator,
            )


async def refused(client: Client, method: str, path: str) -> None:
    answer = await client.call(method, path)
    assert (answer.status, answer.body["error"]["code"]) == (403, "forbidden")


async def test_what_a_stock_client_buys_is_done_at_hetzner(tmp_path: Path) -> None:
    wallet, stranger = Wallet.numbered(1), Wallet.numbered(2)
    with on_hetzner(tmp_path) as (service, emulator):
        await service.mint(wallet, "5.00")
        await service.mint(stranger, "1.00")
        async with (
            BUYERS["x402[httpx]"].open(service.url, wallet, None) as client,
            BUYERS["x402[httpx]"].open(service.url, stranger, None) as other,
            httpx.AsyncClient(base_url=service.url, timeout=TIMEOUT_S, trust_env=False) as http,
        ):
            shopper = Watched(service, http, client, wallet, pays_by_x402=2, signs_in=False)
            shopper.emulator, shopper.calls = emulator, []
            await live_a_life(shopper)
            check_mapping(shopper.calls)
            check_server(shopper, emulator, wallet)
            check_key(shopper)
            without_key = ORDER | {"name": "kept", "fund": "0.50", "user_data": SCRIPT}
            kept = await shopper.buy("POST", "/v1/servers", without_key, credited="0.50")
            assert [entry.operation for entry in shopper.calls[-1].changed] == ["POST /servers"]
            assert kept["root_password"]
            await check_boot(shopper, http, kept["server"]["id"])
            before = len(emulator.log)
            for method, path in (("DELETE", ""), ("POST", "/poweroff"), ("GET", "")):
                await refused(other, method, f"/v1/servers/{kept['server']['id']}{path}")
            assert len(emulator.log) == before
        assert await service.violations() == []


def check_mapping(calls: list[Bought]) -> None:
    """Each call changed what it says and no more; a read asked nothing at all."""
    for call in calls:
        assert tuple(entry.operation for entry in call.changed) == CHANGED.get(call.route, ()), call.route
        assert [entry for entry in call.changed if entry.code is not None] == []
        if call.route[0] == "GET":
            assert call.asked == (), call.route
    assert CHANGED.keys() <= {call.route for call in calls}


def check_server(shopper: Watched, emulator: Emulator, wallet: Wallet) -> None:
    """Every order is for the very machine, in Hetzner's own words for type and image."""
    bought = shopper.one("POST", "/v1/servers")
    server = bought.answer["server"]
    ordered = bought.changed[-1]
    key_text = shopper.one("POST", "/v1/ssh-keys").body["public_key"]
    assert ordered.labels == {
        "spawn-id": server["id"],
        "spawn-wallet": wallet.address,
        "spawn-hostname": "life",
        "spawn-type": "cx23",
        uses_label(fingerprint_of(key_text)): "",
    }
    images = {image.name: image.id for image in catalog.IMAGES if image.architecture == "x86"}
    wanted = {
        "name": server_name(ServerId(server["id"])),
        "server_type": "cx23",
        "image": images["ubuntu-24.04"],
        "location": "nbg1",
    }
    assert wanted.items() <= ordered.body.items()
    later = [entry for call in shopper.calls for entry in call.changed if call is not bought]
    assert {entry.path.split("/actions/")[0] for entry in later} == {f"/servers/{server['hetzner_id']}"}
    change_type = shopper.one("POST", "/v1/servers/{server_id}/resize").changed[1]
    assert change_type.body == {"server_type": "cx33", "upgrade_disk": False}
    rebuild = shopper.one("POST", "/v1/servers/{server_id}/rebuild").changed[0]
    assert rebuild.body["image"] == images["debian-12"]
    assert emulator.world.servers == {}
    assert emulator.world.primary_ips == {}


async def check_boot(shopper: Watched, http: httpx.AsyncClient, server_id: str) -> None:
    """The machine is told the buyer's script, the key that its owner is shown, and where to report."""
    told = shopper.calls[-1].changed[-1].body["user_data"]
    assert SCRIPT in told
    (private,) = re.findall(r"-----BEGIN OPENSSH[^\"]*", told)
    (url,) = re.findall(r"http://[0-9.:]+/v1/boots/[0-9a-f]{64}", told)
    for body in ({"ssh": True}, {"cloud_init": "failed", "log": "no such package\n"}):
        assert (await http.post(url, json=body)).json() == {"status": "recorded"}
    assert (await http.post(url, json={"cloud_init": "done"})).status_code == 404
    shown = (await shopper.buy("GET", "/v1/servers/{server_id}", server_id=server_id))["server"]
    assert shown["ssh_host_keys"] == [public_of(private.replace("\\n", "\n"))]
    assert shown["known_hosts"].endswith(f" {shown['ssh_host_keys'][0]}")
    assert shown["known_hosts"].startswith(shown["public_net"]["ipv4"])
    assert (shown["ready"]["cloud_init"], shown["ready"]["log"]) == ("failed", "no such package\n")
    assert shown["ready"]["ssh"] is not None


def check_key(shopper: Watched) -> None:
    """The key is Hetzner's by its fingerprint, and nobody's by its labels."""
    made = shopper.one("POST", "/v1/servers").changed[0]
    assert made.labels == {"spawn-key": "managed"}
    registered = shopper.one("POST", "/v1/ssh-keys").body["public_key"]
    assert made.body["public_key"] == registered
    assert made.body["name"] == key_name(fingerprint_of(registered))
