"""Clocks that are set wrong, leaders that sleep in mid-job, hours that are missed: the books do not show it."""

from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spawn.services import treasury
from spawn.services.leader import LEASE_S
from tests.harness import World, open_world
from tests.integration.server_steps import (
    LARGE,
    SMALL,
    accepted_at,
    burnt,
    compute_usdc,
    lasts_s,
    order,
    rent,
)
from tests.integration.two_leaders import Process, open_two, two_processes

HOUR, DAY, YEAR = 3600, 86_400, 365 * 86_400
STEPS_S: Final = (-YEAR, -DAY, -HOUR, -45, 45, HOUR, DAY, YEAR)
JOBS: Final = ("count", "burn", "operations")

# By the servers' names: which id each has depends on how often the database had something done again.
SELECT_BALANCES: Final = """
SELECT COALESCE(server.name, account.id) AS who, balance, held
FROM account LEFT JOIN server ON account.id = 'srv:' || server.id ORDER BY 1
"""
SELECT_COMPUTE: Final = "SELECT COALESCE(SUM(amount), 0) AS n FROM transfer WHERE credit = 'rev:compute'"
SELECT_ENDED: Final = "SELECT name, status, reason, charged_usdc FROM server ORDER BY name"


async def three_servers(world: World) -> None:
    """One that its wallet renews, and two that end after so many hours."""
    for name, deposit, auto_renew in (("a", "1.00", True), ("b", "0.45", False), ("c", "0.41", False)):
        wallet = await world.customer("3.00")
        await rent(world, wallet, name=name, type="large", deposit=deposit, auto_renew=auto_renew)


async def books(world: World) -> dict[str, Any]:
    """What wallets and servers have, what was taken for computing, and how each server stands.

    What machines cost us after billing ended depends on when they were destroyed, and is left out.
    """
    await world.check_books()
    return {
        "balances": [tuple(dict(row).values()) for row in await world.rows(SELECT_BALANCES)],
        "compute": (await world.rows(SELECT_COMPUTE))[0]["n"],
        "servers": [tuple(dict(row).values()) for row in await world.rows(SELECT_ENDED)],
    }


async def settle_down(world: World, *processes: Process) -> None:
    """Clocks are right again and everybody is awake: a few quiet days."""
    for process in processes:
        process.clock.skew_s = 0
        await process.resume()
    for _ in range(3):
        world.clock.advance(LEASE_S)
        for process in processes:
            await process.tick(*JOBS)
    for _ in range(8):
        world.clock.advance(DAY)
        for process in processes:
            await process.tick(*JOBS)


