"""The x402 extension `payment-identifier` over HTTP: a purchase with a name is made once, whatever pays for it."""

import json
from base64 import b64decode
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.harness import ORDER, World, open_world
from tests.integration.paid_calls import (
    PUBLIC_KEY,
    challenge,
    nothing_changes,
    paid_in,
    refusal,
    settlement,
    usdc,
)
from tests.wallets import Wallet, encode

DEPOSIT = "/v1/balance/deposit"
KEYS = "/v1/ssh-keys"
ONE = {"amount": "1.00"}
TWO = {"amount": "2.00"}
LAPTOP = {"name": "laptop", "public_key": PUBLIC_KEY}
ID = "pay_0123456789abcdef"
OTHER_ID = "pay_fedcba9876543210"


async def payment(world: World, wallet: Wallet, path: str, body: object, identifier: object) -> str:
    """A new payment for the call, its identifier put where the challenge declares one."""
    required = challenge(await world.ask("POST", path, body))
    extensions = required["extensions"]
    extensions["payment-identifier"]["info"]["id"] = identifier
    payload = wallet.payload(required["accepts"][0], now=world.clock.now_s())
    return encode(payload | {"extensions": extensions})


async def buy(
    world: World,
    wallet: Wallet,
    path: str,
    body: object,
    identifier: object = ID,
    *,
    key: str | None = None,
) -> httpx.Response:
    """What a client with the extension does: ask, pay with a nonce never used before, and name the purchase."""
    return await world.send_payment(
        await payment(world, wallet, path, body, identifier), "POST", path, body, key=key
    )


