"""The link to a lent machine: who is let in, which frames count, which commands are sent how often."""

import asyncio
from base64 import b64encode
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from spawn_schemas import hosts as wire
from spawn_schemas import inventory, link, orders
from spawn_schemas.ids import CommandId, HostId, RentalId, ServerId
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from spawn.link import hub
from spawn.services import hosts_admin
from spawn.services.hosts import hashed
from tests.harness import VirtualClock
from tests.integration.hosts_world import DAILY, ORDER, OWNER, TOKEN, Lent, open_hosts
from tests.integration.scripted_host import Connected, ScriptedHost, dialled, obedient


async def ordered(lent: Lent) -> str:
    """A rental whose start is on its way; answers its server's id."""
    wallet = await lent.world.customer("20.00")
    key = await lent.key(wallet)
    created = await lent.world.sign(wallet, "POST", "/v1/servers", ORDER | {"ssh_keys": [key]})
    return str(created.json()["server"]["id"])


async def states(lent: Lent) -> list[str]:
    return [row["state"] for row in await lent.world.rows("SELECT state FROM command ORDER BY number")]


# --- who is let in --------------------------------------------------------------------------------------------------


async def test_a_token_registers_one_machine_once(tmp_path: Path) -> None:
    async with open_hosts(tmp_path, registered=False) as lent:
        first = await lent.host.register(lent.world.http, TOKEN)
        assert first.status_code == 200
        assert first.json()["link_url"].startswith("ws://127.0.0.1:")
        again = await lent.host.register(lent.world.http, TOKEN)
        assert (again.status_code, again.json()) == (200, first.json()), "its answer may have been lost"
        thief = await ScriptedHost("thief", lent.world.clock.now_s).register(lent.world.http, TOKEN)
        assert (thief.status_code, thief.json()["error"]["code"]) == (403, "forbidden")
        assert await lent.world.rows("SELECT hash FROM host_token WHERE hash = :t", t=TOKEN) == []


async def test_a_token_is_good_for_a_day(tmp_path: Path) -> None:
    async with open_hosts(tmp_path, registered=False) as lent:
        lent.world.clock.advance(86_400)
        late = await lent.host.register(lent.world.http, TOKEN)
        assert late.status_code == 403
        await lent.order(hosts_admin.NewHostToken(name="attic", token_hash=hashed("spwn_reg_another")))
        assert (await lent.host.register(lent.world.http, "spwn_reg_another")).status_code == 200


