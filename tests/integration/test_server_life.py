"""The verbs on a server, from its owner and from others, in every state, until long after its end."""

from pathlib import Path
from typing import Any

import pytest
from spawn_providers.simulated_faults import Outage

from tests.harness import ORDER, open_world
from tests.integration.server_steps import (
    DAY,
    action,
    balance,
    code,
    drive,
    machines,
    order,
    recording,
    rent,
    show,
    stored_bytes,
)

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl user@host"
POWER = {
    "stop": ("running", "stop_server", "off"),
    "poweroff": ("running", "poweroff_server", "off"),
    "reboot": ("running", "reboot_server", "running"),
    "start": ("off", "start_server", "running"),
}


@pytest.mark.parametrize("verb", POWER)
async def test_a_power_verb_does_what_it_says(tmp_path: Path, verb: str) -> None:
    before, command, after = POWER[verb]
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        if before == "off":
            await world.sign(wallet, "POST", f"/v1/servers/{server_id}/stop")
            await drive(world)
        available = await world.available(wallet.address)
        answer = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/{verb}")
        assert answer.status_code == 200, answer.text
        assert set(answer.json()) == {"action"}
        started = answer.json()["action"]
        assert set(started) == {"id", "status", "command", "started"}
        assert (started["status"], started["command"]) == ("running", command)
        assert await world.available(wallet.address) == available - 2_000
        await drive(world)
        assert (await show(world, wallet, server_id))["status"] == after
        done = await action(world, started["id"])
        assert (done["status"], done["error"]) == ("success", None)
        await world.check_books()


@pytest.mark.parametrize(
    ("state", "verb"), [("off", "stop"), ("off", "reboot"), ("off", "poweroff"), ("initializing", "stop"),
                        ("initializing", "start"), ("initializing", "resize"), ("initializing", "rebuild")]
)  # fmt: skip
async def test_a_verb_that_the_state_forbids_is_a_conflict_and_costs_nothing(
    tmp_path: Path, state: str, verb: str
) -> None:
    bodies = {"resize": {"type": "medium"}, "rebuild": {"image": "debian-12"}}
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        if state == "off":
            server_id = await rent(world, wallet)
            await world.sign(wallet, "POST", f"/v1/servers/{server_id}/stop")
            await drive(world)
        else:
            server_id = (await order(world, wallet)).json()["server"]["id"]
        available = await world.available(wallet.address)
        refused = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/{verb}", bodies.get(verb))
        assert code(refused) == (409, "conflict")
        assert await world.available(wallet.address) == available


