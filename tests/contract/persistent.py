"""A caller of a provider that does not give up: what our service does about the ways in which a call fails.

It repeats what was not taken, looks after what may have been, and undoes and repeats what was accepted and broke. So
the promises of `Provider` can be asked of one whose cloud is failing. Invariant: it bears with nothing but what
`spawn_providers.base` allows a call to end in, and not for ever.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, TypeVar

from spawn_providers.base import (
    Capabilities,
    Change,
    Instance,
    InstanceStatus,
    Op,
    OpState,
    OpStatus,
    OutcomeUnknown,
    Provider,
    Refused,
    RefusedCode,
    Spec,
    Unavailable,
    Verb,
)
from spawn_providers.catalog import Catalog
from spawn_schemas.ids import ServerId

T = TypeVar("T")

TRIES: Final = 60
REFUSALS: Final = 6
"""How often a refusal that may pass is heard before it is believed."""
_STUCK_AFTER: Final = 60
_STEP_S: Final = 5
_LAG_S: Final = 61
_PASSING: Final = frozenset({RefusedCode.CONFLICT, RefusedCode.OUT_OF_CAPACITY})
_WANTED: Final = {
    Verb.START: {InstanceStatus.STARTING, InstanceStatus.RUNNING},
    Verb.SHUTDOWN: {InstanceStatus.STOPPING, InstanceStatus.OFF},
    Verb.POWEROFF: {InstanceStatus.OFF},
}

_FOUND: Final = "found instead of the answer"
_DONE: Final = OpState(handle=_FOUND, status=OpStatus.SUCCESS)


class GaveUp(AssertionError):
    """A failing cloud must not make a call fail for ever."""


class Persistent:
    """`Provider` over another one."""

    def __init__(
        self, inner: Provider, pass_time: Callable[[int], Awaitable[None]], unstick: Callable[[], None]
    ) -> None:
        self.inner = inner
        self.name: str = inner.name
        self.capabilities: Capabilities = inner.capabilities
        self._pass_time = pass_time
        self._unstick = unstick

    async def catalog(self) -> Catalog:
        return await self._insist(self.inner.catalog)

    async def create(self, key: ServerId, spec: Spec) -> Op:
        for _ in range(TRIES):
            op = await self._insist(lambda: self.inner.create(key, spec))
            if await self._ended_well(op):
                return op
            await self._until_gone(op.ref)
        raise GaveUp(f"{key} was never created")

    async def find(self, key: ServerId, *, to_destroy: bool = False) -> Instance | None:
        for _ in range(3):
            found = await self._insist(lambda: self.inner.find(key, to_destroy=to_destroy))
            if found is not None:
                return found
            await self._pass_time(_LAG_S)
        return None

    async def get(self, ref: str) -> Instance | None:
        return await self._insist(lambda: self.inner.get(ref))

    async def list_owned(self) -> AsyncIterator[Instance]:
        async def listed() -> list[Instance]:
            return [machine async for machine in self.inner.list_owned()]

        for machine in await self._insist(listed):
            yield machine

    async def act(self, ref: str, verb: Verb, change: Change) -> Op:
        for _ in range(TRIES):
            op = await self._act_once(ref, verb, change)
            if await self._ended_well(op):
                return op
            if verb is Verb.RESIZE:
                await self._power_off(ref)
        raise GaveUp(f"{verb.value} never succeeded")

    async def delete(self, ref: str) -> Op:
        for _ in range(TRIES):
            op = await self._insist(lambda: self.inner.delete(ref))
            if await self._ended_well(op):
                return op
        raise GaveUp(f"{ref} was never deleted")

    async def poll(self, handles: Sequence[str]) -> list[OpState]:
        known = [handle for handle in handles if handle != _FOUND]
        states = iter(await self._insist(lambda: self.inner.poll(known)))
        return [_DONE if handle == _FOUND else next(states) for handle in handles]

    async def _insist(
        self, call: Callable[[], Awaitable[T]], look: Callable[[], Awaitable[T | None]] | None = None
    ) -> T:
        """Make a call until it says something; a refusal counts if it is repeated.

        What may not be made twice comes with a `look` after what may have happened, and is made again if that is None.
        """
        refusals = 0
        for _ in range(TRIES):
            try:
                return await call()
            except Refused as refusal:
                refusals += 1
                if refusal.code not in _PASSING or refusals >= REFUSALS:
                    raise
                await self._pass_time(_STEP_S)
            except Unavailable as no:
                await self._pass_time(no.retry_after_s)
            except OutcomeUnknown:
                await self._pass_time(_STEP_S if look is None else _LAG_S)
                if look is not None and (found := await look()) is not None:
                    return found
        raise GaveUp("a call never got an answer")

    async def _act_once(self, ref: str, verb: Verb, change: Change) -> Op:
        async def look() -> Op | None:
            return Op(handle=_FOUND, ref=ref) if await self._has_effect(ref, verb, change) else None

        return await self._insist(lambda: self.inner.act(ref, verb, change), look)

    async def _has_effect(self, ref: str, verb: Verb, change: Change) -> bool:
        machine = await self.get(ref)
        if machine is None:
            return False
        if verb is Verb.RESIZE:
            return machine.provider_type == change.provider_type
        return machine.status in _WANTED.get(verb, ())

    async def _ended_well(self, op: Op) -> bool:
        for step in range(2 * _STUCK_AFTER):
            [state] = await self.poll([op.handle])
            if state.status is not OpStatus.RUNNING:
                return state.status is OpStatus.SUCCESS
            if step == _STUCK_AFTER:
                self._unstick()
            await self._pass_time(_STEP_S)
        raise GaveUp(f"op {op.handle} never ended")

    async def _until_gone(self, ref: str) -> None:
        await self.delete(ref)
        for _ in range(TRIES):
            if await self.get(ref) is None:
                return
            await self._pass_time(_STEP_S)
        raise GaveUp(f"{ref} was deleted and stays")

    async def _power_off(self, ref: str) -> None:
        op = await self._act_once(ref, Verb.POWEROFF, Change())
        await self._ended_well(op)
