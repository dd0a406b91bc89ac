"""What only the embedded chain does: the faucet, sharing its file, dying, and failing on demand."""

import asyncio
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from eth_account import Account
from spawn_schemas.ids import Address
from spawn_schemas.money import MAX_USDC, Usdc

from spawn.payments.arrivals import START
from spawn.payments.devnet import NOBODY, DevChain, DevnetFaults
from spawn.payments.facilitator import Rejected, Settled, SettlementUnclear
from tests.payments import NOW, PAYEE, TERMS, authorize

PAYER = Account.from_key("0x" + "33" * 32)
WALLET = Address(PAYER.address.lower())


@pytest.fixture
def faults() -> DevnetFaults:
    return DevnetFaults()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chain.db"


@pytest.fixture
def chain(path: Path, faults: DevnetFaults) -> Iterator[DevChain]:
    chain = DevChain(path, TERMS, now=lambda: NOW, faults=faults)
    yield chain
    chain.close()


async def test_the_faucet_makes_money_and_logs_it(chain: DevChain) -> None:
    assert await chain.balance_of(WALLET) == 0
    assert await chain.mint(WALLET, Usdc(5)) == 5
    assert await chain.mint(WALLET, Usdc(5)) == 10
    log = await chain.transfers()
    assert [(line.sender, line.recipient, line.amount, line.at) for line in log] == [
        (NOBODY, WALLET, 5, NOW)
    ] * 2
    assert log[0].tx_hash != log[1].tx_hash


@pytest.mark.parametrize("amount", [0, -1, MAX_USDC + 1])
async def test_the_faucet_has_limits(chain: DevChain, amount: int) -> None:
    with pytest.raises(ValueError, match="faucet"):
        await chain.mint(WALLET, Usdc(amount))
    assert await chain.transfers() == []


async def test_minted_money_equals_the_sum_of_balances(chain: DevChain) -> None:
    await chain.mint(WALLET, Usdc(10_000))
    for nonce in range(3):
        await chain.settle(authorize(PAYER, value=4_000, nonce=nonce))
    assert await chain.balance_of(WALLET) + await chain.balance_of(PAYEE) == 10_000


async def test_transaction_hashes_depend_on_payer_and_nonce_alone(chain: DevChain, tmp_path: Path) -> None:
    payment = authorize(PAYER, value=1_000)
    await chain.mint(WALLET, Usdc(1_000))
    elsewhere = DevChain(tmp_path / "other.db", TERMS, now=lambda: NOW + 7)
    for _ in range(3):
        await elsewhere.mint(WALLET, Usdc(1_000))
    assert await chain.settle(payment) == await elsewhere.settle(payment)
    elsewhere.close()


async def test_arrivals_are_what_was_paid_to_us_with_the_names_of_their_nonces(chain: DevChain) -> None:
    await chain.mint(WALLET, Usdc(1_000))
    payment = authorize(PAYER, value=300, nonce=5)
    settled = await chain.settle(payment)
    sent = await chain.send(WALLET, PAYEE, Usdc(200))
    await chain.send(WALLET, NOBODY, Usdc(100))
    await chain.cancel(WALLET, f"0x{6:064x}")
    found, cursor = await chain.page(START)
    assert isinstance(settled, Settled)
    assert [(one.transaction, one.sender, one.amount, one.nonce_key, one.at) for one in found] == [
        (settled.transaction, WALLET, 300, payment.nonce_key(TERMS.chain_id, TERMS.asset), NOW),
        (sent, WALLET, 200, None, NOW),
    ]
    assert await chain.page(cursor) == ((), cursor)
    await chain.send(WALLET, PAYEE, Usdc(1))
    more, last = await chain.page(cursor)
    assert [one.amount for one in more] == [1]
    assert await chain.page(last) == ((), last)


async def test_arrivals_come_in_pages_that_leave_nothing_out(chain: DevChain) -> None:
    await chain.mint(WALLET, Usdc(1_000))
    for _ in range(250):
        await chain.send(WALLET, PAYEE, Usdc(1))
    first, cursor = await chain.page(START)
    second, _ = await chain.page(cursor)
    assert len({one.id for one in (*first, *second)}) == len(first) + len(second) == 250
    assert 0 < len(second) < len(first)


async def test_a_transfer_takes_what_is_there(chain: DevChain) -> None:
    await chain.mint(WALLET, Usdc(5))
    with pytest.raises(ValueError, match="does not hold"):
        await chain.send(WALLET, PAYEE, Usdc(6))
    assert (await chain.balance_of(WALLET), await chain.balance_of(PAYEE)) == (5, 0)


