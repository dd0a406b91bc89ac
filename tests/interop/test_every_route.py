"""Stock clients, unchanged, buy every priced route of a running `spawn dev`."""

import pytest

from spawn.api.routes import charged_routes
from spawn.domain.charges import Kind
from tests.interop.clients import A_DOLLAR, BUYERS, WouldNotPay
from tests.interop.service import RunningService
from tests.interop.story import Route, live_a_life, shopping
from tests.wallets import Wallet

FIVE_DOLLARS = {"amount": "5.00"}


def priced_routes() -> set[Route]:
    """From the app itself, so that a new route that nobody buys here fails."""
    return {(method, path) for method, path, charge, _ in charged_routes() if charge.kind is not Kind.FREE}


@pytest.mark.parametrize("name", BUYERS)
async def test_every_priced_route_is_bought_for_at_most_a_dollar(service: RunningService, name: str) -> None:
    buyer = BUYERS[name]
    # No call of a life costs more, and most clients pay that much without being told.
    told = "$1" if buyer.default_limit_usdc is not None and buyer.default_limit_usdc < A_DOLLAR else None
    wallet = Wallet.numbered(100 + list(BUYERS).index(name))
    await service.mint(wallet, "5.00")
    async with (
        buyer.open(service.url, wallet, told) as client,
        shopping(service, client, wallet, pays_by_x402=buyer.version) as shopper,
    ):
        await live_a_life(shopper)
        assert shopper.bought == priced_routes()
    assert await service.violations() == []


@pytest.mark.parametrize("name", BUYERS)
async def test_a_client_pays_more_than_its_limit_only_when_told(service: RunningService, name: str) -> None:
    buyer = BUYERS[name]
    limit = "$1" if buyer.default_limit_usdc is None else None
    wallet = Wallet.numbered(200 + list(BUYERS).index(name))
    await service.mint(wallet, "10.00")
    start = await service.mark()
    async with buyer.open(service.url, wallet, limit) as client:
        with pytest.raises(WouldNotPay):
            await client.call("POST", "/v1/balance/deposit", FIVE_DOLLARS)
    assert (await service.moved(wallet.address, start)).on_chain == ()
    async with (
        buyer.open(service.url, wallet, "$10") as client,
        shopping(service, client, wallet, pays_by_x402=buyer.version) as shopper,
    ):
        paid_in = await shopper.buy("POST", "/v1/balance/deposit", FIVE_DOLLARS, credited="5.00")
        assert paid_in["deposited"] == "5.00"
