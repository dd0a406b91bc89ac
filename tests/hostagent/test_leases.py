"""Who may run: a decision, over every mixture of leases, words of the service, hours and generations."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from spawn_hostagent.leases import GRACE_S, Action, Halt, Wake, World, decide, lease_of
from spawn_schemas.ids import RentalId
from spawn_schemas.orders import Desired, RentalReport

A, B = RentalId("srv_a"), RentalId("srv_b")
NOW = 1_000_000


def report(**fields: Any) -> RentalReport:
    defaults: dict[str, Any] = {"rental_id": A, "generation": 1, "state": "running", "since": NOW - 50}
    return RentalReport(**(defaults | fields))


def wanted(**fields: Any) -> dict[RentalId, Desired]:
    defaults: dict[str, Any] = {
        "rental_id": A,
        "generation": 1,
        "state": "running",
        "lease_expires_at": NOW + 100,
    }
    entry = Desired(**(defaults | fields))
    return {entry.rental_id: entry}


def world(*reports: RentalReport, **fields: Any) -> World:
    defaults: dict[str, Any] = {"now_s": NOW, "leases": {(A, 1): NOW + 100}, "desired": wanted()}
    return World(reports=reports, **(defaults | fields))


def actions(found: World) -> list[Action]:
    return list(decide(found).actions)


def endings(found: World) -> list[str]:
    return [action.ended_by for action in actions(found) if isinstance(action, Halt)]


def test_what_is_wanted_and_leased_is_left_alone() -> None:
    assert actions(world(report())) == []


@pytest.mark.parametrize(("left_s", "ended"), [(1, []), (0, ["lease"]), (-5, ["lease"])])
def test_a_lease_ends_to_the_second(left_s: int, ended: list[str]) -> None:
    assert endings(world(report(), leases={(A, 1): NOW + left_s})) == ended


def test_the_latest_grant_counts_and_the_containers_own_only_where_there_is_none() -> None:
    old = report(lease_expires_at=NOW - 1)
    assert actions(world(old)) == []
    assert endings(world(old, leases={})) == ["lease"]
    assert lease_of(old, {}) == NOW - 1


def test_a_silent_service_ends_nothing_that_is_leased() -> None:
    """Nobody knows it, the service said so long ago, and then no more: its lease is what it has."""
    stranger = world(
        report(lease_expires_at=NOW + 5), leases={}, desired={}, strangers={(A, 1): NOW - 10 * GRACE_S}
    )
    assert actions(stranger) == []
    assert actions(msgspec.structs.replace(stranger, heard_at=NOW - 10 * GRACE_S)) == []
    assert endings(msgspec.structs.replace(stranger, heard_at=NOW - 9 * GRACE_S)) == ["command"]


def test_a_stranger_has_five_minutes_from_when_it_was_first_seen() -> None:
    found = world(report(lease_expires_at=NOW + HOURS), leases={}, desired={}, heard_at=NOW)
    first = decide(found)
    assert first.actions == ()
    assert first.strangers == {(A, 1): NOW}
    later = msgspec.structs.replace(
        found, now_s=NOW + GRACE_S - 1, heard_at=NOW + GRACE_S - 1, strangers=first.strangers
    )
    assert decide(later).actions == ()
    last = msgspec.structs.replace(
        found, now_s=NOW + GRACE_S, heard_at=NOW + GRACE_S, strangers=decide(later).strangers
    )
    assert endings(last) == ["command"]


def test_a_stranger_without_a_lease_has_no_claim_on_a_silent_service() -> None:
    found = world(report(), leases={}, desired={}, strangers={(A, 1): NOW - GRACE_S})
    assert endings(found) == ["command"]


def test_a_stranger_that_becomes_known_begins_anew() -> None:
    assert decide(world(report(), strangers={(A, 1): NOW - GRACE_S})).strangers == {}


def test_of_two_generations_the_older_stops() -> None:
    both = world(
        report(),
        report(generation=2),
        leases={(A, 1): NOW + 9, (A, 2): NOW + 9},
        desired=wanted(generation=2),
    )
    assert [(action.generation, action.ended_by) for action in actions(both) if isinstance(action, Halt)] == [
        (1, "command")
    ]


def test_what_is_wanted_stopped_stops() -> None:
    assert endings(world(report(), desired=wanted(state="stopped"))) == ["command"]


def test_strict_hours_stop_and_open_ones_start_again() -> None:
    assert endings(world(report(), is_closed=True)) == ["owner"]
    stopped = report(state="stopped", ended_by="owner")
    assert actions(world(stopped, is_closed=True)) == []
    assert actions(world(stopped)) == [Wake(A, 1, NOW + 100)]


@pytest.mark.parametrize("ended_by", [None, "lease", "owner"])
def test_what_the_host_stopped_runs_again_once_it_may(ended_by: Any) -> None:
    assert actions(world(report(state="stopped", ended_by=ended_by))) == [Wake(A, 1, NOW + 100)]


@pytest.mark.parametrize("ended_by", ["exit", "out_of_memory", "disk_full", "command"])
def test_what_ended_by_itself_is_not_started_again(ended_by: Any) -> None:
    assert actions(world(report(state="stopped", ended_by=ended_by))) == []


def test_nothing_that_may_not_run_is_started() -> None:
    stopped = report(state="stopped")
    assert actions(world(stopped, leases={(A, 1): NOW})) == []
    assert actions(world(stopped, leases={})) == []
    assert actions(world(stopped, desired={})) == []
    assert actions(world(stopped, desired=wanted(state="stopped"))) == []
    assert actions(world(stopped, desired=wanted(generation=2))) == []
    newer = report(generation=2)
    assert actions(world(stopped, newer, leases={(A, 1): NOW + 9, (A, 2): NOW + 9})) == []


def test_a_busy_rental_is_left_to_its_command() -> None:
    over = world(report(), leases={(A, 1): NOW - 1}, busy=frozenset({A}))
    assert actions(over) == []


HOURS = 3600
REPORTS = st.builds(
    RentalReport,
    rental_id=st.sampled_from([A, B]),
    generation=st.integers(1, 3),
    state=st.sampled_from(["pulling", "creating", "running", "stopped", "failed"]),
    since=st.just(NOW),
    lease_expires_at=st.none() | st.integers(NOW - 3, NOW + 3),
    ended_by=st.sampled_from([None, "exit", "lease", "owner", "command", "out_of_memory"]),
)
KEYS = st.tuples(st.sampled_from([A, B]), st.integers(1, 3))
WANTED = st.builds(
    Desired,
    rental_id=st.sampled_from([A, B]),
    generation=st.integers(1, 3),
    state=st.sampled_from(["running", "stopped"]),
    lease_expires_at=st.integers(NOW - 3, NOW + 3),
)
WORLDS = st.builds(
    World,
    now_s=st.just(NOW),
    reports=st.lists(REPORTS, max_size=6, unique_by=lambda r: (r.rental_id, r.generation)).map(tuple),
    desired=st.lists(WANTED, max_size=2).map(lambda entries: {entry.rental_id: entry for entry in entries}),
    heard_at=st.none() | st.integers(NOW - 2 * GRACE_S, NOW),
    leases=st.dictionaries(KEYS, st.integers(NOW - 3, NOW + 3), max_size=6),
    strangers=st.dictionaries(KEYS, st.integers(NOW - 2 * GRACE_S, NOW), max_size=6),
    busy=st.frozensets(st.sampled_from([A, B])),
    is_closed=st.booleans(),
)


def after(found: World) -> World:
    """The world when what was decided is done."""
    done = {(action.rental_id, action.generation): action for action in decide(found).actions}
    return msgspec.structs.replace(
        found,
        strangers=decide(found).strangers,
        reports=tuple(
            _acted(report, done.get((report.rental_id, report.generation))) for report in found.reports
        ),
    )


def _acted(report: RentalReport, action: Action | None) -> RentalReport:
    match action:
        case Halt():
            return msgspec.structs.replace(report, state="stopped", ended_by=action.ended_by)
        case Wake():
            return msgspec.structs.replace(report, state="running", ended_by=None)
        case None:
            return report


@given(WORLDS)
def test_whatever_the_world_nothing_runs_that_may_not(found: World) -> None:
    then = after(found)
    running = [
        entry for entry in then.reports if entry.state == "running" and entry.rental_id not in then.busy
    ]
    for entry in running:
        lease = lease_of(entry, then.leases)
        assert lease is None or lease > NOW
        assert not then.is_closed
        known = then.desired.get(entry.rental_id)
        if known is not None and known.generation == entry.generation:
            assert known.state == "running"
    names = [entry.rental_id for entry in running]
    assert len(names) == len(set(names)), "two generations of one rental run"


@given(WORLDS)
def test_a_decision_that_was_carried_out_is_not_decided_again(found: World) -> None:
    assert decide(after(found)).actions == ()


@given(WORLDS)
def test_a_leased_rental_never_stops_for_a_silent_service(found: World) -> None:
    """Only its lease, the owner, a newer generation or a word stops it; a missing word does not."""
    silent = msgspec.structs.replace(found, desired={}, heard_at=None)
    for action in decide(silent).actions:
        assert isinstance(action, Halt)
        [entry] = [
            entry
            for entry in silent.reports
            if (entry.rental_id, entry.generation) == (action.rental_id, action.generation)
        ]
        if action.ended_by == "command" and lease_of(entry, silent.leases) is not None:
            assert "newer" in action.why
