"""What a payment costs in gas, alone and in company, as the receipts of our relayer's transactions have it."""

import asyncio
import time
from typing import Final

from spawn.payments.exact import ExactPayment
from spawn.payments.facilitator import Settled
from spawn.services.relayer import Relayer
from tests.anvil import Chain
from tests.bench.settlement_report import Gas
from tests.bench.settlement_stage import require_settled, signed_payments, stage
from tests.bench.settlement_ways import open_relayer

SIZES: Final = (1, 10, 50)
_STEPS: Final = 20


async def measure(core: int) -> list[Gas]:
    """Settle each size in one transaction, on a new chain each."""
    return [await _one(size, core) for size in SIZES]


async def _one(size: int, core: int) -> Gas:
    payments = signed_payments(size)
    with stage(core) as chain:
        async with open_relayer(chain) as relayer:
            transaction = await _together(relayer, payments)
        assert require_settled(chain, payments) == 1
        return _gas(chain, transaction, size)


async def _together(relayer: Relayer, payments: list[ExactPayment]) -> str:
    """The transaction that settled all of these. The relayer is stepped by hand: none leaves before all are there."""
    await relayer.step(
        int(time.time())
    )  # it has read what its database has, so that nothing below waits for that
    asked = [asyncio.create_task(relayer.settle(payment)) for payment in payments]
    await asyncio.sleep(0)
    for _ in range(_STEPS):
        await relayer.step(int(time.time()))
        _, waiting = await asyncio.wait(asked, timeout=0.05)
        if not waiting:
            break
    outcomes = await asyncio.gather(*asked)
    assert isinstance(outcomes[0], Settled), outcomes[0]
    assert outcomes == [outcomes[0]] * len(payments), "they did not share a transaction"
    return outcomes[0].transaction


def _gas(chain: Chain, transaction: str, payments: int) -> Gas:
    receipt = chain.ask("eth_getTransactionReceipt", transaction)
    call = chain.ask("eth_getTransactionByHash", transaction)["input"]
    return Gas(
        payments=payments, gas=int(receipt["gasUsed"], 16), calldata_bytes=len(bytes.fromhex(call[2:]))
    )
