"""What a host may say is bounded: how often, how much of what is not its own, and what no table takes."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from spawn_schemas import hosts as wire
from spawn_schemas import link, orders
from spawn_schemas.ids import RentalId
from websockets.exceptions import ConnectionClosed

from spawn.link import session
from spawn.link.hub import QUIET_S
from spawn.services import host_reports, hosts
from tests.integration.hosts_world import TOKEN, Lent, open_hosts
from tests.integration.scripted_host import ScriptedHost, dialled, obedient

HUGE = 10**30


def report(rental_id: str, **fields: Any) -> orders.RentalReport:
    told: dict[str, Any] = {"state": "running", "since": 1, "generation": 1}
    return orders.RentalReport(rental_id=RentalId(rental_id), **(told | fields))


async def rented(lent: Lent) -> str:
    wallet = await lent.world.customer("20.00")
    async with obedient(lent.host):
        return str((await lent.rent(wallet))["id"])


async def test_what_no_table_takes_hides_nothing_else_that_a_host_says(tmp_path: Path) -> None:
    """PostgreSQL takes no NUL and no number of more than 64 bits."""
    async with open_hosts(tmp_path) as lent:
        server_id = await rented(lent)
        async with dialled(lent.host) as connected:
            odd = {"state": "stopped", "ended_by": "exit", "exit_code": -HUGE, "out_of_memory_kills": HUGE}
            wanted = await connected.sync(
                report("srv_\0"), report(server_id, generation=HUGE), report(server_id, **odd)
            )
            assert [each.rental_id for each in wanted.rentals] == [server_id]
            rental = await lent.rental(server_id)
            assert (rental.reported, rental.ended_by) == ("stopped", "exit")
            assert (rental.exit_code, rental.out_of_memory_kills) == (-(2**31), 2**31)


async def test_an_agents_version_is_a_line_of_ascii(tmp_path: Path) -> None:
    async with open_hosts(tmp_path, registered=False) as lent:
        odd = lent.host.registration(TOKEN) | {"agent_version": "0.1\0"}
        refused = await lent.world.http.post(wire.REGISTER_PATH, json=odd)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_request")
        assert (await lent.host.register(lent.world.http, TOKEN)).status_code == 200


async def test_a_host_that_says_all_it_has_again_and_again_is_cut_off(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent:
        async with dialled(lent.host) as connected:
            for _ in range(session.SYNCS_MAX):
                await connected.sync()
            await connected.send(link.StateSync, rentals=())
            assert await connected.closed() == 1002
        async with dialled(lent.host) as connected:
            for _ in range(3):
                lent.world.clock.advance(session.FRAMES_WINDOW_S)
                for _ in range(session.SYNCS_MAX):
                    await connected.sync()


async def test_a_host_that_calls_again_and_again_is_told_to_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "CALLS_MAX", 5)
    async with open_hosts(tmp_path) as lent:
        for _ in range(5):
            await lent.host.beat(lent.world.http)
        refused = await lent.host.call(lent.world.http, wire.HEARTBEAT_PATH, wire.Beat())
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limited")
        assert refused.headers["Retry-After"] == "10"
        lent.world.clock.advance(2 * wire.CLOCK_SKEW_S + 2)
        await lent.host.beat(lent.world.http)


@pytest.mark.parametrize(("sessions_ago", "state"), [(0, "stopped"), (1, "running")])
async def test_what_an_older_session_said_is_not_written_over_the_newer_ones_news(
    tmp_path: Path, sessions_ago: int, state: str
) -> None:
    """It was read before its host logged in anew, and its transaction came late."""
    async with open_hosts(tmp_path) as lent:
        server_id = await rented(lent)
        async with dialled(lent.host) as connected:
            told = report(server_id, state="stopped", ended_by="exit")
            late = link.StateSync(
                host_id=lent.host.host_id,
                session_epoch=connected.epoch - sessions_ago,
                seq=1,
                ts=0,
                rentals=(told,),
            )
            entropy, now = lent.world.parts.entropy, lent.world.clock.now_s()
            await lent.world.parts.db.write(
                lambda tx: host_reports.synced_by(tx, entropy, lent.host.host_id, late, "online", now)
            )
            assert (await lent.rental(server_id)).reported == state


async def test_a_host_that_reads_nothing_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing waits until what was sent is read: of one that reads nothing, for ever."""
    monkeypatch.setattr(session, "CLOSING_S", 0.1)
    async with open_hosts(tmp_path) as lent:
        deaf = ScriptedHost("deaf", lent.world.clock.now_s)
        await lent.register(deaf, "deaf")
        async with dialled(lent.host) as heard, dialled(deaf) as unread:
            known = lent.link.listener.hub.sessions[deaf.host_id]
            unread.socket.transport.pause_reading()
            sending = await _full(known)
            lent.world.clock.advance(QUIET_S)
            await heard.heartbeat()
            async with asyncio.timeout(30):
                await lent.world.tick("hosts")
            assert (await lent.host_row()).last_seen == lent.world.clock.now_s()
            assert deaf.host_id not in lent.link.listener.hub.sessions
            await asyncio.wait_for(sending, 30)
            with pytest.raises(ConnectionClosed):
                await known.send(link.HeartbeatAck, heartbeat_interval_s=5)
            unread.socket.transport.resume_reading()


async def _full(known: session.Session) -> "asyncio.Task[None]":
    """Say so much to a host that does not read it that nothing more can be sent; answers what waits."""
    for _ in range(20_000):
        sending = asyncio.create_task(
            known.send(link.Dial, stream_id="x" * 9_000, token="", rental_id="", port=22)
        )
        done, _ = await asyncio.wait({sending}, timeout=1)
        if not done:
            return sending
    raise AssertionError("everything was read")
