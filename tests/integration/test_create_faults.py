"""A create ends with one machine that is paid for or with none that costs anything; a destroy always with none."""

import asyncio
from pathlib import Path

import pytest
from spawn_providers.base import RefusedCode
from spawn_providers.simulated_faults import (
    Breakdown,
    Delay,
    Fault,
    Rates,
    Refusal,
)

from tests.harness import open_world
from tests.integration.provider_faults import PASSING, REFUSALS, check_money, fault_name
from tests.integration.server_steps import (
    SMALL,
    action,
    code,
    drive,
    hour,
    machines,
    micro,
    order,
    rent,
    show,
)

FUNDS = 20_000_000
CREATE, READ, DESTROY = 10_000, 1_000, 5_000


@pytest.mark.parametrize("refused", REFUSALS)
async def test_a_refused_create_costs_nothing(tmp_path: Path, refused: RefusedCode) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        world.cloud_faults.plan("create", Refusal(code=refused))
        answer = await order(world, wallet, user_data="#!/bin/sh")
        assert code(answer) == REFUSALS[refused]
        assert await world.available(wallet.address) == FUNDS
        assert await world.account(f"wallet:{wallet.address}") == FUNDS
        failed = await action(world, answer.json()["error"]["details"]["action"])
        assert (failed["status"], failed["error"]["code"]) == ("error", REFUSALS[refused][1])
        assert await world.rows("SELECT owner FROM secret WHERE owner <> 'spawn'") == []
        shown = (await world.sign(wallet, "GET", f"/v1/servers/{failed['server_id']}")).json()["server"]
        assert (shown["status"], shown["reason"]) == ("failed", "provider_refused")
        assert await machines(world) == []
        # Its name is free again.
        assert (await order(world, wallet)).status_code == 201
        await drive(world)
        await world.check_books()


@pytest.mark.parametrize("fault", PASSING, ids=fault_name)
@pytest.mark.parametrize("times", [1, 2])
async def test_a_create_over_a_bad_line_makes_one_machine(tmp_path: Path, fault: Fault, times: int) -> None:
    async with open_world(tmp_path, first_answer_s=0.05) as world:
        wallet = await world.customer("20.00")
        world.cloud_faults.plan("create", *([fault] * times))
        answer = await order(world, wallet)
        assert answer.status_code == 201
        assert answer.json()["server"]["hetzner_id"] is None
        server_id = answer.json()["server"]["id"]
        await drive(world)
        assert await machines(world) == [server_id]
        assert (await action(world, answer.json()["action"]["id"]))["status"] == "success"
        shown = await show(world, wallet, server_id)
        assert shown["status"] == "running"
        assert shown["hetzner_id"] is not None
        await check_money(world, wallet, server_id, FUNDS - CREATE - 5_000_000 - READ)


async def test_a_provider_that_stays_down_is_given_up_and_costs_nothing(tmp_path: Path) -> None:
    async with open_world(tmp_path, first_answer_s=0.05) as world:
        wallet = await world.customer("20.00")
        world.cloud_faults.set_rates(Rates(outage=1000))
        answer = await order(world, wallet)
        assert answer.status_code == 201
        await drive(world)
        failed = await action(world, answer.json()["action"]["id"])
        assert failed["error"]["code"] == "hetzner_unavailable"
        assert await world.available(wallet.address) == FUNDS
        world.cloud_faults.set_rates(None)
        assert await machines(world) == []
        await world.check_books()


async def test_an_outage_while_the_caller_waits_is_a_503(tmp_path: Path) -> None:
    async with open_world(tmp_path, first_answer_s=20) as world:
        wallet = await world.customer("20.00")
        world.cloud_faults.set_rates(Rates(outage=1000))
        asking = asyncio.create_task(order(world, wallet))
        while not asking.done():
            await asyncio.sleep(0.01)
            world.clock.advance(1)
            await world.tick("operations")
        refused = await asking
        assert code(refused) == (503, "hetzner_unavailable")
        assert refused.json()["error"]["retryable"] is True
        assert "Retry-After" in refused.headers
        assert await world.available(wallet.address) == FUNDS
        await world.check_books()


