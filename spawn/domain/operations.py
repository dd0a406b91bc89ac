"""Provider work as data: an operation is a short plan of provider calls, done one after the other.

Invariant: from `phase` alone the next start knows what to do: `queued`, nothing was asked; `sent`, it may have
been, so look first; `accepted`, the provider promised, so poll.
"""

from enum import StrEnum
from typing import Final

import msgspec
from msgspec.structs import replace
from spawn_providers.base import Change, InstanceStatus, Spec, Verb
from spawn_providers.catalog import Offer
from spawn_schemas.ids import ActionId, Address, ServerId
from spawn_schemas.money import Usdc

from spawn.domain.pins import Pin
from spawn.domain.servers import Command, Server, Status


class Phase(StrEnum):
    QUEUED = "queued"
    SENT = "sent"
    ACCEPTED = "accepted"


class OperationStatus(StrEnum):
    RUNNING = "running"
    SUCCESS = "success"
    ERROR = "error"


class Create(msgspec.Struct, frozen=True, kw_only=True, tag="create"):
    """Order the machine. The user data is a secret and travels apart from the plan."""

    spec: Spec


class Act(msgspec.Struct, frozen=True, kw_only=True, tag="act"):
    """One verb. Done when the provider says so and the machine has reached `until`.

    A graceful shutdown may be ignored by the guest; with `force_after_s` it becomes a power-off then.
    """

    verb: Verb
    change: Change = Change()
    until: InstanceStatus | None = None
    force_after_s: int | None = None


class Delete(msgspec.Struct, frozen=True, kw_only=True, tag="delete"):
    """Destroy the machine; done when it is gone.

    `not_before` outlives a create that was still on its way when it was superseded: until then "there is no such
    machine" may only mean "not yet".
    """

    not_before: int = 0


Step = Create | Act | Delete


class Resized(msgspec.Struct, frozen=True, kw_only=True):
    """What a resize makes of the server. `reserve_delta_usdc` > 0 is taken from the wallet, < 0 comes back."""

    type: str
    provider_type: str
    cores: int
    memory_gb: int
    pin: Pin
    reserve_delta_usdc: Usdc


