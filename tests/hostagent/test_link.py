"""The link against a service that duplicates, reorders, replays, cuts and falls silent."""

import asyncio
import random
import shutil
import tempfile
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from spawn_hostagent.daemon import EXIT_REFUSED
from spawn_hostagent.link.dialling import BACKOFF_MAX_S, BadAddress, backoff_s, control_url, data_url
from spawn_hostagent.link.session import WINDOW, Window
from spawn_schemas.link import CommandFrame, DesiredFrame, HeartbeatAck, authority_of

from tests.hostagent.clocks import VirtualClock, until
from tests.hostagent.fake_host import HOST, FakeHost, fake_host
from tests.hostagent.fake_service import FakeService
from tests.hostagent.orders import HOUR, A, B, command, destroy, execute, start
from tests.hostagent.renting import wanted

pytest_plugins = "tests.hostagent.fixtures"


async def test_it_logs_in_beats_and_shows_what_is_here(host: FakeHost, service: FakeService) -> None:
    await until(lambda: service.beats)
    assert service.logins == 1
    assert service.beats[0].metrics.cpu_percent == 12.5
    assert (service.beats[0].host_id, service.beats[0].session_epoch, service.beats[0].status) == (
        HOST,
        1,
        "online",
    )
    assert service.syncs[0].inventory is not None
    assert service.syncs[0].inventory.isolation.tier == "runc"


async def test_it_beats_as_often_as_the_service_says(host: FakeHost, service: FakeService) -> None:
    await until(lambda: service.beats)
    before = len(service.beats)
    await host.pass_time(40, step=0.5)
    assert 7 <= len(service.beats) - before <= 8
    service.interval_s = 20
    await host.pass_time(10)
    before = len(service.beats)
    await host.pass_time(100)
    assert 4 <= len(service.beats) - before <= 5


async def test_it_shows_each_minute_and_at_changes(host: FakeHost, service: FakeService) -> None:
    before = len(service.syncs)
    await host.pass_time(61)
    assert len(service.syncs) == before + 1
    assert service.syncs[-1].inventory is None
    host.machines.put(start())
    await host.pass_time(2)
    assert service.syncs[-1].rentals[0].rental_id == A
    service.desired[A] = wanted()
    before = sum(sync.inventory is not None for sync in service.syncs)
    await host.pass_time(601, step=5)
    assert sum(sync.inventory is not None for sync in service.syncs) == before + 1


async def test_a_command_is_carried_out_and_told(host: FakeHost, service: FakeService) -> None:
    order = command(start())
    await service.order(order)
    assert (await service.ended(order)).state == "succeeded"
    assert [ack.state for ack in service.acks if ack.command_id == order.command_id][:2] == [
        "received",
        "accepted",
    ]
    await host.pass_time(2)
    await until(lambda: any(sync.rentals for sync in service.syncs))
    await host.pass_time(6)
    await until(lambda: service.beats[-1].rentals == 1)
    assert service.beats[-1].traffic == {A: (1, 2)}


async def test_duplicates_and_replays_are_dropped(host: FakeHost, service: FakeService) -> None:
    session = service.live[HOST]
    begin, look = command(start()), command(execute("date"))
    await service.order(begin)
    await service.ended(begin)
    await service.order(look)
    await service.ended(look)
    for index in range(1, len(session.sent)):
        await service.repeat(session, index)
    last = command(execute("id"))
    await service.order(last)
    await service.ended(last)
    assert host.machines.made == {(A, 1): 1}
    assert host.machines.ran == [("date",), ("id",)]
    assert len(service.results(look)) == 1


async def test_a_command_sent_anew_is_answered_anew_and_not_repeated(
    host: FakeHost, service: FakeService
) -> None:
    await service.order(begin := command(start()))
    await service.ended(begin)
    look = command(execute("date"))
    await service.order(look)
    first = await service.ended(look)
    await service.order(look)
    await until(lambda: len(service.results(look)) == 2)
    assert service.results(look) == [first, first]
    assert host.machines.ran == [("date",)]


async def test_reordered_frames_are_obeyed_and_a_start_after_its_destroy_is_not(
    host: FakeHost, service: FakeService
) -> None:
    session = service.live[HOST]
    begin, end = command(start()), command(destroy())
    seq = session.seq + 1
    session.seq += 2
    for order, number in ((end, seq + 1), (begin, seq)):
        service.queue[order.command_id] = order
        await service._put(session, CommandFrame, seq=number, command=order)
    ack = await service.ended(begin)
    assert ack.problem is not None
    assert ack.problem.code == "stale_generation"
    assert host.machines.made == {}


