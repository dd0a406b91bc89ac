"""A service that is stopped in the middle of anything goes on where it was; the cloud did not wait for it."""

from pathlib import Path
from typing import Any

import pytest
from spawn_providers.simulated_faults import LostAnswer, Outage

from tests.harness import START_S, VirtualClock, open_world
from tests.integration.server_steps import (
    SMALL,
    accepted_at,
    action,
    burnt,
    code,
    drive,
    hour,
    lasts_s,
    machines,
    order,
    rent,
    show,
)
from tests.wallets import Wallet

CREATE, RESIZE, DESTROY = 10_000, 10_000, 5_000

CALLS: dict[str, tuple[str, str, Any]] = {
    "stop": ("POST", "/stop", None),
    "reboot": ("POST", "/reboot", None),
    "rebuild": ("POST", "/rebuild", {"image": "debian-12"}),
    "resize": ("POST", "/resize", {"type": "medium"}),
    "delete": ("DELETE", "", None),
}


@pytest.mark.parametrize("ticks", [0, 12])
@pytest.mark.parametrize("away_s", [0, 3600])
@pytest.mark.parametrize("verb", CALLS)
async def test_an_operation_goes_on_after_a_restart(
    tmp_path: Path, verb: str, away_s: int, ticks: int
) -> None:
    clock = VirtualClock(START_S)
    method, suffix, body = CALLS[verb]
    async with open_world(tmp_path, clock=clock) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        answer = await world.sign(wallet, method, f"/v1/servers/{server_id}{suffix}", body)
        assert answer.status_code == 200, answer.text
        for _ in range(ticks):
            clock.advance(1)
            await world.tick("operations")
    clock.advance(away_s)
    async with open_world(tmp_path, clock=clock) as world:
        await drive(world)
        done = await action(world, answer.json()["action"]["id"])
        assert (done["status"], done["error"]) == ("success", None)
        server = await world.server(server_id)
        assert server.status == {"stop": "off", "delete": "destroyed"}.get(verb, "running")
        assert await machines(world) == ([] if verb == "delete" else [server_id])
        if verb == "resize":
            assert server.type == "medium"
        await world.check_books()


@pytest.mark.parametrize("away_s", [30, 3600])
@pytest.mark.parametrize("fault", [LostAnswer(), Outage(), None], ids=["lost answer", "outage", "accepted"])
async def test_a_create_goes_on_after_a_restart(tmp_path: Path, fault: Any, away_s: int) -> None:
    clock = VirtualClock(START_S)
    async with open_world(tmp_path, clock=clock, first_answer_s=0.05) as world:
        wallet = await world.customer("20.00")
        world.cloud_faults.plan("create", fault)
        answer = await order(world, wallet, user_data="#!/bin/sh")
        server_id = answer.json()["server"]["id"]
    clock.advance(away_s)
    async with open_world(tmp_path, clock=clock) as world:
        await drive(world)
        assert (await show(world, wallet, server_id))["status"] == "running"
        assert await machines(world) == [server_id]
        since = await accepted_at(world, server_id)
        await world.sign(wallet, "DELETE", f"/v1/servers/{server_id}")
        cost = max(hour(SMALL), burnt(SMALL, clock.now_s() - since))
        await drive(world)
        assert await world.rows("SELECT owner FROM secret WHERE owner <> 'spawn'") == []
        assert await world.available(wallet.address) == 20_000_000 - CREATE - 1_000 - cost - DESTROY
        await world.check_books()


async def test_a_server_whose_money_ended_while_nobody_looked_has_paid_to_its_last_second(
    tmp_path: Path,
) -> None:
    clock = VirtualClock(START_S)
    async with open_world(tmp_path, clock=clock) as world:
        wallet = await world.customer("1.00")
        server_id = await rent(world, wallet, deposit="0.15", auto_renew=False)
    clock.advance(9 * 86_400)
    async with open_world(tmp_path, clock=clock) as world:
        await world.tick("burn")
        # Its owner was not warned, because nobody looked: there is time for that, and we bear what it costs.
        assert (await world.server(server_id)).status == "running"
        await world.burn_until(clock.now_s() + 6 * 3600)
        await drive(world)
        cost = burnt(SMALL, lasts_s(SMALL, 150_000))
        assert await world.available(wallet.address) == 1_000_000 - CREATE - cost
        assert (await world.server(server_id)).reason == "deposit_exhausted"
        assert await machines(world) == []
        await world.check_books()


async def test_an_answer_is_the_same_after_a_restart(tmp_path: Path) -> None:
    clock = VirtualClock(START_S)
    async with open_world(tmp_path, clock=clock) as world:
        wallet: Wallet = await world.customer("20.00")
        first = await world.sign(wallet, "POST", "/v1/ssh-keys", {"name": "x", "public_key": "no"}, key="k1")
        assert code(first) == (400, "invalid_request")
        body = {"name": "web", "type": "small", "image": "ubuntu-24.04", "location": "nbg1"}
        created = await world.sign(wallet, "POST", "/v1/servers", body, key="k2")
    async with open_world(tmp_path, clock=clock) as world:
        again = await world.sign(wallet, "POST", "/v1/servers", body, key="k2")
        assert again.headers["Idempotent-Replayed"] == "true"
        assert again.json() == created.json() | {"root_password": None}
        await drive(world)
        assert len(await machines(world)) == 1
        await world.check_books()
