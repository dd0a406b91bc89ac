"""Who may run now: leases, what the service wants, the owner's hours, and containers that nobody knows.

Invariant: a decision depends on nothing but what it is given, and it deletes nothing but what is left of a rental whose
container is gone, once the service has long said that it knows no such rental. Where the service is silent, a tenant
runs until the lease ends that was granted last, and no longer. Leases end by the service's clock; a grace is counted
by one that nobody sets, since the service's first word may move ours by hours.
"""

from collections.abc import Mapping
from typing import Final, Union

import msgspec
from spawn_schemas.ids import RentalId
from spawn_schemas.orders import Desired, EndedBy, RentalReport

GRACE_S: Final = 5 * 60
"""How long a labelled container runs that the service does not know: its word may be on the way."""
LEFT_GRACE_S: Final = 3600
"""How long a disk without a container is kept that the service does not know: its order to destroy comes first."""
WAKE_AGAIN_S: Final = 10
WAKE_AGAIN_MAX_S: Final = 600
"""How long after a start what has stopped is started again: doubled each time, up to the second."""

Key = tuple[RentalId, int]
"""A rental and its generation."""


class Halt(msgspec.Struct, frozen=True):
    """Stop it; what is on its disk stays."""

    rental_id: RentalId
    generation: int
    ended_by: EndedBy
    why: str


class Wake(msgspec.Struct, frozen=True):
    """Start a stopped container again, as it was."""

    rental_id: RentalId
    generation: int
    lease_expires_at: int


class Clear(msgspec.Struct, frozen=True):
    """Remove what is left of it: its container is gone, and nobody wants it."""

    rental_id: RentalId
    generation: int


class Woken(msgspec.Struct, frozen=True):
    """How often it was started again in a row, and when last, in seconds of `World.elapsed_s`."""

    times: int
    at_s: float

    @property
    def again_s(self) -> float:
        """From when it may be started once more."""
        return self.at_s + min(WAKE_AGAIN_S << min(self.times - 1, 32), WAKE_AGAIN_MAX_S)


Action = Union[Halt, Wake, Clear]  # noqa: UP007 - a type that Python 3.10 reads at run time


