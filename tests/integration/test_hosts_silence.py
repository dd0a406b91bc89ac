"""A host that falls silent: nobody pays, nobody is destroyed, the owner is told, and all of it comes back."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from spawn_schemas import inventory, link, orders
from spawn_schemas.ids import RentalId

from spawn.domain.hosts import HostState
from spawn.domain.servers import Server
from spawn.services import host_silence, hosts_admin
from tests.harness import VirtualClock
from tests.integration.hosts_world import DAILY, Lent, open_hosts
from tests.integration.scripted_host import Connected, ScriptedHost, dialled, obedient
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


async def beating(lent: Lent, connected: Connected, *, times: int, every_s: int, rentals: int = 1) -> None:
    """The same, while the host is heard."""
    for _ in range(times):
        lent.world.clock.advance(every_s)
        await connected.heartbeat(rentals=rentals)
        await lent.link.flush()
        await lent.world.tick("burn", "hosts", "reconcile")


async def costs(lent: Lent, server: Server, seconds: int) -> None:
    """So many seconds of it were charged, and its host has its share of them."""
    assert server.charged_usdc == DAILY * seconds // 86_400
    assert await lent.owed() == DAILY * 60 * seconds // 100 // 86_400


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
        await costs(lent, server, heard_at - began)
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
        began = (await lent.world.server(view["id"])).metered_from or 0
        await passing(lent, 90)
        await lent.order(hosts_admin.RevokeHost(name="attic"))
        at = lent.world.clock.now_s()
        await passing(lent, 900)
        server = await lent.world.server(view["id"])
        assert (server.status, server.reason) == ("destroyed", "vanished")
        assert server.charged_usdc == DAILY * (at - began) // 86_400
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


async def test_those_that_fall_silent_together_had_each_spoken_in_its_own_time(tmp_path: Path) -> None:
    """Six hosts by plain heartbeats, each a tick after the other, and then none of them is heard."""
    async with open_hosts(tmp_path) as lent:
        _, view = await rented(lent)
        others = [ScriptedHost(f"h{number}", lent.world.clock.now_s) for number in range(5)]
        for host in others:
            await lent.register(host, host.name)
        for host in (*others, lent.host):
            await passing(lent, 10)
            await host.beat(lent.world.http)
        await passing(lent, 400)
        assert set(await states(lent)) == {"warned"}
        assert (await lent.world.server(view["id"])).status == "running"
        await passing(lent, 3_600)
        assert set(await states(lent)) == {"refundable"}
        assert (await lent.world.server(view["id"])).status == "unknown"


async def states(lent: Lent) -> list[str]:
    return [str(row["state"]) for row in await lent.world.rows("SELECT state FROM host")]


async def test_a_service_that_was_down_blames_nobody(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with open_hosts(tmp_path, clock=clock) as lent:
        _, view = await rented(lent)
    clock.advance(3_600)
    async with open_hosts(tmp_path, clock=clock, registered=False) as lent:
        await lent.world.tick("hosts")
        assert (await lent.world.server(view["id"])).status == "running"


def stopped_by(rental_id: str, ended_by: Any) -> orders.RentalReport:
    return orders.RentalReport(
        rental_id=RentalId(rental_id), generation=1, state="stopped", since=1, ended_by=ended_by
    )


@pytest.mark.parametrize("ended_by", ["owner", "lease", None])
async def test_what_its_host_stopped_costs_nothing_until_it_runs_again(tmp_path: Path, ended_by: Any) -> None:
    """The owner's hours are over, or the machine restarted: whoever rents it is told, and does not pay for it."""
    async with open_hosts(tmp_path) as lent:
        wallet, view = await rented(lent)
        began = (await lent.world.server(view["id"])).metered_from or 0
        async with dialled(lent.host) as connected:
            lent.world.clock.advance(600)
            said_at = lent.world.clock.now_s()
            await connected.sync(stopped_by(view["id"], ended_by))
            await beating(lent, connected, times=3, every_s=100)
            server = await lent.world.server(view["id"])
            # What stopped because it did not hear us is ordered to run again at once.
            assert server.status == ("initializing" if ended_by == "lease" else "unknown")
            assert server.charged_until is None
            await costs(lent, server, said_at - began)
            assert [data["server"] for data in await told(lent, wallet, "server.unreachable")] == [view["id"]]
            await connected.sync(msgspec.structs.replace(stopped_by(view["id"], None), state="running"))
            await lent.world.tick("hosts")
            back = await lent.world.server(view["id"])
            assert (back.status, back.charged_until) == ("running", lent.world.clock.now_s())
        await lent.world.check_books()


