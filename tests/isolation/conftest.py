"""One arena for all the tests here: starting an engine and its tenants takes longer than an attack."""

from collections.abc import Iterator

import pytest

from tests.isolation.arena import Arena, arena


@pytest.fixture(scope="session")
def ground() -> Iterator[Arena]:
    with arena() as opened:
        yield opened
