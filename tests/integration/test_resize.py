"""A resize: the machine stops, changes and starts again, and the money keeps its runway, or all of it comes back."""

from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import pytest
from spawn_providers.base import RefusedCode
from spawn_providers.simulated_faults import (
    Breakdown,
    DeafGuest,
    Fault,
    LostAnswer,
    LostRequest,
    Outage,
    Refusal,
)

from tests.harness import World, open_world
from tests.integration.server_steps import (
    LARGE,
    MEDIUM,
    SMALL,
    accepted_at,
    action,
    balance,
    burnt,
    code,
    compute_usdc,
    drive,
    hour,
    lasts_s,
    micro,
    recording,
    rent,
    show,
)
from tests.wallets import Wallet

CREATE, READ, POWER, RESIZE, DESTROY = 10_000, 1_000, 2_000, 10_000, 5_000


def same_runway(reserve: int, old: int, new: int) -> int:
    """The reserve that lasts as long at the new price, rounded up."""
    return ceil(Fraction(reserve) * new / old)


async def resize(world: World, wallet: Wallet, server_id: str, **body: Any) -> dict[str, Any]:
    answer = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/resize", body)
    assert answer.status_code == 200, answer.text
    resized: dict[str, Any] = answer.json()
    assert set(resized) == {"action", "new_type", "deposit_delta"}
    return resized


async def resized_at(world: World) -> int:
    """The second at which the machine had its new size: that in which the deposit for it was taken."""
    rows = await world.rows("SELECT at FROM transfer WHERE code = 'deposit' ORDER BY seq")
    return int(rows[-1]["at"])


async def test_an_upgrade_keeps_the_runway_and_burns_faster_from_its_second(tmp_path: Path) -> None:
    recorders, around = recording()
    async with open_world(tmp_path, around=around) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet, auto_renew=False)
        since = await accepted_at(world, server_id)
        world.clock.advance(100_000)
        asked_at = world.clock.now_s()
        reserve = 5_000_000 - burnt(SMALL, asked_at - since)
        delta = same_runway(reserve, SMALL, MEDIUM) - reserve
        available = await world.available(wallet.address)

        body = await resize(world, wallet, server_id, type="medium")
        assert (body["new_type"], body["action"]["command"]) == ("medium", "resize_server")
        assert body["deposit_delta"].startswith("-")
        assert micro(body["deposit_delta"][1:]) == delta
        # Held, not taken, while the machine is on its way.
        assert await world.available(wallet.address) == available - delta - RESIZE
        assert await world.account(f"wallet:{wallet.address}") == available - RESIZE
        await drive(world, step_s=1)
        # This cloud starts what it has resized by itself; an order to start again would be one too many.
        assert recorders[0].changes == ["create", "shutdown", "resize"]
        done_at = await resized_at(world)
        assert await world.account(f"wallet:{wallet.address}") == available - delta - RESIZE

        shown = await show(world, wallet, server_id)
        assert (shown["type"], shown["cores"], shown["memory_gb"], shown["disk_gb"]) == ("medium", 4, 8, 40)
        assert (shown["status"], shown["daily_burn"]) == ("running", "0.22")
        cost = Fraction(SMALL * (done_at - since) + MEDIUM * (world.clock.now_s() - done_at), 86_400)
        assert micro(shown["deposit_remaining"]) == 5_000_000 + delta - int(cost)
        assert (await action(world, body["action"]["id"]))["status"] == "success"
        # The runway is the old one, but for what the seconds of the resize cost at the old rate.
        old_end = since + lasts_s(SMALL, 5_000_000)
        assert abs((await _end(world, server_id, wallet)) - old_end) <= 60
        await world.check_books()


async def _end(world: World, server_id: str, wallet: Wallet) -> int:
    answer = await world.sign(wallet, "GET", f"/v1/servers/{server_id}")
    return world.clock.now_s() + int(answer.headers["Spawn-Runway"])


