"""The provider `hetzner` on the emulator behind a real socket, on a clock that only the test moves."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

from spawn_providers.hetzner.orders import Surroundings
from spawn_providers.hetzner.provider import HetznerProvider
from spawn_schemas.ids import ServerId

from tests.emulators.hetzner.app import TOKEN, Emulator
from tests.emulators.hetzner.serving import serving
from tests.harness import VirtualClock


class HetznerSubject:
    """An emulated project, and our provider with its token."""

    def __init__(self, *, seed: int = 0, clock: VirtualClock | None = None) -> None:
        self.clock = clock or VirtualClock()
        self.emulator = Emulator(self.clock.now_ms, seed=seed)
        self.endpoint = ""
        self._numbers = count(1)
        self._opened: list[HetznerProvider] = []

    @property
    def provider(self) -> HetznerProvider:
        return self._opened[0]

    def new_key(self) -> ServerId:
        return ServerId(f"srv_conformance{next(self._numbers)}")

    async def pass_time(self, seconds: int) -> None:
        with self.emulator.lock:
            self.clock.advance(seconds)

    async def reopen(self) -> HetznerProvider:
        return self.open()

    def open(self, surroundings: Surroundings | None = None) -> HetznerProvider:
        """One more provider of this project, which remembers nothing."""
        provider = HetznerProvider(
            TOKEN,
            endpoint=self.endpoint,
            now_s=self.clock.now_s,
            monotonic=self.clock.elapsed_s,
            surroundings=surroundings,
        )
        self._opened.append(provider)
        return provider

    async def aclose(self) -> None:
        for provider in self._opened:
            await provider.aclose()


@asynccontextmanager
async def emulated(*, seed: int = 0, clock: VirtualClock | None = None) -> AsyncIterator[HetznerSubject]:
    """A project nobody else has. Ends with an AssertionError if the emulator broke its description."""
    subject = HetznerSubject(seed=seed, clock=clock)
    with serving(subject.emulator) as endpoint:
        subject.endpoint = endpoint
        subject.open()
        try:
            yield subject
        finally:
            await subject.aclose()
