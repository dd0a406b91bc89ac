"""What a server sends, from the provider's counters to the statement: counted once, priced once, paid or owed."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spawn_ledger.accrual import next_month
from spawn_providers.catalog import TB

from tests.harness import World, open_world
from tests.integration.sending import (
    COST_PER_TB,
    INCLUDED,
    PER_TB,
    SWEEP_S,
    Cloud,
    costs,
    moved,
    sweep,
)
from tests.integration.server_steps import DAY, SMALL, burnt, code, drive, rent, show
from tests.wallets import Wallet

HOUR = 3_600


async def traffic_of(world: World, wallet: Wallet, server_id: str) -> dict[str, Any]:
    shown: dict[str, Any] = (await show(world, wallet, server_id))["traffic"]
    return shown


async def test_what_is_included_costs_nothing_and_no_call_is_made_to_count_it(tmp_path: Path) -> None:
    cloud = Cloud()
    async with open_world(tmp_path, around=cloud) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        cloud.now.sent(server_id, 5 * TB, ingoing=7 * TB)
        calls = cloud.now.calls
        await sweep(world)
        assert cloud.now.calls == calls + 1
        assert await traffic_of(world, wallet, server_id) == {
            "ingoing_bytes": 7 * TB,
            "outgoing_bytes": 5 * TB,
            "included_bytes": INCLUDED,
            "overage_usdc_per_tb": "1.20",
            "charged": "0.00",
        }
        assert cloud.now.calls == calls + 1
        assert await world.rows("SELECT id FROM transfer WHERE code = 'traffic'") == []


async def test_the_price_is_in_the_catalog(tmp_path: Path) -> None:
    async with open_world(tmp_path, price_margin_percent=40) as world:
        offers = (await world.ask("GET", "/v1/catalog")).json()["offers"]
        shown = {(o["included_traffic_bytes"], o["overage_usdc_per_tb"]) for o in offers}
        # 1.08 USDC are six tenths of the price; nobody says what the machines in the United States cost.
        assert shown == {(INCLUDED, "1.80"), (0, None)}


async def test_what_goes_beyond_is_charged_as_it_is_seen_first_from_the_reserve(tmp_path: Path) -> None:
    cloud = Cloud()
    async with open_world(tmp_path, around=cloud) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet, deposit="5.00")
        cloud.now.sent(server_id, INCLUDED + TB // 2)
        await sweep(world)
        for _ in range(3):
            await sweep(world, 1)  # another process looks as well
        assert await moved(world, "srv:", "rev:traffic") == costs(TB // 2) == 600_000
        assert await moved(world, "cost:provider", "owed:provider") == costs(TB // 2, COST_PER_TB)
        cloud.now.sent(server_id, INCLUDED + 10 * TB)
        await sweep(world)
        assert await moved(world, "srv:", "rev:traffic") + await moved(
            world, "wallet:", "rev:traffic"
        ) == costs(10 * TB)
        assert await moved(world, "wallet:", "rev:traffic") > 0
        assert await world.account(f"srv:{server_id}") == 0
        assert (await traffic_of(world, wallet, server_id))["charged"] == "12.00"
        lines = (await world.sign(wallet, "GET", "/v1/balance/transactions")).json()["transactions"]
        mine = [line for line in lines if line["kind"] == "traffic"]
        assert sum(round(float(line["amount"]) * 1e6) for line in mine) == -12_000_000
        assert {line["reference"] for line in mine} == {server_id}
        await world.check_books()


async def test_nothing_is_told_where_the_provider_does_not_count(tmp_path: Path) -> None:
    cloud = Cloud()
    async with open_world(tmp_path, around=cloud) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet, type="small", location="ash", deposit="5.00")
        cloud.now.counters[server_id] = None
        await sweep(world)
        assert await traffic_of(world, wallet, server_id) is None
        # Where it counts, and asks for nothing that we know of, it is shown and free.
        cloud.now.sent(server_id, 90 * TB)
        await sweep(world)
        shown = await traffic_of(world, wallet, server_id)
        assert (shown["outgoing_bytes"], shown["overage_usdc_per_tb"], shown["charged"]) == (
            90 * TB,
            None,
            "0.00",
        )


async def test_a_month_and_a_period_begin_anew(tmp_path: Path) -> None:
    cloud = Cloud()
    async with open_world(tmp_path, around=cloud) as world:
        wallet = await world.customer("50.00")
        server_id = await rent(world, wallet)
        cloud.now.sent(server_id, INCLUDED + TB)
        await sweep(world)
        month = next_month(world.clock.now_s())
        await sweep(world, month - world.clock.now_s() - SWEEP_S)
        cloud.now.sent(server_id, TB)  # the provider counts anew
        await sweep(world, SWEEP_S)
        assert (await traffic_of(world, wallet, server_id))["outgoing_bytes"] == 0
        await sweep(world, SWEEP_S)
        assert (await traffic_of(world, wallet, server_id))["outgoing_bytes"] == TB
        cloud.now.sent(server_id, INCLUDED + 2 * TB)
        await sweep(world)
        shown = await traffic_of(world, wallet, server_id)
        assert (shown["outgoing_bytes"], shown["charged"]) == (INCLUDED + 2 * TB, "2.40")
        assert await world.account("rev:traffic") == costs(3 * TB)
        await world.check_books()


async def test_a_list_that_is_late_once_costs_nothing(tmp_path: Path) -> None:
    cloud = Cloud()
    async with open_world(tmp_path, around=cloud) as world:
        wallet = await world.customer("50.00")
        server_id = await rent(world, wallet)
        for shown in (INCLUDED + TB, INCLUDED, INCLUDED + 2 * TB):
            cloud.now.sent(server_id, shown)
            await sweep(world)
        assert await world.account("rev:traffic") == costs(2 * TB)


async def test_a_fall_of_the_reserve_is_warned_of_and_the_end_keeps_its_grace(tmp_path: Path) -> None:
    cloud = Cloud()
    async with open_world(tmp_path, around=cloud) as world:
        wallet = await world.customer("6.00")
        server_id = await rent(world, wallet, deposit="5.00", auto_renew=False)
        cloud.now.sent(server_id, INCLUDED + 40 * TB)
        await sweep(world)
        seen_at = world.clock.now_s()
        told = await world.rows(
            "SELECT cause, at FROM event WHERE type = 'deposit.low' AND resource = :id", id=server_id
        )
        assert [(row["cause"].split("|")[3], row["at"]) for row in told] == [(str(6 * HOUR), seen_at)]
        server = await world.server(server_id)
        assert server.traffic_owed_usdc == costs(40 * TB) - 5_000_000 + burnt(
            SMALL, seen_at - (server.metered_from or 0)
        )
        await world.burn_until(seen_at + 6 * HOUR - 1)
        await world.tick("burn")
        assert (await world.server(server_id)).status == "running"
        await world.burn_until(seen_at + 6 * HOUR + 60)
        await drive(world)
        ended = await world.server(server_id)
        assert (ended.status, ended.reason, ended.traffic_owed_usdc) == ("destroyed", "deposit_exhausted", 0)
        # It did not renew from the wallet, which therefore paid nothing of it.
        assert await moved(world, "wallet:", "rev:traffic") == 0
        assert (
            await moved(world, "exp:overrun", "cost:provider")
            == server.traffic_owed_usdc * COST_PER_TB // PER_TB
        )
        await world.check_books()


async def test_what_is_owed_is_paid_first_when_money_comes(tmp_path: Path) -> None:
    cloud = Cloud()
    async with open_world(tmp_path, around=cloud) as world:
        wallet = await world.customer("5.50")
        server_id = await rent(world, wallet, deposit="5.00")
        cloud.now.sent(server_id, INCLUDED + 10 * TB)
        await sweep(world)
        owed = (await world.server(server_id)).traffic_owed_usdc
        assert owed > 6_000_000
        assert await world.available(wallet.address) == 0
        world.clock.advance(HOUR)
        paid = await world.pay(wallet, "POST", "/v1/balance/deposit", {"amount": "3.00"})
        assert paid.json()["available"] == "0.00"
        assert (await world.server(server_id)).traffic_owed_usdc == owed - 3_000_000
        paid = await world.pay(wallet, "POST", "/v1/balance/deposit", {"amount": "10.00"})
        server = await world.server(server_id)
        assert (server.traffic_owed_usdc, server.exhausted_at) == (0, None)
        left = round(float(paid.json()["available"]) * 1e6)
        assert left == await world.available(wallet.address)
        assert await world.account("rev:traffic") == costs(10 * TB)
        assert left + owed - 13_000_000 == -burnt(SMALL, HOUR)
        await world.check_books()


async def test_a_reserve_that_is_raised_pays_what_is_owed_first(tmp_path: Path) -> None:
    cloud = Cloud()
    async with open_world(tmp_path, around=cloud) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet, deposit="1.00", auto_renew=False)
        cloud.now.sent(server_id, INCLUDED + 2 * TB)
        await sweep(world)
        owed = (await world.server(server_id)).traffic_owed_usdc
        assert 1_400_000 <= owed < 1_500_000
        funded = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/deposit", {"amount": "4.00"})
        assert round(float(funded.json()["server"]["deposit_remaining"]) * 1e6) == 4_000_000 - owed
        world.clock.advance(DAY)
        renewed = await world.sign(wallet, "PATCH", f"/v1/servers/{server_id}", {"auto_renew": True})
        assert renewed.status_code == 200
        await world.check_books()


async def test_a_server_that_begins_to_renew_pays_what_it_owes_from_the_wallet(tmp_path: Path) -> None:
    cloud = Cloud()
    async with open_world(tmp_path, around=cloud) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet, deposit="1.00", auto_renew=False)
        cloud.now.sent(server_id, INCLUDED + 2 * TB)
        await sweep(world)
        owed, before = (
            (await world.server(server_id)).traffic_owed_usdc,
            await world.available(wallet.address),
        )
        await world.sign(wallet, "PATCH", f"/v1/servers/{server_id}", {"auto_renew": True})
        assert (await world.server(server_id)).traffic_owed_usdc == 0
        assert await world.available(wallet.address) == before - owed - 1_000
        await world.check_books()


async def test_a_payment_that_what_is_owed_would_eat_is_told_so_and_pays_for_that(tmp_path: Path) -> None:
    """docs/sim-findings.md, 24: it was a 500."""
    cloud = Cloud()
    async with open_world(tmp_path, around=cloud) as world:
        wallet = await world.customer("5.50")
        server_id = await rent(world, wallet, deposit="5.00")
        cloud.now.sent(server_id, INCLUDED + 10 * TB)
        await sweep(world)
        owed = (await world.server(server_id)).traffic_owed_usdc
        changed = await world.pay(wallet, "PATCH", f"/v1/servers/{server_id}", {"auto_renew": True})
        assert code(changed) == (422, "insufficient_deposit")
        assert (await world.server(server_id)).traffic_owed_usdc <= owed
        await world.check_books()


async def test_what_would_end_another_server_unwarned_is_refused(tmp_path: Path) -> None:
    """To renew from the wallet takes what is owed from it at once: the other server lives from that money."""
    cloud = Cloud()
    async with open_world(tmp_path, around=cloud) as world:
        wallet = await world.customer("2.60")
        indebted = await rent(world, wallet, deposit="1.00", auto_renew=False)
        other = await rent(world, wallet, name="other", deposit="0.15")
        await world.burn_until(world.clock.now_s() + 20 * HOUR)
        cloud.now.sent(indebted, INCLUDED + 3 * TB)
        await sweep(world)
        assert (await show(world, wallet, other))["deposit_remaining"] != "0.00"
        owed = (await world.server(indebted)).traffic_owed_usdc
        assert owed > await world.available(wallet.address)
        refused = await world.sign(wallet, "PATCH", f"/v1/servers/{indebted}", {"auto_renew": True})
        assert code(refused) == (422, "insufficient_deposit")
        assert (await world.server(indebted)).traffic_owed_usdc == owed
        await world.check_books()


async def test_a_destroyed_server_pays_what_was_seen_and_what_came_later_is_ours(tmp_path: Path) -> None:
    cloud = Cloud()
    async with open_world(tmp_path, around=cloud) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        cloud.now.sent(server_id, INCLUDED + TB)
        await sweep(world)
        cloud.now.sent(server_id, INCLUDED + 3 * TB)
        gone = await world.sign(wallet, "DELETE", f"/v1/servers/{server_id}")
        assert gone.status_code == 200
        await drive(world)
        await sweep(world)
        assert await world.account("rev:traffic") == costs(TB)
        assert await moved(world, "cost:provider", "owed:provider") == costs(TB, COST_PER_TB)
        assert await moved(world, "exp:overrun", "owed:provider") == costs(2 * TB, COST_PER_TB)
        shown = await traffic_of(world, wallet, server_id)
        assert (shown["outgoing_bytes"], shown["charged"]) == (INCLUDED + 3 * TB, "1.20")
        await world.check_books()


async def test_a_look_that_crashes_is_taken_again_and_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud = Cloud()
    async with open_world(tmp_path, around=cloud) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        cloud.now.sent(server_id, INCLUDED + TB)
        with monkeypatch.context() as patch:

            def dies(*_: object) -> None:
                raise RuntimeError("the process died")

            patch.setattr("spawn.services.overage.rows.put", dies)
            with pytest.raises(RuntimeError):
                await sweep(world)
        assert await world.rows("SELECT * FROM transfer WHERE code = 'traffic'") == []
        await sweep(world)
    async with open_world(tmp_path, clock=world.clock, around=cloud) as world:
        cloud.now.sent(server_id, INCLUDED + TB)
        await sweep(world)
        assert await world.account("rev:traffic") == costs(TB)
        await world.check_books()


async def test_a_resize_takes_the_price_of_its_moment_and_announcements_leave_it(tmp_path: Path) -> None:
    cloud = Cloud()
    async with open_world(tmp_path, around=cloud) as world:
        wallet = await world.customer("50.00")
        server_id = await rent(world, wallet)
        cloud.now.sent(server_id, INCLUDED + TB)
        await sweep(world)
    async with open_world(tmp_path, clock=world.clock, around=cloud, price_margin_percent=40) as world:
        cloud.now.sent(server_id, INCLUDED + 2 * TB)
        await sweep(world)
        assert await world.account("rev:traffic") == costs(2 * TB)
        resized = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/resize", {"type": "medium"})
        assert resized.status_code == 200, resized.text
        await drive(world)
        assert (await traffic_of(world, wallet, server_id))["overage_usdc_per_tb"] == "1.80"
        cloud.now.sent(server_id, INCLUDED + 3 * TB)
        await sweep(world)
        assert await world.account("rev:traffic") == costs(2 * TB) + 1_800_000
        await world.check_books()


async def test_a_frozen_server_pays_for_nothing_that_it_sent_before_its_meter_starts(tmp_path: Path) -> None:
    cloud = Cloud()
    async with open_world(tmp_path, around=cloud) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        cloud.now.sent(server_id, INCLUDED + 5 * TB)

        def frozen(tx: Any) -> None:
            tx.execute(
                "UPDATE server SET charged_until = NULL, due_at = NULL WHERE id = :id", {"id": server_id}
            )

        await world.parts.db.write(frozen)
        await sweep(world)
        assert await world.account("rev:traffic") == 0
        assert (await traffic_of(world, wallet, server_id))["outgoing_bytes"] == 0


readings = st.lists(st.integers(0, 6 * TB), min_size=1, max_size=12)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(readings)
async def test_the_money_of_a_month_is_the_price_of_what_was_sent_beyond_the_included(
    tmp_path_factory: pytest.TempPathFactory, sent: list[int]
) -> None:
    cloud = Cloud()
    async with open_world(tmp_path_factory.mktemp("month"), around=cloud) as world:
        wallet = await world.customer("99.00")
        server_id = await rent(world, wallet)
        total = INCLUDED - 3 * TB
        for size in sent:
            total += size
            cloud.now.sent(server_id, total)
            await sweep(world, HOUR)
        assert await world.account("rev:traffic") == costs(max(0, total - INCLUDED))
        assert await moved(world, "cost:", "owed:") == costs(max(0, total - INCLUDED), COST_PER_TB)
        await world.check_books()
