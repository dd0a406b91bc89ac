"""A paid rental on a lent machine, from the order to the last byte and the last cent."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from spawn_ledger.tx import Tx
from spawn_schemas import link, orders
from spawn_schemas.ids import RentalId, ServerId

from spawn.jobs.sweep import COMMANDS_KEEP_S
from spawn.services import meters
from spawn.store import servers
from tests.integration.hosts_world import DAILY, DIGEST, ORDER, PUBLIC_KEY, Lent, open_hosts
from tests.integration.scripted_host import INVENTORY, Connected, Obedient, dialled, obedient


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def test_a_rental_is_started_reached_stopped_resumed_and_destroyed(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent, obedient(lent.host) as machine:
        wallet = await lent.world.customer("20.00")
        view = await lent.rent(wallet)
        (start,) = machine.orders
        assert isinstance(start, orders.StartInstance)
        assert start.image == f"registry.test/debian@{DIGEST}"
        assert start.ssh_keys == (PUBLIC_KEY,)
        assert start.host_key is not None
        assert view["ssh"] == {"host": "relay.test", "port": view["ports"][0]["public_port"]}
        assert view["known_hosts"] == f"[relay.test]:{view['ssh']['port']} {view['ssh_host_keys'][0]}"
        await reached(lent, machine, view["ssh"]["port"])
        for verb, status in (("stop", "off"), ("start", "running"), ("reboot", "running")):
            answer = await lent.world.sign(wallet, "POST", f"/v1/servers/{view['id']}/{verb}")
            assert answer.status_code == 200, answer.text
            await lent.until(partial(lent.status_is, view["id"], status))
        gone = await lent.world.sign(wallet, "DELETE", f"/v1/servers/{view['id']}")
        assert gone.status_code == 200, gone.text
        await lent.until(lambda: lent.status_is(view["id"], "destroyed"))
        assert machine.rentals == {}
        kinds = [type(order).__name__ for order in machine.orders]
        assert kinds == [
            "StartInstance",
            "StopInstance",
            "ResumeInstance",
            "StopInstance",
            "ResumeInstance",
            "DestroyInstance",
        ]
        await lent.world.check_books()


async def reached(lent: Lent, machine: Obedient, port: int) -> None:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        machine.target = server.sockets[0].getsockname()[:2]
        await lent.link.listener.public.refresh()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        sent = bytes(range(256)) * 4096
        writer.write(sent)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(-1), 30) == sent
        writer.close()
        await writer.wait_closed()
        assert await asyncio.wait_for(_counted(lent), 10) == (len(sent), len(sent))


async def _counted(lent: Lent) -> tuple[int, int]:
    await lent.link.listener.write_counts()
    (row,) = await lent.world.rows("SELECT ingoing_bytes, outgoing_bytes FROM rental")
    return row["ingoing_bytes"], row["outgoing_bytes"]


async def test_the_host_is_owed_its_share_of_what_burns_to_the_micro_dollar(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent, obedient(lent.host):
        wallet = await lent.world.customer("20.00")
        view = await lent.rent(wallet)
        await lent.world.burn_until(lent.world.clock.now_s() + 7_777)
        await lent.world.sign(wallet, "DELETE", f"/v1/servers/{view['id']}")
        server = await lent.world.server(view["id"])
        assert server.metered_from is not None
        seconds = lent.world.clock.now_s() - server.metered_from
        assert seconds >= 7_777
        assert server.host_id == lent.host.host_id
        assert await lent.world.account("rev:compute") == DAILY * seconds // 86_400
        assert await lent.owed() == DAILY * 60 * seconds // 100 // 86_400 == server.cost_usdc
        assert await lent.world.account("owed:provider") == 0
        await lent.until(lambda: lent.status_is(view["id"], "destroyed"))
        assert await lent.owed() == server.cost_usdc, "nothing is owed for the time after its end"
        await lent.world.check_books()


async def test_what_burns_by_the_thousand_is_shared_alike(tmp_path: Path) -> None:
    """A reserve that lasts for days is settled by one statement for all servers."""
    async with open_hosts(tmp_path) as lent, obedient(lent.host):
        wallet = await lent.world.customer("90.00")
        view = await lent.rent(wallet, deposit="60.00")
        began = (await lent.world.server(view["id"])).metered_from
        assert began is not None
        for _ in range(3):
            await lent.world.burn_until(lent.world.clock.now_s() + 86_400 + 3)
            await lent.world.tick("burn")
        server = await lent.world.server(view["id"])
        assert server.charged_until is not None
        seconds = server.charged_until - began
        assert seconds > 2 * 86_400
        assert await lent.owed() == DAILY * 60 * seconds // 100 // 86_400 == server.cost_usdc
        await lent.world.check_books()


async def test_a_host_has_no_share_of_what_was_given_back(tmp_path: Path) -> None:
    """Its machine broke while it was made, and another follows."""
    async with open_hosts(tmp_path) as lent, obedient(lent.host):
        wallet = await lent.world.customer("20.00")
        view = await lent.rent(wallet)
        await lent.world.burn_until(lent.world.clock.now_s() + 7_777)
        await lent.world.tick("burn")
        now = lent.world.clock.now_s()

        def work(tx: Tx) -> None:
            server = servers.get_server(tx, ServerId(view["id"]))
            assert server.cost_usdc > 0
            servers.update_server(tx, server, meters.unmade(tx, server, "1", now))

        await lent.world.parts.db.write(work)
        assert await lent.owed() == 0
        assert await lent.world.account("rev:compute") == 0
        await lent.world.check_books()


async def test_a_start_that_fails_costs_nobody_anything(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent, dialled(lent.host) as connected:
        wallet = await lent.world.customer("20.00")
        key = await lent.key(wallet)
        before = await lent.world.available(wallet.address)
        created = await lent.world.sign(wallet, "POST", "/v1/servers", ORDER | {"ssh_keys": [key]})
        server_id = created.json()["server"]["id"]
        command = (await connected.receive_kind(link.CommandFrame)).command
        lent.world.clock.advance(100)
        await lent.world.tick("burn")
        problem = orders.Problem(code="image_unavailable", message="The registry does not answer.")
        await connected.ack(command.command_id, "failed", problem=problem)
        destroy = await settled(lent, connected)
        await connected.ack(destroy.command_id, "succeeded")
        await lent.until(lambda: lent.status_is(server_id, "failed"))
        assert await lent.owed() == 0
        assert await lent.world.available(wallet.address) == before
        await lent.world.check_books()


async def settled(lent: Lent, connected: Connected) -> orders.Command:
    """The destruction that a failed start orders."""
    waiting = asyncio.create_task(connected.receive_kind(link.CommandFrame))

    async def ordered() -> bool:
        lent.world.clock.advance(1)
        await lent.world.tick("operations")
        return waiting.done()

    await lent.until(ordered)
    command: orders.Command = (await waiting).command
    assert isinstance(command.order, orders.DestroyInstance)
    return command


async def test_an_order_without_a_key_is_refused_before_it_is_paid(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent:
        wallet = await lent.world.customer("20.00")
        refused = await lent.world.sign(wallet, "POST", "/v1/servers", ORDER)
        assert refused.status_code == 400
        assert "nobody could log in" in refused.json()["error"]["message"]
        assert await lent.world.available(wallet.address) == 20_000_000


async def test_an_order_while_the_host_is_away_waits_for_it_and_is_sealed(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent:
        wallet = await lent.world.customer("20.00")
        key = await lent.key(wallet)
        created = await lent.world.sign(wallet, "POST", "/v1/servers", ORDER | {"ssh_keys": [key]})
        assert created.status_code == 201, created.text
        (row,) = await lent.world.rows("SELECT state, body, sent_at FROM command")
        assert (row["state"], row["body"], row["sent_at"]) == ("queued", None, None)
        async with obedient(lent.host) as machine:
            await lent.until(lambda: lent.status_is(created.json()["server"]["id"], "running"))
            assert len(machine.orders) == 1
            assert await lent.world.rows("SELECT owner FROM secret WHERE kind = 'order'") == []


async def test_what_no_host_ever_heard_of_is_destroyed_at_once(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent:
        wallet = await lent.world.customer("20.00")
        key = await lent.key(wallet)
        created = await lent.world.sign(wallet, "POST", "/v1/servers", ORDER | {"ssh_keys": [key]})
        server_id = created.json()["server"]["id"]
        await lent.world.sign(wallet, "DELETE", f"/v1/servers/{server_id}")
        await lent.until(lambda: lent.status_is(server_id, "destroyed"))
        async with dialled(lent.host) as connected:
            wanted = await connected.sync()
            assert wanted.rentals == ()
            assert [r["state"] for r in await lent.world.rows("SELECT state FROM command")] == ["withdrawn"]
        await lent.world.check_books()


async def test_there_is_only_as_much_room_as_is_lent(tmp_path: Path) -> None:
    async with open_hosts(tmp_path, community_size="8,1,10") as lent, obedient(lent.host):
        wallet = await lent.world.customer("20.00")
        await lent.rent(wallet)
        keys = await lent.world.sign(wallet, "GET", "/v1/ssh-keys")
        order = ORDER | {"name": "second", "ssh_keys": [keys.json()["ssh_keys"][0]["id"]]}
        refused = await lent.world.sign(wallet, "POST", "/v1/servers", order)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "out_of_capacity")


async def test_a_public_port_rests_before_it_leads_elsewhere(tmp_path: Path) -> None:
    async with open_hosts(tmp_path, community_ports="22") as lent, obedient(lent.host):
        wallet = await lent.world.customer("20.00")
        first = await lent.rent(wallet)
        await lent.world.sign(wallet, "DELETE", f"/v1/servers/{first['id']}")
        await lent.until(lambda: lent.status_is(first["id"], "destroyed"))
        second = await lent.rent(wallet, name="second")
        assert second["ssh"]["port"] != first["ssh"]["port"]
        await lent.link.listener.public.refresh()
        assert set(lent.link.listener.public._servers) == {second["ssh"]["port"]}


async def test_its_tenant_is_told_why_it_does_not_run_and_what_ran_out_of_memory(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent:
        wallet = await lent.world.customer("20.00")
        async with obedient(lent.host):
            view = await lent.rent(wallet)
        assert view["container"] == {"stopped_by": None, "exit_code": None, "out_of_memory_kills": 0}
        async with dialled(lent.host) as connected:

            async def shown(**said: Any) -> tuple[str, Any]:
                lent.world.clock.advance(1)
                rental_id = RentalId(view["id"])
                await connected.sync(orders.RentalReport(rental_id=rental_id, generation=1, since=1, **said))
                await lent.world.tick("hosts", "reconcile")
                told = await lent.show(wallet, view["id"])
                return told["status"], told["container"]

            container = {"stopped_by": None, "exit_code": None, "out_of_memory_kills": 2}
            assert await shown(state="running", out_of_memory_kills=2) == ("running", container)
            starved = {"stopped_by": "out_of_memory", "exit_code": 137, "out_of_memory_kills": 3}
            assert await shown(
                state="stopped", ended_by="out_of_memory", exit_code=137, out_of_memory_kills=3
            ) == ("off", starved)
            went_down = {"stopped_by": "host", "exit_code": 255, "out_of_memory_kills": 3}
            assert await shown(state="stopped", exit_code=255, out_of_memory_kills=3) == (
                "unknown",
                went_down,
            )
        events = (await lent.world.sign(wallet, "GET", "/v1/events?type=server.*")).json()["events"]
        whys = [(event["type"], event["data"]["stopped_by"]) for event in events]
        assert whys[-2:] == [("server.off", "out_of_memory"), ("server.unreachable", "host")]
        assert {why for _, why in whys[:-2]} == {None}


async def test_what_is_sold_is_of_the_architecture_that_its_host_says(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent, dialled(lent.host) as connected:
        for architecture in ("arm", "x86"):
            said = msgspec.structs.replace(INVENTORY, architecture=architecture)
            await connected.send(link.StateSync, rentals=(), inventory=said)
            await connected.receive_kind(link.DesiredFrame)
            (offer,) = (await lent.rentals.catalog()).offers
            assert offer.architecture == architecture


async def test_what_a_host_was_told_is_forgotten_after_a_month_but_what_made_a_living_rental(
    tmp_path: Path,
) -> None:
    async def told(lent: Lent) -> list[str]:
        return [row["kind"] for row in await lent.world.rows("SELECT kind FROM command ORDER BY number")]

    async with open_hosts(tmp_path) as lent:
        async with obedient(lent.host):
            wallet = await lent.world.customer("90.00")
            view = await lent.rent(wallet, deposit="60.00")
            for verb, status in (("stop", "off"), ("start", "running")):
                await lent.world.sign(wallet, "POST", f"/v1/servers/{view['id']}/{verb}")
                await lent.until(partial(lent.status_is, view["id"], status))
        every = ["start_instance", "stop_instance", "resume_instance"]
        lent.world.clock.advance(COMMANDS_KEEP_S - 60)
        await lent.world.tick("sweep")
        assert await told(lent) == every
        lent.world.clock.advance(120)
        await lent.world.tick("sweep")
        assert await told(lent) == every[:1]
        async with dialled(lent.host) as connected:
            report = orders.RentalReport(
                rental_id=RentalId(view["id"]), generation=1, state="running", since=1
            )
            wanted = await connected.sync(report)
            assert [(each.rental_id, each.state) for each in wanted.rentals] == [(view["id"], "running")]
            await connected.sync(msgspec.structs.replace(report, state="gone"))
            destroy = (await connected.receive_kind(link.CommandFrame)).command
            await connected.ack(destroy.command_id, "succeeded")
            await connected.heartbeat()
        lent.world.clock.advance(60)
        await lent.world.tick("sweep")
        assert await told(lent) == ["destroy_instance"]


async def test_a_host_that_failed_to_destroy_it_is_told_again(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent:
        async with obedient(lent.host):
            wallet = await lent.world.customer("20.00")
            view = await lent.rent(wallet)
        async with dialled(lent.host) as connected:
            await lent.world.sign(wallet, "DELETE", f"/v1/servers/{view['id']}")
            first = (await connected.receive_kind(link.CommandFrame)).command
            problem = orders.Problem(code="docker_failed", message="Docker does not answer.")
            await connected.ack(first.command_id, "failed", problem=problem)
            await connected.heartbeat()
            for _ in range(10):
                lent.world.clock.advance(60)
                await lent.world.tick("operations")
            again = (await connected.receive_kind(link.CommandFrame)).command
            assert (again.order, again.command_id != first.command_id) == (first.order, True)
            await connected.ack(again.command_id, "succeeded")
            await lent.until(lambda: lent.status_is(view["id"], "destroyed"))
        await lent.world.check_books()
