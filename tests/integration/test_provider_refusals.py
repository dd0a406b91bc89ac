"""A create that its provider refuses, cannot take or breaks off gives everything back; a lost answer costs nothing."""

from pathlib import Path

import pytest
from spawn_providers.base import RefusedCode
from spawn_providers.simulated_faults import (
    Breakdown,
    Fault,
    LostAnswer,
    LostRequest,
    Outage,
    Refusal,
)

from tests.harness import ORDER, World, open_world
from tests.integration.paid_calls import (
    machines,
    nothing_changes,
    paid_in,
    refusal,
    usdc,
    while_time_passes,
)
from tests.wallets import Wallet

BUY = ORDER | {"fund": "6.00", "user_data": "#cloud-config"}
PAID = usdc("6.01")


async def assert_given_back(world: World, wallet: Wallet) -> None:
    """All that was paid is available, the server is failed, no secret of it is kept, and its name is free."""
    assert await world.available(wallet.address) == PAID
    assert await world.account("rev:opfee") == 0
    failed = await world.rows("SELECT id, status, reason FROM server")
    assert [(row["status"], row["reason"]) for row in failed] == [("failed", "provider_refused")]
    assert await world.rows("SELECT owner FROM secret WHERE owner <> 'spawn'") == []
    assert await world.rows("SELECT id FROM hold WHERE state = 'pending'") == []
    assert await machines(world) == 0
    assert len(await paid_in(world, wallet)) == 1
    await world.check_books()

    again = await world.sign(wallet, "POST", "/v1/servers", ORDER, key="k")
    assert again.status_code == 201, again.text
    shown = await world.sign(wallet, "GET", f"/v1/servers/{failed[0]['id']}")
    assert shown.json()["server"]["status"] == "failed"


@pytest.mark.parametrize(
    ("code", "status", "answered"),
    [
        (RefusedCode.OUT_OF_CAPACITY, 503, "out_of_capacity"),
        (RefusedCode.QUOTA, 503, "out_of_capacity"),
        (RefusedCode.INVALID, 400, "invalid_request"),
        (RefusedCode.CONFLICT, 409, "conflict"),
        (RefusedCode.NOT_FOUND, 404, "not_found"),
    ],
)
async def test_a_refused_create_gives_deposit_and_fee_back(
    tmp_path: Path, code: RefusedCode, status: int, answered: str
) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        world.cloud_faults.plan("create", Refusal(code=code))
        payment = await world.payment(wallet, "POST", "/v1/servers", BUY)
        refused = await world.send_payment(payment, "POST", "/v1/servers", BUY, key="k")
        error = refusal(refused, status, answered)
        assert error["details"]["action"].startswith("act_")
        assert "back in the balance" in error["next"]
        async with nothing_changes(world):
            again = await world.send_payment(payment, "POST", "/v1/servers", BUY)
            assert refusal(again, status, answered)["details"] == error["details"]
        await assert_given_back(world, wallet)


async def test_a_provider_that_is_down_gives_everything_back(tmp_path: Path) -> None:
    async with open_world(tmp_path, first_answer_s=30) as world:
        wallet = await world.wallet()
        world.cloud_faults.plan("create", Outage(), Outage(), Outage())
        error = refusal(
            await while_time_passes(world, world.pay(wallet, "POST", "/v1/servers", BUY)),
            503,
            "hetzner_unavailable",
        )
        assert error["retry_after"] is not None
        await assert_given_back(world, wallet)


async def test_a_provider_that_is_down_for_a_moment_is_asked_again(tmp_path: Path) -> None:
    async with open_world(tmp_path, first_answer_s=30) as world:
        wallet = await world.wallet()
        world.cloud_faults.plan("create", Outage(), Outage())
        assert (
            await while_time_passes(world, world.pay(wallet, "POST", "/v1/servers", BUY))
        ).status_code == 201
        assert await machines(world) == 1
        assert await world.available(wallet.address) == PAID - usdc("5.01")


async def test_a_late_refusal_gives_everything_back(tmp_path: Path) -> None:
    async with open_world(tmp_path, first_answer_s=0.05) as world:
        wallet = await world.wallet()
        world.cloud_faults.plan("create", LostRequest(), Refusal(code=RefusedCode.OUT_OF_CAPACITY))
        payment = await world.payment(wallet, "POST", "/v1/servers", BUY)
        bought = await world.send_payment(payment, "POST", "/v1/servers", BUY)
        assert bought.status_code == 201
        assert bought.json()["server"]["hetzner_id"] is None
        assert bought.json()["action"]["status"] == "running"
        await world.run_for(5)
        action = (await world.ask("GET", f"/v1/actions/{bought.json()['action']['id']}")).json()["action"]
        assert (action["status"], action["error"]["code"]) == ("error", "out_of_capacity")
        assert (await world.send_payment(payment, "POST", "/v1/servers", BUY)).content == bought.content
        await assert_given_back(world, wallet)


async def test_a_create_that_breaks_off_gives_everything_back(tmp_path: Path) -> None:
    """The provider had said yes: its burn, the deposit and the fee come back, and its machine goes."""
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        world.cloud_faults.plan("create", Breakdown())
        bought = await world.pay(wallet, "POST", "/v1/servers", BUY)
        assert bought.status_code == 201
        await world.run_for(120)
        action = (await world.ask("GET", f"/v1/actions/{bought.json()['action']['id']}")).json()["action"]
        assert (action["status"], action["error"]["code"]) == ("error", "out_of_capacity")
        await assert_given_back(world, wallet)


@pytest.mark.parametrize("fault", [LostRequest(), LostAnswer()], ids=["before", "after"])
async def test_a_lost_answer_makes_one_machine_and_no_refund(tmp_path: Path, fault: Fault) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        world.cloud_faults.plan("create", fault)
        bought = await world.pay(wallet, "POST", "/v1/servers", BUY)
        assert bought.status_code == 201
        await world.run_for(60)
        server_id = bought.json()["server"]["id"]
        assert await machines(world) == 1
        assert (await world.server(server_id)).status == "running"
        shown = (await world.sign(wallet, "GET", f"/v1/servers/{server_id}")).json()["server"]
        assert shown["hetzner_id"] is not None
        assert await world.available(wallet.address) == PAID - usdc("5.01") - usdc("0.001")
        assert await world.account("rev:opfee") == usdc("0.011")
        await world.check_books()