async def test_a_downgrade_gives_back_what_the_runway_does_not_need(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet, type="medium")
        reserve = micro((await show(world, wallet, server_id))["deposit_remaining"])
        upgraded = await resize(world, wallet, server_id, type="large")
        await drive(world)
        reserve = micro((await show(world, wallet, server_id))["deposit_remaining"])
        available = await world.available(wallet.address)
        body = await resize(world, wallet, server_id, type="medium")
        back = reserve - same_runway(reserve, LARGE, MEDIUM)
        assert back > 0
        assert micro(body["deposit_delta"]) == back
        assert await world.available(wallet.address) == available - RESIZE
        await drive(world)
        assert await world.available(wallet.address) == available - RESIZE + back
        assert (await show(world, wallet, server_id))["type"] == "medium"
        assert upgraded["new_type"] == "large"
        await world.check_books()


async def test_from_off_it_stays_off(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        await world.sign(wallet, "POST", f"/v1/servers/{server_id}/stop")
        await drive(world)
        await resize(world, wallet, server_id, type="medium")
        await drive(world)
        shown = await show(world, wallet, server_id)
        assert (shown["status"], shown["type"]) == ("off", "medium")
        machine = await world.cloud.find((await world.server(server_id)).id)
        assert machine is not None
        assert machine.provider_type == "cx33"
        assert machine.status == "off"
        await world.check_books()


@pytest.mark.parametrize("state", ["running", "off"])
@pytest.mark.parametrize(
    "fault", [Refusal(code=RefusedCode.OUT_OF_CAPACITY), Breakdown()], ids=lambda f: type(f).__name__
)
async def test_a_resize_that_fails_leaves_server_and_money_as_they_were(
    tmp_path: Path, state: str, fault: Fault
) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        if state == "off":
            await world.sign(wallet, "POST", f"/v1/servers/{server_id}/stop")
            await drive(world)
        available = await world.available(wallet.address)
        world.cloud_faults.plan("act", *([None] if state == "running" else []), fault)
        answer = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/resize", {"type": "medium"})
        refused_at_once = state == "off" and isinstance(fault, Refusal)
        if refused_at_once:
            assert code(answer) == (503, "out_of_capacity")
            action_id = answer.json()["error"]["details"]["action"]
        else:
            assert answer.status_code == 200, answer.text
            action_id = answer.json()["action"]["id"]
        await drive(world)
        failed = await action(world, action_id)
        assert failed["status"] == "error"
        assert failed["error"]["code"] == (
            "out_of_capacity" if isinstance(fault, Refusal) else "provider_failed"
        )
        shown = await show(world, wallet, server_id)
        assert (shown["status"], shown["type"], shown["daily_burn"]) == (state, "small", "0.15")
        assert await world.available(wallet.address) == available - READ
        since = await accepted_at(world, server_id)
        assert micro(shown["deposit_remaining"]) == 5_000_000 - burnt(SMALL, world.clock.now_s() - since)
        await world.check_books()


@pytest.mark.parametrize("fault", [Outage(), LostRequest(), LostAnswer()], ids=lambda f: type(f).__name__)
@pytest.mark.parametrize("step", [0, 1], ids=["stop", "resize"])
async def test_a_resize_outlives_a_bad_line(tmp_path: Path, step: int, fault: Fault) -> None:
    recorders, around = recording()
    async with open_world(tmp_path, around=around) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        reserve = micro((await show(world, wallet, server_id))["deposit_remaining"])
        world.cloud_faults.plan("act", *([None] * step), fault)
        body = await resize(world, wallet, server_id, type="medium")
        delta = same_runway(reserve, SMALL, MEDIUM) - reserve
        assert micro(body["deposit_delta"][1:]) == delta
        await drive(world)
        assert (await action(world, body["action"]["id"]))["status"] == "success"
        shown = await show(world, wallet, server_id)
        assert (shown["status"], shown["type"]) == ("running", "medium")
        assert recorders[0].changes.count("resize") <= 2
        spent = CREATE + 2 * READ + RESIZE
        assert await world.available(wallet.address) == 15_000_000 - spent - delta
        await world.check_books()


async def test_a_deaf_guest_is_powered_off_after_its_time_of_grace(tmp_path: Path) -> None:
    recorders, around = recording()
    async with open_world(tmp_path, around=around) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        world.cloud_faults.plan("act", DeafGuest())
        asked_at = world.clock.now_s()
        await resize(world, wallet, server_id, type="medium")
        while "poweroff" not in recorders[0].changes:
            assert world.clock.now_s() < asked_at + 130
            assert recorders[0].changes == ["create", "shutdown"]
            world.clock.advance(1)
            await world.tick("operations")
        assert world.clock.now_s() >= asked_at + 120
        await drive(world)
        assert recorders[0].changes == ["create", "shutdown", "poweroff", "resize"]
        assert (await show(world, wallet, server_id))["type"] == "medium"
        await world.check_books()


async def test_what_a_machine_cannot_become_is_a_conflict(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("40.00")
        server_id = await rent(world, wallet)
        path = f"/v1/servers/{server_id}/resize"
        for type_ in ("arm-small", "small"):
            assert code(await world.sign(wallet, "POST", path, {"type": type_})) == (409, "conflict")
        assert (await world.sign(wallet, "POST", path, {"type": "gigantic"})).status_code == 400
        await resize(world, wallet, server_id, type="medium", upgrade_disk=True)
        await drive(world)
        assert (await show(world, wallet, server_id))["disk_gb"] == 80
        available = await world.available(wallet.address)
        assert code(await world.sign(wallet, "POST", path, {"type": "small"})) == (409, "conflict")
        assert await world.available(wallet.address) == available
        arm = await rent(world, wallet, name="arm", type="arm-small")
        refused = await world.sign(wallet, "POST", f"/v1/servers/{arm}/resize", {"type": "small"})
        assert code(refused) == (409, "conflict")
        await world.check_books()


async def test_an_upgrade_that_the_wallet_cannot_pay_is_refused_before_anything(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("5.50")
        server_id = await rent(world, wallet)
        refused = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/resize", {"type": "large"})
        assert code(refused) == (422, "insufficient_deposit")
        assert (await world.server(server_id)).status == "running"
        assert await world.available(wallet.address) == 500_000 - CREATE


async def test_the_hour_is_that_of_the_dearest_size_and_is_charged_once(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        await resize(world, wallet, server_id, type="medium")
        await drive(world)
        await world.sign(wallet, "DELETE", f"/v1/servers/{server_id}")
        await drive(world)
        assert await compute_usdc(world, server_id) == hour(MEDIUM)
        left = 20_000_000 - CREATE - RESIZE - DESTROY - hour(MEDIUM)
        assert await balance(world, wallet) == {"balance": left, "reserved": 0, "available": left}
        await world.check_books()


@pytest.mark.parametrize("ticks", [0, 8, 30])
async def test_a_delete_supersedes_a_resize_and_its_deposit_comes_back(tmp_path: Path, ticks: int) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        since = await accepted_at(world, server_id)
        body = await resize(world, wallet, server_id, type="medium")
        for _ in range(ticks):
            world.clock.advance(1)
            await world.tick("operations")
        gone = await world.sign(wallet, "DELETE", f"/v1/servers/{server_id}")
        assert gone.status_code == 200
        assert (await action(world, body["action"]["id"]))["error"]["code"] == "superseded"
        cost = max(hour(SMALL), burnt(SMALL, world.clock.now_s() - since))
        await drive(world)
        assert await world.available(wallet.address) == 20_000_000 - CREATE - RESIZE - DESTROY - cost
        assert await world.cloud.find((await world.server(server_id)).id) is None
        await world.check_books()
