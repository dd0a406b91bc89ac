"""Stock clients, unchanged, buy every priced route of a running `spawn dev`."""

import pytest

from spawn.api.routes import charged_routes
from spawn.domain.charges import Kind
from tests.interop.clients import A_DOLLAR, BUYERS, WouldNotPay
from tests.interop.naming_clients import NAMING
from tests.interop.service import RunningService
from tests.interop.sign_in_clients import SIGNERS
from tests.interop.story import ON_LENT_MACHINES, Route, live_a_life, shopping
from tests.wallets import Wallet

EXTENDED = SIGNERS | {"x402[requests]": NAMING["x402[requests]"]}
"""The clients of version 2 with all their extensions: the requests session has no sign-in, which is asynchronous."""
FIVE_DOLLARS = {"amount": "5.00"}


def priced_routes() -> set[Route]:
    """From the app itself, so that a new route that nobody buys here fails."""
    priced = {(method, path) for method, path, charge, _ in charged_routes() if charge.kind is not Kind.FREE}
    return priced - ON_LENT_MACHINES


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


@pytest.mark.parametrize("name", EXTENDED)
async def test_every_priced_route_is_bought_by_a_name_or_a_sign_in(
    service: RunningService, name: str
) -> None:
    """With the extensions of the clients in use: each payment has a name of its own, and who signs in pays no read."""
    wallet = Wallet.numbered(130 + list(EXTENDED).index(name))
    await service.mint(wallet, "5.00")
    async with (
        EXTENDED[name](service.url, wallet, None) as client,
        shopping(service, client, wallet, pays_by_x402=2, signs_in=name in SIGNERS) as shopper,
    ):
        # There is a balance to read from before the first read.
        await shopper.buy("POST", "/v1/balance/deposit", {"amount": "0.25"}, credited="0.25")
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
