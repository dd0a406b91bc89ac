"""Whatever a provider does to us, there is one machine or none as the answer said, and the money agrees.

Each fault is planned on the very call that carries the command out; afterwards the world is let run, and must come
to rest by itself.
"""

import random
from pathlib import Path
from typing import Any

import httpx
import pytest
from spawn_providers.simulated_faults import (
    Breakdown,
    DeafGuest,
    Fault,
    Method,
    Outage,
    Rates,
    Refusal,
)

from tests.harness import ORDER, START_S, VirtualClock, World, open_world
from tests.integration.provider_faults import PASSING, REFUSALS, check_money, fault_name
from tests.integration.server_steps import (
    action,
    code,
    drive,
    machines,
    order,
    rent,
    show,
)
from tests.wallets import Wallet

FUNDS = 20_000_000
CREATE, READ, POWER, RESIZE, REBUILD, DESTROY = 10_000, 1_000, 2_000, 10_000, 5_000, 5_000

VERBS: dict[str, tuple[int, dict[str, str] | None, str]] = {
    "start": (POWER, None, "running"),
    "stop": (POWER, None, "off"),
    "poweroff": (POWER, None, "off"),
    "reboot": (POWER, None, "running"),
    "rebuild": (REBUILD, {"image": "debian-12"}, "running"),
}


async def rented_for(world: World, wallet: Wallet, verb: str) -> str:
    """A server in the state that `verb` needs."""
    server_id = await rent(world, wallet)
    if verb == "start":
        assert (await world.sign(wallet, "POST", f"/v1/servers/{server_id}/stop")).status_code == 200
        await drive(world)
    return server_id


@pytest.mark.parametrize("verb", VERBS)
async def test_a_refused_verb_costs_nothing(tmp_path: Path, verb: str) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server_id = await rented_for(world, wallet, verb)
        before = (await world.server(server_id)).status
        available = await world.available(wallet.address)
        for refused, expected in REFUSALS.items():
            world.cloud_faults.plan("act", Refusal(code=refused))
            answer = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/{verb}", VERBS[verb][1])
            assert code(answer) == expected
            await drive(world)
            failed = await action(world, answer.json()["error"]["details"]["action"])
            assert (failed["status"], failed["error"]["code"]) == ("error", expected[1])
            assert (await world.server(server_id)).status == before
        await check_money(world, wallet, server_id, available)


@pytest.mark.parametrize("fault", PASSING, ids=fault_name)
@pytest.mark.parametrize("verb", VERBS)
async def test_a_verb_over_a_bad_line_is_done(tmp_path: Path, verb: str, fault: Fault) -> None:
    fee, body, after = VERBS[verb]
    async with open_world(tmp_path, first_answer_s=0.05) as world:
        wallet = await world.customer("20.00")
        server_id = await rented_for(world, wallet, verb)
        available = await world.available(wallet.address)
        world.cloud_faults.plan("act", fault)
        answer = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/{verb}", body)
        assert answer.status_code == 200, answer.text
        await drive(world)
        done = await action(world, answer.json()["action"]["id"])
        assert (done["status"], done["error"]) == ("success", None)
        await check_money(world, wallet, server_id, available - fee)
        server = await world.server(server_id)
        machine = await world.cloud.find(server.id)
        assert machine is not None
        assert (server.status.value, machine.status.value) == (after, after)
        if verb == "rebuild":
            assert (server.image, machine.image) == ("debian-12", "debian-12")


@pytest.mark.parametrize("fault", PASSING, ids=fault_name)
async def test_a_rebuild_over_a_bad_line_ends_with_a_password(tmp_path: Path, fault: Fault) -> None:
    async with open_world(tmp_path, first_answer_s=0.05) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        first = (await show(world, wallet, server_id))["root_password"]
        world.cloud_faults.plan("act", fault)
        answer = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/rebuild", {"image": "debian-12"})
        assert answer.status_code == 200, answer.text
        await drive(world)
        told = answer.json()["root_password"] or (await show(world, wallet, server_id))["root_password"]
        assert told not in {None, first}
        await world.check_books()


@pytest.mark.parametrize("fault", [Breakdown(), DeafGuest()], ids=fault_name)
@pytest.mark.parametrize("verb", VERBS)
async def test_a_verb_that_is_accepted_and_fails_gives_its_fee_back(
    tmp_path: Path, verb: str, fault: Fault
) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server_id = await rented_for(world, wallet, verb)
        before, image = (await world.server(server_id)).status, (await world.server(server_id)).image
        available = await world.available(wallet.address)
        world.cloud_faults.plan("act", fault)
        answer = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/{verb}", VERBS[verb][1])
        assert answer.status_code == 200, answer.text
        await drive(world, limit_s=2000, step_s=5)
        ended = await action(world, answer.json()["action"]["id"])
        # A guest that does not reboot is running, as one that did: nobody can tell.
        unseen = isinstance(fault, DeafGuest) and verb in {"reboot", "rebuild"}
        if not unseen:
            assert (ended["status"], ended["error"]["code"]) == ("error", "provider_failed")
            await check_money(world, wallet, server_id, available)
            assert (await world.server(server_id)).image == image
        server = await world.server(server_id)
        machine = await world.cloud.find(server.id)
        assert server.status == before
        assert machine is not None
        assert machine.status.value == before.value
        await world.check_books()