async def test_a_tick_that_wakes_after_another_took_over_charges_nobody_twice(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await three_servers(world)
        ids = [row["id"] for row in await world.rows("SELECT id FROM server ORDER BY name")]
        since = [await accepted_at(world, server_id) for server_id in ids]
        async with two_processes(world) as (first, second):
            world.clock.advance(5 * DAY)
            assert await first.pause_in("burn", after_writes=3), (
                "the lease, a chunk of those whose reserve lasts, a wallet"
            )
            charged = {
                row["wallet"] for row in await world.rows("SELECT wallet FROM server WHERE charged_usdc > 0")
            }
            assert len(charged) == 1
            await second.tick(*JOBS)
            assert len(await world.rows("SELECT 1 FROM server WHERE charged_usdc > 0")) == 1
            world.clock.advance(LEASE_S)
            await second.tick(*JOBS)
            after = await books(world)
            assert len(await world.rows("SELECT 1 FROM server WHERE charged_usdc > 0")) == 3
            await first.resume()
            assert first.lost == 1
            assert await books(world) == after
        a_s = world.clock.now_s() - since[0]
        assert await compute_usdc(world, ids[0]) == burnt(LARGE, min(a_s, lasts_s(LARGE, 2_990_000)))
        assert await compute_usdc(world, ids[1]) == burnt(LARGE, lasts_s(LARGE, 450_000))
        assert await compute_usdc(world, ids[2]) == burnt(LARGE, lasts_s(LARGE, 410_000))


Step = tuple[str, int]
SCHEDULES: Final = st.lists(
    st.one_of(
        st.tuples(st.just("advance"), st.integers(1, 40_000)),
        st.tuples(st.just("advance"), st.sampled_from([1, LEASE_S - 1, LEASE_S])),
        st.tuples(st.sampled_from(["set A", "set B"]), st.sampled_from(STEPS_S)),
        st.tuples(st.sampled_from(["tick A", "tick B"]), st.just(0)),
        st.tuples(st.sampled_from(["pause A", "pause B"]), st.integers(0, 4)),
        st.tuples(st.sampled_from(["resume A", "resume B"]), st.just(0)),
    ),
    min_size=4,
    max_size=25,
)


async def take(world: World, processes: dict[str, Process], step: Step) -> None:
    verb, _, name = step[0].partition(" ")
    if verb == "advance":
        world.clock.advance(step[1])
        return
    process = processes[name]
    match verb:
        case "set":
            process.clock.skew_s = step[1]
        case "tick":
            await process.tick(*JOBS)
        case "pause":
            await process.pause_in(*JOBS, after_writes=step[1])
        case _:
            await process.resume()


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(schedule=SCHEDULES)
async def test_whatever_clocks_and_leaders_do_the_books_are_those_of_a_quiet_run(
    tmp_path_factory: pytest.TempPathFactory, schedule: list[Step]
) -> None:
    async with open_world(tmp_path_factory.mktemp("disturbed")) as world:
        await three_servers(world)
        began = world.clock.now_s()
        async with two_processes(world) as (first, second):
            for step in schedule:
                await take(world, {"A": first, "B": second}, step)
            # What was charged ahead of time is what that time costs, once it has passed.
            world.clock.advance(YEAR + DAY)
            await settle_down(world, first, second)
            disturbed = await books(world)
            passed_s = world.clock.now_s() - began
    async with open_world(tmp_path_factory.mktemp("quiet")) as world:
        await three_servers(world)
        async with two_processes(world) as (only, _):
            world.clock.advance(passed_s - 8 * DAY - 3 * LEASE_S)
            await settle_down(world, only)
            assert await books(world) == disturbed


@pytest.mark.parametrize("skew_s", STEPS_S)
@pytest.mark.parametrize("when", ["before the first tick", "while it runs"])
async def test_after_a_clock_step_operations_go_on_within_a_minute(
    tmp_path: Path, skew_s: int, when: str
) -> None:
    async with open_two(tmp_path) as (world, process, _):
        wallet = await world.customer()
        server_id = (await order(world, wallet)).json()["server"]["id"]
        gone = (await order(world, wallet, name="gone")).json()["server"]["id"]
        await world.sign(wallet, "DELETE", f"/v1/servers/{gone}")
        if when == "while it runs":
            await process.tick("operations")
        process.clock.skew_s = skew_s
        for _ in range(60):
            world.clock.advance(1)
            await process.tick("operations")
        assert (await world.server(server_id)).provider_ref is not None
        if skew_s < HOUR:
            assert (await world.server(server_id)).status == "running"
        assert (await world.server(gone)).status == "destroyed"


async def test_a_claim_from_before_the_clock_was_set_back_lasts_no_longer_than_a_new_one(
    tmp_path: Path,
) -> None:
    async with open_two(tmp_path) as (world, process, _):
        wallet = await world.customer()
        server_id = (await order(world, wallet)).json()["server"]["id"]
        claim = {"claim": "a dead process", "until": world.clock.now_s() + YEAR, "id": server_id}
        await world.parts.db.write(
            lambda tx: tx.execute(
                "UPDATE operation SET claim = :claim, claim_until = :until WHERE server_id = :id", claim
            )
        )
        for _ in range(59):
            await process.tick("operations")
            world.clock.advance(1)
        assert (await world.server(server_id)).status == "initializing"
        for _ in range(60):
            world.clock.advance(1)
            await process.tick("operations")
        assert (await world.server(server_id)).status == "running"


@pytest.mark.parametrize("skew_s", STEPS_S)
async def test_a_payment_whose_claim_is_from_another_time_is_booked(tmp_path: Path, skew_s: int) -> None:
    async with open_two(tmp_path) as (world, process, _):
        wallet = await world.wallet()
        world.chain_faults.lose_answer = 1
        unclear = await world.pay(wallet, "POST", "/v1/balance/deposit", {"amount": "5.00"})
        assert unclear.status_code == 503
        await world.parts.db.write(
            lambda tx: tx.execute(
                "UPDATE reservation SET claim = 'x', claim_until = :until", {"until": world.clock.now_s() + 1}
            )
        )
        process.clock.skew_s = skew_s
        world.clock.advance(60)
        await process.tick("settlements")
        assert await world.available(wallet.address) == 5_000_000


@pytest.mark.parametrize("skew_s", [-YEAR, -HOUR])
async def test_the_books_are_compared_again_after_the_clock_was_set_back(tmp_path: Path, skew_s: int) -> None:
    async with open_two(tmp_path) as (world, process, _):
        await process.tick("treasury")
        process.clock.skew_s = skew_s
        await process.tick("treasury")
        last = await treasury.last_comparison(world.parts.db)
        assert last is not None
        assert last.at == process.clock.now_s()


async def test_a_missed_day_is_charged_at_once_and_to_the_second(tmp_path: Path) -> None:
    async with open_two(tmp_path) as (world, process, _):
        wallet = await world.customer("9.00")
        server_id = (await order(world, wallet)).json()["server"]["id"]
        since = world.clock.now_s()
        await process.tick("operations")
        world.clock.advance(2 * DAY + 1)
        await process.tick("burn")
        assert await compute_usdc(world, server_id) == burnt(SMALL, world.clock.now_s() - since)
        await world.check_books()
