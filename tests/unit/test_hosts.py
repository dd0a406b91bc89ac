"""Pure decisions about lent machines: what silence means, who is blamed, what is owed, where things are reached."""

import contextlib
from inspect import signature
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from spawn_hostagent.streams.relay import Relay
from spawn_ledger.accrual import Meter, accrue
from spawn_providers.base import InstanceStatus
from spawn_schemas import link
from spawn_schemas.ids import Address, CommandId, HostId, RentalId
from spawn_schemas.money import Usdc
from spawn_schemas.orders import RentalReport

from spawn.domain import community, rentals
from spawn.domain.hosts import (
    HIDDEN_S,
    MASS_WINDOW_S,
    OFFLINE_S,
    SILENT,
    Host,
    HostState,
    beat_s,
    down_s,
    judge,
    share_usdc,
    state_after,
    suspect_after_s,
    uptime,
)
from spawn.domain.rentals import Desired, Rental
from spawn.link.login import authorities
from spawn.link.one_request import lone
from spawn.link.streams import Streams

NOW = 1_790_000_000
ORDER = (
    HostState.ONLINE,
    HostState.SUSPECT,
    HostState.WARNED,
    HostState.OFFLINE,
    HostState.REFUNDABLE,
    HostState.HIDDEN,
)


def host(number: int, silence_s: int, state: HostState = HostState.ONLINE, beat: int = 5) -> Host:
    return Host(
        id=HostId(f"host_{number:04}"),
        name=f"h{number}",
        wallet=Address("0x" + "0d" * 20),
        daily_usdc=Usdc(1_200_000),
        state=state,
        last_seen=NOW - silence_s,
        beat_s=beat,
        created_at=0,
    )


@pytest.mark.parametrize(
    ("silence_s", "state"),
    [
        (0, "online"),
        (19, "online"),
        (20, "suspect"),
        (119, "suspect"),
        (120, "warned"),
        (299, "warned"),
        (300, "offline"),
        (1_800, "refundable"),
        (86_400, "hidden"),
    ],
)
def test_what_silence_means(silence_s: int, state: str) -> None:
    assert state_after(silence_s, 5) == state


@given(st.integers(0, 2 * HIDDEN_S), st.integers(0, 3_600), st.integers(1, 60))
def test_more_silence_is_never_better(silence_s: int, more_s: int, beat: int) -> None:
    earlier, later = state_after(silence_s, beat), state_after(silence_s + more_s, beat)
    assert ORDER.index(earlier) <= ORDER.index(later)


@given(st.integers(0, 200_000), st.booleans())
def test_nobody_is_suspected_between_two_heartbeats(hosts: int, rented: bool) -> None:
    beat = beat_s(rented=rented, hosts=hosts)
    assert state_after(beat + 14, beat) is HostState.ONLINE
    assert beat <= 60
    assert suspect_after_s(beat) < 120
    assert beat_s(rented=True, hosts=hosts) <= beat_s(rented=False, hosts=hosts)


lives = st.lists(
    st.tuples(st.integers(0, 100_000), st.sampled_from([*ORDER, HostState.REVOKED, HostState.NEW])),
    max_size=40,
)


@given(lives)
def test_a_verdict_moves_each_host_to_what_its_silence_means_or_blames_us(
    lived: list[tuple[int, HostState]],
) -> None:
    hosts = [host(number, silence_s, state) for number, (silence_s, state) in enumerate(lived)]
    verdict = judge(hosts, NOW, listening_since=0)
    for each in hosts:
        wanted = state_after(NOW - (each.last_seen or 0), each.beat_s)
        moved = verdict.moves.get(each.id, each.state)
        if each.state in {HostState.REVOKED, HostState.NEW}:
            assert each.id not in verdict.moves
        elif moved is not wanted:
            assert verdict.blames_us
            assert (each.state in SILENT, wanted in SILENT, moved) == (False, True, each.state)


@given(st.integers(3, 30), st.integers(0, 200))
def test_a_fifth_that_falls_silent_together_is_our_own_fault(silent: int, others: int) -> None:
    hosts = [host(n, OFFLINE_S) for n in range(silent)] + [host(1_000 + n, 0) for n in range(others)]
    verdict = judge(hosts, NOW, listening_since=0)
    assert verdict.blames_us is (silent * 5 > silent + others)
    assert (verdict.moves == {}) is verdict.blames_us


def test_we_do_not_blame_ourselves_for_ever_nor_for_two() -> None:
    assert not judge([host(n, OFFLINE_S) for n in range(2)], NOW, listening_since=0).blames_us
    assert judge([host(n, OFFLINE_S) for n in range(9)], NOW, listening_since=0).blames_us
    late = OFFLINE_S + MASS_WINDOW_S
    assert not judge([host(n, late) for n in range(9)], NOW, listening_since=0).blames_us


beats = st.sampled_from([5, 30, 60])
fallen = st.lists(beats.flatmap(lambda beat: st.tuples(st.just(beat), st.integers(0, beat))), max_size=12)