async def test_an_older_word_does_not_take_the_place_of_a_newer(host: FakeHost, service: FakeService) -> None:
    await service.order(begin := command(start()))
    await service.ended(begin)
    session = service.live[HOST]
    service.generation = 10
    await service.send(session, DesiredFrame, generation=10, rentals=(wanted(),))
    await service.send(session, DesiredFrame, generation=9, rentals=(wanted(state="stopped"),))
    mark = command(execute("true"))
    await service.order(mark)
    await service.ended(mark)
    assert host.journal.desired()[A].state == "running"


async def test_frames_of_another_session_are_dropped(host: FakeHost, service: FakeService) -> None:
    session = service.live[HOST]
    stray = command(start())
    session.epoch -= 1
    await service.send(session, CommandFrame, command=stray)
    session.epoch += 1
    mark = command(start(B))
    await service.order(mark)
    await service.ended(mark)
    assert service.state_of(stray) is None
    assert set(host.machines.boxes) == {(B, 1)}


async def test_what_it_does_not_know_is_refused_and_the_link_lives(
    host: FakeHost, service: FakeService
) -> None:
    session = service.live[HOST]
    for text in (
        "not json",
        '{"type":"fireworks","session_epoch":1}',
        msgspec.json.encode(
            {
                "type": "command",
                "v": 1,
                "host_id": "-",
                "session_epoch": session.epoch,
                "seq": 999,
                "ts": 0,
                "command": {"command_id": "cmd_new", "expires_at": 1, "order": {"type": "teleport"}},
            }
        ).decode(),
    ):
        await session.socket.send(text)
    await until(lambda: any(ack.command_id == "cmd_new" for ack in service.acks))
    [ack] = [ack for ack in service.acks if ack.command_id == "cmd_new"]
    assert ack.problem is not None
    assert (ack.state, ack.problem.code) == ("failed", "invalid")
    assert service.live[HOST] is session


async def test_a_cut_link_is_dialled_again_and_loses_nothing(host: FakeHost, service: FakeService) -> None:
    host.machines.gates["start"] = asyncio.Event()
    order = command(start())
    await service.order(order)
    await until(lambda: service.state_of(order) == "accepted" or service.state_of(order) == "progress")
    for _ in range(3):
        service.cut()
        await until(lambda: not host.daemon.link.state.connected)
        await host.connected()
    host.machines.gates["start"].set()
    assert (await service.ended(order)).state == "succeeded"
    assert host.machines.made == {(A, 1): 1}


async def test_a_result_of_a_time_without_link_is_told_at_the_next(
    host: FakeHost, service: FakeService
) -> None:
    host.machines.gates["start"] = asyncio.Event()
    order = command(start())
    await service.order(order)
    await until(lambda: host.machines.entered["start"])
    service.refuses_sockets = True
    service.cut()
    await until(lambda: not host.daemon.link.state.connected)
    host.machines.gates["start"].set()
    await until(lambda: host.machines.made)
    service.refuses_sockets = False
    service.queue.clear()
    await host.connected()
    assert (await service.ended(order)).state == "succeeded"


async def test_a_silent_service_is_left_and_dialled_again(host: FakeHost, service: FakeService) -> None:
    service.is_silent = True
    first = service.live[HOST]
    await host.pass_time(19)
    assert host.daemon.link.state.connected
    await host.pass_time(8)
    service.is_silent = False
    await host.connected()
    assert service.live[HOST] is not first


async def test_a_whisper_now_and_then_is_no_silence(host: FakeHost, service: FakeService) -> None:
    service.is_silent = True
    session = service.live[HOST]
    for _ in range(4):
        await host.pass_time(15)
        await service.send(session, HeartbeatAck, heartbeat_interval_s=5)
        await asyncio.sleep(0.02)
    assert service.live[HOST] is session


async def test_a_refused_host_says_so_and_ends_once_nothing_runs(
    host: FakeHost, service: FakeService
) -> None:
    await service.order(order := command(start()))
    await service.ended(order)
    service.keys.clear()
    service.cut()
    await until(lambda: not host.daemon.link.state.connected)
    await host.pass_time(10)
    await until(lambda: "does not accept this host" in str(host.daemon.link.state.last_error))
    logins = service.logins
    await host.pass_time(600, step=10)
    assert service.logins == logins, "dialling again does not help"
    assert host.machines.running() == {(A, 1)}
    await host.pass_time(HOUR, step=20)
    assert host.machines.running() == set()
    assert await asyncio.wait_for(host.task, 20) == EXIT_REFUSED
    host.journal.close()


