"""The relayer's ways through a healthy chain: who goes with whom, what is refused, and who is faster."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from spawn_ledger.accounts import COST_GAS, EXT_GAS
from spawn_ledger.transfers import balance_of
from spawn_schemas.x402 import Reason

from spawn.evm.transactions import address_of
from spawn.payments.facilitator import Rejected, Settled, SettlementUnclear
from tests.integration.relayer_scene import (
    OTHER_KEY,
    PATIENCE_S,
    PAYERS,
    Scene,
    open_scene,
    pay,
    policy,
    rejected,
    settled,
    wallet,
)
from tests.payments import NOW, TERMS, authorize
from tests.relaying import ACCOUNT, ETHER, KEY, relays

SELECT_STATES = """
SELECT s.state AS settled, r.state AS relayed, r.raw FROM settlement s JOIN relay r ON r.hash = s.transaction_hash
"""


@pytest.fixture
async def scene(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    async with open_scene(tmp_path, **getattr(request, "param", {})) as scene:
        yield scene


# --- the straight way -----------------------------------------------------------------------------------------


async def test_each_step_is_recorded_before_the_next(scene: Scene) -> None:
    (call,) = await scene.settle(pay())
    assert await scene.states() == ["reserved"]
    at_send: list[tuple[str, str, bytes]] = []

    def look(name: str) -> None:
        if name == "send":
            with scene.place.snapshot() as tx:
                at_send.extend((row["settled"], row["relayed"], row["raw"]) for row in tx.all(SELECT_STATES))

    scene.node.faults.on_call = look
    await scene.step()
    assert [(state, relay) for state, relay, _ in at_send[:1]] == [("signed", "signed")]
    assert at_send[0][2]
    assert await scene.states() == ["broadcast"]
    assert not call.done()
    scene.node.mine()
    await scene.step()
    assert await scene.states() == ["confirmed"]
    assert [await settled(call)] == await scene.hashes()
    assert scene.node.transfers() == [(wallet(0), pay().nonce)]


async def test_a_lone_payment_goes_to_the_token_itself_and_several_together(scene: Scene) -> None:
    calls = await scene.settle(*(pay(number) for number in range(5)))
    await scene.block()
    assert len({await settled(call) for call in calls}) == 1
    (alone,) = await scene.settle(pay(6))
    await scene.block()
    assert await settled(alone) not in {await settled(call) for call in calls}
    limits = [row["gas_limit"] for row in await relays(scene.db)]
    assert limits == [600_000, 150_000]


@policy(batch_max=3, alone_from_usdc=500_000)
async def test_a_large_payment_goes_alone(scene: Scene) -> None:
    payments = [pay(0), pay(1), pay(2, value=500_000), pay(3), pay(4)]
    calls = await scene.settle(*payments)
    await scene.block()
    transactions = [await settled(call) for call in calls]
    assert transactions.count(transactions[2]) == 1
    assert sorted(transactions.count(one) for one in set(transactions)) == [1, 1, 3]


async def test_gas_is_booked_when_it_was_spent(scene: Scene) -> None:
    await scene.settle(pay(0), pay(1))
    await scene.block()
    (relay,) = await relays(scene.db)
    spent = ETHER - scene.node.ether_wei(ACCOUNT)
    assert relay["gas_wei"] == spent > 0
    usdc = -(-spent * 3_000_000_000 // 10**18)
    assert await scene.db.write(lambda tx: balance_of(tx, COST_GAS).balance) == usdc
    assert await scene.db.write(lambda tx: balance_of(tx, EXT_GAS).balance) == -usdc


@policy(in_flight_max=2, batch_max=1)
async def test_only_so_many_are_in_flight(scene: Scene) -> None:
    calls = await scene.settle(*(pay(number) for number in range(5)))
    await scene.step()
    await scene.step()
    assert len(scene.node.pending) == 2
    await scene.block(3)
    assert len({await settled(call) for call in calls}) == 5


@policy(settle_wait_s=0.0)
async def test_who_waits_too_long_is_told_the_hash_and_finds_it_later(scene: Scene) -> None:
    await asyncio.gather(*await scene.settle(pay()), return_exceptions=True)
    await scene.step()
    with pytest.raises(SettlementUnclear) as unclear:
        await scene.relayer.settle(pay())
    assert [unclear.value.transaction] == await scene.hashes()
    with pytest.raises(SettlementUnclear):
        await scene.relayer.find(pay())
    await scene.block()
    assert await scene.relayer.settle(pay()) == Settled(transaction=unclear.value.transaction or "")
    assert await scene.relayer.find(pay()) == Settled(transaction=unclear.value.transaction or "")


async def test_without_a_multicall_contract_each_goes_alone(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.node.codes.clear()
    scene.node.codes[TERMS.asset] = b"\x60"
    calls = await scene.settle(pay(0), pay(1))
    await scene.block()
    assert len({await settled(call) for call in calls}) == 2
    assert caplog.text.count("SPAWN_RELAY_MULTICALL") == 1


async def test_two_keys_share_the_work(scene: Scene) -> None:
    await scene.restart(keys=(KEY, OTHER_KEY), batch_max=1, in_flight_max=1)
    scene.node.give_ether(address_of(OTHER_KEY), ETHER)
    calls = await scene.settle(pay(0), pay(1))
    await scene.block()
    assert len({await settled(call) for call in calls}) == 2
    assert {row["relayer"] for row in await relays(scene.db)} == {ACCOUNT, address_of(OTHER_KEY)}


# --- what would fail costs nothing ----------------------------------------------------------------------------


async def test_what_is_doomed_is_not_sent(scene: Scene) -> None:
    forged = authorize(PAYERS[9], value=1_000, payer=wallet(3))
    payments = [
        pay(0),
        pay(1, value=1_000_001),
        pay(2, valid_before=NOW),
        forged,
        pay(4),
        pay(5),
        pay(6, valid_after=NOW),
    ]
    scene.node.cancel(wallet(4), pay(4).nonce)
    scene.node.submit(pay(5))
    stranger = await scene.relayer.find(pay(5))
    calls = await scene.settle(*payments)
    await scene.step()
    assert stranger is not None
    assert await settled(calls[5]) == stranger.transaction
    reasons = [await rejected(calls[index]) for index in (1, 2, 3, 4, 6)]
    assert reasons == [
        Reason.INSUFFICIENT_FUNDS,
        Reason.VALID_BEFORE,
        Reason.SIGNATURE,
        Reason.NONCE_USED,
        Reason.VALID_AFTER,
    ]
    assert len(scene.node.attempts) == 1
    await scene.block()
    assert [await settled(calls[0])] == scene.node.attempts


async def test_one_payer_cannot_pay_twice_with_the_same_money(scene: Scene) -> None:
    calls = await scene.settle(*(pay(0, value=400_000, nonce=nonce) for nonce in range(4)))
    await scene.step()
    await scene.block()
    done = [await asyncio.wait_for(call, PATIENCE_S) for call in calls]
    assert sum(isinstance(one, Settled) for one in done) == 2
    assert {one.reason for one in done if isinstance(one, Rejected)} == {Reason.INSUFFICIENT_FUNDS}
    assert len(scene.node.attempts) == 1


async def test_another_authorization_of_a_nonce_is_not_the_payment_that_spent_it(scene: Scene) -> None:
    first, other = await scene.settle(pay(nonce=7), pay(nonce=7, value=2_000))
    await scene.block()
    assert await settled(first) == scene.node.attempts[0]
    assert await rejected(other) == Reason.NONCE_USED
    assert len(scene.node.attempts) == 1


async def test_a_cause_that_was_mended_is_tried_anew(scene: Scene) -> None:
    payment = pay(value=1_000_001)
    (call,) = await scene.settle(payment)
    await scene.step()
    assert await rejected(call) == Reason.INSUFFICIENT_FUNDS
    scene.node.fund(wallet(0), 1)
    (again,) = await scene.settle(payment)
    await scene.block()
    assert await settled(again)
    assert await scene.states() == ["confirmed"]


async def test_a_chain_that_stood_still_tells_an_old_time(scene: Scene) -> None:
    scene.clock.advance(100)
    calls = await scene.settle(pay(0, valid_after=NOW + 50), pay(1))
    await scene.block()
    assert all([await settled(call) for call in calls])


# --- others act first -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("company", [0, 3])
async def test_a_stranger_who_is_faster_pays_for_us(scene: Scene, company: int) -> None:
    calls = await scene.settle(*(pay(number) for number in range(1 + company)))
    await scene.step()
    scene.node.submit(pay(0))
    await scene.block(2)
    transactions = [await settled(call) for call in calls]
    assert transactions[0] not in scene.node.attempts
    assert set(transactions[1:]) <= set(scene.node.attempts)
    assert len(scene.node.transfers()) == 1 + company


@pytest.mark.parametrize("company", [0, 3])
async def test_a_payer_who_cancels_or_spends_in_time_has_not_paid(scene: Scene, company: int) -> None:
    calls = await scene.settle(*(pay(number) for number in range(2 + company)))
    await scene.step()
    scene.node.cancel(wallet(0), pay(0).nonce)
    scene.node.submit(pay(1, value=1_000_000, nonce=7))
    await scene.block(2)
    assert await rejected(calls[0]) == Reason.NONCE_USED
    assert await rejected(calls[1]) == Reason.INSUFFICIENT_FUNDS
    assert {await settled(call) for call in calls[2:]} <= set(scene.node.attempts)


async def test_greedy_code_harms_no_neighbour_and_not_us_for_ever(scene: Scene) -> None:
    scene.node.wallets.add(wallet(1))
    scene.node.greedy.add(wallet(1))
    calls = await scene.settle(*(pay(number) for number in range(4)))
    await scene.block(6)
    for index in (0, 2, 3):
        assert await settled(calls[index])
    assert await rejected(calls[1]) == "invalid_transaction_state"
    # Payers 1 to 3 failed together, and went alone afterwards.
    assert len(scene.node.attempts) == 1 + 3


async def test_code_that_leaves_no_gas_to_the_next_is_no_reason_to_refuse_them(scene: Scene) -> None:
    scene.node.hungry.add(wallet(1))
    calls = await scene.settle(*(pay(number) for number in range(4)))
    await scene.block(4)
    assert len({await settled(call) for call in calls}) == 3


async def test_code_behind_an_ordinary_signature_may_have_more_gas(scene: Scene) -> None:
    """An account with a key and code (EIP-7702): the token asks the code."""
    scene.node.gas_needed[wallet(0)] = 300_000
    (call,) = await scene.settle(pay())
    await scene.block(2)
    assert await settled(call)
    assert [row["gas_limit"] for row in await relays(scene.db)] == [500_000]


@policy(confirmations=3)
async def test_a_stranger_counts_once_it_is_deep_enough(scene: Scene) -> None:
    scene.node.submit(pay())
    (call,) = await scene.settle(pay())
    await scene.step()
    assert not call.done()
    assert await scene.states() == ["reserved"]
    await scene.block(2)
    assert await settled(call)
    assert scene.node.attempts == []


async def test_what_a_stranger_moved_is_paid_though_ours_is_stuck_beyond_its_time(scene: Scene) -> None:
    (call,) = await scene.settle(pay())
    await scene.step()
    scene.node.submit(pay())
    scene.clock.advance(301)
    scene.node.mine(only=())
    await scene.step()
    assert await settled(call) not in scene.node.attempts
    await scene.block()
    assert [row["state"] for row in await relays(scene.db)].count("confirmed") == 1
