"""One question to a provider for one step of an operation, and its answer as data. No transaction is open here.

Invariant: every way a provider call can end maps to exactly one `Outcome`, and a call whose fate is unknown is
answered only after looking.
"""

import asyncio
from collections.abc import Mapping
from typing import Final, assert_never

import msgspec
from spawn_providers.base import (
    Instance,
    InstanceStatus,
    Op,
    OpStatus,
    OutcomeUnknown,
    Provider,
    Refused,
    RefusedCode,
    Unavailable,
    Verb,
)
from spawn_schemas.errors import Code

from spawn.domain.operations import Act, Create, Delete, Operation, Phase, Step
from spawn.domain.servers import Server

CALL_TIMEOUT_S: Final = 30
"""Longer than any honest answer; a call that takes longer has an unknown outcome."""
LOOK_AGAIN_S: Final = 5


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """The provider promised. `handle` is None when we found the effect instead of the answer.

    `last_seen` is the machine that is being destroyed, or that an earlier order made, where the provider knew it
    without being asked. `lost_password`: nobody can log into it until it gets another.
    """

    ref: str | None
    handle: str | None = None
    root_password: str | None = None
    lost_password: bool = False
    last_seen: Instance | None = None


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """Promised and not done yet."""

    instance: Instance | None


class StepDone(msgspec.Struct, frozen=True, kw_only=True):
    """The machine is where the step wanted it; None when it is gone."""

    instance: Instance | None


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """A final no. `code` is ours, `message` is public. `elsewhere`: another place may have what this one has not."""

    code: Code
    message: str
    instance: Instance | None = None
    elsewhere: bool = False


