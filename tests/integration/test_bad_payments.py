"""Forged, broken, misdirected, expired and replayed payments and signatures, sent over HTTP, change nothing."""

import json
from base64 import b64decode
from dataclasses import replace
from pathlib import Path

import httpx
import msgspec
from spawn_schemas.errors import Code
from spawn_schemas.x402 import Reason

from tests.harness import CHAIN_ID, ORDER, World, open_world
from tests.integration.paid_calls import challenge, nothing_changes, paid_in, refusal, signed, usdc
from tests.unit import bad_payments, bad_signatures
from tests.unit.bad_payments import BAD_PAYMENTS, BadPayment, Payment
from tests.unit.bad_signatures import BAD_CALLS, CALLER, BadCall, Call
from tests.wallets import Wallet, encode

BUY = ORDER | {"fund": "6.00"}

# A signature that does not name a wallet of ours is none for us: the call is unpaid.
UNSIGNED = {"no Signature-Input", "no parameters", "no keyid", "keyid of another kind", "keyid as a token"}
# The framework refuses these before anybody looks at the signature.
BEFORE_THE_GATE = {
    "another method": (405, "method_not_allowed"),
    "a path spelled otherwise": (404, "not_found"),
    "another path": (404, "not_found"),
}
# About what the receiver knows of itself; `test_a_signature_for_another_host_is_refused` is its counterpart here.
ELSEWHERE = {"another server"}


async def good_payment(world: World, wallet: Wallet) -> Payment:
    offer = challenge(await world.ask("POST", "/v1/servers", BUY))["accepts"][0]
    return wallet.payload(offer, now=world.clock.now_s())


async def assert_refused(world: World, good: Payment, bad: BadPayment) -> None:
    answer = await world.send_payment(bad.make(good), "POST", "/v1/servers", BUY)
    if isinstance(bad.expected, Reason):
        required = challenge(answer, bad.expected.value)
        assert required["accepts"][0]["amount"] == good["accepted"]["amount"]
    else:
        assert bad.expected is Code.INVALID_PAYMENT
        assert refusal(answer, 400, "invalid_payment")["next"]


async def test_every_bad_payment_is_refused_for_its_reason_and_changes_nothing(tmp_path: Path) -> None:
    assert len(BAD_PAYMENTS) > 90
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        await world.chain.mint(bad_payments.ATTACKER.address.lower(), usdc("100"))  # type: ignore[arg-type]  # an address
        good = await good_payment(world, wallet)
        async with nothing_changes(world):
            for bad in BAD_PAYMENTS:
                await assert_refused(world, good, bad)
        # The payment that they were all made from is fine.
        bought = await world.send_payment(encode(good), "POST", "/v1/servers", BUY)
        assert bought.status_code == 201, bought.text


async def test_bad_payments_do_no_harm_beside_a_good_signature_or_an_answered_key(tmp_path: Path) -> None:
    """A broken payment is refused also where the call could have been paid otherwise: the caller meant to pay."""
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        done = await world.pay(wallet, "POST", "/v1/servers", BUY, key="k")
        assert done.status_code == 201
        good = await good_payment(world, wallet)
        request = signed(world, wallet, "POST", "/v1/servers", BUY | {"name": "other"})
        request.headers["PAYMENT-SIGNATURE"] = encode(good)[:-8]
        forged = [bad for bad in BAD_PAYMENTS if bad.expected is Reason.SIGNATURE]
        async with nothing_changes(world):
            refusal(await world.http.send(request), 400, "invalid_payment")
            for bad in forged:
                answer = await world.send_payment(bad.make(good), "POST", "/v1/servers", BUY, key="k")
                challenge(answer, Reason.SIGNATURE.value)


