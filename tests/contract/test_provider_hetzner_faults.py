"""The provider `hetzner` keeps its promises while Hetzner fails, in each of the ways that the emulator knows."""

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import pytest
from spawn_providers.base import Refused, RefusedCode
from spawn_providers.conformance import ProviderConformance
from spawn_providers.conformance_steps import ConformanceFailed
from spawn_schemas.ids import ServerId

from tests.contract.hetzner_subject import HetznerSubject, emulated
from tests.contract.persistent import Persistent
from tests.emulators.hetzner.faults import KINDS, Vanish

Promise = Callable[[ProviderConformance, "FailingSubject"], Awaitable[None]]

PROMISES: Final[list[Promise]] = [
    promise for name, promise in vars(ProviderConformance).items() if name.startswith("test_")
]
PERMILLE: Final = 120
"""How many calls in a thousand go wrong."""
VANISHING: Final = 15
"""Of how many the machine vanishes: few enough that some live as long as a promise takes."""
PAIRS: Final = 24
ATTEMPTS: Final = 20


class FailingSubject:
    """The emulated project as a caller sees it who does not give up."""

    def __init__(self, inner: HetznerSubject) -> None:
        self._inner = inner
        self.emulator = inner.emulator
        self.provider = self._persistent(inner)

    def _persistent(self, inner: HetznerSubject, *, anew: bool = False) -> Persistent:
        provider = inner.open() if anew else inner.provider
        return Persistent(provider, inner.pass_time, inner.emulator.unstick)

    def new_key(self) -> ServerId:
        return self._inner.new_key()

    async def pass_time(self, seconds: int) -> None:
        await self._inner.pass_time(seconds)

    async def reopen(self) -> Persistent:
        return self._persistent(self._inner, anew=True)


async def kept(promise: Promise, subject: FailingSubject) -> None:
    """The promise is kept; where a machine was taken away meanwhile, at the next attempt."""
    for _ in range(ATTEMPTS):
        before = len(subject.emulator.log)
        try:
            await promise(ProviderConformance(), subject)
        except (ConformanceFailed, Refused) as broken:
            calls = list(subject.emulator.log)[before:]
            vanished = any(isinstance(call.fault, Vanish) for call in calls)
            if not vanished or (isinstance(broken, Refused) and broken.code is not RefusedCode.NOT_FOUND):
                raise
        else:
            return
    raise AssertionError("a machine vanished in each attempt")


async def keeps_all(seed: int, *kinds: str) -> None:
    async with emulated(seed=seed) as inner:
        rates = {kind: VANISHING if kind == "vanish" else PERMILLE // len(kinds) for kind in kinds}
        inner.emulator.faults.set_rates(**rates)
        subject = FailingSubject(inner)
        for promise in PROMISES:
            await kept(promise, subject)
        met = {type(entry.fault) for entry in inner.emulator.log if entry.fault is not None}
        assert met, "no fault was met"
        names = Counter(server.name for server in inner.emulator.world.servers.values())
        assert max(names.values(), default=1) == 1


@pytest.mark.parametrize("kind", sorted(KINDS))
async def test_each_fault_by_itself(kind: str) -> None:
    await keeps_all(1, kind)


@pytest.mark.parametrize("seed", range(PAIRS))
async def test_random_pairs_of_faults(seed: int) -> None:
    await keeps_all(seed, *random.Random(seed).sample(sorted(KINDS), 2))
