"""Stock clients, unchanged, buy every priced route of a running `spawn dev`."""

import pytest

from spawn.api.routes import charged_routes
from spawn.domain.charges import Kind
from tests.interop.clients import BUYERS, WouldNotPay
from tests.interop.service import RunningService
from tests.interop.story import Route, live_a_life, shopping
from tests.wallets import Wallet

FIVE_DOLLARS = {"amount": "5.00"}


def priced_routes() -> set[Route]:
    """From the app itself, so that a new route that nobody buys here fails."""
    return {(method, path) for method, path, charge, _ in charged_routes() if charge.kind is not Kind.FREE}


@pytest.mark.parametrize("name", BUYERS)
async def test_every_priced_route_is_bought_under_the_clients_default_limit(
    service: RunningService, name: str
) -> None:
    wallet = Wallet.numbered(100 + list(BUYERS).index(name))
    await service.mint(wallet, "5.00")
    async with (
        BUYERS[name](service.url, wallet, None) as client,
        shopping(service, client, wallet, pays_by_x402=True) as shopper,
    ):
        await live_a_life(shopper)
        assert shopper.bought == priced_routes()
    assert await service.violations() == []


@pytest.mark.parametrize("name", BUYERS)
async def test_a_client_pays_more_than_its_default_limit_only_when_told(
    service: RunningService, name: str
) -> None:
    wallet = Wallet.numbered(200 + list(BUYERS).index(name))
    await service.mint(wallet, "10.00")
    start = await service.mark()
    async with BUYERS[name](service.url, wallet, None) as client:
        with pytest.raises(WouldNotPay):
            await client.call("POST", "/v1/balance/deposit", FIVE_DOLLARS)
    assert (await service.moved(wallet.address, start)).on_chain == ()
    async with (
        BUYERS[name](service.url, wallet, "$10") as client,
        shopping(service, client, wallet, pays_by_x402=True) as shopper,
    ):
        paid_in = await shopper.buy("POST", "/v1/balance/deposit", FIVE_DOLLARS, credited="5.00")
        assert paid_in["deposited"] == "5.00"