async def test_a_payment_for_one_price_does_not_pay_another(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server = (await world.rent(wallet))["id"]
        fee = await world.payment(wallet, "GET", "/v1/servers")
        calls = [
            ("POST", "/v1/servers", ORDER),
            ("POST", "/v1/servers", BUY),
            ("POST", f"/v1/servers/{server}/stop", None),
            ("DELETE", f"/v1/servers/{server}", None),
            ("POST", "/v1/balance/deposit", {"amount": "1.00"}),
        ]
        async with nothing_changes(world):
            for method, path, body in calls:
                answer = await world.send_payment(fee, method, path, body)
                challenge(answer, Reason.VALUE_MISMATCH.value)


async def test_a_payment_expires_while_it_is_held_back(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        payment = await world.payment(wallet, "POST", "/v1/servers", BUY)
        world.clock.advance(295)
        async with nothing_changes(world):
            challenge(
                await world.send_payment(payment, "POST", "/v1/servers", BUY), Reason.VALID_BEFORE.value
            )


async def test_two_payment_headers_are_no_payment(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        values = [await world.payment(wallet, "POST", "/v1/servers", BUY) for _ in range(2)]
        async with nothing_changes(world):
            answer = await world.http.post(
                "/v1/servers",
                content=msgspec.json.encode(BUY),
                headers=[("PAYMENT-SIGNATURE", value) for value in values],
            )
            refusal(answer, 400, "invalid_payment")


async def test_somebody_elses_used_nonce_is_still_mine(tmp_path: Path) -> None:
    """Nonces belong to their payer: the same number from two wallets is two payments."""
    async with open_world(tmp_path) as world:
        wallets = [await world.wallet() for _ in range(3)]
        required = (await world.ask("GET", "/v1/servers")).headers["PAYMENT-REQUIRED"]
        for wallet in wallets:
            payment = wallet.payment(required, now=world.clock.now_s(), nonce=5)
            assert (await world.send_payment(payment, "GET", "/v1/servers")).status_code == 200
            assert len(await paid_in(world, wallet)) == 1


async def test_a_challenge_for_a_bad_payment_can_be_paid(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        good = await good_payment(world, wallet)
        good["payload"]["authorization"]["value"] = "1"
        refused = await world.send_payment(encode(good), "POST", "/v1/servers", BUY)
        required = refused.headers["PAYMENT-REQUIRED"]
        assert json.loads(b64decode(required))["error"] == Reason.SIGNATURE.value
        payment = wallet.payment(required, now=world.clock.now_s())
        assert (await world.send_payment(payment, "POST", "/v1/servers", BUY)).status_code == 201


# --- signatures -----------------------------------------------------------------------------------------------


def call(world: World) -> Call:
    return Call(
        body=msgspec.json.encode(ORDER),
        authority=world.settings.authority,
        chain_id=CHAIN_ID,
        now=world.clock.now_s(),
    )


async def send(world: World, made: Call) -> httpx.Response:
    headers = [(name.encode(), value.encode("latin-1")) for name, value in made.headers.items()]
    return await world.http.request(
        made.method, made.path + made.query, content=made.body or None, headers=headers
    )


async def assert_call_refused(world: World, bad: BadCall) -> None:
    answer = await send(world, bad.make(call(world)))
    if bad.name in UNSIGNED:
        challenge(answer)
    elif bad.name in BEFORE_THE_GATE:
        refusal(answer, *BEFORE_THE_GATE[bad.name])
    else:
        details = refusal(answer, 401, "invalid_signature")["details"]
        assert details["reason"] == bad.reason


async def test_every_bad_signature_is_refused_for_its_reason_and_changes_nothing(tmp_path: Path) -> None:
    names = {bad.name for bad in BAD_CALLS}
    assert len(names) > 60
    assert names > UNSIGNED | ELSEWHERE | BEFORE_THE_GATE.keys()
    async with open_world(tmp_path) as world:
        wallet = Wallet(CALLER)
        await world.chain.mint(wallet.address, usdc("100"))
        await world.pay(wallet, "POST", "/v1/balance/deposit", {"amount": "20.00"})
        async with nothing_changes(world):
            for bad in BAD_CALLS:
                if bad.name not in ELSEWHERE:
                    await assert_call_refused(world, bad)
        # The call that they were all made from is fine.
        made = await send(world, bad_signatures.sign(call(world)))
        assert made.status_code == 201, made.text


async def test_a_signature_for_another_host_is_refused(tmp_path: Path) -> None:
    """Whatever the Host header says: what was signed for somebody else is not for us."""
    async with open_world(tmp_path) as world:
        other = bad_signatures.sign(replace(call(world), authority="other.example"))
        async with nothing_changes(world):
            for made in (other, other.with_headers(host="other.example")):
                details = refusal(await send(world, made), 401, "invalid_signature")["details"]
                assert details["reason"] == "signature"


async def test_a_body_swapped_for_another_good_one_is_refused(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        swapped = msgspec.json.encode(ORDER | {"name": "swapped"})
        made = replace(bad_signatures.sign(call(world)), body=swapped)
        async with nothing_changes(world):
            for bad, reason in (
                (made, "digest"),
                (made.with_headers(content_digest=bad_signatures.digest(swapped)), "signature"),
            ):
                details = refusal(await send(world, bad), 401, "invalid_signature")["details"]
                assert details["reason"] == reason
