"""What a tenant has on a lent machine, what we want of it, and what its host says of it.

Invariant: pure. A report of an earlier generation changes nothing, and nothing that a host says brings back what is
gone: a rental ends by a destruction that its host confirmed, or by a host that had it and has it no more.
"""

from enum import StrEnum
from typing import Final

import msgspec
from msgspec.structs import replace
from spawn_providers.base import Endpoint, InstanceStatus
from spawn_schemas.ids import Address, CommandId, HostId, RentalId
from spawn_schemas.lent import StoppedBy
from spawn_schemas.orders import EndedBy, RentalReport

from spawn.domain.hosts import SILENT, HostState


class Desired(StrEnum):
    RUNNING = "running"
    STOPPED = "stopped"
    GONE = "gone"


class CommandState(StrEnum):
    """`queued` was never on the wire; `withdrawn` was taken back before it was."""

    QUEUED = "queued"
    SENT = "sent"
    RECEIVED = "received"
    ACCEPTED = "accepted"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    WITHDRAWN = "withdrawn"


ENDED: Final = frozenset({CommandState.SUCCEEDED, CommandState.FAILED, CommandState.WITHDRAWN})
ASKS: Final = frozenset({"logs", "exec"})
"""Commands that a tenant gives: they change nothing of what we want of the rental, and are in the way of no order."""
FOREVER_S: Final = 100 * 365 * 86_400
"""What a host is told to destroy it must destroy, whenever it hears of it."""
_HOUR_S: Final = 3_600
_NUMBER_MAX: Final = 2**31


class Rental(msgspec.Struct, frozen=True, kw_only=True):
    """One container on a host; `id` is its server's. Sizes in cores and GB, times in unix seconds.

    `paused_at` is from when on nobody pays for it. The bytes are those that the relay carried, seen from the tenant.
    """

    id: RentalId
    host_id: HostId
    generation: int = 1
    owner: Address
    hostname: str
    type: str
    image: str
    cores: int
    memory_gb: int
    disk_gb: int
    endpoints: tuple[Endpoint, ...] = ()
    desired: Desired = Desired.RUNNING
    lease_until: int
    reported: str | None = None
    reported_at: int | None = None
    ended_by: EndedBy | None = None
    exit_code: int | None = None
    out_of_memory_kills: int = 0
    start_command: CommandId
    destroy_command: CommandId | None = None
    paused_at: int | None = None
    ingoing_bytes: int = 0
    outgoing_bytes: int = 0
    created_at: int
    gone_at: int | None = None


class Issued(msgspec.Struct, frozen=True, kw_only=True):
    """A command as its row has it: `body` is the order as JSON, None where that is sealed."""

    id: CommandId
    host_id: HostId
    number: int
    rental_id: RentalId | None
    kind: str
    body: str | None
    expires_at: int
    state: CommandState = CommandState.QUEUED
    sent_at: int | None = None
    progress: str | None = None
    problem_code: str | None = None
    problem: str | None = None
    result: str | None = None
    created_at: int
    finished_at: int | None = None


def status_of(rental: Rental, host: HostState, *, resuming: bool) -> InstanceStatus:
    """The provider's word for it. `resuming`: it is ordered to run again, and the host has not said how that went."""
    if rental.desired is Desired.GONE:
        return InstanceStatus.DELETING
    if host in SILENT or (is_withheld(rental) and not resuming):
        return InstanceStatus.UNKNOWN
    match rental.reported:
        case None | "pulling" | "creating":
            return InstanceStatus.INITIALIZING
        case "running":
            stays = rental.desired is Desired.RUNNING
            return InstanceStatus.RUNNING if stays else InstanceStatus.STOPPING
        case _:
            return InstanceStatus.STARTING if resuming else InstanceStatus.OFF


WITHHELD_BY: Final = frozenset({None, "lease", "owner"})
"""Who ended it where its host did: the machine went down, did not hear us, or its owner's hours are over."""


def is_withheld(rental: Rental) -> bool:
    """Whether its host keeps from its tenant what is paid for: it is wanted to run, and did not end by itself."""
    if rental.desired is not Desired.RUNNING:
        return False
    stands = rental.reported == "stopped" and rental.ended_by in WITHHELD_BY
    return stands or rental.reported == "failed"


def stopped_by(rental: Rental) -> StoppedBy | None:
    """Why it does not run, as its tenant is told; None while it does, or nobody knows."""
    if rental.reported not in {"stopped", "failed"}:
        return None
    return rental.ended_by or "host"


def owes_hour(rental: Rental, host: HostState, now: int) -> bool:
    """Whether whoever ends it while nobody pays for it owes the first hour all the same.

    Not where its host kept it from them for certain: it is silent, or says that its owner or our lease stopped it, or
    that it has failed. But a program of the tenant's can end as if the machine had gone down under it, so that this
    excuses nobody before it has lasted as long as the hour that is at stake; but where the host was silent first, no
    program was at fault.
    """
    was_silent = (rental.paused_at or 0) < (rental.reported_at or 0)
    went_down = rental.reported == "stopped" and rental.ended_by is None and not was_silent
    if rental.paused_at is None or host in SILENT | {HostState.REVOKED} or not went_down:
        return False
    return now - rental.paused_at < _HOUR_S


def must_resume(rental: Rental) -> bool:
    """Whether it stopped only because its host had not heard us for as long as its lease."""
    return rental.reported == "stopped" and rental.ended_by == "lease" and rental.desired is Desired.RUNNING


def reported(rental: Rental, report: RentalReport, *, started: bool, now: int) -> Rental:
    """The rental after a report of its host. `started`: its start was carried out, so that the host must have it."""
    if rental.gone_at is not None or report.generation != rental.generation:
        return rental
    if report.state == "gone" and not started:
        return rental  # not yet there
    is_news = (report.state, report.ended_by) != (rental.reported, rental.ended_by)
    seen = replace(
        rental,
        reported=report.state,
        reported_at=now if is_news else rental.reported_at,
        ended_by=report.ended_by,
        exit_code=None if report.exit_code is None else _within(report.exit_code),
        out_of_memory_kills=_within(report.out_of_memory_kills),
    )
    return replace(seen, gone_at=now) if report.state == "gone" else seen


def _within(number: int) -> int:
    """A host may say any number, and a table takes those of 64 bits."""
    return max(-_NUMBER_MAX, min(_NUMBER_MAX, number))
