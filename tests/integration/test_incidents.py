"""Operators hear of what goes on failing: once an hour, in a line that says what, since when, and what to do."""

import logging
from pathlib import Path
from typing import Final

import pytest
from spawn_ledger.tx import Tx
from spawn_providers.base import RefusedCode
from spawn_providers.simulated_faults import Outage, Rates, Refusal

from spawn.services import incidents
from spawn.services.incidents import LATE_S, LISTED
from spawn.services.moments import moment
from tests.harness import World, open_world
from tests.integration.server_steps import rent
from tests.wallets import Wallet

YEAR: Final = 365 * 86_400
LINE: Final = "incident: "


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.CRITICAL)
    return caplog


async def destroying(world: World, name: str = "web") -> tuple[Wallet, str]:
    """A server whose destruction is ordered, and has not begun."""
    wallet = await world.customer()
    server_id = await rent(world, wallet, name=name)
    world.cloud_faults.plan("delete", Outage())
    gone = await world.sign(wallet, "DELETE", f"/v1/servers/{server_id}")
    assert gone.status_code == 200, gone.text
    return wallet, server_id


async def pass_time(world: World, seconds: int) -> None:
    for _ in range(0, seconds, 60):
        world.clock.advance(60)
        await world.tick("operations", "incidents")


async def test_a_destruction_that_keeps_failing_is_told_once_an_hour(
    tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    async with open_world(tmp_path) as world:
        wallet, server_id = await destroying(world)
        since = world.clock.now_s()
        world.cloud_faults.plan("delete", *[Refusal(code=RefusedCode.INVALID)] * 100)
        await pass_time(world, LATE_S - 60)
        assert told.messages == []
        await pass_time(world, 60)
        (line,) = told.messages
        ref = (await world.server(server_id)).provider_ref
        for part in (
            server_id,
            "simulated",
            str(ref),
            moment(since),
            "act_",
            "refused",
            "go on trying",
        ):
            assert part in line, part
        assert line.startswith(LINE)
        assert "\n" not in line
        found = await incidents.failing_destroys(world.parts.db, world.clock.now_s())
        assert found.count == 1
        assert (found.oldest[0].server, found.oldest[0].wallet) == (server_id, wallet.address)
        assert found.oldest[0].since == since
        assert found.oldest[0].attempts > 3
        await pass_time(world, LATE_S - 60)
        assert len(told.messages) == 1
        await pass_time(world, 60)
        assert len(told.messages) == 2


async def test_a_destruction_that_succeeds_after_all_is_no_incident_and_no_error(
    tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    async with open_world(tmp_path) as world:
        _, server_id = await destroying(world)
        world.cloud_faults.plan("delete", Refusal(code=RefusedCode.CONFLICT))
        await pass_time(world, 2 * LATE_S)
        assert told.messages == []
        assert (await world.server(server_id)).status == "destroyed"
        rows = await world.rows("SELECT status, error_code, error_message FROM operation")
        assert {(row["status"], row["error_code"], row["error_message"]) for row in rows} == {
            ("success", None, None)
        }
        found = await incidents.failing_destroys(world.parts.db, world.clock.now_s() + LATE_S)
        assert found == incidents.Found(count=0, oldest=())


async def test_an_outage_of_a_provider_is_told_too(tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    async with open_world(tmp_path) as world:
        _, server_id = await destroying(world)
        world.cloud_faults.set_rates(Rates(outage=1000))
        await pass_time(world, LATE_S)
        (line,) = told.messages
        assert server_id in line
        assert "could keep" not in line


async def test_a_destruction_from_the_future_is_told_of_by_its_attempts(
    tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    async with open_world(tmp_path) as world:
        _, server_id = await destroying(world)
        world.cloud_faults.set_rates(Rates(outage=1000))
        world.clock.step(-YEAR)
        await pass_time(world, LATE_S)
        assert len(told.messages) == 1
        assert server_id in told.messages[0]


async def test_when_the_clock_is_set_back_it_is_told_again(
    tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    async with open_world(tmp_path) as world:
        await destroying(world)
        world.cloud_faults.set_rates(Rates(outage=1000))
        await pass_time(world, 2 * LATE_S)
        told.clear()
        world.clock.step(-LATE_S // 2)
        await pass_time(world, LATE_S)
        assert len(told.messages) == 1


async def test_of_many_the_oldest_are_told_and_all_are_counted(
    tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    async with open_world(tmp_path) as world:
        await destroying(world)
        columns = ", ".join(
            name for name in (await _columns(world, "operation")) if name not in {"id", "server_id"}
        )
        servers = ", ".join(name for name in (await _columns(world, "server")) if name not in {"id", "name"})

        def copies(tx: Tx) -> None:
            for n in range(LISTED + 4):
                tx.execute(
                    f"INSERT INTO server (id, name, {servers}) SELECT :id, :id, {servers} FROM server LIMIT 1",
                    {"id": f"srv_{n}"},
                )
                tx.execute(
                    f"INSERT INTO operation (id, server_id, {columns}) SELECT :id, :server, {columns} FROM operation "
                    "WHERE command = 'destroy_server' LIMIT 1",
                    {"id": f"act_{n}", "server": f"srv_{n}"},
                )

        await world.parts.db.write(copies)
        world.clock.advance(LATE_S)
        await world.tick("incidents")
        assert len(told.messages) == LISTED + 1
        assert told.messages[-1].startswith(f"{LINE}5 more destructions that fail")


async def _columns(world: World, table: str) -> list[str]:
    return list(dict((await world.rows(f"SELECT * FROM {table} LIMIT 1"))[0]))


async def test_a_server_that_nothing_destroys_is_told_of(
    tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    async with open_world(tmp_path) as world:
        _, server_id = await destroying(world)
        await world.tick("incidents")
        assert told.messages == []
        await world.parts.db.write(lambda tx: tx.execute("DELETE FROM operation WHERE status = 'running'"))
        await world.tick("incidents")
        (line,) = told.messages
        assert line.startswith(f"{LINE}{server_id} is being destroyed, and no operation does it")
        assert (await incidents.abandoned(world.parts.db)).count == 1


async def test_a_burn_that_is_an_hour_late_is_told_of(tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer()
        await rent(world, wallet)
        (row,) = await world.rows("SELECT due_at FROM server")
        world.clock.advance(row["due_at"] + LATE_S - 1 - world.clock.now_s())
        await world.tick("incidents")
        assert told.messages == []
        world.clock.advance(1)
        await world.tick("incidents")
        (line,) = told.messages
        assert line.startswith(f"{LINE}1 servers are due and not charged since {moment(row['due_at'])}")
        await world.tick("burn")
        assert (await incidents.overdue_burn(world.parts.db, world.clock.now_s())).since is None


async def test_webhooks_that_nobody_tries_are_told_of_and_waiting_ones_are_not(
    tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    async with open_world(tmp_path) as world:
        late = world.clock.now_s()
        world.clock.advance(LATE_S)
        now = world.clock.now_s()

        async def put(
            seq: int, resource: str, next_at: int, *, hook: str = "whk_1", claim_until: int = 0
        ) -> None:
            event = {"seq": seq, "resource": resource}
            row = {"hook": hook, "next_at": next_at, "claim_until": claim_until, **event}
            await world.parts.db.write(
                lambda tx: (tx.execute(PUT_EVENT, event), tx.execute(PUT_DELIVERY, row))
            )

        await world.parts.db.write(lambda tx: tx.execute(PUT_WEBHOOK, {"id": "whk_1", "enabled": 1}))
        await world.parts.db.write(lambda tx: tx.execute(PUT_WEBHOOK, {"id": "whk_off", "enabled": 0}))
        await put(1, "failing", now + 300)
        await put(2, "failing", late)
        await put(3, "claimed", late, claim_until=now + 30)
        await put(4, "fresh", late + 1)
        await put(5, "off", late, hook="whk_off")
        assert (await incidents.delivery_backlog(world.parts.db, now)).count == 0
        await put(6, "forgotten", late)
        await put(7, "forgotten", late)
        assert await incidents.delivery_backlog(world.parts.db, now) == incidents.Backlog(count=1, since=late)
        await world.tick("incidents")
        (line,) = told.messages
        assert line.startswith(f"{LINE}1 webhook deliveries are due and not tried since {moment(late)}")


PUT_WEBHOOK: Final = """
INSERT INTO webhook (id, wallet, url, types, description, enabled, created_at)
VALUES (:id, 'w', 'https://a.example', '["*"]', '', :enabled, 0)
"""
PUT_EVENT: Final = """
INSERT INTO event (seq, wallet, type, resource, at, data) VALUES (:seq, 'w', 'server.running', :resource, 0, '{}')
"""
PUT_DELIVERY: Final = """
INSERT INTO delivery (webhook_id, seq, resource, state, attempts, next_at, claim_until, created_at)
VALUES (:hook, :seq, :resource, 'pending', 0, :next_at, :claim_until, 0)
"""