async def test_the_same_purchase_is_answered_again_and_not_paid_again(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        first = await buy(world, wallet, DEPOSIT, ONE)
        assert first.status_code == 200, first.text
        assert "Idempotent-Replayed" not in first.headers
        async with nothing_changes(world):
            again = await buy(world, wallet, DEPOSIT, ONE)
        assert (again.status_code, again.content) == (200, first.content)
        assert again.headers["Idempotent-Replayed"] == "true"
        assert settlement(again) == settlement(first)
        assert len(await paid_in(world, wallet)) == 1
        await world.check_books()


async def test_the_payment_that_a_replay_left_unspent_is_good_for_another_purchase(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        await buy(world, wallet, DEPOSIT, ONE)
        unspent = await payment(world, wallet, DEPOSIT, ONE, ID)
        assert (await world.send_payment(unspent, "POST", DEPOSIT, ONE)).headers["Idempotent-Replayed"]

        renamed = json.loads(b64decode(unspent))
        renamed["extensions"]["payment-identifier"]["info"]["id"] = OTHER_ID
        other = await world.send_payment(encode(renamed), "POST", DEPOSIT, ONE)
        assert other.status_code == 200
        assert "Idempotent-Replayed" not in other.headers
        assert await world.available(wallet.address) == usdc("2.00")


@pytest.mark.parametrize(("path", "body"), [(DEPOSIT, TWO), (DEPOSIT, {"amount": "1.0"}), (KEYS, LAPTOP)])
async def test_the_name_of_one_purchase_names_no_other(tmp_path: Path, path: str, body: Any) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        await buy(world, wallet, DEPOSIT, ONE)
        async with nothing_changes(world):
            error = refusal(await buy(world, wallet, path, body), 409, "idempotency_conflict")
        assert error["next"]


async def test_another_wallet_may_use_the_same_name(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        one, other = await world.wallet(), await world.wallet()
        assert (await buy(world, one, DEPOSIT, ONE)).status_code == 200
        theirs = await buy(world, other, DEPOSIT, TWO)
        assert (theirs.status_code, theirs.json()["deposited"]) == (200, "2.00")
        assert "Idempotent-Replayed" not in theirs.headers
        assert await world.available(one.address) == usdc("1.00")
        assert await world.available(other.address) == usdc("2.00")


async def test_only_what_was_done_is_remembered(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        world.chain_faults.refuse = 1
        assert (await buy(world, wallet, DEPOSIT, ONE)).status_code == 402
        done = await buy(world, wallet, DEPOSIT, ONE)
        assert (done.status_code, done.json()["available"]) == (200, "1.00")
        assert "Idempotent-Replayed" not in done.headers


async def test_a_refused_purchase_keeps_no_name(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        poor = await buy(world, wallet, "/v1/servers", ORDER)
        refusal(poor, 422, "insufficient_deposit")
        mended = ORDER | {"fund": "6.00"}
        done = await buy(world, wallet, "/v1/servers", mended)
        assert done.status_code == 201, done.text
        assert (await buy(world, wallet, "/v1/servers", mended)).headers["Idempotent-Replayed"] == "true"
        refusal(await buy(world, wallet, "/v1/servers", ORDER), 409, "idempotency_conflict")
        await world.check_books()


async def test_a_name_that_is_none_is_refused_before_any_money_moves(tmp_path: Path) -> None:
    short, long, foreign = (
        ("", "p" * 15),
        ("p" * 129,),
        ("pay 0123456789abcdef", "pay_0123456789abcdé", f"{ID}\n"),
    )
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        async with nothing_changes(world):
            for identifier in (*short, *long, *foreign, 1, True, [ID], {"id": ID}):
                error = refusal(await buy(world, wallet, DEPOSIT, ONE, identifier), 400, "invalid_payment")
                assert "payment-identifier" in error["message"], identifier


async def test_a_name_in_the_wrong_place_is_refused_and_not_overlooked(tmp_path: Path) -> None:
    """A caller who means to buy once must not be taken for one who names nothing."""
    misplaced: tuple[Any, ...] = (ID, [ID], 1, {}, {"id": ID}, {"info": ID}, {"info": None}, {"info": [ID]})
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        offer = challenge(await world.ask("POST", DEPOSIT, ONE))["accepts"][0]
        async with nothing_changes(world):
            for extension in misplaced:
                payload = wallet.payload(offer, now=world.clock.now_s())
                header = encode(payload | {"extensions": {"payment-identifier": extension}})
                answer = await world.send_payment(header, "POST", DEPOSIT, ONE)
                assert refusal(answer, 400, "invalid_payment")["next"], extension


async def test_a_purchase_needs_no_name(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        required = challenge(await world.ask("POST", DEPOSIT, ONE))
        nameless: tuple[Any, ...] = (
            required["extensions"],  # a client without the extension sends back what it was told
            None,
            {},
            {"payment-identifier": None},
            {"payment-identifier": {"info": {"required": False, "id": None}}},
        )
        for extensions in nameless:
            payload = wallet.payload(required["accepts"][0], now=world.clock.now_s())
            paid = await world.send_payment(
                encode(payload | {"extensions": extensions}), "POST", DEPOSIT, ONE
            )
            assert paid.status_code == 200, paid.text
        assert len(await paid_in(world, wallet)) == len(nameless)


async def test_a_name_may_be_as_short_and_as_long_as_the_extension_says(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        for identifier in ("p" * 16, "P" * 128, "-_" * 8):
            assert (await buy(world, wallet, DEPOSIT, ONE, identifier)).status_code == 200
            again = await buy(world, wallet, DEPOSIT, ONE, identifier)
            assert again.headers["Idempotent-Replayed"] == "true"


async def test_a_name_and_a_key_that_are_equal_are_one(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        first = await buy(world, wallet, DEPOSIT, ONE, key=ID)
        assert first.status_code == 200, first.text
        by_name = await buy(world, wallet, DEPOSIT, ONE)
        by_key = await world.pay(wallet, "POST", DEPOSIT, ONE, key=ID)
        assert [by_name.content, by_key.content] == [first.content] * 2
        assert len(await paid_in(world, wallet)) == 1


async def test_a_name_and_a_key_that_differ_are_refused_before_any_money_moves(tmp_path: Path) -> None:
    """Whichever of them we followed, a repeat with only the other would pay a second time."""
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        async with nothing_changes(world):
            error = refusal(await buy(world, wallet, DEPOSIT, ONE, key="another"), 400, "invalid_request")
        assert "Idempotency-Key" in error["message"]
        assert "payment-identifier" in error["message"]


async def test_a_signed_request_finds_a_purchase_by_its_name(tmp_path: Path) -> None:
    """It carries no payment, so its header names it; both rails share one set of names per wallet."""
    async with open_world(tmp_path) as world:
        wallet = await world.customer("1.00")
        bought = await buy(world, wallet, KEYS, LAPTOP)
        assert bought.status_code == 201, bought.text
        before = await world.available(wallet.address)
        signed = await world.sign(wallet, "POST", KEYS, LAPTOP, key=ID)
        assert (signed.content, signed.headers["Idempotent-Replayed"]) == (bought.content, "true")
        assert await world.available(wallet.address) == before

        by_header = await world.sign(wallet, "POST", KEYS, LAPTOP | {"name": "desk"}, key=ID)
        refusal(by_header, 409, "idempotency_conflict")


async def test_a_purchase_is_found_by_name_after_a_signed_request_made_it(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("1.00")
        first = await world.sign(wallet, "POST", KEYS, LAPTOP, key=ID)
        async with nothing_changes(world):
            again = await buy(world, wallet, KEYS, LAPTOP)
        assert (again.content, again.headers["Idempotent-Replayed"]) == (first.content, "true")
        assert "PAYMENT-RESPONSE" not in again.headers
