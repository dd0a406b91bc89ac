"""Many callers at once on the file-backed database: one payment, signature or key has one effect and one answer."""

import asyncio
from collections import Counter
from pathlib import Path

import httpx

from tests.harness import ORDER, World, open_world
from tests.integration.paid_calls import (
    PUBLIC_KEY,
    machines,
    paid_in,
    refusal,
    settlement,
    signed,
    usdc,
)
from tests.wallets import Wallet

COPIES = 50


async def with_key(world: World, wallet: Wallet) -> dict[str, object]:
    """An order whose answer holds no secret, because the wallet's key is on the machine."""
    registered = await world.sign(
        wallet, "POST", "/v1/ssh-keys", {"name": "laptop", "public_key": PUBLIC_KEY}
    )
    return ORDER | {"ssh_keys": [registered.json()["ssh_key"]["id"]], "deposit": "0.50"}


def assert_one_answer(answers: list[httpx.Response], status: int) -> None:
    assert {answer.status_code for answer in answers} == {status}, Counter(a.text for a in answers)
    assert len({answer.content for answer in answers}) == 1
    replayed = Counter(answer.headers.get("Idempotent-Replayed") for answer in answers)
    assert replayed == {None: 1, "true": len(answers) - 1}


async def test_copies_of_one_payment_have_one_effect_and_one_answer(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("0.10")
        order = await with_key(world, wallet) | {"fund": "0.60"}
        payment = await world.payment(wallet, "POST", "/v1/servers", order)
        answers = await asyncio.gather(
            *(world.send_payment(payment, "POST", "/v1/servers", order) for _ in range(COPIES))
        )
        assert_one_answer(answers, 201)
        assert len({settlement(answer)["transaction"] for answer in answers}) == 1
        assert [transfer.amount for transfer in await paid_in(world, wallet)] == [100_000, 610_000]
        assert len(await world.rows("SELECT id FROM server")) == 1
        assert await machines(world) == 1
        assert await world.available(wallet.address) == usdc("0.10") - 1_000 + usdc("0.60") - usdc("0.50")
        await world.check_books()


async def test_copies_of_one_signed_request_have_one_effect_and_one_answer(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        request = signed(world, wallet, "POST", "/v1/servers", await with_key(world, wallet))
        answers = await asyncio.gather(*(world.http.send(request) for _ in range(COPIES)))
        assert_one_answer(answers, 201)
        assert len(await paid_in(world, wallet)) == 1
        assert await machines(world) == 1
        assert await world.available(wallet.address) == usdc("20.00") - 1_000 - 10_000 - usdc("0.50")
        await world.check_books()


async def test_fresh_payments_with_one_key_are_one_payment(tmp_path: Path) -> None:
    """What a stock client does when its retries overtake each other: a new nonce each time, one key."""
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        body = {"amount": "1.00"}
        payments = [await world.payment(wallet, "POST", "/v1/balance/deposit", body) for _ in range(COPIES)]
        answers = await asyncio.gather(
            *(world.send_payment(p, "POST", "/v1/balance/deposit", body, key="once") for p in payments)
        )
        assert_one_answer(answers, 200)
        assert len(await paid_in(world, wallet)) == 1
        assert await world.available(wallet.address) == usdc("1.00")

        # The nonces that lost are as good as new: each still pays for something else.
        for payment in payments:
            await world.send_payment(payment, "POST", "/v1/balance/deposit", body)
        assert len(await paid_in(world, wallet)) == COPIES
        assert await world.available(wallet.address) == COPIES * usdc("1.00")
        await world.check_books()


async def test_a_balance_for_ten_buys_ten_of_fifty(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("50.90")  # ten times 5.01, and less than another deposit
        answers = await asyncio.gather(
            *(
                world.sign(wallet, "POST", "/v1/servers", ORDER | {"name": f"web-{number}"})
                for number in range(COPIES)
            )
        )
        assert Counter(answer.status_code for answer in answers) == {201: 10, 422: 40}
        for answer in answers:
            if answer.status_code == 422:
                error = refusal(answer, 422, "insufficient_deposit")
                assert usdc(error["details"]["short"]) > 0
                assert "POST /v1/balance/deposit" in error["next"]
        await world.run_for(5)
        assert len(await world.rows("SELECT id FROM server")) == 10
        assert await machines(world) == 10
        assert await world.available(wallet.address) == usdc("0.80")
        assert await world.account("rev:opfee") == 10 * usdc("0.01")
        await world.check_books()


async def test_a_balance_for_exactly_ten_buys_ten(tmp_path: Path) -> None:
    """Nothing is left for even a fee: whoever is late hears either that, or what the deposit lacks."""
    async with open_world(tmp_path) as world:
        wallet = await world.customer("50.10")
        answers = await asyncio.gather(
            *(
                world.sign(wallet, "POST", "/v1/servers", ORDER | {"name": f"web-{number}"})
                for number in range(20)
            )
        )
        counted = Counter(answer.status_code for answer in answers)
        assert counted[201] == 10
        assert counted[402] + counted[422] == 10
        assert await world.available(wallet.address) == 0
        await world.check_books()


async def test_one_name_is_given_once(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("100.00")
        answers = await asyncio.gather(
            *(world.sign(wallet, "POST", "/v1/servers", ORDER) for _ in range(COPIES))
        )
        assert Counter(answer.status_code for answer in answers) == {201: 1, 409: COPIES - 1}
        assert await world.available(wallet.address) == usdc("94.99")
        assert await machines(world) == 1
        await world.check_books()


async def test_deposits_at_once_do_not_pass_the_daily_cap_together(tmp_path: Path) -> None:
    async with open_world(tmp_path, deposit_daily_cap="3.50") as world:
        wallet = await world.wallet()
        body = {"amount": "1.00"}
        answers = await asyncio.gather(
            *(world.pay(wallet, "POST", "/v1/balance/deposit", body) for _ in range(10))
        )
        assert Counter(answer.status_code for answer in answers) == {200: 3, 422: 7}
        assert len(await paid_in(world, wallet)) == 3
        assert await world.available(wallet.address) == usdc("3.00")


async def test_two_wallets_may_use_the_same_key(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallets = [await world.customer("6.00") for _ in range(5)]
        answers = await asyncio.gather(
            *(world.sign(wallet, "POST", "/v1/servers", ORDER, key="mine") for wallet in wallets)
        )
        assert {answer.status_code for answer in answers} == {201}
        assert all("Idempotent-Replayed" not in answer.headers for answer in answers)
        owners = {answer.json()["server"]["owner_wallet"] for answer in answers}
        assert owners == {wallet.address for wallet in wallets}
        assert await machines(world) == 5