@given(fallen, st.integers(0, 40), st.integers(0, 9))
def test_those_that_fall_together_do_so_although_each_spoke_in_its_own_time(
    falling: list[tuple[int, int]], others: int, phase: int
) -> None:
    """Nobody hears any of them from `NOW` on, and all ticks are judged as the job does it, one after the other."""
    silent = [host(n, silence_s, beat=beat) for n, (beat, silence_s) in enumerate(falling)]
    many = len(silent) >= 3 and len(silent) * 5 > len(silent) + others
    hour = OFFLINE_S + MASS_WINDOW_S
    for after_s in (*range(200 + phase, OFFLINE_S + 60, 10), *range(hour - 100 + phase, hour + 60, 10)):
        heard = [replace(host(1_000 + n, 0), last_seen=NOW + after_s - n % 30) for n in range(others)]
        verdict = judge([*silent, *heard], NOW + after_s, listening_since=0)
        silent = [replace(each, state=verdict.moves.get(each.id, each.state)) for each in silent]
        for each in silent:
            is_over = NOW + after_s - (each.last_seen or 0) >= (hour if many else OFFLINE_S)
            # The hour of the first to be over may leave too few to blame us for the last, a minute early.
            assert each.state in SILENT or not is_over
            assert each.state not in SILENT or is_over or after_s >= hour - 60
        held = [
            one
            for one in silent
            if one.state not in SILENT and NOW + after_s - (one.last_seen or 0) >= OFFLINE_S
        ]
        assert verdict.blames_us is bool(held)


def test_a_host_that_falls_later_does_not_make_our_hour_longer_for_the_others() -> None:
    hosts = [host(n, OFFLINE_S + MASS_WINDOW_S) for n in range(3)] + [
        host(3 + n, OFFLINE_S) for n in range(2)
    ]
    verdict = judge(hosts, NOW, listening_since=0)
    assert verdict.blames_us
    assert sorted(verdict.moves) == [f"host_{n:04}" for n in range(3)]


def test_who_was_offline_before_does_not_count_as_falling() -> None:
    hosts = [host(n, HIDDEN_S, HostState.HIDDEN) for n in range(90)]
    verdict = judge([*hosts, host(99, OFFLINE_S)], NOW, listening_since=0)
    assert verdict.moves == {HostId("host_0099"): HostState.OFFLINE}


def test_nobody_was_silent_while_we_did_not_listen() -> None:
    assert judge([host(1, 90_000)], NOW, listening_since=NOW - 10).moves == {}


@given(st.lists(st.integers(0, 1_000), min_size=2, max_size=20, unique=True), st.integers(0, 1_000))
def test_downtime_is_what_lies_within_the_window(edges: list[int], since: int) -> None:
    ordered = sorted(edges)
    outages = [(began, ended) for number, (began, ended) in enumerate(pairwise(ordered)) if number % 2 == 0]
    expected = sum(1 for at in range(since, 1_000) if any(began <= at < ended for began, ended in outages))
    assert down_s(outages, since, 1_000) == expected


def test_uptime_forgives_ten_minutes() -> None:
    assert uptime(0, 0) == 1.0
    assert uptime(86_400, 600) == 1.0
    assert uptime(86_400, 86_400) == 600 / 86_400
    assert down_s([(900, None)], 0, 1_000) == 100


@given(st.integers(1, 10**9), st.integers(0, 90), st.lists(st.integers(1, 500_000), max_size=20))
def test_a_share_is_exact_however_it_is_cut(daily: int, percent: int, steps: list[int]) -> None:
    share = share_usdc(Usdc(daily), percent)
    assert share * 100 <= daily * percent < (share + 1) * 100
    meter, total, until = Meter(daily_usdc=share, remainder=0, charged_until=0), 0, 0
    for step in steps:
        until += step
        amount, meter = accrue(meter, until)
        total += amount
    assert total == share * until // 86_400


# --- rentals --------------------------------------------------------------------------------------------------------

RENTAL = Rental(
    id=RentalId("srv_a"),
    host_id=HostId("host_a"),
    owner=Address("0x" + "0d" * 20),
    hostname="web",
    type="lent",
    image="debian-12",
    cores=1,
    memory_gb=1,
    disk_gb=10,
    lease_until=NOW,
    start_command=CommandId("cmd_a"),
    created_at=NOW,
)
reports = st.builds(
    RentalReport,
    rental_id=st.just(RENTAL.id),
    generation=st.integers(0, 2),
    state=st.sampled_from(["pulling", "creating", "running", "stopped", "failed", "gone"]),
    since=st.just(NOW),
)


@given(st.lists(st.tuples(reports, st.booleans()), max_size=20))
def test_what_is_gone_stays_gone_and_only_a_started_one_goes(told: list[tuple[RentalReport, bool]]) -> None:
    rental = RENTAL
    for report, started in told:
        after = rentals.reported(rental, report, started=started, now=NOW)
        if rental.gone_at is not None:
            assert after == rental
        if after.gone_at != rental.gone_at:
            assert (started, report.state, report.generation) == (True, "gone", rental.generation)
        rental = after


