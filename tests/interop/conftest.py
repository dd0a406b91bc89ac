"""One running service for every test of stock clients: each brings a wallet of its own."""

from collections.abc import Iterator

import pytest

from tests import databases
from tests.interop.service import RunningService, spawn_dev


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with spawn_dev(tmp_path_factory.mktemp("spawn-dev")) as running:
        databases.keep_made()
        yield running