_DYING = """
import asyncio, msgspec, os, pathlib, sys
from spawn.payments.devnet import DevChain
from spawn.payments.exact import ExactPayment, Terms

path, terms, payment, now = msgspec.json.decode(sys.argv[1], type=tuple[str, Terms, ExactPayment, int])

async def main():
    chain = DevChain(pathlib.Path(path), terms, now=lambda: now)
    await chain.mint(payment.payer, payment.value)
    await chain.settle(payment)
    os._exit(9)

asyncio.run(main())
"""


async def test_the_chain_outlives_the_process_that_wrote_it(path: Path) -> None:
    payment = authorize(PAYER, value=1_000)
    work = msgspec.json.encode((str(path), TERMS, payment, NOW)).decode()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _DYING, work)
    assert await process.wait() == 9
    chain = DevChain(path, TERMS, now=lambda: NOW)
    assert isinstance(await chain.find(payment), Settled)
    assert await chain.balance_of(PAYEE) == 1_000
    chain.close()


async def test_a_faucet_beside_the_service_loses_nothing(chain: DevChain, path: Path) -> None:
    faucet = DevChain(path, TERMS, now=lambda: NOW)
    await chain.mint(WALLET, Usdc(20))
    given = [faucet.mint(WALLET, Usdc(1)) for _ in range(20)]
    taken = [chain.settle(authorize(PAYER, value=1, nonce=nonce)) for nonce in range(20)]
    await asyncio.gather(*given, *taken)
    assert await chain.balance_of(WALLET) == await faucet.balance_of(WALLET) == 20
    assert await chain.balance_of(PAYEE) == 20
    assert len(await chain.transfers()) == 41
    faucet.close()


async def test_a_locked_file_is_an_unclear_settlement(chain: DevChain, path: Path) -> None:
    await chain.mint(WALLET, Usdc(1_000))
    payment = authorize(PAYER, value=1_000)
    impatient = DevChain(path, TERMS, now=lambda: NOW, busy_timeout_s=0)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(SettlementUnclear):
        await impatient.settle(payment)
    holder.execute("ROLLBACK")
    holder.close()
    assert await impatient.find(payment) is None
    assert isinstance(await impatient.settle(payment), Settled)
    impatient.close()


async def test_a_lost_request_moves_nothing(chain: DevChain, faults: DevnetFaults) -> None:
    await chain.mint(WALLET, Usdc(1_000))
    payment = authorize(PAYER, value=1_000)
    faults.lose_request = 1
    with pytest.raises(SettlementUnclear):
        await chain.settle(payment)
    assert await chain.find(payment) is None
    assert isinstance(await chain.settle(payment), Settled)


async def test_a_lost_answer_hides_money_that_moved(chain: DevChain, faults: DevnetFaults) -> None:
    await chain.mint(WALLET, Usdc(1_000))
    payment = authorize(PAYER, value=1_000)
    faults.lose_answer = 2
    for _ in range(2):
        with pytest.raises(SettlementUnclear):
            await chain.settle(payment)
    found = await chain.find(payment)
    assert isinstance(found, Settled)
    assert await chain.settle(payment) == found
    assert await chain.balance_of(PAYEE) == 1_000


async def test_refusing_on_demand_never_denies_what_has_moved(chain: DevChain, faults: DevnetFaults) -> None:
    await chain.mint(WALLET, Usdc(2_000))
    moved, refused = authorize(PAYER, value=1_000), authorize(PAYER, value=1_000, nonce=1)
    settled = await chain.settle(moved)
    faults.refuse, faults.refuse_reason = 2, "unexpected_settle_error"
    assert await chain.settle(moved) == settled
    outcome = await chain.settle(refused)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "unexpected_settle_error"
    assert await chain.find(refused) is None
    assert isinstance(await chain.settle(refused), Settled)


async def test_a_slow_chain_waits_for_its_gate(chain: DevChain, faults: DevnetFaults) -> None:
    await chain.mint(WALLET, Usdc(1_000))
    faults.gate = asyncio.Event()
    payment = authorize(PAYER, value=1_000)
    settling = asyncio.create_task(chain.settle(payment))
    assert await chain.find(payment) is None
    assert not settling.done()
    faults.gate.set()
    assert isinstance(await settling, Settled)