class Instead(msgspec.Struct, frozen=True, kw_only=True):
    """What the buyer takes where there is no room for what was ordered, at the price of the order's moment."""

    type: str
    location: str
    provider_type: str
    architecture: str
    cores: int
    memory_gb: int
    disk_gb: int
    pin: Pin


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The calls to make, and what they make of the server.

    `instead` is what the buyer takes where there is no room, in order; `sold_too` says in words what else was sold.
    `left` are the places that were given up, and `lost_at` is when an order's answer was last lost (unix seconds).
    `always_from` is the first step that is done even when an earlier one failed: a server that was stopped
    for a resize is started again whatever became of the resize.
    """

    steps: tuple[Step, ...]
    resized: Resized | None = None
    image: str | None = None
    always_from: int | None = None
    final: Status | None = None
    instead: tuple[Instead, ...] = ()
    sold_too: str = ""
    left: tuple[Instead, ...] = ()
    lost_at: int | None = None


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """Our durable unit of provider work; callers see it as an action. Times are unix seconds."""

    id: ActionId
    server_id: ServerId
    wallet: Address
    command: Command
    status: OperationStatus
    plan: Plan
    step: int
    phase: Phase
    handle: str | None
    accepted_at: int | None
    answered: bool
    error_code: str | None
    error_message: str | None
    attempts: int
    next_at: int
    deadline_at: int
    claim: str | None
    claim_until: int
    created_at: int
    finished_at: int | None

    @property
    def current(self) -> Step:
        return self.plan.steps[self.step]


GRACEFUL_S = 120
"""How long a guest has to obey a shutdown before a resize powers it off."""


def create_plan(spec: Spec, instead: tuple[Instead, ...] = (), sold_too: str = "") -> Plan:
    return Plan(steps=(Create(spec=spec),), instead=instead, sold_too=sold_too)


LATE_S: Final = 60
"""How long after a lost answer an order may still arrive at its provider: twice as long as any call is waited for."""


def unclear_until(operation: Operation, now: int) -> int:
    """Until when an order that was refused may have an earlier copy on its way (unix seconds)."""
    if operation.phase is not Phase.SENT:
        return now
    lost_at = operation.plan.lost_at
    return (now if lost_at is None else lost_at) + LATE_S


def ordered_instead(operation: Operation, server: Server, now: int) -> tuple[Operation, Server] | None:
    """The order where there was no room for it: the next that its buyer takes, due at once; None when there is none.

    The half-made machine of an order that was accepted and broke is destroyed first. Behind a lost answer it stays
    `sent`, so that whatever comes of that late is found before anything is ordered.
    """
    plan, step = operation.plan, operation.current
    if not plan.instead or not isinstance(step, Create):
        return None
    place = plan.instead[0]
    spec = replace(step.spec, provider_type=place.provider_type, location=place.location)
    steps: tuple[Step, ...] = (Create(spec=spec),)
    half_made = operation.phase is Phase.ACCEPTED
    moved = replace(
        operation,
        plan=replace(
            plan,
            steps=(Delete(), *steps) if half_made else steps,
            instead=plan.instead[1:],
            left=(*plan.left, _place_of(server)),
        ),
        phase=Phase.QUEUED if half_made else operation.phase,
        handle=None,
        next_at=now,
        attempts=0,
    )
    return moved, _placed(server, place, now)


def found_where_it_was_left(
    operation: Operation, server: Server, provider_type: str, location: str
) -> Server:
    """The server as the machine that was found is: an order that was given up may have come late, in its own place."""
    if (server.provider_type, server.location) == (provider_type, location):
        return server
    for place in operation.plan.left:
        if (place.provider_type, place.location) == (provider_type, location):
            return _placed(server, place, server.priced_at)
    return server


def _place_of(server: Server) -> Instead:
    return Instead(
        type=server.type,
        location=server.location,
        provider_type=server.provider_type,
        architecture=server.architecture,
        cores=server.cores,
        memory_gb=server.memory_gb,
        disk_gb=server.disk_gb,
        pin=server.pin,
    )


def _placed(server: Server, place: Instead, now: int) -> Server:
    return replace(
        server,
        **msgspec.structs.asdict(place.pin),
        priced_at=now,
        type=place.type,
        location=place.location,
        provider_type=place.provider_type,
        architecture=place.architecture,
        cores=place.cores,
        memory_gb=place.memory_gb,
        disk_gb=place.disk_gb,
        reprice_at=None,
        reprice_usdc=None,
    )


def start_plan() -> Plan:
    return Plan(steps=(Act(verb=Verb.START, until=InstanceStatus.RUNNING),))


def stop_plan() -> Plan:
    return Plan(steps=(Act(verb=Verb.SHUTDOWN, until=InstanceStatus.OFF),))


def poweroff_plan() -> Plan:
    return Plan(steps=(Act(verb=Verb.POWEROFF, until=InstanceStatus.OFF),))


def reboot_plan() -> Plan:
    return Plan(steps=(Act(verb=Verb.REBOOT, until=InstanceStatus.RUNNING),))


def rebuild_plan(image: str, public_keys: tuple[str, ...]) -> Plan:
    change = Change(image=image, public_keys=public_keys)
    return Plan(steps=(Act(verb=Verb.REBUILD, change=change, until=InstanceStatus.RUNNING),), image=image)


def with_reset_password(plan: Plan) -> Plan:
    """The plan, and that its machine gets a root password which its owner can be told: the first was lost."""
    return replace(plan, steps=(*plan.steps, Act(verb=Verb.RESET_PASSWORD, until=InstanceStatus.RUNNING)))


def resize_plan(
    server: Server, offer: Offer, pin: Pin, *, upgrade_disk: bool, reserve_delta_usdc: Usdc
) -> Plan:
    """Stop if running, resize, and put the server back into the state it was found in."""
    was_running = server.status is Status.RUNNING
    resize = Act(
        verb=Verb.RESIZE, change=Change(provider_type=offer.provider_type, upgrade_disk=upgrade_disk)
    )
    stop = Act(verb=Verb.SHUTDOWN, until=InstanceStatus.OFF, force_after_s=GRACEFUL_S)
    back = (
        Act(verb=Verb.START, until=InstanceStatus.RUNNING)
        if was_running
        else Act(verb=Verb.POWEROFF, until=InstanceStatus.OFF)
    )
    steps: tuple[Step, ...] = (stop, resize, back) if was_running else (resize, back)
    return Plan(
        steps=steps,
        resized=Resized(
            type=offer.type,
            provider_type=offer.provider_type,
            cores=offer.cores,
            memory_gb=offer.memory_gb,
            pin=pin,
            reserve_delta_usdc=reserve_delta_usdc,
        ),
        always_from=len(steps) - 1,
    )


def destroy_plan(*, not_before: int = 0, final: Status = Status.DESTROYED) -> Plan:
    return Plan(steps=(Delete(not_before=not_before),), final=final)


_PATIENCE_S: Final = {
    Command.CREATE: 900,
    Command.START: 300,
    Command.STOP: 300,
    Command.POWEROFF: 300,
    Command.REBOOT: 300,
    Command.RESIZE: 3600,
    Command.REBUILD: 1800,
}


def deadline_at(command: Command, now: int) -> int:
    """When we stop hoping. Destroying has no deadline: it is tried for ever."""
    return now + _PATIENCE_S.get(command, FOREVER_S)


FOREVER_S: Final = 100 * 365 * 86400


def new_operation(action_id: ActionId, server: Server, command: Command, plan: Plan, now: int) -> Operation:
    """A fresh operation, due at once."""
    return Operation(
        id=action_id,
        server_id=server.id,
        wallet=server.wallet,
        command=command,
        status=OperationStatus.RUNNING,
        plan=plan,
        step=0,
        phase=Phase.QUEUED,
        handle=None,
        accepted_at=None,
        answered=False,
        error_code=None,
        error_message=None,
        attempts=0,
        next_at=now,
        deadline_at=deadline_at(command, now),
        claim=None,
        claim_until=0,
        created_at=now,
        finished_at=None,
    )
