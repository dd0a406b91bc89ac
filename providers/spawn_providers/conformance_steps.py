"""The words in which `spawn_providers.conformance` is written: order, wait for a state, insist.

Invariant: every wait is bounded, and every failure says which promise was broken.
"""

from collections.abc import Awaitable
from typing import Any, Final, Protocol

from msgspec.structs import replace
from spawn_schemas.ids import Address, ServerId

from spawn_providers.base import (
    Change,
    Instance,
    InstanceStatus,
    Op,
    OpState,
    OpStatus,
    Provider,
    Refused,
    RefusedCode,
    Spec,
    Verb,
)
from spawn_providers.catalog import Catalog, Offer

OWNER: Final = Address("0x" + "5a" * 20)
HOSTNAME: Final = "conformance"
PUBLIC_KEY: Final = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB8syhikrJebbj01GDnQch9mbTXf5n19aFTo4aHN2x8k spawn"

_STEP_S: Final = 5
_STEPS_MAX: Final = 120


class ConformanceFailed(AssertionError):
    """A provider broke a promise; the message says which."""


class Subject(Protocol):
    """What a provider's author hands in: the provider, and power over its world."""

    @property
    def provider(self) -> Provider: ...

    def new_key(self) -> ServerId:
        """A key that was never used before."""
        ...

    async def pass_time(self, seconds: int) -> None:
        """Let the provider's clock run on, by a virtual clock or by waiting."""
        ...

    async def reopen(self) -> Provider:
        """The same account through a provider newly built, as after a restart of the service."""
        ...


def require(holds: bool, broken_promise: str) -> None:
    if not holds:
        raise ConformanceFailed(broken_promise)


async def refusal_of(call: Awaitable[object]) -> RefusedCode:
    try:
        await call
    except Refused as refusal:
        return refusal.code
    raise ConformanceFailed("a call that must be refused was accepted")


def is_for(offer: Offer, spec: Spec) -> bool:
    return (offer.provider_type, offer.location) == (spec.provider_type, spec.location)


def spec_for(
    provider_type: str, location: str, image: str, *, keys: tuple[str, ...] = (PUBLIC_KEY,), **extra: Any
) -> Spec:
    return Spec(
        hostname=HOSTNAME,
        provider_type=provider_type,
        image=image,
        location=location,
        owner=OWNER,
        public_keys=keys,
        **extra,
    )


async def first_offer(subject: Subject) -> tuple[Offer, str]:
    catalog = await subject.provider.catalog()
    return catalog.offers[0], catalog.images[0].name


async def ordinary_spec(subject: Subject) -> Spec:
    offer, image = await first_offer(subject)
    return spec_for(offer.provider_type, offer.location, image)


def resizable_pair(catalog: Catalog) -> tuple[Offer, Offer]:
    """Two types of one location and architecture, the second larger in every respect."""
    for small in catalog.offers:
        for large in catalog.offers:
            alike = (small.location, small.architecture) == (large.location, large.architecture)
            if alike and small.memory_gb < large.memory_gb and small.disk_gb < large.disk_gb:
                return small, large
    raise ConformanceFailed("the catalog offers nothing that a machine could be resized to")


async def ended(subject: Subject, op: Op) -> OpState:
    """The op's last state, once it has ended."""
    for _ in range(_STEPS_MAX):
        [state] = await subject.provider.poll([op.handle])
        if state.status is not OpStatus.RUNNING:
            return state
        await subject.pass_time(_STEP_S)
    raise ConformanceFailed(f"op {op.handle} did not end within {_STEPS_MAX * _STEP_S} s")


async def succeed(subject: Subject, op: Op) -> None:
    state = await ended(subject, op)
    require(state.status is OpStatus.SUCCESS, f"op {op.handle} failed: {state.error_message}")


async def reach(subject: Subject, ref: str, status: InstanceStatus) -> Instance:
    """The machine, once it is seen in `status` twice in a row: it has come to rest there, whatever it sends."""
    seen = None
    for _ in range(_STEPS_MAX):
        machine = await subject.provider.get(ref)
        resting = None if machine is None else apart_from_traffic(machine)
        if machine is not None and machine.status is status and resting == seen:
            return machine
        seen = resting
        await subject.pass_time(_STEP_S)
    raise ConformanceFailed(f"{ref} did not become {status.value} within {_STEPS_MAX * _STEP_S} s")


def apart_from_traffic(machine: Instance) -> Instance:
    """What of a machine changes only if something is done to it."""
    return replace(machine, traffic=None)


async def reach_gone(subject: Subject, ref: str) -> None:
    for _ in range(_STEPS_MAX):
        if await subject.provider.get(ref) is None:
            return
        await subject.pass_time(_STEP_S)
    raise ConformanceFailed(f"{ref} was deleted and is still there")


async def running_machine(subject: Subject, offer: Offer | None = None) -> Instance:
    first, image = await first_offer(subject)
    offer = offer or first
    op = await subject.provider.create(
        subject.new_key(), spec_for(offer.provider_type, offer.location, image)
    )
    await succeed(subject, op)
    return await reach(subject, op.ref, InstanceStatus.RUNNING)


async def deleted_machine(subject: Subject) -> str:
    machine = await running_machine(subject)
    await succeed(subject, await subject.provider.delete(machine.ref))
    await reach_gone(subject, machine.ref)
    return machine.ref


async def act_and_succeed(subject: Subject, ref: str, verb: Verb, change: Change | None = None) -> Op:
    op = await subject.provider.act(ref, verb, change or Change())
    tells = verb in {Verb.REBUILD, Verb.RESET_PASSWORD}
    require(op.root_password is None or tells, f"{verb.value} gave a password")
    await succeed(subject, op)
    return op


async def offers_verb(subject: Subject, ref: str, verb: Verb, change: Change) -> bool:
    """Whether the provider says that it can; if not, it must refuse when asked all the same."""
    if verb in subject.provider.capabilities.verbs:
        return True
    code = await refusal_of(subject.provider.act(ref, verb, change))
    require(code is RefusedCode.INVALID, f"{verb.value} is not offered, yet not refused as invalid")
    return False


async def power_off(subject: Subject, ref: str) -> None:
    await act_and_succeed(subject, ref, Verb.POWEROFF)
    await reach(subject, ref, InstanceStatus.OFF)


async def resize_off(subject: Subject, ref: str, change: Change) -> Instance:
    await power_off(subject, ref)
    await act_and_succeed(subject, ref, Verb.RESIZE, change)
    return await reach(subject, ref, InstanceStatus.RUNNING)


async def require_owned_once(subject: Subject, key: ServerId) -> None:
    keys = [m.key async for m in subject.provider.list_owned()]
    require(keys.count(key) == 1, "list_owned does not show exactly one machine for its key")
