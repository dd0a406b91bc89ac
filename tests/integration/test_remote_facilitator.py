"""Settling through others, who are down, slow, wrong or lying: what reaches the books is what the chain shows."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from spawn_schemas.x402 import Reason
from x402.mechanisms.evm.types import ExactEIP3009Payload
from x402.schemas.responses import SettleRequest

from spawn.payments.facilitator import Settled
from spawn.payments.facilitator_api import ANSWER_MAX_BYTES, request_body
from spawn.payments.remote import SUPPORTED_FOR_S
from tests.integration.remote_world import (
    HASH,
    PAYER,
    World,
    open_world,
    rejected,
    settled,
    signed,
    standing,
    unclear,
)
from tests.payments import NOW, PAYEE, TERMS

OTHER = "0x" + "99" * 20


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path / "chain.db") as there:
        yield there


# --- what is sent ---------------------------------------------------------------------------------------------


def test_what_we_ask_is_what_the_sdk_reads() -> None:
    payment = signed(value=2**60)
    asked = SettleRequest.model_validate_json(request_body(payment, TERMS))
    assert asked.x402_version == asked.payment_payload.x402_version == 2
    assert asked.payment_payload.accepted == asked.payment_requirements
    wanted = asked.payment_requirements
    assert (wanted.scheme, wanted.network, wanted.amount) == ("exact", TERMS.network, str(2**60))
    assert (wanted.asset.lower(), wanted.pay_to.lower()) == (TERMS.asset, PAYEE)
    assert wanted.extra == {"name": "USDC", "version": "2"}
    assert wanted.max_timeout_seconds == TERMS.max_timeout_s
    inner = ExactEIP3009Payload.from_dict(asked.payment_payload.payload)
    assert inner.signature == payment.signature
    assert inner.authorization.from_address == PAYER.address
    assert inner.authorization.to == wanted.pay_to
    assert (inner.authorization.value, inner.authorization.nonce) == (str(2**60), payment.nonce)
    assert (inner.authorization.valid_after, inner.authorization.valid_before) == ("0", str(NOW + 300))


async def test_an_honest_facilitator_settles(world: World) -> None:
    payment = signed()
    transaction = await settled(world.ours, payment)
    assert await world.ours.find(payment) == Settled(transaction=transaction)
    assert [(call.method, call.path) for call in world.first.calls] == [
        ("GET", "/supported"),
        ("POST", "/verify"),
        ("POST", "/settle"),
    ]
    assert world.second.calls == []
    assert await world.moved() == 1
    assert standing(world.ours).settled == 1


async def test_nobody_is_asked_at_the_start(world: World) -> None:
    world.open("http://127.0.0.1:1")
    assert world.first.calls == world.second.calls == []


async def test_a_payment_that_is_known_on_the_chain_is_not_sent_again(world: World) -> None:
    payment = signed()
    transaction = await settled(world.ours, payment)
    assert await settled(world.open(), payment) == transaction
    assert world.first.asked("/settle") == 1


async def test_nothing_is_sent_while_the_chain_cannot_be_asked(world: World) -> None:
    world.on_chain.down = True
    await unclear(world.ours, signed())
    assert world.first.calls == []
    assert await world.moved() == 0


async def test_the_same_payment_at_the_same_time_is_sent_once(world: World) -> None:
    outcomes = await asyncio.gather(*(world.ours.settle(signed()) for _ in range(8)))
    assert len({repr(outcome) for outcome in outcomes}) == 1
    assert world.first.asked("/settle") == 1


async def test_many_first_payments_ask_once_what_is_supported(world: World) -> None:
    async def take_long(path: str) -> None:
        await asyncio.sleep(0.02 if path == "/supported" else 0)

    world.first.before_answer = take_long
    outcomes = await asyncio.gather(*(world.ours.settle(signed(nonce, value=1)) for nonce in range(20)))
    assert all(isinstance(outcome, Settled) for outcome in outcomes)
    assert world.first.asked("/supported") == 1


# --- before anything is handed over ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/supported", "/verify"])
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b""),
        (503, b"<html>"),
        (429, b""),
        (200, b"{"),
        (200, b"[]"),
        (200, b'{"isValid": "yes", "kinds": 1}'),
        (200, b'{"isValid":\xff}'),
        (200, b'{"x":' + b"[" * 100_000),
        (200, b'{"isValid": false}'),
        (200, b'{"isValid": false, "invalidReason": "unexpected_verify_error"}'),
        (200, b'{"isValid": true, "kinds": [], "junk": "' + b"." * ANSWER_MAX_BYTES + b'"}'),
        (307, b""),
    ],
    ids=lambda value: value if isinstance(value, int) else bytes(value[:24]).decode(errors="replace"),
)
async def test_whoever_cannot_look_at_it_is_passed_over(
    world: World, path: str, status: int, body: bytes
) -> None:
    world.first.say(path, body, status=status, location="http://second.test/verify")
    await settled(world.ours, signed())
    refused = standing(world.ours)
    if (path, status) == ("/supported", 307):
        assert refused.settled == 1  # What it supports is its own affair as long as it answers the rest.
        return
    assert world.first.asked("/settle") == 0
    assert refused.failed == 1
    assert world.second.asked("/settle") == 1
    assert await world.moved() == 1


@pytest.mark.parametrize("path", ["/supported", "/verify"])
async def test_whoever_hangs_is_passed_over(world: World, path: str) -> None:
    world.first.hangs_at.add(path)
    await settled(world.open(timeout_s=1.0), signed())
    assert world.second.asked("/settle") == 1


async def test_whoever_does_not_settle_on_our_chain_is_skipped(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    kinds = [{"x402Version": 2, "scheme": "exact", "network": "eip155:1"}]
    world.first.say("/supported", {"kinds": kinds})
    await settled(world.ours, signed(1))
    await settled(world.ours, signed(2))
    assert world.first.asked("/verify") == 0
    assert standing(world.ours).unsupported
    assert caplog.text.count("incident: first.test does not settle exact payments on eip155:84532") == 1
    world.clock.advance(SUPPORTED_FOR_S)
    await settled(world.ours, signed(3, valid_before=NOW + 3000))
    assert world.first.asked("/settle") == 1
    assert not standing(world.ours).unsupported


@pytest.mark.parametrize(
    "kind",
    [
        {"x402Version": 2, "scheme": "exact", "network": "eip155:84532", "extra": {"a": 1}},
        {"x402Version": 2, "scheme": "exact", "network": "eip155:*"},
    ],
)
async def test_what_is_supported_may_be_a_family_of_chains(world: World, kind: dict[str, Any]) -> None:
    other = {"x402Version": 1, "scheme": "exact", "network": "base-sepolia"}
    world.first.say("/supported", {"kinds": [other, kind], "signers": None})
    await settled(world.ours, signed())
    assert world.first.asked("/settle") == 1


async def test_whoever_keeps_what_it_supports_to_itself_is_asked(world: World) -> None:
    world.first.say("/supported", status=404)
    await settled(world.ours, signed())
    assert world.first.asked("/settle") == 1


async def test_a_refusal_of_what_we_verified_is_an_incident_and_another_is_asked(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.first.say("/verify", {"isValid": False, "invalidReason": Reason.SIGNATURE.value})
    await settled(world.ours, signed())
    assert standing(world.ours).disagreed == 1
    assert standing(world.ours).refused == 0
    assert (
        f"incident: first.test refuses a payment that we verified ({Reason.SIGNATURE.value})" in caplog.text
    )
    assert world.second.asked("/settle") == 1


async def test_if_all_of_them_disagree_the_payment_is_refused(world: World) -> None:
    for facilitator in (world.first, world.second):
        facilitator.say("/verify", {"isValid": False, "invalidReason": Reason.VALUE_MISMATCH.value})
    assert await rejected(world.ours, signed()) == Reason.VALUE_MISMATCH
    assert await world.moved() == 0
    await settled(world.ours, signed())


async def test_time_that_has_run_out_is_no_disagreement(world: World) -> None:
    payment = signed(valid_before=NOW + 3)
    world.first.say("/verify", {"isValid": False, "invalidReason": Reason.VALID_BEFORE.value})
    assert await rejected(world.ours, payment) == Reason.VALID_BEFORE
    assert (standing(world.ours).refused, standing(world.ours).disagreed) == (1, 0)
    world.first.say("/verify", {"isValid": False, "invalidReason": Reason.VALID_BEFORE.value})
    await settled(world.ours, signed())
    assert standing(world.ours).disagreed == 1


@pytest.mark.parametrize("reason", ["payer_is_sanctioned", Reason.INSUFFICIENT_FUNDS.value])
@pytest.mark.parametrize("status", [200, 400, 412])
async def test_what_only_they_can_know_is_final(world: World, reason: str, status: int) -> None:
    world.first.say("/verify", {"isValid": False, "invalidReason": reason}, status=status)
    assert await rejected(world.ours, signed()) == reason
    assert world.second.calls == []
    assert (standing(world.ours).refused, standing(world.ours).disagreed) == (1, 0)


async def test_a_reason_is_a_word_or_is_not_repeated(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="spawn")
    for facilitator in (world.first, world.second):
        facilitator.say("/verify", {"isValid": False, "invalidReason": "hunter2 <script>"})
    await unclear(world.ours, signed())
    assert "first.test cannot verify payments (unexpected_verify_error)" in caplog.messages
    assert "hunter2" not in caplog.text


async def test_a_stranger_who_was_quicker_is_not_a_refusal(world: World) -> None:
    payment = signed()

    async def submit(path: str) -> None:
        if path == "/verify":
            await world.chain.settle(payment)

    world.first.before_answer = submit
    world.first.say("/verify", {"isValid": False, "invalidReason": Reason.NONCE_USED.value})
    await settled(world.ours, payment)
    assert world.first.asked("/settle") == 0


async def test_a_spent_nonce_that_our_node_does_not_show_is_unclear(world: World) -> None:
    world.first.say("/verify", {"isValid": False, "invalidReason": Reason.NONCE_USED.value})
    await unclear(world.ours, signed())


async def test_if_nobody_takes_it_the_same_payment_may_be_sent_again(world: World) -> None:
    for facilitator in (world.first, world.second):
        facilitator.say("/verify", status=500)
    payment = signed()
    assert await unclear(world.ours, payment) is None
    assert await world.moved() == 0
    await settled(world.ours, payment)


# --- once it is handed over -----------------------------------------------------------------------------------


async def test_settled_and_then_an_error(world: World) -> None:
    world.first.say("/settle", status=500, after=True)
    await settled(world.ours, signed())
    assert world.second.asked("/settle") == 0
    assert await world.moved() == 1


@pytest.mark.parametrize("status", [408, 409, 425, 500, 502, 503, 504])
async def test_an_error_that_tells_nothing_is_unclear_and_nobody_else_is_asked(
    world: World, status: int
) -> None:
    world.first.say("/settle", status=status)
    payment = signed()
    assert await unclear(world.ours, payment) is None
    assert world.second.calls == []
    assert await settled(world.ours, payment) == (await world.chain.transfers())[-1].tx_hash
    assert await world.moved() == 1


@pytest.mark.parametrize("body", [b"", b"null", b'{"success":true', b'{"success":"yes"}', b"." * 10**6])
async def test_nonsense_is_unclear(world: World, body: bytes) -> None:
    world.first.say("/settle", body)
    await unclear(world.ours, signed())
    assert world.second.calls == []
    assert standing(world.ours).failed == 1


async def test_no_answer_in_time_is_unclear(world: World) -> None:
    world.first.hangs_at.add("/settle")
    await unclear(world.open(timeout_s=1.0), signed())
    assert world.second.calls == []


@pytest.mark.parametrize("status", [307, 400, 401, 402, 403, 404, 405, 413, 422, 429])
async def test_a_refusal_to_listen_lets_another_be_asked(world: World, status: int) -> None:
    world.first.say("/settle", b'{"errorType": "no"}', status=status, location="http://second.test/settle")
    await settled(world.ours, signed())
    assert (world.first.asked("/settle"), world.second.asked("/settle")) == (1, 1)


@pytest.mark.parametrize(
    "lie",
    [
        {"transaction": "", "network": TERMS.network},
        {"network": TERMS.network},
        {"transaction": None, "network": None},
        {"transaction": HASH[:-1], "network": TERMS.network},
        {"transaction": HASH, "network": "eip155:1"},
        {"transaction": HASH},
        {"transaction": HASH, "network": TERMS.network, "payer": OTHER},
    ],
)
async def test_success_that_is_not_ours_credits_nobody(world: World, lie: dict[str, Any]) -> None:
    world.first.say("/settle", {"success": True} | lie)
    assert await unclear(world.ours, signed()) is None
    assert await world.moved() == 0
    assert (standing(world.ours).unproven, standing(world.ours).failed) == (1, 1)


async def test_success_without_a_transfer_credits_nobody(world: World) -> None:
    payment = signed()
    claimed = {"success": True, "transaction": HASH, "network": TERMS.network, "payer": payment.payer}
    world.first.say("/settle", claimed)
    assert await unclear(world.ours, payment) == HASH
    assert standing(world.ours).unproven == 1
    assert await world.ours.find(payment) is None


async def test_success_is_credited_with_the_transfer_that_the_chain_shows(world: World) -> None:
    payment = signed()
    claimed = {"success": True, "transaction": HASH, "network": TERMS.network}
    world.first.say("/settle", claimed, after=True)
    assert await settled(world.ours, payment) != HASH


@pytest.mark.parametrize("kind", ["lag", "shallow"])
async def test_a_call_waits_for_the_chain_to_show_it(world: World, kind: str) -> None:
    ours = world.open(wait_s=5.0)
    setattr(world.on_chain, kind, 3)
    await settled(ours, signed())
    assert world.first.asked("/settle") == 1


async def test_a_call_does_not_wait_longer_than_it_may(world: World) -> None:
    payment = signed()
    world.on_chain.shallow = 10**9
    transaction = await unclear(world.ours, payment)
    assert transaction == (await world.chain.transfers())[-1].tx_hash
    assert await unclear(world.open(), payment) == transaction
    world.on_chain.shallow = 0
    assert await settled(world.ours, payment) == transaction
    assert world.first.asked("/settle") == 1


async def test_pending_is_waited_for(world: World) -> None:
    ours = world.open(wait_s=5.0)
    world.on_chain.lag = 3
    pending = {"success": False, "errorReason": "settlement_pending", "network": TERMS.network}
    world.first.say("/settle", pending | {"transaction": HASH}, after=True)
    await settled(ours, signed())


async def test_pending_for_longer_is_unclear_with_its_hash(world: World) -> None:
    pending = {"success": False, "errorReason": "settlement_pending", "network": TERMS.network}
    world.first.say("/settle", pending | {"transaction": HASH.upper().replace("X", "x")})
    assert await unclear(world.ours, signed()) == HASH


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("reason", [Reason.INSUFFICIENT_FUNDS.value, Reason.SIGNATURE.value])
async def test_a_refusal_is_final_where_nothing_was_sent(world: World, reason: str, status: int) -> None:
    said = {"success": False, "errorReason": reason, "transaction": "", "network": TERMS.network}
    world.first.say("/settle", said, status=status)
    assert await rejected(world.ours, signed()) == reason
    assert world.second.asked("/settle") == 0
    await settled(world.ours, signed())


@pytest.mark.parametrize(
    ("reason", "transaction"),
    [
        ("transaction_failed", ""),
        ("transaction_failed", HASH),
        (Reason.INSUFFICIENT_FUNDS.value, HASH),
        ("unexpected_settle_error", ""),
        ("somebody_else_s_word", ""),
        (None, ""),
    ],
)
async def test_a_refusal_that_may_have_sent_something_is_unclear(
    world: World, reason: str | None, transaction: str
) -> None:
    said = {"success": False, "errorReason": reason, "transaction": transaction, "network": TERMS.network}
    world.first.say("/settle", said)
    assert await unclear(world.ours, signed()) == (transaction or None)


async def test_a_refusal_after_the_money_moved_is_no_refusal(world: World) -> None:
    said = {"success": False, "errorReason": Reason.INSUFFICIENT_FUNDS.value, "transaction": ""}
    world.first.say("/settle", said, after=True)
    await settled(world.ours, signed())


async def test_nothing_is_refused_while_it_may_be_under_way(world: World) -> None:
    """Paying anew for what then settles after all would be paying twice."""
    payment = signed()
    pending = {"success": False, "errorReason": "settlement_pending", "network": TERMS.network}
    world.first.say("/settle", pending | {"transaction": HASH})
    assert await unclear(world.ours, payment) == HASH
    for path in ("/verify", "/settle"):
        refusal = {"reason": "insufficient_funds", "isValid": False, "success": False}
        said = refusal | {
            "invalidReason": "insufficient_funds",
            "errorReason": "insufficient_funds",
            "transaction": "",
            "network": TERMS.network,
        }
        world.first.say(path, said)
        assert await unclear(world.ours, payment) == HASH
    await world.chain.cancel(payment.payer, payment.nonce)
    assert await rejected(world.ours, payment) == Reason.NONCE_USED


async def test_a_call_that_is_cut_short_leaves_it_under_way(world: World) -> None:
    payment = signed()
    handed_over = asyncio.Event()

    async def hold(path: str) -> None:
        if path == "/settle":
            handed_over.set()
            await asyncio.Event().wait()

    ours = world.open(timeout_s=60)
    world.first.before_answer = hold
    world.first.say("/settle", status=500)
    call = asyncio.ensure_future(ours.settle(payment))
    await asyncio.wait_for(handed_over.wait(), 10)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    world.first.say("/verify", {"isValid": False, "invalidReason": Reason.INSUFFICIENT_FUNDS.value})
    await unclear(ours, payment)
    world.first.say("/verify", {"isValid": False, "invalidReason": Reason.INSUFFICIENT_FUNDS.value})
    assert await rejected(ours, signed(1)) == Reason.INSUFFICIENT_FUNDS
