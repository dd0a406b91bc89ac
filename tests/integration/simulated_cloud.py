"""A simulated cloud on a clock that only the test moves, and short words to speak about it."""

from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from spawn_providers.base import (
    Change,
    Instance,
    InstanceStatus,
    Op,
    OpState,
    Provider,
    Refused,
    RefusedCode,
    Spec,
    Verb,
)
from spawn_providers.simulated import SimulatedProvider
from spawn_providers.simulated_faults import Faults
from spawn_schemas.ids import Address, ServerId

KEY = ServerId("srv_one")
SPEC = Spec(
    hostname="node",
    provider_type="cx23",
    image="ubuntu-24.04",
    location="nbg1",
    owner=Address("0x" + "11" * 20),
    public_keys=("ssh-ed25519 AAAA",),
)
START_MS = 1_790_000_000_000
LONG_S = 600


class Clock:
    def __init__(self) -> None:
        self.ms = START_MS

    def __call__(self) -> int:
        return self.ms

    def advance(self, seconds: int) -> None:
        self.ms += seconds * 1000


class Cloud:
    """Providers over one world, opened as often as a test likes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = Clock()
        self.faults = Faults()
        self._opened: list[SimulatedProvider] = []

    def open(self, **options: Any) -> SimulatedProvider:
        options = {"seed": 1, "faults": self.faults, **options}
        self._opened.append(SimulatedProvider(self.path, now_ms=self.clock, **options))
        return self._opened[-1]

    async def aclose(self) -> None:
        for provider in self._opened:
            await provider.aclose()


def spec(**changes: Any) -> Spec:
    return msgspec.structs.replace(SPEC, **changes)


async def the(provider: Provider, ref: str) -> Instance:
    machine = await provider.get(ref)
    assert machine is not None
    return machine


async def state(provider: Provider, op: Op) -> OpState:
    [state] = await provider.poll([op.handle])
    return state


async def refused(call: Awaitable[object]) -> RefusedCode:
    with pytest.raises(Refused) as refusal:
        await call
    return refusal.value.code


async def running(cloud: Cloud, provider: Provider, key: ServerId = KEY, **changes: Any) -> str:
    op = await provider.create(key, spec(**changes))
    cloud.clock.advance(LONG_S)
    assert (await the(provider, op.ref)).status is InstanceStatus.RUNNING
    return op.ref


async def off(cloud: Cloud, provider: Provider, key: ServerId = KEY, **changes: Any) -> str:
    ref = await running(cloud, provider, key, **changes)
    await provider.act(ref, Verb.POWEROFF, Change())
    cloud.clock.advance(LONG_S)
    assert (await the(provider, ref)).status is InstanceStatus.OFF
    return ref
