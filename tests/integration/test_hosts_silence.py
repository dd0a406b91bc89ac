"""A host that falls silent: nobody pays, nobody is destroyed, the owner is told, and all of it comes back."""

from pathlib import Path
from typing import Any

from spawn_schemas import inventory, link, orders

from spawn.domain.hosts import HostState
from spawn.services import host_silence, hosts_admin
from tests.harness import VirtualClock
from tests.integration.hosts_world import DAILY, Lent, open_hosts
from tests.integration.scripted_host import ScriptedHost, dialled, obedient
from tests.wallets import Wallet


async def told(lent: Lent, wallet: Wallet, type: str) -> list[dict[str, Any]]:
    answer = await lent.world.sign(wallet, "GET", f"/v1/events?type={type}")
    return [event["data"] for event in answer.json()["events"]]


async def passing(lent: Lent, seconds: int) -> None:
    """Time passes, and the jobs tick meanwhile, as in life."""
    end = lent.world.clock.now_s() + seconds
    while lent.world.clock.now_s() < end:
        lent.world.clock.advance(min(10, end - lent.world.clock.now_s()))
        await lent.world.tick("burn", "hosts", "reconcile")


async def rented(lent: Lent, balance: str = "20.00") -> tuple[Wallet, dict[str, Any]]:
    wallet = await lent.world.customer(balance)
    async with obedient(lent.host) as machine:
        view = await lent.rent(wallet)
        await machine.connected.send(link.Heartbeat, status="online", metrics=inventory.Metrics(), rentals=1)
        await machine.connected.send(link.StateSync, rentals=machine.report())
        await lent.until(lambda: _heard(lent))
    return wallet, view


async def _heard(lent: Lent) -> bool:
    await lent.link.flush()
    row = await lent.host_row()
    return row.beat_s == 5 and row.last_seen == lent.world.clock.now_s()


