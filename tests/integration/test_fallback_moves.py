"""An order that goes on in another place after it had begun in one: nothing of the first is left or paid for."""

import re
from pathlib import Path

import pytest
from msgspec.structs import replace
from spawn_providers.base import RefusedCode, Spec
from spawn_providers.simulated_faults import Breakdown, LostRequest, Outage, Refusal
from spawn_schemas.ids import ServerId

from spawn.domain.operations import LATE_S, Create
from spawn.store.operations import operation_from
from tests.harness import VirtualClock, World, open_world
from tests.integration.paid_calls import machines, refusal
from tests.integration.server_steps import (
    accepted_at,
    action,
    burnt,
    compute_usdc,
    drive,
    order,
    recording,
    show,
)
from tests.wallets import Wallet

FULL = Refusal(code=RefusedCode.OUT_OF_CAPACITY)
FEE, FUNDS = 10_000, 20_000_000
SMALL, ASH = 150_000, 320_000
ELSEWHERE = [{"location": "ash"}]


async def spec_of(world: World, server_id: str) -> Spec:
    [row] = await world.rows("SELECT * FROM operation WHERE server_id = :id", id=server_id)
    step = operation_from(row).current
    assert isinstance(step, Create)
    return step.spec


async def test_a_full_account_tries_no_other_place_and_names_none(tmp_path: Path) -> None:
    recorders, around = recording()
    async with open_world(tmp_path, around=around) as world:
        wallet = await world.customer("20.00")
        world.cloud_faults.plan("create", Refusal(code=RefusedCode.QUOTA))
        error = refusal(await order(world, wallet, fallback=ELSEWHERE), 503, "out_of_capacity")
        assert "in every location" in error["message"]
        assert not re.search(r"Sold too|ash|fsn1|hel1", error["message"])
        assert recorders[0].changes.count("create") == 1
        assert await world.available(wallet.address) == FUNDS
        await world.check_books()


async def settle(world: World, wallet: Wallet) -> None:
    """What its servers have cost by now is charged."""
    billing = world.service.services.billing
    await world.parts.db.write(lambda tx: billing.settle(tx, wallet.address, world.clock.now_s()))


@pytest.mark.parametrize("burns", [False, True])
async def test_a_machine_that_breaks_for_want_of_room_is_destroyed_and_made_elsewhere(
    tmp_path: Path, burns: bool
) -> None:
    """At the other place's price from its own beginning, and as if the first had never been."""
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        world.cloud_faults.plan("create", Breakdown())
        created = (await order(world, wallet, fallback=ELSEWHERE, deposit="2.00")).json()
        server_id, told = created["server"]["id"], created["root_password"]
        assert created["server"]["location"] == "nbg1"
        if burns:
            world.clock.advance(3)
            await settle(world, wallet)
            assert await compute_usdc(world, server_id) > 0
        await drive(world)
        server = await world.server(server_id)
        assert (server.status, server.location, server.provider_type) == ("running", "ash", "cpx21")
        [machine] = [m async for m in world.cloud.list_owned()]
        assert (machine.ref, machine.location, machine.provider_type) == (
            server.provider_ref,
            "ash",
            "cpx21",
        )
        assert (await action(world, created["action"]["id"]))["status"] == "success"
        assert (await show(world, wallet, server_id))["root_password"] not in {None, told}
        world.clock.advance(7_200)
        await settle(world, wallet)
        cost = burnt(ASH, world.clock.now_s() - await accepted_at(world, server_id))
        assert await compute_usdc(world, server_id) == cost
        assert server.metered_from == await accepted_at(world, server_id)
        await world.sign(wallet, "DELETE", f"/v1/servers/{server_id}")
        await drive(world)
        kept = await world.rows("SELECT code, amount FROM transfer WHERE code IN ('fee', 'fee_refund')")
        assert [row["code"] for row in kept].count("fee_refund") == 0
        assert await world.available(wallet.address) == FUNDS - cost - sum(r["amount"] for r in kept)
        assert await machines(world) == 0
        await world.check_books()


