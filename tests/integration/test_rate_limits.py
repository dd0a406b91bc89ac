"""Too many calls: who is told to wait and who is not, that waiting is enough, and that no money moves before."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from eth_account import Account
from signing import SignedRequestAuth

from tests.harness import BASE_URL, CHAIN_ID, ORDER, World, open_world
from tests.integration.paid_calls import (
    PUBLIC_KEY,
    challenge,
    nothing_changes,
    paid_in,
    refusal,
    settlement,
    signed,
)
from tests.wallets import Wallet

LIST = "/v1/servers"
DEPOSIT = "/v1/balance/deposit"
ONE = {"amount": "1.00"}
KEY = {"name": "laptop", "public_key": PUBLIC_KEY}
FEW = 6
"""Calls a minute: six at once, then one each ten seconds."""
PROXY = "127.0.0.1"
"""Where the harness's own client calls from."""


@asynccontextmanager
async def from_address(world: World, address: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client whose socket has this address."""
    transport = httpx.ASGITransport(app=cast("Any", world.service.app), client=(address, 4711))
    async with httpx.AsyncClient(transport=transport, base_url=BASE_URL) as http:
        yield http


def limited(answer: httpx.Response, *, retry_after_s: int) -> dict[str, Any]:
    """The error of an answer that must tell its caller to wait so long, and what to do then."""
    error = refusal(answer, 429, "rate_limited")
    assert error["retry_after"] == retry_after_s
    assert error["next"]
    assert "no-store" in answer.headers["Cache-Control"]
    return error


async def use_up_address(world: World) -> None:
    """Make the unpaid calls that the harness's address may make, then one more."""
    for _ in range(FEW):
        challenge(await world.ask("GET", LIST))
    limited(await world.ask("GET", LIST), retry_after_s=10)


async def use_up_wallet(world: World, wallet: Wallet) -> None:
    for _ in range(FEW):
        assert (await world.sign(wallet, "GET", LIST)).status_code == 200
    limited(await world.sign(wallet, "GET", LIST), retry_after_s=10)


# --- by address -------------------------------------------------------------------------------------------------


async def test_an_unpaid_flood_is_told_to_wait_and_waiting_is_enough(tmp_path: Path) -> None:
    async with open_world(tmp_path, rate_address_per_minute=FEW) as world, nothing_changes(world):
        await use_up_address(world)
        limited(await world.ask("POST", LIST, ORDER), retry_after_s=10)
        world.clock.advance(9)
        limited(await world.ask("GET", LIST), retry_after_s=1)
        world.clock.advance(1)
        challenge(await world.ask("GET", LIST))
        limited(await world.ask("GET", LIST), retry_after_s=10)


async def test_hammering_does_not_lengthen_the_wait(tmp_path: Path) -> None:
    async with open_world(tmp_path, rate_address_per_minute=FEW) as world:
        await use_up_address(world)
        for _ in range(3 * FEW):
            limited(await world.ask("GET", LIST), retry_after_s=10)
        world.clock.advance(10)
        challenge(await world.ask("GET", LIST))


async def test_paid_and_signed_calls_from_a_used_up_address_go_through(tmp_path: Path) -> None:
    async with open_world(tmp_path, rate_address_per_minute=FEW) as world:
        customer, stranger = await world.customer("20.00"), await world.wallet()
        payment = await world.payment(stranger, "GET", LIST)
        world.clock.advance(60)
        await use_up_address(world)
        for _ in range(2 * FEW):
            assert (await world.sign(customer, "GET", LIST)).status_code == 200
        assert (await world.send_payment(payment, "GET", LIST)).status_code == 200
        assert (await world.sign(customer, "POST", LIST, ORDER)).status_code == 201
        limited(await world.ask("GET", LIST), retry_after_s=10)


async def test_what_is_free_for_all_is_not_refused(tmp_path: Path) -> None:
    async with open_world(tmp_path, rate_address_per_minute=FEW) as world:
        for _ in range(2 * FEW):
            assert (await world.ask("GET", "/v1/catalog")).status_code == 200
        await use_up_address(world)
        assert (await world.ask("GET", "/v1/catalog")).status_code == 200
        assert (await world.ask("GET", "/health")).status_code == 200


def _forged(world: World, wallet: Wallet) -> httpx.Request:
    """A signature in the name of `wallet` by another."""
    request = signed(world, wallet, "GET", LIST)
    other = SignedRequestAuth(Account.from_key(b"\x07" * 32), CHAIN_ID, clock=world.clock.now_s)
    by_another = next(other.auth_flow(world.http.build_request("GET", LIST)))
    request.headers["Signature"] = by_another.headers["Signature"]
    return request


async def test_a_worthless_signature_counts_and_is_told_to_wait_in_the_end(tmp_path: Path) -> None:
    async with open_world(tmp_path, rate_address_per_minute=FEW) as world:
        wallet = await world.wallet()
        async with nothing_changes(world):
            for _ in range(FEW):
                refusal(await world.http.send(_forged(world, wallet)), 401, "invalid_signature")
            limited(await world.http.send(_forged(world, wallet)), retry_after_s=10)
            limited(await world.ask("GET", LIST), retry_after_s=10)


@pytest.mark.parametrize(("kind", "status"), [("forged", 402), ("not base64", 400)])
async def test_a_worthless_payment_counts_and_is_told_to_wait_in_the_end(
    tmp_path: Path, kind: str, status: int
) -> None:
    async with open_world(tmp_path, rate_address_per_minute=FEW) as world:
        wallet = await world.wallet()
        offer = (await world.ask("GET", LIST)).headers["PAYMENT-REQUIRED"]
        another: dict[str, Any] = {"from": "0x" + "12" * 20}
        forged = wallet.payment(offer, now=world.clock.now_s(), **another)
        payment = forged if kind == "forged" else "%%%"
        world.clock.advance(10)
        async with nothing_changes(world):
            for _ in range(FEW):
                assert (await world.send_payment(payment, "GET", LIST)).status_code == status
            limited(await world.send_payment(payment, "GET", LIST), retry_after_s=10)
            limited(await world.ask("GET", LIST), retry_after_s=10)


async def test_an_address_is_not_counted_for_good_calls(tmp_path: Path) -> None:
    async with open_world(tmp_path, rate_address_per_minute=FEW) as world:
        customer = await world.customer("20.00")
        world.clock.advance(60)
        for _ in range(3 * FEW):
            assert (await world.sign(customer, "GET", LIST)).status_code == 200
        await use_up_address(world)


# --- by wallet --------------------------------------------------------------------------------------------------


async def test_a_flood_of_one_wallet_is_refused_before_money_moves(tmp_path: Path) -> None:
    async with open_world(tmp_path, rate_wallet_per_minute=FEW) as world:
        wallet = await world.wallet()
        for _ in range(FEW):
            assert (await world.pay(wallet, "GET", LIST)).status_code == 200
        payment = await world.payment(wallet, "POST", "/v1/ssh-keys", KEY)
        async with nothing_changes(world):
            error = limited(await world.send_payment(payment, "POST", "/v1/ssh-keys", KEY), retry_after_s=10)
            assert "Nothing was charged" in error["next"]
            limited(await world.sign(wallet, "GET", LIST), retry_after_s=10)
        other = await world.wallet()
        assert (await world.pay(other, "GET", LIST)).status_code == 200

        world.clock.advance(10)
        bought = await world.send_payment(payment, "POST", "/v1/ssh-keys", KEY)
        assert bought.status_code == 201
        assert "Idempotent-Replayed" not in bought.headers
        assert settlement(bought)["success"] is True
        assert len(await paid_in(world, wallet)) == FEW + 1
        await world.check_books()


async def test_a_signed_flood_is_refused_and_the_same_request_is_good_later(tmp_path: Path) -> None:
    async with open_world(tmp_path, rate_wallet_per_minute=FEW) as world:
        wallet = await world.customer("1.00")
        await use_up_wallet(world, wallet)
        request = signed(world, wallet, "GET", LIST)
        async with nothing_changes(world):
            limited(await world.http.send(request), retry_after_s=10)
        world.clock.advance(10)
        answer = await world.http.send(request)
        assert answer.status_code == 200
        assert "Idempotent-Replayed" not in answer.headers


async def test_calls_that_are_doomed_count_for_their_wallet(tmp_path: Path) -> None:
    async with open_world(tmp_path, rate_wallet_per_minute=FEW) as world:
        wallet = await world.customer("1.00")
        async with nothing_changes(world):
            for _ in range(FEW):
                refusal(await world.sign(wallet, "GET", f"{LIST}/srv_nothing"), 404, "not_found")
            limited(await world.sign(wallet, "GET", f"{LIST}/srv_nothing"), retry_after_s=10)


async def test_what_was_done_is_told_again_to_a_wallet_over_its_limit(tmp_path: Path) -> None:
    async with open_world(tmp_path, rate_wallet_per_minute=FEW) as world:
        wallet = await world.customer("1.00")
        payment = await world.payment(wallet, "GET", LIST)
        paid = await world.send_payment(payment, "GET", LIST)
        keyed = await world.sign(wallet, "POST", "/v1/ssh-keys", KEY, key="k")
        assert (paid.status_code, keyed.status_code) == (200, 201)
        for _ in range(FEW - 2):
            assert (await world.sign(wallet, "GET", LIST)).status_code == 200
        fresh = await world.payment(wallet, "POST", "/v1/ssh-keys", KEY)
        limited(await world.sign(wallet, "GET", LIST), retry_after_s=10)

        async with nothing_changes(world):
            paid_again = await world.send_payment(payment, "GET", LIST)
            keyed_again = await world.sign(wallet, "POST", "/v1/ssh-keys", KEY, key="k")
            keyed_fresh = await world.send_payment(fresh, "POST", "/v1/ssh-keys", KEY, key="k")
        assert paid_again.content == paid.content
        assert keyed_again.content == keyed_fresh.content == keyed.content
        for again in (paid_again, keyed_again, keyed_fresh):
            assert again.headers["Idempotent-Replayed"] == "true"
        limited(await world.sign(wallet, "GET", LIST), retry_after_s=10)


# --- what is never limited --------------------------------------------------------------------------------------


async def test_destroying_and_paying_in_are_never_limited(tmp_path: Path) -> None:
    async with open_world(tmp_path, rate_address_per_minute=FEW, rate_wallet_per_minute=FEW) as world:
        wallet = await world.customer("20.00")
        server = await world.rent(wallet)
        payment = await world.payment(wallet, "DELETE", f"{LIST}/{server['id']}")
        world.clock.advance(60)
        await use_up_address(world)
        await use_up_wallet(world, wallet)

        for _ in range(2 * FEW):
            challenge(await world.ask("POST", DEPOSIT, ONE))
            challenge(await world.ask("DELETE", f"{LIST}/{server['id']}"))
            refusal(await world.send_payment("%%%", "POST", DEPOSIT, ONE), 400, "invalid_payment")
            refusal(
                await world.send_payment("%%%", "DELETE", f"{LIST}/{server['id']}"), 400, "invalid_payment"
            )
            assert (await world.pay(wallet, "POST", DEPOSIT, ONE)).status_code == 200
            refusal(await world.sign(wallet, "DELETE", f"{LIST}/srv_nothing"), 404, "not_found")
        assert (await world.send_payment(payment, "DELETE", f"{LIST}/{server['id']}")).status_code == 200
        await world.check_books()


async def test_what_is_never_limited_uses_up_nothing_either(tmp_path: Path) -> None:
    async with open_world(tmp_path, rate_address_per_minute=FEW, rate_wallet_per_minute=FEW) as world:
        wallet = await world.customer("20.00")
        for _ in range(2 * FEW):
            challenge(await world.ask("POST", DEPOSIT, ONE))
            assert (await world.pay(wallet, "POST", DEPOSIT, ONE)).status_code == 200
            refusal(await world.sign(wallet, "DELETE", f"{LIST}/srv_nothing"), 404, "not_found")
        await use_up_address(world)
        await use_up_wallet(world, wallet)


async def test_a_limit_of_0_is_none(tmp_path: Path) -> None:
    async with open_world(tmp_path, rate_address_per_minute=0, rate_wallet_per_minute=0) as world:
        wallet = await world.customer("20.00")
        for _ in range(50):
            challenge(await world.ask("GET", LIST))
            assert (await world.sign(wallet, "GET", "/v1/balance")).status_code == 200


async def test_ten_agents_behind_one_address_poll_each_second_unhindered(tmp_path: Path) -> None:
    """What the defaults promise, for stock clients that ask before they pay; a minute and a half of it."""
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        for _ in range(90):
            for _ in range(10):
                challenge(await world.ask("GET", LIST))
            assert (await world.sign(wallet, "GET", "/v1/balance")).status_code == 200
            world.clock.advance(1)


# --- whose address ----------------------------------------------------------------------------------------------


async def ask_for(http: httpx.AsyncClient, forwarded_for: str) -> httpx.Response:
    return await http.get(LIST, headers={"X-Forwarded-For": forwarded_for})


async def test_callers_behind_a_trusted_proxy_are_told_apart(tmp_path: Path) -> None:
    async with open_world(tmp_path, rate_address_per_minute=FEW, trusted_proxies=f"{PROXY}/32") as world:
        for number in range(FEW):
            # What a caller adds on the left does not make it another.
            challenge(await ask_for(world.http, f"192.0.2.{number}, 203.0.113.9"))
        limited(await ask_for(world.http, "203.0.113.9"), retry_after_s=10)
        challenge(await ask_for(world.http, "203.0.113.10"))


async def test_the_header_of_anybody_else_is_ignored(tmp_path: Path) -> None:
    async with open_world(tmp_path, rate_address_per_minute=FEW, trusted_proxies=f"{PROXY}/32") as world:
        async with from_address(world, "198.51.100.7") as stranger:
            for number in range(FEW):
                challenge(await ask_for(stranger, f"203.0.113.{number}"))
            limited(await ask_for(stranger, "203.0.113.99"), retry_after_s=10)
        challenge(await ask_for(world.http, "203.0.113.0"))


async def test_without_trusted_proxies_nobody_is_believed(tmp_path: Path) -> None:
    async with open_world(tmp_path, rate_address_per_minute=FEW) as world:
        for number in range(FEW):
            challenge(await ask_for(world.http, f"203.0.113.{number}"))
        limited(await ask_for(world.http, "203.0.113.99"), retry_after_s=10)
        async with from_address(world, "198.51.100.7") as other:
            challenge(await other.get(LIST))


async def test_an_ipv6_site_is_one_caller(tmp_path: Path) -> None:
    async with open_world(tmp_path, rate_address_per_minute=FEW) as world:
        for number in range(FEW):
            async with from_address(world, f"2001:db8:1:2::{number:x}") as http:
                challenge(await http.get(LIST))
        async with from_address(world, "2001:db8:1:2:3:4:5:6") as http:
            limited(await http.get(LIST), retry_after_s=10)
        async with from_address(world, "2001:db8:1:3::1") as http:
            challenge(await http.get(LIST))
