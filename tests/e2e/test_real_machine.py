"""A server is bought at the emulated Hetzner, and a real Debian is started with what that was told.

Invariant: the machine knows what Hetzner would tell it, and its owner what the API says; nothing is handed past them.
"""

from pathlib import Path
from typing import Any, Final

import httpx

from tests.e2e.test_hetzner_serving import on_hetzner
from tests.emulators.hetzner.app import Emulator
from tests.interop.clients import BUYERS, TIMEOUT_S
from tests.interop.machines import BOOT_TIMEOUT_S, GATEWAY, Machine, login_key, started
from tests.interop.service import RunningService
from tests.interop.story import IDENTIFYING, ORDER, Shopper
from tests.wallets import Wallet

SCRIPT: Final = "#!/bin/sh\necho what the script says before it fails\ntouch /root/ran\nexit 3\n"
USER_DATA: Final = f"""\
Content-Type: multipart/mixed; boundary="theirs"
MIME-Version: 1.0

--theirs
Content-Type: text/cloud-config

#cloud-config
write_files:
- {{path: /root/written, content: by the config}}
--theirs
Content-Type: text/x-shellscript

{SCRIPT}
--theirs--
"""


async def wait_for_report(shopper: Shopper, http: httpx.AsyncClient, server_id: str) -> Any:
    """The server, as its owner sees it once the machine has told how its first start ended."""
    token = (await shopper.buy("POST", "/v1/sessions", credited=IDENTIFYING))["session"]["token"]
    asked = {"type": "server.ready", "wait": "30"}
    for _ in range(BOOT_TIMEOUT_S // 30):
        answer = await http.get("/v1/events", params=asked, headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 200, answer.text
        if answer.json()["events"]:
            shown = await shopper.read(token, "/v1/servers/{server_id}", server_id=server_id)
            return shown["server"]
    raise AssertionError("the machine told nothing")


def told_by_hetzner(emulator: Emulator) -> str:
    """The user data of the only machine that was ordered."""
    with emulator.lock:
        (order,) = [entry for entry in emulator.log if entry.operation == "POST /servers"]
    text: str = order.body["user_data"]
    return text


def run(machine: Machine, server: Any, command: str) -> str:
    done = machine.ssh(server["known_hosts"], server["public_net"]["ipv4"], command)
    assert done.returncode == 0, f"{done.stderr}\n{machine.console[-3000:]}"
    return done.stdout


async def test_a_bought_server_boots_as_the_api_says(tmp_path: Path) -> None:
    wallet, key = Wallet.numbered(1), login_key(tmp_path)
    with on_hetzner(tmp_path, {"SPAWN_PUBLIC_URL": f"http://{GATEWAY}"}) as (service, emulator):
        await service.mint(wallet, "2.00")
        async with (
            BUYERS["x402[httpx]"].open(service.url, wallet, None) as client,
            httpx.AsyncClient(base_url=service.url, timeout=TIMEOUT_S, trust_env=False) as http,
        ):
            shopper = Shopper(service, http, client, wallet, pays_by_x402=2, signs_in=False)
            registered = {"name": "laptop", "public_key": key.with_suffix(".pub").read_text().strip()}
            key_id = (await shopper.buy("POST", "/v1/ssh-keys", registered))["ssh_key"]["id"]
            order = ORDER | {"name": "real", "user_data": USER_DATA, "fund": "0.90", "ssh_keys": [key_id]}
            bought = await shopper.buy("POST", "/v1/servers", order, credited="0.90")
            with started(tmp_path, told_by_hetzner(emulator), key, port=port_of(service)) as machine:
                server = await wait_for_report(shopper, http, bought["server"]["id"])
                assert server["ready"]["ssh"] is not None
                assert server["ready"]["cloud_init"] == "failed"
                assert "\nwhat the script says before it fails\n" in server["ready"]["log"]
                assert run(machine, server, "cat /root/written") == "by the config"
                assert run(machine, server, "ls /root/ran") == "/root/ran\n"


def port_of(service: RunningService) -> int:
    port = httpx.URL(service.url).port
    assert port is not None
    return port