async def test_where_every_place_breaks_all_comes_back(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        world.cloud_faults.plan("create", Breakdown(), Breakdown(), Breakdown())
        created = (await order(world, wallet, fallback=[{"location": "fsn1"}, *ELSEWHERE])).json()
        for _ in range(10):
            world.clock.advance(2)
            await settle(world, wallet)
            await world.tick("operations")
        await drive(world)
        server = await world.server(created["server"]["id"])
        assert (server.status, server.location) == ("failed", "ash")
        error = (await action(world, created["action"]["id"]))["error"]
        assert error["code"] == "out_of_capacity"
        assert "hel1" in error["message"]
        assert await world.available(wallet.address) == FUNDS
        assert await machines(world) == 0
        await world.check_books()


async def test_another_breakdown_is_none_that_another_place_would_mend(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        world.cloud_faults.plan("create", Breakdown(code=RefusedCode.CONFLICT))
        created = (await order(world, wallet, fallback=ELSEWHERE)).json()
        await drive(world)
        assert (await world.server(created["server"]["id"])).status == "failed"
        assert (await action(world, created["action"]["id"]))["error"]["code"] == "provider_failed"
        assert await world.available(wallet.address) == FUNDS


async def broken(world: World, server_id: str) -> None:
    """Until the half-made machine is to be destroyed, which does not succeed at once."""
    for _ in range(60):
        world.clock.advance(1)
        await world.tick("operations")
        if (await world.server(ServerId(server_id))).location == "ash":
            return
    raise AssertionError("the order never left its first place")


@pytest.mark.parametrize("end", ["delete", "restart"])
async def test_what_comes_between_the_half_made_machine_and_the_next(tmp_path: Path, end: str) -> None:
    async with open_world(tmp_path) as world:
        clock: VirtualClock = world.clock
        wallet = await world.customer("20.00")
        world.cloud_faults.plan("create", Breakdown())
        world.cloud_faults.plan("delete", *[Outage(retry_after_s=30)] * 3)
        server_id = ServerId((await order(world, wallet, fallback=ELSEWHERE)).json()["server"]["id"])
        await broken(world, server_id)
        assert await machines(world) == 1
        assert not (await world.server(server_id)).frozen
        if end == "delete":
            answer = await world.sign(wallet, "DELETE", f"/v1/servers/{server_id}")
            assert answer.status_code == 200, answer.text
            await drive(world, step_s=10)
            assert (await world.server(server_id)).status == "destroyed"
            assert await machines(world) == 0
            assert await world.available(wallet.address) >= FUNDS - FEE - 5_000
            await world.check_books()
            return
    async with open_world(tmp_path, clock=clock) as world:
        clock.advance(100)
        await drive(world)
        server = await world.server(server_id)
        assert (server.status, server.location) == ("running", "ash")
        assert await machines(world) == 1
        await world.check_books()


async def test_behind_a_lost_answer_another_place_is_tried_when_nothing_can_come_of_it_any_more(
    tmp_path: Path,
) -> None:
    async with open_world(tmp_path, first_answer_s=0.05) as world:
        wallet = await world.customer("20.00")
        world.cloud_faults.plan("create", LostRequest(), *[FULL] * 2)
        server_id = ServerId(
            (await order(world, wallet, fallback=ELSEWHERE, deposit="0.50")).json()["server"]["id"]
        )
        for _ in range(LATE_S - 5):
            world.clock.advance(1)
            await world.tick("operations")
        assert (await world.server(server_id)).location == "nbg1"
        await drive(world)
        server = await world.server(server_id)
        assert (server.status, server.location, server.daily_usdc) == ("running", "ash", ASH)
        assert await machines(world) == 1
        await world.check_books()


async def test_an_order_that_comes_later_still_is_found_in_its_own_place_at_its_own_price(
    tmp_path: Path,
) -> None:
    async with open_world(tmp_path, first_answer_s=0.05) as world:
        wallet = await world.customer("20.00")
        world.cloud_faults.plan("create", LostRequest(), *[FULL] * 2, LostRequest())
        server_id = ServerId(
            (await order(world, wallet, fallback=ELSEWHERE, deposit="0.50")).json()["server"]["id"]
        )
        first = await spec_of(world, server_id)
        assert first.location == "nbg1"
        for _ in range(2 * LATE_S):
            world.clock.advance(1)
            await world.tick("operations")
            if (await world.server(server_id)).location == "ash":
                break
        op = await world.cloud.create(server_id, replace(first, public_keys=()))
        await drive(world)
        server = await world.server(server_id)
        assert (server.status, server.location, server.daily_usdc) == ("running", "nbg1", SMALL)
        assert server.provider_ref == op.ref
        assert await machines(world) == 1
        report = await world.service.workers.reconciler.run()
        assert report.drifted == 0
        await world.check_books()