async def test_two_machines_never_share_a_key(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent:
        token = "spwn_reg_second"
        await lent.order(
            hosts_admin.AddHost(name="cellar", wallet=OWNER, daily_usdc=DAILY, token_hash=hashed(token))
        )
        twin = ScriptedHost("attic", lent.world.clock.now_s)
        refused = await twin.register(lent.world.http, token)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")


async def test_a_proof_must_be_by_the_key_that_is_registered(tmp_path: Path) -> None:
    async with open_hosts(tmp_path, registered=False) as lent:
        body = lent.host.registration(TOKEN) | {"proof": b64encode(bytes(64)).decode()}
        refused = await lent.world.http.post(wire.REGISTER_PATH, json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_signature")


@pytest.mark.parametrize(
    ("instead", "code"),
    [
        ({"signature": b64encode(bytes(64)).decode()}, link.CLOSE_REFUSED),
        ({"signature": "?"}, link.CLOSE_REFUSED),
        ({"host_id": HostId("host_nobody")}, link.CLOSE_REFUSED),
        ({"v": 2}, link.CLOSE_UPGRADE),
    ],
)
async def test_who_cannot_prove_it_is_not_let_in(tmp_path: Path, instead: dict[str, Any], code: int) -> None:
    async with open_hosts(tmp_path) as lent, dialled(lent.host, **instead) as connected:
        assert connected.welcome is None
        assert await connected.closed() == code


async def test_a_login_for_another_address_is_not_ours(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent, connect(lent.host.link_url, compression=None) as socket:
        connected = Connected(lent.host, socket)
        challenge = await connected.receive()
        assert isinstance(challenge, link.Challenge)
        text = link.login_text(
            host_id=lent.host.host_id, nonce=challenge.nonce, authority="link.evil.example"
        )
        await connected.send(
            link.Hello, signature=lent.host.sign(text), agent_version="0.1.0", seq=0, session_epoch=0
        )
        assert await connected.closed() == link.CLOSE_REFUSED


async def test_a_revoked_host_is_let_go_and_its_key_is_good_for_nothing(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent, dialled(lent.host) as connected:
        await lent.order(hosts_admin.RevokeHost(name="attic"))
        await lent.link.flush()
        assert await connected.closed() == link.CLOSE_REFUSED
        async with dialled(lent.host) as again:
            assert await again.closed() == link.CLOSE_REFUSED
        beat = await lent.host.call(lent.world.http, wire.HEARTBEAT_PATH, wire.Beat())
        assert beat.status_code == 401


async def test_the_newest_session_wins(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent, dialled(lent.host) as old, dialled(lent.host) as new:
        assert await old.closed() == link.CLOSE_SUPERSEDED
        assert new.epoch > old.epoch
        assert (await new.heartbeat()).heartbeat_interval_s == 30
        assert (await new.heartbeat(rentals=1)).heartbeat_interval_s == 5


async def test_a_session_that_another_process_superseded_ends(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent, dialled(lent.host) as connected:
        db = lent.world.parts.db
        await db.write(lambda tx: tx.execute("UPDATE host SET epoch = epoch + 1"))
        await lent.link.flush()
        assert await connected.closed() == link.CLOSE_SUPERSEDED


# --- keys and plain calls -------------------------------------------------------------------------------------------


async def test_a_new_key_is_signed_by_the_old_one(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent:
        fresh = ScriptedHost("fresh", lent.world.clock.now_s)
        proof = fresh.sign(wire.registration_text(lent.host.host_id, fresh.public_key))
        change = wire.ChangeKey(public_key=fresh.public_key, proof=proof)
        done = await lent.host.call(lent.world.http, wire.KEY_PATH, change)
        assert (done.status_code, done.json()) == (200, {"status": "changed"})
        fresh.host_id, fresh.link_url = lent.host.host_id, lent.host.link_url
        async with dialled(fresh) as connected:
            assert connected.welcome is not None
        async with dialled(lent.host) as connected:
            assert await connected.closed() == link.CLOSE_REFUSED


@pytest.mark.parametrize("instead", [{"at": "1789999900"}, {"at": "1790000100"}])
async def test_a_call_whose_clock_is_off_is_refused(tmp_path: Path, instead: dict[str, str]) -> None:
    async with open_hosts(tmp_path, clock=VirtualClock(1_790_000_000)) as lent:
        refused = await lent.host.call(lent.world.http, wire.HEARTBEAT_PATH, wire.Beat(), **instead)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_signature")


async def test_a_call_counts_once(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent:
        answers = [
            await lent.host.call(lent.world.http, wire.HEARTBEAT_PATH, wire.Beat(), nonce="twice")
            for _ in range(2)
        ]
        assert [answer.status_code for answer in answers] == [200, 401]


@pytest.mark.parametrize(
    "body",
    [
        {"event": "heartbeat", "data": {"node_id": "ID", "status": "online", "metrics": {"cpu_temp": 51.0}}},
        {"hostId": "ID", "metrics": {"cpuUsage": 45.2, "ramUsage": 62.1, "diskUsage": 34.5, "agentCount": 3}},
    ],
)
async def test_older_forms_of_a_heartbeat_are_heard(tmp_path: Path, body: dict[str, Any]) -> None:
    async with open_hosts(tmp_path) as lent:
        named = str(body).replace("ID", lent.host.host_id)
        answer = await lent.host.call(lent.world.http, wire.HEARTBEAT_PATH, eval(named))  # noqa: S307 - ours
        assert answer.status_code == 200, answer.text
        assert (answer.json()["ok"], answer.json()["commands"]) == (True, [])
        assert (await lent.host_row()).metrics != "{}"
        foreign = await lent.host.call(
            lent.world.http,
            wire.HEARTBEAT_PATH,
            eval(str(body).replace("ID", "host_other")),  # noqa: S307 - ours
        )
        assert foreign.status_code == 401


async def test_without_a_socket_the_same_commands_come_with_each_answer(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent:
        server_id = await ordered(lent)
        first, second = await lent.host.beat(lent.world.http), await lent.host.beat(lent.world.http)
        assert [c.command_id for c in first.commands] == [c.command_id for c in second.commands]
        (command,) = first.commands
        done = orders.Ack(command_id=command.command_id, state="succeeded")
        third = await lent.host.beat(lent.world.http, wire.Beat(acks=(done,)))
        assert third.commands == ()
        assert [wanted.rental_id for wanted in third.desired] == [server_id]
        await lent.until(lambda: lent.status_is(server_id, "running"))


# --- frames and commands --------------------------------------------------------------------------------------------


async def test_a_command_is_sent_until_it_is_known_what_came_of_it(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent:
        async with dialled(lent.host) as connected:
            await ordered(lent)
            sent = (await connected.receive_kind(link.CommandFrame)).command
            await connected.ack(sent.command_id, "received")
            await lent.until(lambda: _is(lent, ["received"]))
        async with dialled(lent.host) as connected:
            again = (await connected.receive_kind(link.CommandFrame)).command
            assert again == sent, "it was cut off before it had ended"
            await connected.ack(sent.command_id, "succeeded")
            await lent.until(lambda: _is(lent, ["succeeded"]))
        async with dialled(lent.host) as connected:
            await connected.heartbeat()
            assert (await connected.sync()).rentals != ()


async def _is(lent: Lent, wanted: list[str]) -> bool:
    return await states(lent) == wanted


async def test_a_command_survives_a_restart_of_the_service(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with open_hosts(tmp_path, clock=clock) as lent, dialled(lent.host) as connected:
        server_id = await ordered(lent)
        sent = (await connected.receive_kind(link.CommandFrame)).command
        host = lent.host
    async with open_hosts(tmp_path, clock=clock, registered=False) as lent:
        lent.host.host_id = host.host_id
        lent.host.link_url = lent.world.settings.link_url + link.LINK_PATH
        async with obedient(lent.host) as machine:
            await lent.until(lambda: lent.status_is(server_id, "running"))
            assert list(machine.done) == [sent.command_id]


async def test_repeated_late_and_foreign_frames_do_not_count(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent, dialled(lent.host) as connected:
        await ordered(lent)
        sent = (await connected.receive_kind(link.CommandFrame)).command
        failed = orders.Ack(command_id=sent.command_id, state="failed")
        connected.seq = 10
        await connected.heartbeat()
        for fields in (
            {"seq": 11},
            {"seq": 3},
            {"session_epoch": connected.epoch - 1},
            {"host_id": "host_x"},
        ):
            await connected.send(link.AckFrame, ack=failed, **fields)
        connected.seq = 20
        await connected.heartbeat()
        assert await states(lent) == ["sent"]


async def test_what_has_ended_stays_as_it_ended(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent, dialled(lent.host) as connected:
        await ordered(lent)
        sent = (await connected.receive_kind(link.CommandFrame)).command
        for state in ("succeeded", "received", "failed"):
            await connected.ack(sent.command_id, state)
        await connected.heartbeat()
        assert await states(lent) == ["succeeded"]


async def test_a_host_touches_no_other_hosts_commands_and_rentals(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent, dialled(lent.host) as connected:
        server_id = await ordered(lent)
        sent = (await connected.receive_kind(link.CommandFrame)).command
        other = ScriptedHost("cellar", lent.world.clock.now_s)
        await lent.register(other, "cellar")
        async with dialled(other) as thief:
            await thief.ack(sent.command_id, "succeeded")
            await thief.ack(CommandId("cmd_nobodys"), "succeeded")
            gone = orders.RentalReport(rental_id=lent_id(server_id), generation=1, state="gone", since=1)
            wanted = await thief.sync(gone)
            assert wanted.rentals == ()
        assert await states(lent) == ["sent"]
        rental = await lent.rental(server_id)
        assert (rental.reported, rental.gone_at) == (None, None)


def lent_id(server_id: str) -> Any:
    return server_id


async def test_what_a_host_loses_is_gone_and_a_report_before_its_start_is_not_believed(
    tmp_path: Path,
) -> None:
    async with open_hosts(tmp_path) as lent, dialled(lent.host) as connected:
        server_id = await ordered(lent)
        sent = (await connected.receive_kind(link.CommandFrame)).command
        gone = orders.RentalReport(rental_id=lent_id(server_id), generation=1, state="gone", since=1)
        await connected.sync(gone)
        assert (await lent.rental(server_id)).gone_at is None
        await connected.ack(sent.command_id, "succeeded")
        await connected.sync(gone)

        async def is_gone() -> bool:
            return (await lent.rental(server_id)).gone_at == lent.world.clock.now_s()

        await lent.until(is_gone)


async def destroys(lent: Lent) -> list[str]:
    rows = await lent.world.rows("SELECT state FROM command WHERE kind = 'destroy_instance' ORDER BY number")
    return [str(row["state"]) for row in rows]


async def test_a_host_that_lost_a_container_is_told_to_remove_what_is_left_of_it(tmp_path: Path) -> None:
    """Somebody may have removed it by hand: the disk of its tenant is there all the same."""
    async with open_hosts(tmp_path) as lent, dialled(lent.host) as connected:
        server_id = await ordered(lent)
        sent = (await connected.receive_kind(link.CommandFrame)).command
        await connected.ack(sent.command_id, "succeeded")
        await lent.until(lambda: lent.status_is(server_id, "running"))
        gone = orders.RentalReport(rental_id=lent_id(server_id), generation=1, state="gone", since=1)
        await connected.sync(gone)
        told = (await connected.receive_kind(link.CommandFrame)).command
        await connected.sync(gone)
        assert told.order == orders.DestroyInstance(rental_id=lent_id(server_id), generation=1)
        await connected.ack(told.command_id, "succeeded")
        await connected.heartbeat()
        assert await destroys(lent) == ["succeeded"]
        for _ in range(30):
            lent.world.clock.advance(60)
            await connected.heartbeat()
            await lent.world.tick("operations", "burn", "hosts", "reconcile")
        server = await lent.world.server(server_id)
        assert (server.status, server.reason) == ("destroyed", "vanished")
        await lent.world.check_books()


async def test_a_destroy_that_is_on_its_way_is_not_taken_back_because_the_container_is_gone(
    tmp_path: Path,
) -> None:
    async with open_hosts(tmp_path) as lent:
        async with dialled(lent.host) as connected:
            server_id = await ordered(lent)
            sent = (await connected.receive_kind(link.CommandFrame)).command
            await connected.ack(sent.command_id, "succeeded")
            await connected.heartbeat()
        order = orders.DestroyInstance(rental_id=lent_id(server_id), generation=1)
        await lent.rentals.destroy(ServerId(server_id))
        async with dialled(lent.host) as connected:
            gone = orders.RentalReport(rental_id=lent_id(server_id), generation=1, state="gone", since=1)
            told = (await connected.receive_kind(link.CommandFrame)).command
            assert told.order == order
            await connected.sync(gone)
            assert await destroys(lent) == ["sent"]


@pytest.mark.parametrize("message", ["{", '{"type":"nothing"}', "[]", "[" * 10_000, b"\xff\xfe"])
async def test_nonsense_ends_the_session(tmp_path: Path, message: str | bytes) -> None:
    async with open_hosts(tmp_path) as lent, dialled(lent.host) as connected:
        await connected.socket.send(message)
        assert await connected.closed() == 1002


async def test_a_frame_has_a_longest_length(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent, dialled(lent.host) as connected:
        await connected.socket.send("x" * (link.FRAME_BYTES_MAX + 1))
        assert await connected.closed() == 1009


async def test_a_flood_of_frames_ends_the_session(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent, dialled(lent.host) as connected:
        for _ in range(700):
            await connected.send(link.DialFailed, stream_id="x", message="y")
        assert await connected.closed() == 1002


async def test_nobody_brings_a_socket_that_was_not_asked_for(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent:
        url = lent.host.link_url.removesuffix(link.LINK_PATH)
        for path in (f"{link.DATA_PATH}0123", "/v1/hosts/other", "/"):
            with pytest.raises(InvalidStatus) as refused:
                async with connect(url + path, additional_headers={"Authorization": "Bearer x"}):
                    pass
            assert refused.value.response.status_code in {401, 404}


async def test_who_says_nothing_is_not_kept(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent, dialled(lent.host) as connected:
        lent.world.clock.advance(121)
        await lent.link.flush()
        assert await connected.closed() == 1001
        assert lent.host.host_id not in lent.link.listener.hub.sessions


async def test_when_a_host_was_heard_is_written_down(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent, dialled(lent.host) as connected:
        lent.world.clock.advance(25)
        await connected.heartbeat(rentals=2, metrics=inventory.Metrics(cpu_percent=12.5))
        lent.world.clock.advance(10)
        await lent.link.flush()
        row = await lent.host_row()
        assert row.last_seen == lent.world.clock.now_s() - 10
        assert (row.beat_s, row.agent_status) == (5, "online")
        assert '"cpu_percent":12.5' in (row.metrics or "")


async def test_many_hosts_are_written_at_once_and_each_is_judged_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "FLUSH_MANY", 2)
    async with open_hosts(tmp_path) as lent, AsyncExitStack() as stack:
        machines = [ScriptedHost(name, lent.world.clock.now_s) for name in ("one", "two", "three")]
        for machine in machines:
            await lent.register(machine, machine.name)
        links = [await stack.enter_async_context(dialled(machine)) for machine in machines]
        lent.world.clock.advance(25)
        for connected in links:
            await connected.heartbeat()
        await lent.order(hosts_admin.RevokeHost(name="two"))
        writes = Mock(wraps=lent.world.parts.db.write)
        monkeypatch.setattr(lent.link.listener.hub.db, "write", writes)
        await lent.link.flush()
        assert writes.call_count == 2, "three hosts, two at a time"
        assert await links[1].closed() == link.CLOSE_REFUSED
        seen = {row["name"]: row["last_seen"] for row in await lent.world.rows("SELECT * FROM host")}
        now = lent.world.clock.now_s()
        assert (seen["one"], seen["three"]) == (now, now)
        await links[0].heartbeat()
        await links[2].heartbeat()


async def test_a_sync_is_one_write_and_without_a_rental_nobody_looks_at_the_ports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_hosts(tmp_path) as lent, dialled(lent.host) as connected:
        await connected.heartbeat()
        central = lent.link.listener.hub
        writes, looks = Mock(wraps=central.db.write), Mock()
        monkeypatch.setattr(central.db, "write", writes)
        monkeypatch.setattr(central, "on_change", looks)
        await connected.sync()
        assert (writes.call_count, looks.call_count) == (1, 0)
        await connected.sync(
            orders.RentalReport(rental_id=RentalId("srv_x"), generation=1, state="running", since=1)
        )
        assert (writes.call_count, looks.call_count) == (2, 1)


async def test_a_drained_host_is_told_and_takes_nothing(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent, dialled(lent.host) as connected:
        await lent.order(hosts_admin.RestHost(name="attic", draining=True))
        # It is told when it logs in or when it syncs, whichever comes after the order.
        await connected.send(link.StateSync, rentals=())
        told = (await connected.receive_kind(link.CommandFrame)).command
        assert isinstance(told.order, orders.Drain)
        wallet = await lent.world.customer("20.00")
        key = await lent.key(wallet)
        refused = await lent.world.sign(wallet, "POST", "/v1/servers", ORDER | {"ssh_keys": [key]})
        assert refused.json()["error"]["code"] == "out_of_capacity"


async def test_sockets_that_log_in_slowly_hold_up_nobody(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent:
        silent = [
            await asyncio.open_connection(*lent.link.listener.address())  # they say not even a line
            for _ in range(50)
        ]
        async with dialled(lent.host) as connected:
            await connected.heartbeat()
        for _, writer in silent:
            writer.close()
            await writer.wait_closed()
