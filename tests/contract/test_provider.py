"""Every provider keeps the promises of `spawn_providers.base`; and the suite notices one that does not."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import count
from pathlib import Path

import pytest
from msgspec.structs import replace
from spawn_providers.base import (
    Capabilities,
    Change,
    Instance,
    Op,
    OpState,
    Refused,
    RefusedCode,
    Spec,
    Verb,
)
from spawn_providers.conformance import ProviderConformance
from spawn_providers.conformance_steps import ConformanceFailed, Subject
from spawn_providers.simulated import SimulatedProvider
from spawn_schemas.ids import ServerId


class SimulatedSubject:
    """A simulated cloud in a file, on a clock that only the test moves."""

    def __init__(self, path: Path, make: type[SimulatedProvider]) -> None:
        self.now_ms = 1_790_000_000_000
        self._path = path
        self._make = make
        self._numbers = count(1)
        self._opened: list[SimulatedProvider] = []
        self.provider = self._open()

    def new_key(self) -> ServerId:
        return ServerId(f"srv_conformance{next(self._numbers)}")

    async def pass_time(self, seconds: int) -> None:
        self.now_ms += seconds * 1000

    async def reopen(self) -> SimulatedProvider:
        return self._open()

    async def aclose(self) -> None:
        for provider in self._opened:
            await provider.aclose()

    def _open(self) -> SimulatedProvider:
        self._opened.append(self._make(self._path, now_ms=lambda: self.now_ms, seed=7))
        return self._opened[-1]


class TestSimulated(ProviderConformance):
    @pytest.fixture
    async def subject(self, tmp_path: Path) -> AsyncIterator[SimulatedSubject]:
        subject = SimulatedSubject(tmp_path / "cloud.db", SimulatedProvider)
        yield subject
        await subject.aclose()


class Limited(SimulatedProvider):
    """Can only start and stop machines, and says so."""

    capabilities = Capabilities(
        verbs=frozenset({Verb.START, Verb.POWEROFF}), ipv6_only=False, user_data_bytes=0, root_password=False
    )

    async def create(self, key: ServerId, spec: Spec) -> Op:
        if spec.ipv6_only or spec.user_data is not None:
            raise Refused(RefusedCode.INVALID, "not offered here")
        op = await super().create(key, spec)
        return Op(handle=op.handle, ref=op.ref)

    async def act(self, ref: str, verb: Verb, change: Change) -> Op:
        if verb not in self.capabilities.verbs:
            raise Refused(RefusedCode.INVALID, "not offered here")
        return await super().act(ref, verb, change)


class TestLimited(ProviderConformance):
    @pytest.fixture
    async def subject(self, tmp_path: Path) -> AsyncIterator[SimulatedSubject]:
        subject = SimulatedSubject(tmp_path / "cloud.db", Limited)
        yield subject
        await subject.aclose()


class Modest(SimulatedProvider):
    """Says that it can do less than it does."""

    capabilities = Capabilities(verbs=frozenset(), ipv6_only=False, user_data_bytes=0, root_password=False)


class Duplicating(SimulatedProvider):
    """Makes a new machine for every create."""

    _numbers = count(1)

    async def create(self, key: ServerId, spec: Spec) -> Op:
        return await super().create(ServerId(f"{key}-{next(self._numbers)}"), spec)


class Disordered(SimulatedProvider):
    """Answers a poll in an order of its own."""

    async def poll(self, handles: Sequence[str]) -> list[OpState]:
        return (await super().poll(handles))[::-1]


class Talkative(SimulatedProvider):
    """Gives a password to those who did not need one."""

    async def create(self, key: ServerId, spec: Spec) -> Op:
        op = await super().create(key, spec)
        return Op(handle=op.handle, ref=op.ref, root_password="hunter2")


class Lazy(SimulatedProvider):
    """Accepts every verb and does nothing."""

    async def act(self, ref: str, verb: Verb, change: Change) -> Op:
        return await super().act(ref, Verb.START, change)


class Anonymous(SimulatedProvider):
    """Does not keep whom a machine is for."""

    async def get(self, ref: str) -> Instance | None:
        machine = await super().get(ref)
        return None if machine is None else replace(machine, owner=None)


class EverNew(SimulatedProvider):
    """Says of each machine that it began at one moment, whenever that was."""

    async def get(self, ref: str) -> Instance | None:
        machine = await super().get(ref)
        return None if machine is None else replace(machine, created_at=1_790_000_000)


@pytest.mark.parametrize(
    ("broken", "caught_by"),
    [
        (Anonymous, ProviderConformance.test_a_machine_tells_whose_it_is),
        (EverNew, ProviderConformance.test_a_machine_tells_whose_it_is),
        (Duplicating, ProviderConformance.test_create_twice_makes_one_machine),
        (Duplicating, ProviderConformance.test_create_at_once_makes_one_machine),
        (Disordered, ProviderConformance.test_poll_keeps_the_order_and_knows_what_it_does_not_know),
        (Talkative, ProviderConformance.test_root_password_only_without_keys),
        (Lazy, ProviderConformance.test_stop_and_start),
        (Lazy, ProviderConformance.test_rebuild),
        (Modest, ProviderConformance.test_reboot),
        (Modest, ProviderConformance.test_ipv6_only_as_the_capabilities_say),
        (Modest, ProviderConformance.test_user_data_as_the_capabilities_say),
        (Modest, ProviderConformance.test_root_password_only_without_keys),
    ],
)
async def test_the_suite_catches_a_provider_that_breaks_its_word(
    tmp_path: Path,
    broken: type[SimulatedProvider],
    caught_by: Callable[[ProviderConformance, Subject], Awaitable[None]],
) -> None:
    subject = SimulatedSubject(tmp_path / "cloud.db", broken)
    try:
        with pytest.raises(ConformanceFailed):
            await caught_by(ProviderConformance(), subject)
    finally:
        await subject.aclose()
