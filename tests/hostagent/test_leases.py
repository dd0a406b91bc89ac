"""Who may run: a decision, over every mixture of leases, words of the service, hours and generations."""

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from spawn_hostagent.keeping.leases import (
    GRACE_S,
    LEFT_GRACE_S,
    WAKE_AGAIN_MAX_S,
    WAKE_AGAIN_S,
    Action,
    Clear,
    Halt,
    Wake,
    Woken,
    World,
    decide,
    lease_of,
)
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
    defaults["elapsed_s"] = fields.get("now_s", NOW)
    return World(reports=reports, **(defaults | fields))


def at(found: World, now_s: int, **fields: Any) -> World:
    """The same world at that time, with these changes."""
    return msgspec.structs.replace(found, now_s=now_s, elapsed_s=now_s, **fields)


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
    later = at(found, NOW + GRACE_S - 1, heard_at=NOW + GRACE_S - 1, strangers=first.strangers)
    assert decide(later).actions == ()
    last = at(found, NOW + GRACE_S, heard_at=NOW + GRACE_S, strangers=decide(later).strangers)
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


def test_what_stops_again_and_again_is_started_less_and_less_often() -> None:
    """Whoever makes his host believe that it went down under him keeps it busy no longer than that."""
    found = world(report(state="stopped"), leases={(A, 1): NOW + 10**9})
    started = []
    for now_s in range(NOW, NOW + 4 * 3600):
        found = at(found, now_s)
        decision = decide(found)
        found = msgspec.structs.replace(found, woken=decision.woken)
        if decision.actions:
            started.append(now_s)
    waits = [after - before for before, after in itertools.pairwise(started)]
    assert waits[:4] == [WAKE_AGAIN_S, 2 * WAKE_AGAIN_S, 4 * WAKE_AGAIN_S, 8 * WAKE_AGAIN_S]
    assert waits == sorted(waits)
    assert waits[-1] == WAKE_AGAIN_MAX_S


def test_what_ran_for_long_is_started_again_at_once() -> None:
    woken = {(A, 1): Woken(7, NOW)}
    ran = world(
        report(), woken=woken, now_s=NOW + WAKE_AGAIN_MAX_S, leases={(A, 1): NOW + 2 * WAKE_AGAIN_MAX_S}
    )
    assert decide(ran).woken == {}
    too_short = at(ran, NOW + WAKE_AGAIN_MAX_S - 1)
    assert decide(too_short).woken == woken
    assert decide(msgspec.structs.replace(ran, reports=())).woken == {}


@pytest.mark.parametrize(
    ("known", "heard_s", "cleared"),
    [
        ({}, LEFT_GRACE_S, [Clear(A, 1)]),
        ({}, LEFT_GRACE_S - 1, []),
        ({}, None, []),
        (wanted(), LEFT_GRACE_S, []),
        (wanted(generation=2), LEFT_GRACE_S, [Clear(A, 1)]),
    ],
)
def test_a_disk_without_a_container_goes_once_the_service_has_long_not_known_it(
    known: Any, heard_s: int | None, cleared: list[Action]
) -> None:
    first = decide(world(leftovers=((A, 1),), desired=known, heard_at=NOW))
    assert first.actions == ()
    heard_at = None if heard_s is None else NOW + heard_s
    later = world(
        leftovers=((A, 1),),
        desired=known,
        now_s=NOW + 2 * LEFT_GRACE_S,
        heard_at=heard_at,
        strangers=first.strangers,
    )
    assert actions(later) == cleared
    assert actions(msgspec.structs.replace(later, busy=frozenset({A}))) == []


def test_a_clock_that_is_set_right_ends_no_grace() -> None:
    """The machine booted with a wrong clock; the service's first word moves it by hours, and is seconds old."""
    left, stranger = world(leftovers=((A, 1),), desired={}), world(report(lease_expires_at=NOW + 9 * HOURS))
    for found in (left, msgspec.structs.replace(stranger, desired={}, leases={})):
        first = decide(msgspec.structs.replace(found, elapsed_s=10.0))
        for off_s in (2 * HOURS, -2 * HOURS):
            moved = msgspec.structs.replace(
                found, now_s=NOW + off_s, elapsed_s=20.0, heard_at=15.0, strangers=first.strangers
            )
            assert actions(moved) == []
            over = 10.0 + LEFT_GRACE_S
            assert actions(msgspec.structs.replace(moved, elapsed_s=over, heard_at=over)) != []


def test_what_was_started_again_waits_as_long_whatever_the_clock_says() -> None:
    stopped = world(report(state="stopped"), woken={(A, 1): Woken(1, 10.0)}, leases={(A, 1): NOW + 9 * HOURS})
    for off_s in (2 * HOURS, -2 * HOURS):
        moved = msgspec.structs.replace(stopped, now_s=NOW + off_s, elapsed_s=9.0 + WAKE_AGAIN_S)
        assert actions(moved) == []
        assert actions(msgspec.structs.replace(moved, elapsed_s=10.0 + WAKE_AGAIN_S)) == [
            Wake(A, 1, NOW + 9 * HOURS)
        ]


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
    elapsed_s=st.just(NOW),
    reports=st.lists(REPORTS, max_size=6, unique_by=lambda r: (r.rental_id, r.generation)).map(tuple),
    desired=st.lists(WANTED, max_size=2).map(lambda entries: {entry.rental_id: entry for entry in entries}),
    heard_at=st.none() | st.integers(NOW - 2 * GRACE_S, NOW),
    leases=st.dictionaries(KEYS, st.integers(NOW - 3, NOW + 3), max_size=6),
    strangers=st.dictionaries(KEYS, st.integers(NOW - 2 * GRACE_S, NOW), max_size=6),
    woken=st.dictionaries(
        KEYS, st.builds(Woken, st.integers(1, 100), st.integers(NOW - WAKE_AGAIN_MAX_S, NOW)), max_size=3
    ),
    leftovers=st.lists(KEYS, max_size=2, unique=True).map(tuple),
    busy=st.frozensets(st.sampled_from([A, B])),
    is_closed=st.booleans(),
)


def after(found: World) -> World:
    """The world when what was decided is done."""
    done = {(action.rental_id, action.generation): action for action in decide(found).actions}
    return msgspec.structs.replace(
        found,
        strangers=decide(found).strangers,
        woken=decide(found).woken,
        leftovers=tuple(key for key in found.leftovers if not isinstance(done.get(key), Clear)),
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
        case Clear() | None:
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
