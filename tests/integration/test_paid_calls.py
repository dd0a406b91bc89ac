"""What becomes of a payment: settled, refused, unclear, found later, given up; and of a call it was not enough for."""

import asyncio
from pathlib import Path

import httpx
import pytest

from tests.harness import ORDER, World, open_world
from tests.integration.paid_calls import (
    Barrier,
    challenge,
    machines,
    nothing_changes,
    paid_in,
    refusal,
    settlement,
    usdc,
)
from tests.wallets import Wallet

DEPOSIT = "/v1/balance/deposit"
ONE = {"amount": "1.00"}
BUY = ORDER | {"fund": "6.00"}
VALID_S = 300
FINALITY_S = 120
EXPIRED = "invalid_exact_evm_payload_authorization_valid_before"


def pending(answer: httpx.Response) -> None:
    """503 that promises nothing and asks for the same payment again, never for a new one."""
    error = refusal(answer, 503, "settlement_pending")
    assert error["retry_after"] > 0
    assert "same payment" in error["next"]
    assert settlement(answer)["success"] is False


async def test_a_settled_payment_is_credited_and_shown(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        bought = await world.pay(wallet, "POST", "/v1/servers", BUY)
        assert bought.status_code == 201
        transfer = (await paid_in(world, wallet))[0]
        shown = settlement(bought)
        assert (shown["success"], shown["transaction"]) == (True, transfer.tx_hash)
        assert shown["payer"].lower() == wallet.address
        assert (transfer.amount, transfer.recipient) == (usdc("6.01"), world.settings.pay_to)
        assert bought.headers["Spawn-Fee"] == "0.01"
        assert bought.headers["Spawn-Balance"] == "1.00"
        await world.check_books()


async def test_a_refused_settlement_charges_nothing_and_asks_for_nothing(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        world.chain_faults.refuse = 1
        payment = await world.payment(wallet, "POST", "/v1/servers", BUY)
        refused = await world.send_payment(payment, "POST", "/v1/servers", BUY, key="k")
        error = refusal(refused, 402, "settlement_failed")
        assert error["details"] == {"reason": "unexpected_settle_error"}
        assert error["next"]
        shown = settlement(refused)
        assert (shown["success"], shown["errorReason"]) == (False, "unexpected_settle_error")
        assert await paid_in(world, wallet) == []
        assert await world.available(wallet.address) == 0
        assert await machines(world) == 0

        again = await world.send_payment(payment, "POST", "/v1/servers", BUY)
        assert refusal(again, 402, "settlement_failed")["message"] == error["message"]
        anew = await world.pay(wallet, "POST", "/v1/servers", BUY, key="k")
        assert anew.status_code == 201
        assert len(await paid_in(world, wallet)) == 1
        await world.check_books()


async def test_a_wallet_that_does_not_hold_what_it_signed_is_refused(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet("0.50")
        refused = await world.pay(wallet, "POST", DEPOSIT, ONE)
        assert refusal(refused, 402, "settlement_failed")["details"] == {"reason": "insufficient_funds"}
        assert await paid_in(world, wallet) == []
        assert await world.available(wallet.address) == 0


@pytest.mark.parametrize("fault", ["lose_request", "lose_answer"])
async def test_an_unclear_settlement_is_found_by_the_same_payment(tmp_path: Path, fault: str) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        setattr(world.chain_faults, fault, 2)
        payment = await world.payment(wallet, "POST", "/v1/servers", BUY)
        for _ in range(2):
            pending(await world.send_payment(payment, "POST", "/v1/servers", BUY))
        answers = await asyncio.gather(
            *(world.send_payment(payment, "POST", "/v1/servers", BUY) for _ in range(5))
        )
        assert {answer.status_code for answer in answers} == {201}
        assert len(await paid_in(world, wallet)) == 1
        assert await machines(world) == 1
        assert await world.available(wallet.address) == usdc("1.00")
        await world.check_books()


async def test_what_nobody_asks_for_again_is_credited_by_the_job(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        world.chain_faults.lose_answer = 1
        payment = await world.payment(wallet, "POST", "/v1/servers", BUY)
        pending(await world.send_payment(payment, "POST", "/v1/servers", BUY))
        assert await world.available(wallet.address) == 0
        for _ in range(2):
            await world.tick("settlements")
            assert await world.available(wallet.address) == usdc("6.01")
        assert await machines(world) == 0
        await world.check_books()

        # Who comes back after all gets what was paid for, once, and pays for it once.
        answers = [await world.send_payment(payment, "POST", "/v1/servers", BUY) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [201, 201]
        assert len(await paid_in(world, wallet)) == 1
        assert await machines(world) == 1
        assert await world.available(wallet.address) == usdc("1.00")
        await world.check_books()


async def test_what_never_settles_is_given_up_when_it_cannot_any_more(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        world.chain_faults.lose_request = 1
        payment = await world.payment(wallet, "POST", DEPOSIT, ONE)
        pending(await world.send_payment(payment, "POST", DEPOSIT, ONE, key="k"))
        states = "SELECT state FROM reservation WHERE wallet = :wallet"
        world.clock.advance(VALID_S + FINALITY_S)
        await world.tick("settlements")
        assert [row["state"] for row in await world.rows(states, wallet=wallet.address)] == ["reserved"]
        world.clock.advance(1)
        await world.tick("settlements")
        assert [row["state"] for row in await world.rows(states, wallet=wallet.address)] == ["refused"]

        async with nothing_changes(world):
            late = await world.send_payment(payment, "POST", DEPOSIT, ONE)
            assert refusal(late, 402, "settlement_failed")["details"] == {"reason": EXPIRED}
            await world.tick("settlements")
        assert await world.available(wallet.address) == 0
        assert (await world.pay(wallet, "POST", DEPOSIT, ONE, key="k")).status_code == 200
        assert await world.available(wallet.address) == usdc("1.00")
        await world.check_books()


async def test_a_payment_that_a_stranger_submitted_counts(tmp_path: Path) -> None:
    """Whoever sees the signature may carry it to the chain; the money is the caller's all the same."""
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        world.chain_faults.lose_answer = 1
        payment = await world.payment(wallet, "POST", DEPOSIT, ONE)
        pending(await world.send_payment(payment, "POST", DEPOSIT, ONE))
        world.chain_faults.refuse = 1
        assert (await world.send_payment(payment, "POST", DEPOSIT, ONE)).status_code == 200
        assert await world.available(wallet.address) == usdc("1.00")
        await world.check_books()


async def test_a_cancelled_nonce_is_refused(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        required = (await world.ask("POST", DEPOSIT, ONE)).headers["PAYMENT-REQUIRED"]
        payment = wallet.payment(required, now=world.clock.now_s(), nonce=77)
        await world.chain.cancel(wallet.address, f"0x{77:064x}")
        refused = await world.send_payment(payment, "POST", DEPOSIT, ONE)
        details = refusal(refused, 402, "settlement_failed")["details"]
        assert details == {"reason": "invalid_exact_evm_nonce_already_used"}
        assert await world.available(wallet.address) == 0


async def _overtaken(world: World, wallet: Wallet) -> tuple[str, httpx.Response]:
    """Pay for a server whose name is taken while the payment is on its way; answers the payment too."""
    barrier = world.chain_faults.gate = Barrier()
    payment = await world.payment(wallet, "POST", "/v1/servers", BUY)
    late = asyncio.ensure_future(world.send_payment(payment, "POST", "/v1/servers", BUY, key="k"))
    await barrier.reached.wait()
    first = await world.sign(wallet, "POST", "/v1/servers", ORDER)
    assert first.status_code == 201, first.text
    barrier.set()
    return payment, await late


async def test_a_call_that_was_overtaken_leaves_its_payment_as_credit(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("5.01")
        payment, overtaken = await _overtaken(world, wallet)
        error = refusal(overtaken, 409, "conflict")
        assert error["details"]["credited"] == "6.01"
        assert error["next"]
        assert await world.available(wallet.address) == usdc("6.01")

        async with nothing_changes(world):
            again = await world.send_payment(payment, "POST", "/v1/servers", BUY)
            assert refusal(again, 409, "conflict")["details"] == error["details"]
        assert len(await paid_in(world, wallet)) == 2
        assert await machines(world) == 1

        # The credit is money like any other, and the key was not used up.
        spent = await world.sign(wallet, "POST", "/v1/servers", ORDER | {"name": "other"}, key="k")
        assert spent.status_code == 201
        assert await world.available(wallet.address) == usdc("1.00")
        await world.check_books()


async def test_an_unpaid_call_is_told_its_price_again_and_again(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        async with nothing_changes(world):
            prices = [
                challenge(await world.ask("POST", "/v1/servers", body))["accepts"][0]["amount"]
                for body in (None, ORDER, BUY, BUY)
            ]
        assert prices == ["10000", "10000", "6010000", "6010000"]