@pytest.mark.parametrize("method", ["get", "poll"])
@pytest.mark.parametrize("verb", [*VERBS, "resize"])
async def test_a_verb_whose_progress_cannot_be_seen_for_a_while_is_done(
    tmp_path: Path, verb: str, method: Method
) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server_id = await rented_for(world, wallet, verb)
        body = {"type": "medium"} if verb == "resize" else VERBS[verb][1]
        answer = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/{verb}", body)
        world.cloud_faults.plan(method, *([Outage(retry_after_s=7)] * 4))
        await drive(world)
        assert (await action(world, answer.json()["action"]["id"]))["status"] == "success"
        await world.check_books()


@pytest.mark.parametrize("verb", [*VERBS, "create", "delete"])
async def test_a_forgotten_handle_is_found_by_its_effect(tmp_path: Path, verb: str) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        answer: httpx.Response
        if verb == "create":
            answer = await order(world, wallet)
            server_id = answer.json()["server"]["id"]
        else:
            server_id = await rented_for(world, wallet, verb)
            method, path = ("DELETE", "") if verb == "delete" else ("POST", f"/{verb}")
            body = None if verb == "delete" else VERBS[verb][1]
            answer = await world.sign(wallet, method, f"/v1/servers/{server_id}{path}", body)
        action_id = answer.json()["action"]["id"]
        (row,) = await world.rows("SELECT handle FROM operation WHERE id = :id", id=action_id)
        assert row["handle"] is not None
        await world.cloud.forget(row["handle"])
        await drive(world)
        assert (await action(world, action_id))["status"] == "success"
        after = "destroyed" if verb == "delete" else "running" if verb == "create" else VERBS[verb][2]
        assert (await world.server(server_id)).status.value == after
        await world.check_books()


@pytest.mark.parametrize("verb", [*VERBS, "resize"])
async def test_a_machine_that_vanishes_under_a_verb_ends_the_action(tmp_path: Path, verb: str) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server_id = await rented_for(world, wallet, verb)
        available = await world.available(wallet.address)
        body = {"type": "medium"} if verb == "resize" else VERBS[verb][1]
        answer = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/{verb}", body)
        ref = (await world.server(server_id)).provider_ref
        assert ref is not None
        await world.cloud.vanish(ref)
        await drive(world)
        ended = await action(world, answer.json()["action"]["id"])
        assert (ended["status"], ended["error"]["code"]) == ("error", "not_found")
        await check_money(world, wallet, server_id, available)


async def test_a_machine_that_vanishes_while_it_is_made_costs_nothing(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        answer = await order(world, wallet)
        ref = (await world.server(answer.json()["server"]["id"])).provider_ref
        assert ref is not None
        await world.cloud.vanish(ref)
        await drive(world, step_s=10)
        assert (await action(world, answer.json()["action"]["id"]))["status"] == "error"
        assert await world.available(wallet.address) == FUNDS
        assert (await world.server(answer.json()["server"]["id"])).status == "failed"
        await world.check_books()


@pytest.mark.parametrize("seed", range(6))
async def test_in_a_bad_cloud_everything_comes_to_rest_and_the_books_agree(tmp_path: Path, seed: int) -> None:
    """Random commands while many calls fail in every way; then the cloud recovers, and so must we."""
    dice = random.Random(seed)
    clock = VirtualClock(START_S + seed)
    async with open_world(tmp_path, clock=clock, first_answer_s=0.02) as world:
        wallet = await world.customer("60.00")
        world.cloud_faults.set_rates(
            Rates(outage=150, refusal=60, lost_request=80, lost_answer=80, breakdown=60)
        )
        ids: list[str] = []
        for number in range(25):
            await _any_command(world, wallet, dice, ids, number)
            for _ in range(dice.randrange(1, 12)):
                world.clock.advance(dice.randrange(1, 20))
                await world.tick("operations", "burn")
        world.cloud_faults.set_rates(None)
        await drive(world, limit_s=8_000, step_s=10)
        await world.check_books()
        living = {r["id"] for r in await world.rows("SELECT id FROM server WHERE ended_at IS NULL")}
        assert set(await machines(world)) == living
        assert await world.rows("SELECT id FROM hold WHERE state = 'pending'") == []
        for server_id in living:
            assert (await world.sign(wallet, "DELETE", f"/v1/servers/{server_id}")).status_code == 200
        await drive(world)
        assert await machines(world) == []
        await world.check_books()


async def _any_command(
    world: World, wallet: Wallet, dice: random.Random, ids: list[str], number: int
) -> None:
    if not ids or dice.random() < 0.2:
        answer = await world.sign(
            wallet, "POST", "/v1/servers", ORDER | {"name": f"s{number}", "deposit": "1.00"}
        )
        if answer.status_code == 201:
            ids.append(answer.json()["server"]["id"])
        return
    server_id = dice.choice(ids)
    verb = dice.choice([*VERBS, "resize", "resize", "delete"])
    body: dict[str, Any] | None = VERBS[verb][1] if verb in VERBS else None
    if verb == "delete":
        answer = await world.sign(wallet, "DELETE", f"/v1/servers/{server_id}")
    else:
        if verb == "resize":
            body = {"type": dice.choice(["small", "medium", "large"])}
        answer = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/{verb}", body)
    assert answer.status_code in {200, 400, 404, 409, 422, 503}, answer.text