async def test_a_create_that_breaks_down_gives_everything_back_and_leaves_no_machine(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        world.cloud_faults.plan("create", Breakdown())
        answer = await order(world, wallet)
        assert answer.status_code == 201
        server_id = answer.json()["server"]["id"]
        await drive(world)
        failed = await action(world, answer.json()["action"]["id"])
        assert (failed["status"], failed["error"]["code"]) == ("error", "out_of_capacity")
        assert await world.available(wallet.address) == FUNDS
        assert await machines(world) == []
        server = await world.server(server_id)
        assert (server.status, server.reason, server.charged_usdc) == ("failed", "provider_refused", 0)
        assert await world.rows("SELECT owner FROM secret WHERE owner <> 'spawn'") == []
        await world.check_books()


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_an_answer_that_comes_after_the_caller_has_left(tmp_path: Path, when: str) -> None:
    """Past `first_answer_s` the caller gets a 201 without a number, and the create goes on by itself."""
    async with open_world(tmp_path, first_answer_s=0.05) as world:
        wallet = await world.customer("20.00")
        gate = asyncio.Event()
        world.cloud_faults.plan("create", Delay(gate=gate))
        answer = await order(world, wallet)
        assert answer.status_code == 201
        body = answer.json()
        assert (body["server"]["hetzner_id"], body["root_password"]) == (None, None)
        assert body["action"]["status"] == "running"
        if when == "meanwhile":
            seen = await show(world, wallet, body["server"]["id"])
            assert (seen["status"], seen["hetzner_id"]) == ("initializing", None)
        gate.set()
        await world.service.operator.idle()
        await drive(world)
        first = await show(world, wallet, body["server"]["id"])
        assert first["status"] == "running"
        assert first["hetzner_id"] is not None
        # The password that the slow answer brought is handed out by the first look, and only by it.
        assert first["root_password"] is not None
        assert (await show(world, wallet, body["server"]["id"]))["root_password"] is None
        assert await machines(world) == [body["server"]["id"]]
        await world.check_books()


async def test_a_create_that_lands_after_its_delete_leaves_no_machine(tmp_path: Path) -> None:
    async with open_world(tmp_path, first_answer_s=0.05) as world:
        wallet = await world.customer("20.00")
        gate = asyncio.Event()
        world.cloud_faults.plan("create", Delay(gate=gate))
        server_id = (await order(world, wallet)).json()["server"]["id"]
        gone = await world.sign(wallet, "DELETE", f"/v1/servers/{server_id}")
        assert gone.status_code == 200, gone.text
        assert micro(gone.json()["deposit_refunded"]) == 5_000_000 - DESTROY
        world.clock.advance(5)
        gate.set()
        await world.service.operator.idle()
        assert await machines(world) == [server_id], "the machine must have been made, or this proves nothing"
        await drive(world)
        assert await machines(world) == []
        assert (await world.server(server_id)).status == "destroyed"
        assert await world.available(wallet.address) == FUNDS - DESTROY
        await world.check_books()


@pytest.mark.parametrize(
    "fault", [*PASSING, Breakdown(), *(Refusal(code=c) for c in REFUSALS)],
    ids=lambda f: f"{fault_name(f)}-{getattr(f, 'code', '')}",
)  # fmt: skip
@pytest.mark.parametrize("times", [1, 4])
async def test_a_delete_always_ends_with_no_machine(tmp_path: Path, fault: Fault, times: int) -> None:
    async with open_world(tmp_path, first_answer_s=0.05) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        world.cloud_faults.plan("delete", *([fault] * times))
        gone = await world.sign(wallet, "DELETE", f"/v1/servers/{server_id}")
        assert gone.status_code == 200, gone.text
        refunded = 5_000_000 - hour(SMALL) - DESTROY
        assert micro(gone.json()["deposit_refunded"]) == refunded
        assert await world.available(wallet.address) == FUNDS - CREATE - 5_000_000 + refunded
        await drive(world)
        assert (await action(world, gone.json()["action"]["id"]))["status"] == "success"
        assert await machines(world) == []
        assert (await world.server(server_id)).status == "destroyed"
        assert await world.available(wallet.address) == FUNDS - CREATE - 5_000_000 + refunded
        await world.check_books()


async def test_destroying_is_tried_for_ever_and_ever_less_often(tmp_path: Path) -> None:
    async with open_world(tmp_path, first_answer_s=0.05) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        world.cloud_faults.set_rates(Rates(outage=1000))
        gone = await world.sign(wallet, "DELETE", f"/v1/servers/{server_id}")
        assert gone.status_code == 200
        attempts = []
        for _ in range(0, 7_200, 4):
            world.clock.advance(4)
            await world.tick("operations")
            (row,) = await world.rows("SELECT attempts, next_at FROM operation WHERE status = 'running'")
            attempts.append(row["attempts"])
        assert 20 < attempts[-1] < 60, "five minutes is the longest pause"
        world.clock.advance(400 * 86_400)
        await world.tick("operations")
        assert (await action(world, gone.json()["action"]["id"]))["status"] == "running"
        world.cloud_faults.set_rates(None)
        await drive(world)
        assert await machines(world) == []
        assert (await world.server(server_id)).status == "destroyed"
        await world.check_books()
