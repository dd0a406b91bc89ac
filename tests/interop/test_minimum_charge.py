"""Every stock client pays a minimum charge as it pays any price, and has the rest to spend."""

from collections.abc import Iterator

import pytest

from tests.interop.clients import BUYERS
from tests.interop.service import RunningService, spawn_dev
from tests.wallets import Wallet


@pytest.fixture(scope="module")
def dear_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with spawn_dev(tmp_path_factory.mktemp("spawn-dev"), {"SPAWN_MINIMUM_CHARGE": "0.05"}) as running:
        yield running


@pytest.mark.parametrize("name", BUYERS)
async def test_a_lone_read_pays_the_minimum_and_keeps_the_rest(
    dear_service: RunningService, name: str
) -> None:
    wallet = Wallet.numbered(800 + list(BUYERS).index(name))
    await dear_service.mint(wallet, "1.00")
    start = await dear_service.mark()
    async with BUYERS[name].open(dear_service.url, wallet, None) as client:
        read = await client.call("GET", "/v1/servers")
    assert read.status == 200, read.body
    assert (read.headers["spawn-fee"], read.headers["spawn-balance"]) == ("0.001", "0.049")
    moved = await dear_service.moved(wallet.address, start)
    assert ([transfer.amount for transfer in moved.on_chain], moved.fee_usdc) == ([50_000], 1_000)
    assert await dear_service.violations() == []
