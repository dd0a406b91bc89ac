"""A cloud for development, demonstrations and tests: real behaviour and real failures, no network, no cost.

Invariant: the provider holds no state of its own. Everything is in the world's file, so that a service killed
at any instant finds its machines again, as it would with a real cloud.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar, assert_never

from spawn_schemas.ids import Address, ServerId

from spawn_providers.base import (
    Capabilities,
    Change,
    Instance,
    Op,
    OpState,
    OutcomeUnknown,
    Refused,
    Spec,
    Unavailable,
    Verb,
)
from spawn_providers.catalog import DEFAULT_CATALOG, Catalog
from spawn_providers.simulated_faults import (
    Breakdown,
    DeafGuest,
    Delay,
    Fault,
    Faults,
    Flaw,
    LostAnswer,
    LostRequest,
    Method,
    Outage,
    Refusal,
)
from spawn_providers.simulated_rules import USER_DATA_BYTES_MAX
from spawn_providers.simulated_world import World

T = TypeVar("T")

_NOBODY = Address("0x" + "00" * 20)


class SimulatedProvider:
    """`Provider` over a simulated cloud; see `spawn_providers.base` for what each call promises.

    `now_ms` is unix time in milliseconds, callable from any thread. States pass `speed` times faster than in
    a real cloud. `capacity` is the most machines a location holds (none named: no limit) and `quota` the most
    there may be in all; `capacity` is read at every create, so whoever passed it may change it.
    """

    name: str = "simulated"
    capabilities: Capabilities = Capabilities(
        verbs=frozenset(Verb), ipv6_only=True, user_data_bytes=USER_DATA_BYTES_MAX, root_password=True
    )

    def __init__(
        self,
        path: Path,
        *,
        now_ms: Callable[[], int],
        seed: int,
        speed: float = 1.0,
        faults: Faults | None = None,
        capacity: Mapping[str, int] | None = None,
        quota: int | None = None,
    ) -> None:
        if speed <= 0:
            raise ValueError("speed is how many times faster than real states pass; it must be above zero")
        self._faults = Faults(seed=seed) if faults is None else faults
        self._open = partial(
            World,
            path,
            now_ms=now_ms,
            seed=seed,
            speed=speed,
            capacity={} if capacity is None else capacity,
            quota=quota,
        )
        self._world: World | None = None
        # One thread, because a SQLite connection belongs to one, and so that no call blocks the event loop.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="simulated-cloud")

    async def aclose(self) -> None:
        """Let go of the file. The machines live on in it."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()

    async def catalog(self) -> Catalog:
        return await self._call("catalog", "", lambda _, __: DEFAULT_CATALOG)

    async def create(self, key: ServerId, spec: Spec) -> Op:
        return await self._call("create", key, lambda world, flaw: world.create(key, spec, flaw))

    async def find(self, key: ServerId, *, to_destroy: bool = False) -> Instance | None:
        return await self._call("find", key, lambda world, _: world.find(key))

    async def get(self, ref: str) -> Instance | None:
        return await self._call("get", ref, lambda world, _: world.get(ref))

    async def list_owned(self) -> AsyncIterator[Instance]:
        for instance in await self._call("list_owned", "", lambda world, _: world.owned()):
            yield instance

    async def act(self, ref: str, verb: Verb, change: Change) -> Op:
        return await self._call("act", ref, lambda world, flaw: world.act(ref, verb, change, flaw))

    async def delete(self, ref: str) -> Op:
        return await self._call("delete", ref, lambda world, flaw: world.delete(ref, flaw))

    async def poll(self, handles: Sequence[str]) -> list[OpState]:
        return await self._call("poll", "", lambda world, _: world.poll(handles))

    async def plant_stray(
        self, *, provider_type: str = "cx23", image: str = "ubuntu-24.04", location: str = "nbg1"
    ) -> str:
        """Put a running machine without our label into the cloud; returns its ref."""
        spec = _planted(provider_type, image, location)
        return await self._in_world(lambda world: world.plant(None, spec))

    async def plant_orphan(
        self,
        key: ServerId,
        *,
        provider_type: str = "cx23",
        image: str = "ubuntu-24.04",
        location: str = "nbg1",
    ) -> str:
        """Put a running machine that carries our label, known or not, into the cloud; returns its ref."""
        spec = _planted(provider_type, image, location)
        return await self._in_world(lambda world: world.plant(key, spec))

    async def vanish(self, ref: str) -> None:
        """Lose a machine as a cloud sometimes does: it is gone and nobody deleted it."""
        await self._in_world(lambda world: world.vanish(ref))

    async def forget(self, handle: str) -> None:
        """Lose the memory of an op; polling it then answers `not_found`."""
        await self._in_world(lambda world: world.forget(handle))

    async def _call(self, method: Method, subject: str, work: Callable[[World, Flaw | None], T]) -> T:
        fault = await self._suffer(self._faults.draw(method, subject))
        match fault:
            case None:
                return await self._in_world(lambda world: work(world, None))
            case Breakdown() | DeafGuest() as flaw:
                return await self._in_world(lambda world: work(world, flaw))
            case LostAnswer():
                with suppress(Refused):  # a refusal is an answer too, and is lost like any other
                    await self._in_world(lambda world: work(world, None))
                raise OutcomeUnknown(f"the answer to {method} was lost")
            case _:
                assert_never(fault)

    async def _suffer(self, fault: Fault | None) -> Flaw | LostAnswer | None:
        """Raise or wait as a fault before the effect demands; hand back one that comes later."""
        match fault:
            case Refusal(code=code):
                raise Refused(code, "refused, as the simulation had it")
            case Outage(retry_after_s=retry_after_s):
                raise Unavailable("the simulated cloud is down", retry_after_s=retry_after_s)
            case LostRequest():
                raise OutcomeUnknown("the request was lost")
            case Delay(gate=gate):
                await gate.wait()
                return None
            case Breakdown() | DeafGuest() | LostAnswer() | None:
                return fault
            case _:
                assert_never(fault)

    async def _in_world(self, work: Callable[[World], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(self._opened()))

    def _opened(self) -> World:
        if self._world is None:
            self._world = self._open()
        return self._world

    def _close(self) -> None:
        if self._world is not None:
            self._world.close()
            self._world = None


def _planted(provider_type: str, image: str, location: str) -> Spec:
    return Spec(
        hostname="planted", provider_type=provider_type, image=image, location=location, owner=_NOBODY
    )