@pytest.mark.parametrize("state", sorted(SILENT))
def test_nobody_knows_how_a_silent_hosts_rentals_are(state: HostState) -> None:
    assert rentals.status_of(RENTAL, state, resuming=False) is InstanceStatus.UNKNOWN
    gone = replace(RENTAL, desired=Desired.GONE)
    assert rentals.status_of(gone, state, resuming=False) is InstanceStatus.DELETING


def test_only_a_lease_that_ended_is_made_up_for() -> None:
    stopped = replace(RENTAL, reported="stopped", ended_by="lease")
    assert rentals.must_resume(stopped)
    assert not rentals.must_resume(replace(stopped, ended_by="exit"))
    assert not rentals.must_resume(replace(stopped, desired=Desired.STOPPED))


@pytest.mark.parametrize(
    ("ended_by", "host_state", "after_s", "owes"),
    [
        (None, "online", 0, True),
        (None, "suspect", 3_599, True),
        (None, "online", 3_600, False),
        (None, "offline", 400, False),
        (None, "revoked", 0, False),
        ("owner", "online", 0, False),
        ("lease", "online", 0, False),
    ],
)
def test_the_first_hour_is_due_unless_its_host_kept_it_for_certain(
    ended_by: Any, host_state: str, after_s: int, owes: bool
) -> None:
    stopped = replace(RENTAL, reported="stopped", reported_at=NOW, ended_by=ended_by, paused_at=NOW)
    assert rentals.owes_hour(stopped, HostState(host_state), NOW + after_s) is owes
    assert not rentals.owes_hour(replace(stopped, paused_at=None), HostState(host_state), NOW + after_s)
    was_silent = replace(stopped, reported_at=NOW + 1)
    assert not rentals.owes_hour(was_silent, HostState(host_state), NOW + after_s)


def test_both_ends_of_a_stream_wait_equally_long() -> None:
    """Whoever waits less decides for both: an hour that only one of them keeps is none."""
    ours, theirs = (signature(end).parameters["idle_s"].default for end in (Streams, Relay))
    assert ours == theirs == link.STREAM_IDLE_S


# --- where it is reached --------------------------------------------------------------------------------------------


@given(st.integers(1, 65_535), st.from_regex(r"srv_[a-z2-7]{26}", fullmatch=True))
def test_a_name_leads_back_to_its_port_and_rental(port: int, rental_id: str) -> None:
    relay = community.Relay(host="relay.test", ports=range(1), http_host="apps.test", http_port=443)
    endpoint = relay.named(RentalId(rental_id), port)
    assert endpoint is not None
    label = endpoint.host.partition(".")[0]
    assert community.parse_name(label) == (port, rental_id)
    assert len(label) <= 63
    assert "_" not in label


@given(st.text(max_size=60))
def test_settings_texts_parse_or_raise_value_errors(text: str) -> None:
    for parse in (
        community.parse_images,
        community.parse_size,
        community.parse_ports,
        community.parse_range,
    ):
        with contextlib.suppress(ValueError):
            parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "debian-12",
        "a=b",
        "a=b@sha256:12",
        "A=b@sha256:" + "a" * 64,
        f"a=b@sha256:{'a' * 64},a=c@sha256:{'b' * 64}",
    ],
)
def test_an_image_is_named_once_and_by_digest(text: str) -> None:
    with pytest.raises(ValueError, match="sha256"):
        community.parse_images(text)


def test_settings_texts_mean_what_they_say() -> None:
    digest = "a" * 64
    assert community.parse_images(f"debian-12=r.test:5000/d@sha256:{digest}") == {
        "debian-12": f"r.test:5000/d@sha256:{digest}"
    }
    assert msgspec.to_builtins(community.parse_size("2,4,40")) == {"cores": 2, "memory_gb": 4, "disk_gb": 40}
    assert [port.kind for port in community.parse_ports("22,8888/http")] == ["tcp", "http"]
    assert list(community.parse_range("2000-2001")) == [2000, 2001]


@pytest.mark.parametrize(
    ("url", "names"),
    [
        ("wss://Link.Example", ("link.example", "link.example:443")),
        ("wss://link.example:443/", ("link.example", "link.example:443")),
        ("ws://127.0.0.1:8403", ("127.0.0.1:8403",)),
        ("ws://[::1]:8403", ("[::1]:8403",)),
    ],
)
def test_a_hosts_login_names_the_address_that_it_dialled(url: str, names: tuple[str, ...]) -> None:
    assert authorities(url) == names


@pytest.mark.parametrize(
    ("head", "sent"),
    [
        (
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n",
            b"GET / HTTP/1.1\r\nConnection: close\r\nHost: x\r\n\r\n",
        ),
        (
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nConnection: close\r\nHost: x\r\n\r\n",
        ),
        (
            b"GET / HTTP/1.1\r\nconnection: Upgrade\r\nHost: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nconnection: Upgrade\r\nHost: x\r\n\r\n",
        ),
    ],
)
def test_a_connection_serves_one_request_unless_it_becomes_something_else(head: bytes, sent: bytes) -> None:
    assert lone(head) == sent
