"""A daemon that is connected to a fake service, and its parts."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.hostagent.clocks import VirtualClock
from tests.hostagent.fake_host import FakeHost, fake_host
from tests.hostagent.fake_service import FakeService, fake_service


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not pytest's folder: a socket's path may have about 100 bytes.
    name = tempfile.mkdtemp(prefix="sh-")
    yield Path(name)
    shutil.rmtree(name)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
async def service(clock: VirtualClock) -> AsyncIterator[FakeService]:
    async with fake_service(clock) as service:
        yield service


@pytest.fixture
async def host(folder: Path, service: FakeService, clock: VirtualClock) -> AsyncIterator[FakeHost]:
    async with fake_host(folder, service, clock) as host:
        await host.connected()
        yield host
