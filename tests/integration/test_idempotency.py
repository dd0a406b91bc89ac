"""A key, a nonce and a payment are good for one request: what a repeat gets, and for how long."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from spawn_providers.simulated_faults import Delay, Outage

from tests.harness import ORDER, World, open_world
from tests.integration.paid_calls import (
    PUBLIC_KEY,
    Barrier,
    challenge,
    everything,
    machines,
    nothing_changes,
    paid_in,
    refusal,
    signed,
    usdc,
    while_time_passes,
)
from tests.wallets import Wallet, encode

DEPOSIT = "/v1/balance/deposit"
ONE = {"amount": "1.00"}
DAY = 86_400


async def test_a_retry_with_the_same_key_leaves_its_fresh_nonce_unspent(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        first = await world.pay(wallet, "POST", DEPOSIT, ONE, key="k")
        retry = await world.payment(wallet, "POST", DEPOSIT, ONE)
        async with nothing_changes(world):
            again = await world.send_payment(retry, "POST", DEPOSIT, ONE, key="k")
        assert again.status_code == 200
        assert again.content == first.content
        assert again.headers["PAYMENT-RESPONSE"] == first.headers["PAYMENT-RESPONSE"]
        assert again.headers["Idempotent-Replayed"] == "true"

        other = await world.send_payment(retry, "POST", DEPOSIT, ONE, key="another")
        assert other.status_code == 200
        assert "Idempotent-Replayed" not in other.headers
        assert len(await paid_in(world, wallet)) == 2
        assert await world.available(wallet.address) == usdc("2.00")


async def test_the_payment_identifier_of_x402_is_a_key(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        offer = challenge(await world.ask("POST", DEPOSIT, ONE))["accepts"][0]
        extension = {"payment-identifier": {"info": {"id": "0123456789abcdef"}}}
        payments = [
            encode(wallet.payload(offer, now=world.clock.now_s()) | {"extensions": extension})
            for _ in range(2)
        ]
        first, again = [await world.send_payment(payment, "POST", DEPOSIT, ONE) for payment in payments]
        assert first.content == again.content
        assert again.headers["Idempotent-Replayed"] == "true"
        assert len(await paid_in(world, wallet)) == 1


async def test_a_key_names_one_body_only(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        assert (await world.sign(wallet, "POST", "/v1/servers", ORDER, key="k")).status_code == 201
        other = ORDER | {"name": "other"}
        payment = await world.payment(wallet, "POST", "/v1/servers", other)
        async with nothing_changes(world):
            refusal(
                await world.sign(wallet, "POST", "/v1/servers", other, key="k"), 409, "idempotency_conflict"
            )
            paid = await world.send_payment(payment, "POST", "/v1/servers", other, key="k")
            assert refusal(paid, 409, "idempotency_conflict")["next"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/servers?limit=26", None),
        ("GET", "/v1/servers", None),
        ("GET", "/v1/servers?limit=25", {}),
        ("GET", "/v1/ssh-keys", None),
        ("POST", "/v1/ssh-keys", {"name": "laptop", "public_key": PUBLIC_KEY}),
        ("GET", "/v1/balance", None),
    ],
)
async def test_a_payment_is_good_for_one_request(tmp_path: Path, method: str, path: str, body: Any) -> None:
    """The same price elsewhere, and the same place with another query, spelling or body."""
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        payment = await world.payment(wallet, "GET", "/v1/servers?limit=25")
        first = await world.send_payment(payment, "GET", "/v1/servers?limit=25")
        assert first.status_code == 200
        async with nothing_changes(world):
            refusal(await world.send_payment(payment, method, path, body), 409, "idempotency_conflict")
            again = await world.send_payment(payment, "GET", "/v1/servers?limit=25")
        assert again.content == first.content


async def test_the_same_amount_in_another_spelling_is_another_request(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        payment = await world.payment(wallet, "POST", DEPOSIT, b'{"amount":"1.00"}')
        assert (await world.send_payment(payment, "POST", DEPOSIT, b'{"amount":"1.00"}')).status_code == 200
        async with nothing_changes(world):
            again = await world.send_payment(payment, "POST", DEPOSIT, b'{"amount": "1.00"}')
            refusal(again, 409, "idempotency_conflict")


async def test_a_signed_nonce_is_used_once(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("1.00")
        request = signed(world, wallet, "GET", "/v1/servers")
        first = await world.http.send(request)
        async with nothing_changes(world):
            again = await world.http.send(request)
        assert (first.status_code, again.headers["Idempotent-Replayed"]) == (200, "true")
        assert await world.available(wallet.address) == usdc("1.00") - 1_000


async def _doomed_then_mended(world: World, wallet: Wallet, cause: str) -> int:
    """Make the same keyed request fail for this cause; answers the status it failed with."""
    match cause:
        case "short balance":
            poor = await world.sign(wallet, "POST", "/v1/servers", ORDER, key="k")
            await world.pay(wallet, "POST", DEPOSIT, {"amount": "6.00"})
            return poor.status_code
        case "taken name":
            await world.pay(wallet, "POST", DEPOSIT, {"amount": "12.00"})
            first = await world.sign(wallet, "POST", "/v1/servers", ORDER)
            refused = await world.sign(wallet, "POST", "/v1/servers", ORDER, key="k")
            path = f"/v1/servers/{first.json()['server']['id']}"
            await world.sign(wallet, "PATCH", path, {"name": "renamed"})
            return refused.status_code
        case "provider down":
            await world.pay(wallet, "POST", DEPOSIT, {"amount": "6.00"})
            world.cloud_faults.plan("create", Outage(), Outage(), Outage())
            down = world.sign(wallet, "POST", "/v1/servers", ORDER, key="k")
            return (await while_time_passes(world, down)).status_code
        case "settlement refused":
            await world.pay(wallet, "POST", DEPOSIT, {"amount": "6.00"})
            world.chain_faults.refuse = 1
            return (await world.pay(wallet, "POST", "/v1/servers", ORDER, key="k")).status_code
        case _:
            raise AssertionError(cause)


@pytest.mark.parametrize(
    ("cause", "status"),
    [("short balance", 422), ("taken name", 409), ("provider down", 503), ("settlement refused", 402)],
)
async def test_a_key_remembers_only_success(tmp_path: Path, cause: str, status: int) -> None:
    async with open_world(tmp_path, first_answer_s=30) as world:
        wallet = await world.customer("0.02")
        assert await _doomed_then_mended(world, wallet, cause) == status
        done = await world.sign(wallet, "POST", "/v1/servers", ORDER, key="k")
        assert done.status_code == 201, done.text
        assert "Idempotent-Replayed" not in done.headers
        again = await world.sign(wallet, "POST", "/v1/servers", ORDER, key="k")
        assert again.headers["Idempotent-Replayed"] == "true"
        await world.check_books()


async def test_a_key_is_forgotten_after_a_day_and_a_payment_never(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        payment = await world.payment(wallet, "POST", DEPOSIT, ONE)
        first = await world.send_payment(payment, "POST", DEPOSIT, ONE, key="k")

        world.clock.advance(DAY - 1)
        await world.tick("sweep")
        remembered = await world.pay(wallet, "POST", DEPOSIT, ONE, key="k")
        assert remembered.content == first.content
        assert len(await paid_in(world, wallet)) == 1

        world.clock.advance(1)
        await world.tick("sweep")
        anew = await world.pay(wallet, "POST", DEPOSIT, ONE, key="k")
        assert "Idempotent-Replayed" not in anew.headers
        assert len(await paid_in(world, wallet)) == 2

        # The nonce outlives the key, and once it is forgotten too, the payment has long expired.
        again = await world.send_payment(payment, "POST", DEPOSIT, ONE)
        assert again.content == first.content
        world.clock.advance(DAY)
        await world.tick("sweep")
        challenge(
            await world.send_payment(payment, "POST", DEPOSIT, ONE),
            "invalid_exact_evm_payload_authorization_valid_before",
        )
        assert len(await paid_in(world, wallet)) == 2
        assert await world.available(wallet.address) == usdc("2.00")
        await world.check_books()


async def test_a_forgotten_signature_has_long_expired(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("1.00")
        request = signed(world, wallet, "GET", "/v1/servers")
        await world.http.send(request)
        world.clock.advance(2 * DAY)
        await world.tick("sweep")
        assert await world.rows("SELECT id FROM reservation WHERE rail = 'signed'") == []
        async with nothing_changes(world):
            refusal(await world.http.send(request), 401, "invalid_signature")


async def test_a_copy_of_what_is_under_way_waits_and_is_told_so(tmp_path: Path) -> None:
    async with open_world(tmp_path, in_flight_wait_s=0.05) as world:
        wallet = await world.wallet()
        barrier = world.chain_faults.gate = Barrier()
        payment = await world.payment(wallet, "POST", DEPOSIT, ONE)
        first = asyncio.ensure_future(world.send_payment(payment, "POST", DEPOSIT, ONE, key="k"))
        await barrier.reached.wait()
        by_nonce = await world.send_payment(payment, "POST", DEPOSIT, ONE)
        by_key = await world.pay(wallet, "POST", DEPOSIT, ONE, key="k")
        for copy in (by_nonce, by_key):
            error = refusal(copy, 503, "in_progress")
            assert error["retry_after"] > 0
            assert error["next"]
        barrier.set()
        assert (await first).status_code == 200
        assert (await world.send_payment(payment, "POST", DEPOSIT, ONE)).content == (await first).content
        assert len(await paid_in(world, wallet)) == 1


async def test_a_root_password_is_handed_out_once_and_never_kept(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        request = signed(world, wallet, "POST", "/v1/servers", ORDER)
        first = (await world.http.send(request)).json()
        again = (await world.http.send(request)).json()
        password = first["root_password"]
        assert len(password) >= 12
        assert again == first | {"root_password": None}
        assert password not in str(await everything(world))

        path = f"/v1/servers/{first['server']['id']}"
        assert (await world.sign(wallet, "GET", path)).json()["server"]["root_password"] is None


async def test_a_root_password_that_came_late_is_handed_out_by_get(tmp_path: Path) -> None:
    async with open_world(tmp_path, first_answer_s=0.05) as world:
        wallet = await world.customer("20.00")
        barrier = Barrier()
        world.cloud_faults.plan("create", Delay(gate=barrier))
        request = signed(world, wallet, "POST", "/v1/servers", ORDER)
        created = (await world.http.send(request)).json()
        assert created["server"]["hetzner_id"] is None
        assert created["root_password"] is None
        barrier.set()
        await world.run_for(60)
        assert (await world.http.send(request)).json() == created

        show = signed(world, wallet, "GET", f"/v1/servers/{created['server']['id']}")
        password = (await world.http.send(show)).json()["server"]["root_password"]
        assert password not in str(await everything(world))
        assert (await world.http.send(show)).json()["server"]["root_password"] is None
        assert len(password) >= 12
        assert await machines(world) == 1
