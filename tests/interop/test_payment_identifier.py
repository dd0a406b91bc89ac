"""Stock clients that name their purchases buy each once."""

from typing import Final

import pytest

from tests.interop.naming_clients import NAMING
from tests.interop.service import RunningService
from tests.wallets import Wallet

ID: Final = "pay_7d5d747be160e280504c099d984bcfe0"
DEPOSIT: Final = "/v1/balance/deposit"


@pytest.mark.parametrize("name", NAMING)
async def test_a_named_purchase_is_paid_once(service: RunningService, name: str) -> None:
    """The client signs a new payment for each call; all but the first are left unspent."""
    wallet = Wallet.numbered(500 + list(NAMING).index(name))
    await service.mint(wallet, "1.00")
    start = await service.mark()
    async with NAMING[name](service.url, wallet, ID) as client:
        first = await client.call("POST", DEPOSIT, {"amount": "0.25"})
        again = await client.call("POST", DEPOSIT, {"amount": "0.25"})
        other = await client.call("POST", DEPOSIT, {"amount": "0.20"})
    assert (first.status, again.status, again.body) == (200, 200, first.body)
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert (other.status, other.body["error"]["code"]) == (409, "idempotency_conflict")
    moved = await service.moved(wallet.address, start)
    assert [transfer.amount for transfer in moved.on_chain] == [250_000]
    assert moved.paid_in == (250_000,)
    assert await service.violations() == []