class TryLater(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing was changed (`unknown` False), or perhaps (`unknown` True, so look first)."""

    after_s: int
    unknown: bool
    message: str


class Again(msgspec.Struct, frozen=True, kw_only=True):
    """What the provider promised it did not keep, and asking once more does no harm."""

    after_s: int


class Force(msgspec.Struct, frozen=True, kw_only=True):
    """The guest ignored the shutdown: cut the power instead."""


Outcome = Accepted | Waiting | StepDone | Failed | TryLater | Again | Force


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What a claim holder knows. `operation.phase` is as it was before the claim marked it `sent`."""

    operation: Operation
    server: Server
    user_data: str | None


async def ask(provider: Provider, work: Work, now: int) -> Outcome:
    """Take the step's next call, or look where it has come to.

    Only the order itself can be refused: a provider that refuses to be *asked* has said nothing about the order.
    """
    try:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            return await _ask(provider, work, now)
    except Refused as error:
        unknown = work.operation.phase is Phase.SENT
        return TryLater(after_s=LOOK_AGAIN_S, unknown=unknown, message=error.message)
    except Unavailable as error:
        return TryLater(
            after_s=error.retry_after_s, unknown=work.operation.phase is Phase.SENT, message=error.message
        )
    except (OutcomeUnknown, TimeoutError):
        return TryLater(after_s=1, unknown=True, message="The provider's answer was lost; we are looking.")


async def _ask(provider: Provider, work: Work, now: int) -> Outcome:
    match work.operation.phase:
        case Phase.QUEUED:
            looks_first = work.operation.plan.always_from == work.operation.step
            seen = await _look(provider, work, now) if looks_first else None
            return seen or await _order(provider, work, now)
        case Phase.SENT:
            seen = await _look(provider, work, now)
            gives_up = not isinstance(work.operation.current, Delete)
            if seen is None and now >= work.operation.deadline_at and gives_up:
                return Failed(code=Code.HETZNER_UNAVAILABLE, message="The provider never took the order.")
            return seen or await _order(provider, work, now)
        case Phase.ACCEPTED:
            return await _follow(provider, work, now)
        case unreachable:
            assert_never(unreachable)


async def _order(provider: Provider, work: Work, now: int) -> Outcome:
    """Make the call; its refusal is final, unless an earlier copy of it may be what stands in the way."""
    try:
        return await _call(provider, work, now)
    except Refused as error:
        repeated = work.operation.phase is Phase.SENT and error.code is RefusedCode.CONFLICT
        if (repeated or _is_reset(work.operation)) and now < work.operation.deadline_at:
            return TryLater(after_s=LOOK_AGAIN_S, unknown=True, message=error.message)
        if error.code is RefusedCode.CONFLICT and await _is_that_already(provider, work):
            return Accepted(ref=_ref(work.server))
        if error.code is RefusedCode.QUOTA:
            return Failed(code=code_of(error), message=f"{error.message.rstrip('.')}. {_ACCOUNT_FULL}")
        full = error.code is RefusedCode.OUT_OF_CAPACITY
        return Failed(code=code_of(error), message=error.message, elsewhere=full)


_ACCOUNT_FULL: Final = (
    "That is a limit of our whole account at the provider, in every location: try again later."
)


async def _is_that_already(provider: Provider, work: Work) -> bool:
    """Whether the machine is of the type that it is to become: the order is from books that lost its end."""
    step = work.operation.current
    if not (isinstance(step, Act) and step.verb is Verb.RESIZE):
        return False
    instance = await _instance(provider, work.server)
    return instance is not None and instance.provider_type == step.change.provider_type


async def _call(provider: Provider, work: Work, now: int) -> Outcome:
    server = work.server
    match work.operation.current:
        case Create(spec=spec):
            order = msgspec.structs.replace(spec, user_data=work.user_data)
            return _accepted(await provider.create(server.id, order))
        case Act(verb=verb, change=change):
            told = msgspec.structs.replace(change, user_data=work.user_data)
            accepted = _accepted(await provider.act(_ref(server), verb, told))
            lost = accepted.root_password is None and _needs_password(provider, work.operation.current)
            return msgspec.structs.replace(accepted, lost_password=lost)
        case Delete() as step:
            return await _destroy(provider, server, step, now)
        case unreachable:
            assert_never(unreachable)


async def _destroy(provider: Provider, server: Server, step: Delete, now: int) -> Outcome:
    """Order it without looking at the machine before: a look may wait for others, and a destroy must not."""
    if server.provider_ref is not None:
        return _accepted(await provider.delete(server.provider_ref))
    found = await provider.find(server.id, to_destroy=True)
    return _gone(step, now) if found is None else _accepted(await provider.delete(found.ref))


def _accepted(op: Op) -> Accepted:
    return Accepted(ref=op.ref, handle=op.handle, root_password=op.root_password, last_seen=op.last_seen)


def _gone(step: Delete, now: int) -> Outcome:
    if now >= step.not_before:
        return StepDone(instance=None)
    return TryLater(
        after_s=step.not_before - now, unknown=False, message="A machine ordered earlier may yet appear."
    )


async def _look(provider: Provider, work: Work, now: int) -> Outcome | None:
    """What became of a call that may have been made; None when nothing did, or when to make it again is as good."""
    step = work.operation.current
    if isinstance(step, Delete):
        return None
    instance = await _instance(provider, work.server)
    match step:
        case Create():
            return None if instance is None else await _adopt(provider, work, instance, now)
        case Act():
            if instance is None:
                return Failed(code=Code.NOT_FOUND, message="The provider has no such machine any more.")
            if _took_effect(step, instance, work.server):
                return Accepted(ref=instance.ref, lost_password=_needs_password(provider, step))
            if step.verb is Verb.REBUILD and step.change.image == work.server.image:
                return _NEVER_TWICE
            return None
        case unreachable:
            assert_never(unreachable)


def _needs_password(provider: Provider, step: Step) -> bool:
    """Whether nobody could log into the machine of this step without one, and the provider can set it."""
    can = Verb.RESET_PASSWORD in provider.capabilities.verbs
    return can and isinstance(step, Act) and step.verb is Verb.REBUILD and not step.change.public_keys


def _is_reset(operation: Operation) -> bool:
    step = operation.current
    return isinstance(step, Act) and step.verb is Verb.RESET_PASSWORD


async def _adopt(provider: Provider, work: Work, there: Instance, now: int) -> Outcome:
    """The machine whose answer was lost, with the op that tells how its making ends, and the password if it has one.

    Ordering it again makes no second one. A machine without either is better than none: when the deadline is near, or
    whatever a provider that has it says against it.
    """
    found = Accepted(ref=there.ref, last_seen=there)
    if now >= work.operation.deadline_at - LOOK_AGAIN_S:
        return found
    try:
        told = await _call(provider, work, now)
    except Refused:
        return found
    return msgspec.structs.replace(told, last_seen=there) if isinstance(told, Accepted) else told


_NEVER_TWICE: Final = Failed(
    code=Code.PROVIDER_FAILED,
    message="The provider's answer was lost, and nothing shows whether it rebuilt: the image was the same. It was not "
    "asked again, which could wipe a disk that is new already, and the fee is back. Look at the server's disk; "
    "rebuild again if it is the old one, or if you cannot log in.",
)


def _took_effect(step: Act, instance: Instance, server: Server) -> bool:
    """Whether the machine shows that the verb was obeyed.

    Repeating one that was not seen does no harm, but for a rebuild, which wipes the disk: that one is
    repeated only while the machine plainly has its old image.
    """
    match step.verb:
        case Verb.RESIZE:
            return (
                instance.status is InstanceStatus.MIGRATING
                or instance.provider_type == step.change.provider_type
            )
        case Verb.REBUILD:
            begun = {InstanceStatus.REBUILDING, InstanceStatus.INITIALIZING, InstanceStatus.STARTING}
            return instance.status in begun or server.image != instance.image == step.change.image
        case Verb.SHUTDOWN | Verb.POWEROFF:
            return instance.status in {InstanceStatus.STOPPING, InstanceStatus.OFF}
        case Verb.START:
            return instance.status in {InstanceStatus.STARTING, InstanceStatus.RUNNING}
        case Verb.REBOOT:
            return instance.status in {InstanceStatus.STOPPING, InstanceStatus.STARTING}
        case Verb.RESET_PASSWORD:
            return False  # whatever it shows, the password itself is lost
        case unreachable:
            assert_never(unreachable)


async def _follow(provider: Provider, work: Work, now: int) -> Outcome:
    """Where an accepted step has come to."""
    operation = work.operation
    state = None if operation.handle is None else (await provider.poll((operation.handle,)))[0]
    instance = await _instance(provider, work.server)
    if state is not None and state.status is OpStatus.ERROR and state.error_code != Code.NOT_FOUND.value:
        if _is_reset(operation) and now < operation.deadline_at:
            return Again(after_s=LOOK_AGAIN_S)  # the guest does not listen yet
        full = isinstance(operation.current, Create) and state.error_code == RefusedCode.OUT_OF_CAPACITY.value
        return Failed(
            code=Code.OUT_OF_CAPACITY if full else Code.PROVIDER_FAILED,
            message=f"The provider gave up: {state.error_message or state.error_code}.",
            instance=instance,
            elsewhere=full,
        )
    running = state is not None and state.status is OpStatus.RUNNING
    if not running and _reached(operation, instance):
        return StepDone(instance=instance)
    if instance is None and not isinstance(operation.current, Create | Delete):
        return Failed(code=Code.NOT_FOUND, message="The provider has no such machine any more.")
    step = operation.current
    if (
        isinstance(step, Delete)
        and not running
        and instance
        and instance.status is not InstanceStatus.DELETING
    ):
        return Failed(code=Code.PROVIDER_FAILED, message="The provider forgot to destroy the machine.")
    if isinstance(step, Act) and step.force_after_s is not None:
        since = operation.created_at if operation.accepted_at is None else operation.accepted_at
        if now >= since + step.force_after_s:
            return Force()
    if now >= operation.deadline_at:
        return Failed(
            code=Code.PROVIDER_FAILED, message="The provider did not finish in time.", instance=instance
        )
    return Waiting(instance=instance)


def _reached(operation: Operation, instance: Instance | None) -> bool:
    match operation.current:
        case Create():
            return instance is not None and instance.status is InstanceStatus.RUNNING
        case Act(verb=Verb.RESIZE, change=change):
            return (
                instance is not None
                and instance.provider_type == change.provider_type
                and instance.status is not InstanceStatus.MIGRATING
            )
        case Act(verb=Verb.REBUILD, change=change) if instance is not None and instance.image != change.image:
            return False
        case Act(until=until):
            return instance is not None and (until is None or instance.status is until)
        case Delete(not_before=_):
            return instance is None
        case unreachable:
            assert_never(unreachable)


async def _instance(provider: Provider, server: Server) -> Instance | None:
    """The machine, by its reference where we have it, else by our id."""
    if server.provider_ref is not None:
        return await provider.get(server.provider_ref)
    return await provider.find(server.id)


def _ref(server: Server) -> str:
    if server.provider_ref is None:
        raise RuntimeError(f"{server.id} is acted upon before its provider accepted it")
    return server.provider_ref


_CODES: Final[Mapping[str, Code]] = {
    "out_of_capacity": Code.OUT_OF_CAPACITY,
    "quota": Code.OUT_OF_CAPACITY,
    "invalid": Code.INVALID_REQUEST,
    "conflict": Code.CONFLICT,
    "not_found": Code.NOT_FOUND,
}


def code_of(error: Refused) -> Code:
    """Our word for a provider's no."""
    return _CODES[error.code.value]