async def test_of_two_agents_with_one_identity_the_older_stops(
    host: FakeHost, service: FakeService, clock: VirtualClock
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="sh-"))
    try:
        async with fake_host(folder, service, clock) as twin:
            twin.signer.key = host.signer.key
            service.keys[HOST] = host.signer.key.public_key()
            await until(lambda: len(service.sessions) == 2)
            await until(lambda: "Another agent" in str(host.daemon.link.state.last_error))
            assert await asyncio.wait_for(host.task, 20) == EXIT_REFUSED
            host.journal.close()
            await twin.pass_time(100, step=2)
            assert twin.daemon.link.state.connected
            assert len(service.sessions) == 2, "they do not push each other out for ever"
    finally:
        shutil.rmtree(folder)


async def test_a_newer_protocol_says_upgrade(folder: Path, service: FakeService, clock: VirtualClock) -> None:
    service.version = 2
    async with fake_host(folder, service, clock) as host:
        assert await asyncio.wait_for(host.task, 20) == EXIT_REFUSED
        assert "Upgrade spawn-host" in str(host.daemon.link.state.last_error)
        host.journal.close()


async def test_a_rotation_that_broke_off_finds_the_right_key(
    folder: Path, service: FakeService, clock: VirtualClock
) -> None:
    async with fake_host(folder, service, clock) as host:
        right, host.signer.key = host.signer.key, Ed25519PrivateKey.generate()
        host.signer.other = right
        await host.connected()
        assert host.signer.key is right
        assert host.signer.finished == [host.signer.public_key]


async def test_what_overtakes_the_welcome_does_not_break_the_login(
    folder: Path, service: FakeService, clock: VirtualClock
) -> None:
    service.is_hasty = True
    async with fake_host(folder, service, clock) as host:
        await host.connected()
        await service.order(order := command(start()))
        assert (await service.ended(order)).state == "succeeded"
        assert service.logins == 1


async def test_a_login_is_good_at_this_address_alone(
    folder: Path, service: FakeService, clock: VirtualClock
) -> None:
    """A service that passes the challenge of another on gets a signature that the other does not take."""
    async with fake_host(folder, service, clock) as host:
        host.signer.link_url = f"ws://localhost:{service.port}"
        assert await asyncio.wait_for(host.task, 20) == EXIT_REFUSED
        host.journal.close()
    assert (service.logins, service.sessions) == (1, [])


def test_backoff_is_anything_up_to_a_bound_that_doubles() -> None:
    dice = random.Random(1)
    for failures, most in ((0, 1), (1, 2), (3, 8), (6, 60), (500, 60)):
        drawn = [backoff_s(failures, dice) for _ in range(300)]
        assert max(drawn) <= most <= BACKOFF_MAX_S
        assert max(drawn) > most * 0.9
        assert min(drawn) < most * 0.1


@pytest.mark.parametrize(
    ("url", "control"),
    [
        ("wss://spawn.test", "wss://spawn.test/v1/hosts/link"),
        ("wss://spawn.test/v1/hosts/link", "wss://spawn.test/v1/hosts/link"),
        ("wss://spawn.test:9/x/", "wss://spawn.test:9/x/v1/hosts/link"),
        ("ws://127.0.0.1:8403", "ws://127.0.0.1:8403/v1/hosts/link"),
        ("ws://[::1]:8403", "ws://[::1]:8403/v1/hosts/link"),
    ],
)
def test_where_the_link_is(url: str, control: str) -> None:
    assert control_url(url) == control
    assert data_url(url, "s1") == control.removesuffix("link") + "data/s1"


@pytest.mark.parametrize(
    "url",
    [
        "ws://spawn.test",
        "https://spawn.test",
        "spawn.test",
        "",
        "ws://127.0.0.1.evil.test",
        "wss://spawn.test:many",
    ],
)
def test_a_clear_line_is_not_dialled(url: str) -> None:
    with pytest.raises(BadAddress, match="wss://"):
        control_url(url)


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("wss://Spawn.Test/v1/hosts/link", "spawn.test"),
        ("wss://spawn.test:443", "spawn.test"),
        ("wss://spawn.test:8443", "spawn.test:8443"),
        ("ws://[::1]:80", "[::1]"),
    ],
)
def test_what_a_login_is_signed_for(url: str, authority: str) -> None:
    assert authority_of(url) == authority


def test_each_number_passes_the_window_once() -> None:
    window = Window()
    order = list(range(1, 5000))
    dice = random.Random(3)
    shuffled = [n for begin in range(0, len(order), 50) for n in dice.sample(order[begin : begin + 50], 49)]
    assert all(window.is_new(n) for n in shuffled)
    assert not any(window.is_new(n) for n in shuffled)
    assert not window.is_new(5000 - 2 * WINDOW)
    assert len(window._seen) <= 2 * WINDOW + 1
