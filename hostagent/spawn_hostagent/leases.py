"""Who may run now: leases, what the service wants, the owner's hours, and containers that nobody knows.

Invariant: a decision depends on nothing but what it is given, and it never deletes. Where the service is silent, a
tenant runs until the lease ends that was granted last, and no longer.
"""

from collections.abc import Mapping
from typing import Final, Union

import msgspec
from spawn_schemas.ids import RentalId
from spawn_schemas.orders import Desired, EndedBy, RentalReport

GRACE_S: Final = 5 * 60
"""How long a labelled container runs that the service does not know: its word may be on the way."""

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


Action = Union[Halt, Wake]  # noqa: UP007 - a type that Python 3.10 reads at run time


class World(msgspec.Struct, frozen=True, kw_only=True):
    """All that a decision is made of; times are unix seconds by the service's clock.

    `desired` is the service's last word and `heard_at` when it came, None where it has said nothing since the daemon
    began. `leases` are the latest granted. `strangers` is what the decision before answered. `busy` are rentals that a
    command is about to change: they are left alone. `is_closed` where the owner's strict hours forbid to run.
    """

    now_s: int
    reports: tuple[RentalReport, ...]
    desired: Mapping[RentalId, Desired] = {}
    heard_at: int | None = None
    leases: Mapping[Key, int] = {}
    strangers: Mapping[Key, int] = {}
    busy: frozenset[RentalId] = frozenset()
    is_closed: bool = False


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What to do, and since when each container that runs has been unknown."""

    actions: tuple[Action, ...]
    strangers: dict[Key, int]


def decide(world: World) -> Decision:
    """What must stop now, and what may run again."""
    newest = _newest_running(world.reports)
    actions: list[Action] = []
    strangers: dict[Key, int] = {}
    for report in world.reports:
        key = (report.rental_id, report.generation)
        if report.state == "running" and not _is_wanted(world, report):
            strangers[key] = world.strangers.get(key, world.now_s)
        if report.rental_id in world.busy:
            continue
        if report.state == "running":
            halt = _halt(world, report, newest[report.rental_id], strangers.get(key))
            actions += [halt] if halt else []
        elif report.state == "stopped" and report.rental_id not in newest:
            wake = _wake(world, report)
            actions += [wake] if wake else []
    return Decision(actions=tuple(actions), strangers=strangers)


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


def _halt(world: World, report: RentalReport, newest: int, unknown_since: int | None) -> Halt | None:
    why = _reason_to_stop(world, report, newest, unknown_since)
    return None if why is None else Halt(report.rental_id, report.generation, *why)


def _reason_to_stop(
    world: World, report: RentalReport, newest: int, unknown_since: int | None
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
    if world.now_s < unknown_since + GRACE_S:
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