@pytest.mark.parametrize("ended_by", ["exit", "out_of_memory", "disk_full"])
async def test_what_ended_by_itself_is_still_reserved_and_paid_for(tmp_path: Path, ended_by: Any) -> None:
    async with open_hosts(tmp_path) as lent:
        _, view = await rented(lent)
        async with dialled(lent.host) as connected:
            await connected.sync(stopped_by(view["id"], ended_by))
            lent.world.clock.advance(10)
            await lent.world.tick("burn", "hosts", "reconcile")
            server = await lent.world.server(view["id"])
            assert (server.status, server.charged_until is None) == ("off", False)


async def test_a_machine_that_its_tenant_stops_or_restarts_is_paid_for_all_the_time(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent:
        wallet, view = await rented(lent)
        async with dialled(lent.host) as connected:
            answer = await lent.world.sign(wallet, "POST", f"/v1/servers/{view['id']}/reboot")
            assert answer.status_code == 200, answer.text
            for kind in (orders.StopInstance, orders.ResumeInstance):
                command = (await connected.receive_kind(link.CommandFrame)).command
                assert isinstance(command.order, kind)
                await lent.world.tick("hosts")
                await connected.ack(command.command_id, "succeeded")
            await lent.until(lambda: lent.status_is(view["id"], "running"))
            assert await told(lent, wallet, "server.unreachable") == []


async def answered(lent: Lent, connected: Connected, wallet: Wallet, verb: str, state: Any) -> None:
    """The tenant orders it, and its host says that it succeeded or failed."""
    server_id = (await lent.world.rows("SELECT id FROM server"))[0]["id"]
    answer = await lent.world.sign(wallet, "POST", f"/v1/servers/{server_id}/{verb}")
    assert answer.status_code == 200, answer.text
    command = (await connected.receive_kind(link.CommandFrame)).command
    problem = (
        orders.Problem(code="internal", message="Docker does not answer.") if state == "failed" else None
    )
    await connected.ack(command.command_id, state, problem=problem)

    async def ended() -> bool:
        lent.world.clock.advance(1)
        await lent.world.tick("operations")
        return await lent.world.rows("SELECT id FROM operation WHERE status = 'running'") == []

    await lent.until(ended)


async def test_a_stop_that_fails_is_not_wanted_any_more(tmp_path: Path) -> None:
    """Otherwise the next sync would stop what its tenant was told is still running; and start what is off."""
    async with open_hosts(tmp_path) as lent:
        wallet, view = await rented(lent)
        wanted = {("stop", "failed"): "running", ("stop", "succeeded"): "stopped"}
        wanted |= {("start", "failed"): "stopped", ("start", "succeeded"): "running"}
        async with dialled(lent.host) as connected:
            for (verb, state), desired in wanted.items():
                await answered(lent, connected, wallet, verb, state)
                assert (await lent.rental(view["id"])).desired == desired, verb


@pytest.mark.parametrize("ended_by", [None, "owner"])
async def test_what_its_tenant_stopped_is_paid_for_until_its_host_keeps_it(
    tmp_path: Path, ended_by: Any
) -> None:
    """The host had stopped it already, and says so still: but for hours nobody wanted it to run."""
    async with open_hosts(tmp_path) as lent:
        wallet, view = await rented(lent)
        began = (await lent.world.server(view["id"])).metered_from or 0
        async with dialled(lent.host) as connected:
            await connected.sync(stopped_by(view["id"], ended_by))
            await answered(lent, connected, wallet, "stop", "succeeded")
            await connected.sync(stopped_by(view["id"], ended_by))
            await beating(lent, connected, times=60, every_s=60)
            started_at = lent.world.clock.now_s()
            order = await lent.world.sign(wallet, "POST", f"/v1/servers/{view['id']}/start")
            assert order.status_code == 200, order.text
            lent.world.clock.advance(20)
            await lent.world.tick("burn", "hosts")
            server = await lent.world.server(view["id"])
            assert (server.status, server.charged_until) == ("unknown", None), "now its host keeps it"
            await costs(lent, server, started_at - began)
        await lent.world.check_books()


async def test_a_host_that_loses_a_container_has_its_share_of_the_time_it_lent(tmp_path: Path) -> None:
    """And of no hour that it cut short, nor of the time until somebody looked."""
    async with open_hosts(tmp_path) as lent:
        _, view = await rented(lent)
        began = (await lent.world.server(view["id"])).metered_from or 0
        async with dialled(lent.host) as connected:
            lent.world.clock.advance(61)
            gone_at = lent.world.clock.now_s()
            report = orders.RentalReport(rental_id=RentalId(view["id"]), generation=1, state="gone", since=1)
            await connected.sync(report)
            await beating(lent, connected, times=50, every_s=10, rentals=0)
            server = await lent.world.server(view["id"])
            assert (server.status, server.reason) == ("destroyed", "vanished")
            await costs(lent, server, gone_at - began)
        await lent.world.check_books()


async def test_whoever_leaves_a_machine_that_was_silent_owes_no_hour(tmp_path: Path) -> None:
    """It came back with everything stopped: no program of a tenant's had a hand in that."""
    async with open_hosts(tmp_path) as lent:
        wallet, view = await rented(lent)
        began = (await lent.world.server(view["id"])).metered_from or 0
        heard_at = lent.world.clock.now_s()
        await passing(lent, 600)
        async with dialled(lent.host) as connected:
            await connected.sync(stopped_by(view["id"], None))
            await connected.heartbeat(rentals=1)
            await lent.link.flush()
            await lent.world.tick("hosts")
            assert (await lent.host_row()).state == "online"
            gone = await lent.world.sign(wallet, "DELETE", f"/v1/servers/{view['id']}")
            assert gone.status_code == 200, gone.text
            charged = (await lent.world.server(view["id"])).charged_usdc
            assert charged == DAILY * (heard_at - began) // 86_400
        await lent.world.check_books()


@pytest.mark.parametrize("ended_by", [None, "owner"])
async def test_ending_it_while_it_is_paused_costs_the_first_hour_unless_its_host_kept_that(
    tmp_path: Path, ended_by: Any
) -> None:
    """A program can end as a machine that went down does: whoever leaves then owes what anybody does who leaves."""
    async with open_hosts(tmp_path) as lent:
        wallet, view = await rented(lent)
        began = (await lent.world.server(view["id"])).metered_from or 0
        async with dialled(lent.host) as connected:
            said_at = lent.world.clock.now_s()
            await connected.sync(stopped_by(view["id"], ended_by))
            await lent.world.tick("hosts")
            assert (await lent.world.server(view["id"])).charged_until is None
            lent.world.clock.advance(60)
            gone = await lent.world.sign(wallet, "DELETE", f"/v1/servers/{view['id']}")
            assert gone.status_code == 200, gone.text
            server = await lent.world.server(view["id"])
            assert said_at - began < 3_600
            seconds = 3_600 if ended_by is None else said_at - began
            assert server.charged_usdc == DAILY * seconds // 86_400
            assert await lent.owed() == server.cost_usdc == DAILY * 60 * seconds // 100 // 86_400
            assert await lent.world.account(f"srv:{view['id']}") == 0
        await lent.world.check_books()