class World(msgspec.Struct, frozen=True, kw_only=True):
    """All that a decision is made of.

    `now_s` and `leases`, the latest granted, are unix seconds by the service's clock; `elapsed_s`, `heard_at`,
    `strangers` and `woken` are seconds by `Clock.elapsed_s`, of this life of the daemon.

    `desired` is the service's last word and `heard_at` when it came, None where it has said nothing since the daemon
    began. `strangers` and `woken` are what the decision before answered. `leftovers` are rentals of which there is a
    disk and no container. `busy` are rentals that a command is about to change: they are left alone. `is_closed` where
    the owner's strict hours forbid to run.
    """

    now_s: int
    elapsed_s: float
    reports: tuple[RentalReport, ...]
    desired: Mapping[RentalId, Desired] = {}
    heard_at: float | None = None
    leases: Mapping[Key, int] = {}
    strangers: Mapping[Key, float] = {}
    woken: Mapping[Key, Woken] = {}
    leftovers: tuple[Key, ...] = ()
    busy: frozenset[RentalId] = frozenset()
    is_closed: bool = False


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What to do, since when what is here has been unknown, and what was started again of late."""

    actions: tuple[Action, ...]
    strangers: dict[Key, float]
    woken: dict[Key, Woken]


def decide(world: World) -> Decision:
    """What must stop now, what may run again, and what is left of nothing."""
    newest = _newest_running(world.reports)
    actions: list[Action] = []
    strangers = {key: world.strangers.get(key, world.elapsed_s) for key in _forsaken(world)}
    woken = _still_woken(world)
    for report in world.reports:
        key = (report.rental_id, report.generation)
        if report.state == "running" and not _is_wanted(world, report):
            strangers[key] = world.strangers.get(key, world.elapsed_s)
        if report.rental_id in world.busy:
            continue
        if report.state == "running":
            halt = _halt(world, report, newest[report.rental_id], strangers.get(key))
            actions += [halt] if halt else []
        elif report.state == "stopped" and report.rental_id not in newest:
            wake = _wake(world, report)
            if wake is not None and (key not in woken or world.elapsed_s >= woken[key].again_s):
                actions.append(wake)
                woken[key] = Woken(woken[key].times + 1 if key in woken else 1, world.elapsed_s)
    actions += [Clear(*key) for key in _forsaken(world) if _is_forsaken_for_long(world, key)]
    return Decision(actions=tuple(actions), strangers=strangers, woken=woken)


def lease_of(report: RentalReport, leases: Mapping[Key, int]) -> int | None:
    """Until when it may run: what we were told last, or what the container itself says; None where nobody knows."""
    return leases.get((report.rental_id, report.generation), report.lease_expires_at)


def _newest_running(reports: tuple[RentalReport, ...]) -> dict[RentalId, int]:
    newest: dict[RentalId, int] = {}
    for report in reports:
        if report.state == "running":
            newest[report.rental_id] = max(report.generation, newest.get(report.rental_id, -1))
    return newest


def _is_wanted(world: World, report: RentalReport) -> bool:
    wanted = world.desired.get(report.rental_id)
    return wanted is not None and wanted.generation == report.generation


def _halt(world: World, report: RentalReport, newest: int, unknown_since: float | None) -> Halt | None:
    why = _reason_to_stop(world, report, newest, unknown_since)
    return None if why is None else Halt(report.rental_id, report.generation, *why)


def _reason_to_stop(
    world: World, report: RentalReport, newest: int, unknown_since: float | None
) -> tuple[EndedBy, str] | None:
    if world.is_closed:
        return "owner", "the owner's hours are over"
    lease = lease_of(report, world.leases)
    if lease is not None and world.now_s >= lease:
        return "lease", "its lease is over"
    if report.generation < newest:
        return "command", "a newer generation of it runs"
    if unknown_since is None:
        is_stopped = world.desired[report.rental_id].state == "stopped"
        return ("command", "the service wants it stopped") if is_stopped else None
    if world.elapsed_s < unknown_since + GRACE_S:
        return None
    if lease is None:
        return "command", "nobody knows it, nor until when it may run"
    # The word that misses it must be as late as the grace's end: a silent service does not end what is paid for.
    if world.heard_at is not None and world.heard_at >= unknown_since + GRACE_S:
        return "command", "the service does not know it"
    return None


def _wake(world: World, report: RentalReport) -> Wake | None:
    """What the host or a reboot stopped, and may run now. What ended by itself is for the service to judge."""
    if world.is_closed or report.ended_by not in (None, "lease", "owner") or not _is_wanted(world, report):
        return None
    lease = lease_of(report, world.leases)
    if world.desired[report.rental_id].state != "running" or lease is None or world.now_s >= lease:
        return None
    return Wake(report.rental_id, report.generation, lease)


def _still_woken(world: World) -> dict[Key, Woken]:
    """Without those that have run for long since, and those that are no more."""
    here = {(report.rental_id, report.generation): report for report in world.reports}
    return {
        key: woken
        for key, woken in world.woken.items()
        if key in here
        and not (here[key].state == "running" and world.elapsed_s >= woken.at_s + WAKE_AGAIN_MAX_S)
    }


def _forsaken(world: World) -> list[Key]:
    """What is left of rentals that nobody changes, and that the service does not want in this generation or later."""
    return [
        (rental_id, generation)
        for rental_id, generation in world.leftovers
        if rental_id not in world.busy
        and ((wanted := world.desired.get(rental_id)) is None or wanted.generation > generation)
    ]


def _is_forsaken_for_long(world: World, key: Key) -> bool:
    """By a word of the service that came after the grace: while it is silent, nothing is thrown away."""
    since = world.strangers.get(key)
    return since is not None and world.heard_at is not None and world.heard_at >= since + LEFT_GRACE_S
