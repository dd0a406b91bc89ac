"""The provider `hetzner` keeps every promise, through the real hcloud client and a real socket."""

from collections.abc import AsyncIterator

import pytest
from spawn_providers.conformance import ProviderConformance

from tests.contract.hetzner_subject import HetznerSubject, emulated


class TestHetzner(ProviderConformance):
    @pytest.fixture
    async def subject(self) -> AsyncIterator[HetznerSubject]:
        async with emulated() as subject:
            yield subject
