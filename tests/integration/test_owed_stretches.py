"""A server becomes another machine while its money has ended: every second costs what it cost when it was lived.

Invariant: what is owed is worked out here by fractions, from when things happened.
"""

from pathlib import Path
from typing import NamedTuple

import pytest
from spawn_providers.simulated_faults import Outage
from spawn_schemas.ids import ServerId
from spawn_schemas.money import Usdc

from spawn.domain.servers import Server
from spawn.services.moments import moment
from spawn.store.price_changes import set_reprice
from tests.harness import World, open_world
from tests.integration.server_steps import (
    DAY,
    SMALL,
    accepted_at,
    compute_usdc,
    drive,
    lasts_s,
    micro,
    rent,
    show,
)
from tests.integration.test_deposit_lives import HOUR, told
from tests.wallets import Wallet

DEPOSIT = 300_000


class Owing(NamedTuple):
    """A server that was resized hours after its money had ended; its first price was paid from `deposit` alone."""

    id: str
    since: int
    resized_at: int
    deposit: int
    row: Server

    @property
    def paid_until(self) -> int:
        return self.since + lasts_s(SMALL, self.deposit)


async def resized_unpaid(world: World, wallet: Wallet, *, announced_usdc: int | None = None) -> Owing:
    """Order a resize minutes before the money ends, of a cloud that is out for hours."""
    server_id = await rent(world, wallet, deposit="0.30", auto_renew=False)
    since = await accepted_at(world, server_id)
    end = since + lasts_s(SMALL, DEPOSIT)
    await world.burn_until(end - 600)
    order = await world.sign(
        wallet, "POST", f"/v1/servers/{server_id}/resize", {"type": "large", "upgrade_disk": False}
    )
    assert order.status_code == 200, order.text
    (held,) = await world.rows("SELECT held FROM account WHERE id = :id", id=f"wallet:{wallet.address}")
    deposit = DEPOSIT + held["held"]
    if announced_usdc is not None:
        at = since + lasts_s(SMALL, deposit) + HOUR
        await world.parts.db.write(
            lambda tx: set_reprice(tx, ServerId(server_id), at=at, daily_usdc=Usdc(announced_usdc))
        )
    world.cloud_faults.plan("poll", *(Outage(retry_after_s=HOUR) for _ in range(80)))
    while (await world.server(server_id)).type == "small":
        assert world.clock.now_s() < end + 2 * DAY
        world.clock.advance(60)
        await world.tick("operations", "burn")
    await drive(world)
    row = await world.server(server_id)
    assert row.exhausted_at is not None
    owing = Owing(server_id, since, row.priced_at, deposit, row)
    assert row.charged_until == owing.paid_until < row.priced_at - 2 * HOUR
    return owing


def cost(row: Server, since: int, *ends: tuple[int | None, int]) -> int:
    """What the provider asks, price by price, each up to its end."""
    units = 0
    for daily, until in ends:
        units += (daily or 0) * (until - since)
        since = until
    return units // DAY


async def test_hours_that_nobody_had_paid_for_cost_what_they_cost_before_the_resize(tmp_path: Path) -> None:
    async with open_world(tmp_path, grace_s=2 * DAY) as world:
        wallet = await world.customer("30.00")
        owing = await resized_unpaid(world, wallet)
        assert (await show(world, wallet, owing.id))["type"] == "large"
        answer = await world.sign(wallet, "POST", f"/v1/servers/{owing.id}/deposit", {"amount": "9.00"})
        assert answer.status_code == 200, answer.text
        await world.burn_until(world.clock.now_s() + 5 * HOUR)
        row = await world.server(owing.id)
        assert row.exhausted_at is None
        assert row.charged_until is not None
        small_s, large_s = owing.resized_at - owing.since, row.charged_until - owing.resized_at
        owed = (SMALL * small_s + row.daily_usdc * large_s) // DAY
        assert await compute_usdc(world, owing.id) == owed
        assert row.month_s == large_s, "a dearer machine begins a month of its own"
        await world.check_books()


async def test_who_pays_is_told_an_end_at_the_price_that_holds(tmp_path: Path) -> None:
    async with open_world(tmp_path, grace_s=2 * DAY) as world:
        wallet = await world.customer("30.00")
        owing = await resized_unpaid(world, wallet)
        answer = await world.sign(wallet, "POST", f"/v1/servers/{owing.id}/deposit", {"amount": "2.00"})
        assert answer.status_code == 200, answer.text
        (restored,) = await told(world, "deposit.restored")
        (funded,) = await told(world, "deposit.funded")
        row = await world.server(owing.id)
        assert restored["expires_at"] == funded["expires_at"] == answer.json()["server"]["deposit_expires_at"]
        units = (owing.deposit + 2_000_000) * DAY + DAY - 1 - SMALL * (owing.resized_at - owing.since)
        assert restored["expires_at"] == moment(owing.resized_at + units // row.daily_usdc)


@pytest.mark.parametrize("part", ["0.01", "0.03"])
async def test_a_part_of_what_is_owed_pays_for_the_oldest_of_it(tmp_path: Path, part: str) -> None:
    async with open_world(tmp_path, grace_s=3 * DAY) as world:
        wallet = await world.customer("30.00")
        owing = await resized_unpaid(world, wallet)
        answer = await world.sign(wallet, "POST", f"/v1/servers/{owing.id}/deposit", {"amount": part})
        assert answer.status_code == 200, answer.text
        row = await world.server(owing.id)
        assert row.charged_until == owing.since + lasts_s(SMALL, owing.deposit + micro(part))
        assert row.exhausted_at == row.charged_until
        await world.check_books()


@pytest.mark.parametrize("announced", [50_000, 300_000])
async def test_a_price_that_began_before_the_resize_holds_up_to_it(tmp_path: Path, announced: int) -> None:
    async with open_world(tmp_path, grace_s=2 * DAY) as world:
        wallet = await world.customer("30.00")
        owing = await resized_unpaid(world, wallet, announced_usdc=announced)
        (changed,) = await told(world, "price.changed")
        answer = await world.sign(wallet, "POST", f"/v1/servers/{owing.id}/deposit", {"amount": "9.00"})
        assert answer.status_code == 200, answer.text
        row = await world.server(owing.id)
        changed_at = owing.paid_until + HOUR
        assert changed["effective_at"] == moment(changed_at)
        assert row.charged_until is not None
        owed = (
            SMALL * (changed_at - owing.since)
            + announced * (owing.resized_at - changed_at)
            + row.daily_usdc * (row.charged_until - owing.resized_at)
        ) // DAY
        assert await compute_usdc(world, owing.id) == owed
        await world.check_books()


async def test_what_the_provider_asks_is_booked_machine_by_machine(tmp_path: Path) -> None:
    async with open_world(tmp_path, grace_s=2 * DAY) as world:
        wallet = await world.customer("30.00")
        owing = await resized_unpaid(world, wallet)
        small_cost = owing.row.owed[0].pin.cost_daily_usdc
        await world.burn_until(owing.row.priced_at + 6 * HOUR)
        gone = await world.sign(wallet, "DELETE", f"/v1/servers/{owing.id}")
        assert gone.is_success, gone.text
        await drive(world)
        row = await world.server(owing.id)
        assert row.ended_at is not None
        assert row.owed == ()
        hours = -(-(row.ended_at - owing.since) // row.cost_step_s)
        until = owing.since + hours * row.cost_step_s
        expected = cost(row, owing.since, (small_cost, owing.resized_at), (row.cost_daily_usdc, until))
        assert row.cost_usdc == expected
        assert await world.account("owed:provider") == expected
        await world.check_books()
