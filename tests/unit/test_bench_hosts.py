"""The arithmetic of `bench-hosts`; the measuring itself is `make bench-hosts`."""

import msgspec

from tests.bench.goals import Verdict
from tests.bench.hosts_idle import Idle
from tests.bench.hosts_report import Relayed, idle_goals, idle_table, relay_goals, relay_table
from tests.bench.hosts_ways import Carried

IDLE = Idle(
    name="ours", sockets=2_000, kib_per_socket=23.0, login_us=700, silent_us_per_s=8_500, beat_us=60.0
)
FLOOR = msgspec.structs.replace(IDLE, name="floor", beat_us=40.0)
DIRECT = Relayed(
    name="direct",
    login_s=0.2,
    logins_s=(0.2,),
    down=Carried(mib_per_s=200, cpu_ms_per_mib=0),
    up=Carried(mib_per_s=100, cpu_ms_per_mib=0),
    raw=Carried(mib_per_s=1_000, cpu_ms_per_mib=0),
    shared_mib_per_s=2_000,
    worst_share=1.0,
    grown_mib=0.0,
)
OURS = msgspec.structs.replace(
    DIRECT,
    name="spawn",
    login_s=0.26,
    down=Carried(mib_per_s=150, cpu_ms_per_mib=3),
    up=Carried(mib_per_s=49, cpu_ms_per_mib=3),
    raw=Carried(mib_per_s=500, cpu_ms_per_mib=1.5),
    worst_share=0.49,
)


def _met(found: list[Verdict]) -> list[bool | None]:
    return [one.met for one in found]


def test_a_goal_that_is_just_reached_is_met() -> None:
    assert _met(idle_goals([IDLE, FLOOR])) == [True, True]


def test_what_is_over_it_is_not() -> None:
    over = msgspec.structs.replace(IDLE, kib_per_socket=23.1, beat_us=60.1)
    assert _met(idle_goals([over, FLOOR])) == [False, False]


def test_a_heartbeat_is_told_beside_the_floors() -> None:
    assert [one.measured for one in idle_goals([IDLE, FLOOR])] == ["23.0 KiB", "60 us, 1.50x the floor's"]


def test_the_relay_is_held_against_direct_by_the_worse_direction() -> None:
    found = relay_goals([DIRECT, OURS])
    assert _met(found) == [True, False, True, False]
    assert [one.measured for one in found] == ["1.30x", "0.49", "0.50", "0.49"]


def test_only_ours_has_goals() -> None:
    peer = msgspec.structs.replace(OURS, name="asyncssh -R")
    assert {one.ours for one in relay_goals([DIRECT, OURS, peer])} == {"spawn"}
    assert {one.ours for one in idle_goals([IDLE, FLOOR])} == {"ours"}


def test_the_tables_have_everybody_beside_direct() -> None:
    told = relay_table([DIRECT, OURS])
    assert told.count("direct ") >= 2
    assert "0.75x" in told
    assert "0.49x" in told
    assert "0.85%" in idle_table([IDLE])


def test_nothing_measured_is_no_goal() -> None:
    assert idle_goals([]) == []
    assert relay_goals([]) == []