async def test_one_operation_at_a_time_and_the_conflict_names_it(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        running = (await world.sign(wallet, "POST", f"/v1/servers/{server_id}/reboot")).json()["action"]["id"]
        assert (await show(world, wallet, server_id))["action"] == running
        for verb in ("stop", "start", "reboot", "poweroff"):
            refused = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/{verb}")
            assert code(refused) == (409, "conflict")
            assert refused.json()["error"]["details"] == {"action": running}
        destroyed = await world.sign(wallet, "DELETE", f"/v1/servers/{server_id}")
        assert destroyed.status_code == 200
        assert (await action(world, running))["error"]["code"] == "superseded"
        await drive(world)
        assert await machines(world) == []
        await world.check_books()


async def test_nobody_touches_what_is_not_theirs(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        owner, thief = await world.customer("20.00"), await world.customer("20.00")
        server_id = await rent(world, owner)
        path = f"/v1/servers/{server_id}"
        calls: list[tuple[str, str, Any]] = [
            ("GET", path, None),
            ("DELETE", path, None),
            ("PATCH", path, {"name": "mine"}),
            ("POST", f"{path}/deposit", {"amount": "1.00"}),
            ("POST", f"{path}/resize", {"type": "medium"}),
            ("POST", f"{path}/rebuild", {"image": "debian-12"}),
            *(("POST", f"{path}/{verb}", None) for verb in POWER),
        ]
        before = await world.rows("SELECT * FROM server")
        for method, target, body in calls:
            assert code(await world.sign(thief, method, target, body)) == (403, "forbidden"), target
            missing = target.replace(server_id, "srv_none")
            assert code(await world.sign(thief, method, missing, body)) == (404, "not_found"), missing
        assert [dict(r) for r in await world.rows("SELECT * FROM server")] == [dict(r) for r in before]
        assert (await balance(world, thief))["balance"] == 20_000_000


async def test_a_name_can_be_changed_to_one_that_is_free(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet, other = await world.customer("20.00"), await world.customer("20.00")
        server_id = await rent(world, wallet, name="a", deposit="0.20")
        await rent(world, wallet, name="b", deposit="0.20")
        await rent(world, other, name="c", deposit="0.20")
        path = f"/v1/servers/{server_id}"
        assert code(await world.sign(wallet, "PATCH", path, {"name": "b"})) == (409, "conflict")
        assert code(await order(world, wallet, name="b")) == (409, "conflict")
        for body in ({}, {"name": "-no"}, {"name": "x" * 64}, {"size": 1}, {"auto_renew": "yes"}):
            assert code(await world.sign(wallet, "PATCH", path, body)) == (400, "invalid_request"), body
        for name in ("a", "c"):
            changed = await world.sign(wallet, "PATCH", path, {"name": name, "auto_renew": False})
            assert changed.status_code == 200, changed.text
            assert (changed.json()["server"]["name"], changed.json()["server"]["auto_renew"]) == (name, False)
        assert (await order(world, wallet, name="a", deposit="0.20")).status_code == 201


@pytest.mark.parametrize("amount", ["0", "0.00", "-1", "1e2", "ten", "0.0000001", ""])
async def test_a_deposit_that_is_no_amount_is_refused(tmp_path: Path, amount: str) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("1.00")
        server_id = (await order(world, wallet, deposit="0.20")).json()["server"]["id"]
        path = f"/v1/servers/{server_id}/deposit"
        assert code(await world.sign(wallet, "POST", path, {"amount": amount})) == (400, "invalid_request")
        short = await world.sign(wallet, "POST", path, {"amount": "0.789001"})
        assert code(short) == (422, "insufficient_deposit")
        assert short.json()["error"]["details"] == {"need": "0.790001", "have": "0.79", "short": "0.000001"}


async def test_a_destroyed_server_is_a_tombstone_for_thirty_days(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        path = f"/v1/servers/{server_id}"
        gone = await world.sign(wallet, "DELETE", path)
        assert set(gone.json()) == {"status", "deposit_refunded", "action"}
        assert gone.json()["status"] == "deleted"
        assert gone.json()["action"]["command"] == "destroy_server"
        again = await world.sign(wallet, "DELETE", path)
        assert code(again) == (409, "conflict")
        assert again.json()["error"]["details"] == {"action": gone.json()["action"]["id"]}
        await drive(world)
        ended = (await world.server(server_id)).ended_at
        assert ended is not None
        shown = await show(world, wallet, server_id)
        assert (shown["status"], shown["reason"]) == ("destroyed", "requested")
        assert shown["public_net"] == {"ipv4": None, "ipv6": None}
        assert (await world.sign(wallet, "GET", "/v1/servers")).json()["meta"]["total"] == 0
        available = await world.available(wallet.address)
        assert code(await world.sign(wallet, "DELETE", path)) == (404, "not_found")
        for verb in POWER:
            assert code(await world.sign(wallet, "POST", f"{path}/{verb}")) == (409, "conflict")
        assert code(await world.sign(wallet, "POST", f"{path}/deposit", {"amount": "1.00"})) == (
            404,
            "not_found",
        )
        assert code(await world.sign(wallet, "PATCH", path, {"name": "x"})) == (404, "not_found")
        assert await world.available(wallet.address) == available
        world.clock.advance(ended + 30 * DAY - world.clock.now_s())
        assert (await show(world, wallet, server_id))["status"] == "destroyed"
        world.clock.advance(1)
        assert code(await world.sign(wallet, "GET", path)) == (404, "not_found")
        await world.check_books()


async def test_a_rebuild_has_another_system_and_the_keys_again(tmp_path: Path) -> None:
    recorders, around = recording()
    async with open_world(tmp_path, around=around) as world:
        wallet = await world.customer("20.00")
        registered = await world.sign(wallet, "POST", "/v1/ssh-keys", {"name": "k", "public_key": KEY})
        assert registered.status_code == 201, registered.text
        server_id = await rent(world, wallet, ssh_keys=[registered.json()["ssh_key"]["id"]])
        answer = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/rebuild", {"image": "debian-12"})
        assert answer.status_code == 200
        assert set(answer.json()) == {"action", "root_password"}
        assert answer.json()["root_password"] is None
        assert (await show(world, wallet, server_id))["status"] == "rebuilding"
        await drive(world)
        shown = await show(world, wallet, server_id)
        assert (shown["status"], shown["image"]) == ("running", "debian-12")
        machine = await world.cloud.find((await world.server(server_id)).id)
        assert machine is not None
        assert machine.image == "debian-12"
        plain = " ".join(KEY.split()[:2])
        assert [key.startswith(plain) for key in recorders[0].rebuilds[0].public_keys] == [True]
        assert [key.startswith(plain) for key in recorders[0].specs[0].public_keys] == [True]
        await world.check_books()


async def test_user_data_reaches_the_provider_and_is_never_in_clear_on_disk(tmp_path: Path) -> None:
    script = "#!/bin/sh\necho the-quick-brown-secret-of-user-data"
    recorders, around = recording()
    async with open_world(tmp_path, around=around) as world:
        wallet = await world.customer("20.00")
        # The provider is down when it is ordered, so that the script must wait for it.
        world.cloud_faults.plan("create", Outage())
        created = await order(world, wallet, user_data=script)
        assert created.status_code == 201
        assert len(await world.rows("SELECT owner FROM secret WHERE kind = 'user_data'")) == 1
        assert b"the-quick-brown-secret" not in stored_bytes(tmp_path)
        await drive(world)
        first, again = (spec.user_data for spec in recorders[0].specs)
        assert first is not None
        assert script in first
        assert again == first
        assert b"the-quick-brown-secret" not in stored_bytes(tmp_path)


async def test_a_root_password_is_handed_out_once_and_never_kept_in_clear(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        created = await world.sign(wallet, "POST", "/v1/servers", ORDER, key="once")
        first = created.json()["root_password"]
        assert first
        server_id = created.json()["server"]["id"]
        replay = await world.sign(wallet, "POST", "/v1/servers", ORDER, key="once")
        assert replay.headers["Idempotent-Replayed"] == "true"
        assert replay.json() == created.json() | {"root_password": None}
        await drive(world)
        assert (await show(world, wallet, server_id))["root_password"] is None
        rebuilt = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/rebuild", {"image": "debian-12"})
        second = rebuilt.json()["root_password"]
        assert second
        assert second != first
        await drive(world)
        assert (await show(world, wallet, server_id))["root_password"] is None
        for password in (first, second):
            assert password.encode() not in stored_bytes(tmp_path)
        kept = await world.rows("SELECT kind FROM secret WHERE owner <> 'spawn' ORDER BY kind")
        assert [row["kind"] for row in kept] == ["callback", "host_key"]