async def test_silence_costs_nothing_back_to_when_the_host_was_last_heard(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent:
        wallet, view = await rented(lent)
        heard_at = lent.world.clock.now_s()
        began = (await lent.world.server(view["id"])).metered_from
        assert began is not None
        await passing(lent, 299)
        assert (await lent.host_row()).state == "warned"
        assert (await lent.world.server(view["id"])).charged_until is not None
        await passing(lent, 20)
        assert (await lent.host_row()).state == "offline"
        server = await lent.world.server(view["id"])
        assert (server.status, server.charged_until, server.due_at) == ("unknown", None, None)
        assert server.charged_usdc == DAILY * (heard_at - began) // 86_400
        assert await lent.owed() == DAILY * 60 * (heard_at - began) // 100 // 86_400
        assert [data["server"] for data in await told(lent, wallet, "server.unreachable")] == [view["id"]]
        await passing(lent, 3 * 3_600)
        assert (await lent.world.server(view["id"])).charged_usdc == server.charged_usdc
        assert (await lent.host_row()).state == "refundable"
        assert (await lent.rental(view["id"])).gone_at is None, "nothing is destroyed by silence"
        await lent.world.check_books()


async def test_when_it_is_heard_again_money_and_status_come_back(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent:
        _, view = await rented(lent)
        await passing(lent, 700)
        paid = (await lent.world.server(view["id"])).charged_usdc
        async with obedient(lent.host):
            await lent.world.tick("hosts")
            back_at = lent.world.clock.now_s()
            server = await lent.world.server(view["id"])
            assert (server.status, server.charged_until) == ("running", back_at)
            lent.world.clock.advance(86_400)
            await lent.world.tick("burn")
            server = await lent.world.server(view["id"])
            assert abs(server.charged_usdc - paid - DAILY) <= 1
            assert (await lent.rental(view["id"])).paused_at is None
            (down,) = await lent.world.rows("SELECT began_at, ended_at FROM host_outage")
            assert down["ended_at"] == back_at
        await lent.world.check_books()


async def test_what_a_death_left_half_done_is_done_although_the_host_is_heard_again(tmp_path: Path) -> None:
    """The service finds the host offline, dies before it has paused what runs there, and the host is heard first."""
    async with open_hosts(tmp_path) as lent:
        _, view = await rented(lent)
        heard_at = lent.world.clock.now_s()
        began = (await lent.world.server(view["id"])).metered_from
        assert began is not None
        await passing(lent, 290)
        lent.world.clock.advance(30)
        seen, now = await lent.host_row(), lent.world.clock.now_s()
        await lent.world.parts.db.write(lambda tx: host_silence._moved(tx, seen, HostState.OFFLINE, now))
        async with obedient(lent.host) as machine:
            await machine.connected.send(
                link.Heartbeat, status="online", metrics=inventory.Metrics(), rentals=1
            )
            await lent.until(lambda: _heard(lent))
            await lent.world.tick("hosts")
            server = await lent.world.server(view["id"])
            assert (server.status, server.charged_until) == ("running", lent.world.clock.now_s())
            assert server.charged_usdc == DAILY * (heard_at - began) // 86_400
        await lent.world.check_books()


async def test_it_may_pause_again_and_again(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent:
        _, view = await rented(lent)
        seconds = lent.world.clock.now_s() - ((await lent.world.server(view["id"])).metered_from or 0)
        for _ in range(3):
            await passing(lent, 400)
            assert (await lent.world.server(view["id"])).status == "unknown"
            async with dialled(lent.host) as connected:
                await lent.world.tick("hosts")
                lent.world.clock.advance(60)
                await connected.heartbeat(rentals=1)
                await lent.link.flush()
                seconds += 60
            assert (await lent.world.server(view["id"])).status == "running"
        await passing(lent, 400)
        server = await lent.world.server(view["id"])
        # Each pause may leave a part of a micro-dollar behind.
        assert server.charged_usdc == DAILY * seconds // 86_400
        assert await lent.owed() == server.cost_usdc == DAILY * 60 * seconds // 100 // 86_400
        await lent.world.check_books()


async def test_money_that_would_have_ended_meanwhile_is_still_there(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent:
        _, view = await rented(lent, balance="1.30")
        await passing(lent, 2 * 86_400)
        server = await lent.world.server(view["id"])
        assert (server.status, server.ended_at) == ("unknown", None)
        await lent.world.check_books()


async def test_whoever_destroys_it_meanwhile_has_the_rest_back_and_the_host_is_told_later(
    tmp_path: Path,
) -> None:
    async with open_hosts(tmp_path) as lent:
        wallet, view = await rented(lent)
        await passing(lent, 400)
        gone = await lent.world.sign(wallet, "DELETE", f"/v1/servers/{view['id']}")
        assert gone.status_code == 200, gone.text
        await lent.world.tick("operations")
        assert await lent.world.account(f"srv:{view['id']}") == 0
        async with obedient(lent.host) as machine:
            await lent.until(lambda: lent.status_is(view["id"], "destroyed"))
            assert [type(order).__name__ for order in machine.orders] == ["DestroyInstance"]
        await lent.world.check_books()


async def test_a_lease_that_ended_while_nobody_heard_is_made_up_for(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent:
        _, view = await rented(lent)
        await passing(lent, 4_000)
        async with obedient(lent.host) as machine:
            stopped = orders.RentalReport(
                rental_id=view["id"], generation=1, state="stopped", since=1, ended_by="lease"
            )
            await machine.connected.send(link.StateSync, rentals=(stopped,))

            async def resumed() -> bool:
                return [type(order).__name__ for order in machine.orders] == ["ResumeInstance"]

            await lent.until(resumed)


async def test_a_revoked_hosts_rentals_end_and_cost_nothing_more(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent:
        _, view = await rented(lent)
        await lent.order(hosts_admin.RevokeHost(name="attic"))
        at = lent.world.clock.now_s()
        await passing(lent, 900)
        server = await lent.world.server(view["id"])
        assert (server.status, server.reason) == ("destroyed", "vanished")
        assert server.charged_usdc <= max(server.minimum_usdc, DAILY * (at + 60) // 86_400)
        await lent.world.check_books()


async def test_many_that_fall_silent_together_are_our_own_fault_for_an_hour(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent:
        _, view = await rented(lent)
        for number in range(3):
            await lent.register(ScriptedHost(f"h{number}", lent.world.clock.now_s), f"h{number}")
        await passing(lent, 400)
        assert (await lent.world.server(view["id"])).status == "running"
        await passing(lent, 4_000)
        assert (await lent.world.server(view["id"])).status == "unknown"


async def test_a_service_that_was_down_blames_nobody(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with open_hosts(tmp_path, clock=clock) as lent:
        _, view = await rented(lent)
    clock.advance(3_600)
    async with open_hosts(tmp_path, clock=clock, registered=False) as lent:
        await lent.world.tick("hosts")
        assert (await lent.world.server(view["id"])).status == "running"
