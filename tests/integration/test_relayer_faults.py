"""The relayer when something goes wrong: the node, the fees, the chain, the nonces, and our own end."""

import asyncio
import logging
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
from spawn_schemas.x402 import Reason

from spawn.evm.node import Block, Receipt
from spawn.evm.transactions import address_of
from tests.fake_node import GWEI, FakeNode
from tests.integration.relayer_scene import OTHER_KEY, Scene, open_scene, pay, policy, rejected, settled
from tests.payments import NOW
from tests.relaying import ACCOUNT, ETHER, KEY, relays


@pytest.fixture
async def scene(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    async with open_scene(tmp_path, **getattr(request, "param", {})) as scene:
        yield scene


# --- the way to the node --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["lose_request", "lose_answer", "swallow"])
async def test_what_got_lost_on_the_way_is_sent_again(
    scene: Scene, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    setattr(scene.node.faults, fault, 1)
    (call,) = await scene.settle(pay())
    await scene.step()
    await scene.step()
    assert await scene.states() == ["broadcast"]
    assert "refuses" not in caplog.text
    await scene.wait(20)
    await scene.block()
    assert await settled(call) in scene.node.attempts
    assert len(scene.node.transfers()) == 1


async def test_what_was_mined_though_its_answer_was_lost_is_found(scene: Scene) -> None:
    scene.node.faults.lose_answer = 1
    (call,) = await scene.settle(pay())
    await scene.step()
    scene.node.mine()
    await scene.step()
    assert [await settled(call)] == await scene.hashes()


async def test_a_node_that_is_down_for_an_hour_loses_nothing(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    sent, late = pay(0), pay(1, valid_before=NOW + 3_500)
    patient = pay(2, valid_before=NOW + 7_200)
    calls = await scene.settle(sent)
    await scene.step()
    scene.node.faults.down = True
    scene.node.mine()
    calls += await scene.settle(late, patient)
    await scene.wait(3_600, step_s=10)
    assert caplog.text.count("incident: ") == 1
    scene.node.faults.down = False
    scene.node.mine()
    await scene.block(2)
    assert await settled(calls[0]) in scene.node.attempts
    assert await rejected(calls[1]) == Reason.VALID_BEFORE
    assert await settled(calls[2])
    assert scene.node.used(ACCOUNT) == len({row["nonce"] for row in await relays(scene.db)})


async def test_without_gas_money_payments_wait_and_go_on_by_themselves(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "spawn")
    scene.node.give_ether(ACCOUNT, -ETHER)
    calls = await scene.settle(pay(0))
    await scene.wait(60)
    calls += await scene.settle(pay(1))
    await scene.wait(60)
    assert len(scene.node.attempts) <= 30
    assert caplog.text.count("cannot pay for gas") == 1
    assert await scene.states() == ["signed", "reserved"]
    scene.node.give_ether(ACCOUNT, ETHER)
    await scene.wait(6)
    await scene.block(2)
    assert len({await settled(call) for call in calls}) == 2
    assert "the trouble with gas money is over" in caplog.text


async def test_what_expires_without_gas_money_is_told_so(scene: Scene) -> None:
    scene.node.give_ether(ACCOUNT, -ETHER)
    calls = await scene.settle(pay(0))
    await scene.step()
    calls += await scene.settle(pay(1))
    scene.clock.advance(301)
    scene.node.mine()
    await scene.step()
    assert [await rejected(call) for call in calls] == [Reason.VALID_BEFORE] * 2
    scene.node.give_ether(ACCOUNT, ETHER)
    (call,) = await scene.settle(pay(2, valid_before=NOW + 900))
    await scene.wait(20)
    await scene.block(2)
    assert await settled(call)


# --- fees -----------------------------------------------------------------------------------------------------


async def test_what_waits_too_long_is_bumped_and_any_attempt_may_win(scene: Scene) -> None:
    (call,) = await scene.settle(pay())
    await scene.step()
    await scene.wait(31)
    attempts = await relays(scene.db)
    assert [row["attempt"] for row in attempts] == [1, 2, 3]
    assert len({row["nonce"] for row in attempts}) == 1
    for before, after in pairwise(attempts):
        assert after["max_fee_wei"] * 8 >= before["max_fee_wei"] * 9
        assert after["priority_fee_wei"] * 8 >= before["priority_fee_wei"] * 9
    assert scene.node.pending == [attempts[2]["hash"]]
    # Another node had kept the second.
    scene.node.forget()
    scene.node.automine = True
    await scene.node.send(attempts[1]["raw"])
    await scene.step()
    assert await settled(call) == attempts[1]["hash"]
    assert [row["state"] for row in await relays(scene.db)] == ["replaced", "confirmed", "replaced"]


async def test_what_the_node_finds_too_cheap_is_offered_more(scene: Scene) -> None:
    scene.node.faults.least_tip_wei = 4 * scene.node.tip_wei
    (call,) = await scene.settle(pay())
    await scene.wait(30)
    await scene.block()
    assert await settled(call)
    assert all(row["max_fee_wei"] <= 5 * GWEI for row in await relays(scene.db))


@policy(fee_cap_wei=GWEI // 50)
async def test_no_fee_is_ever_above_the_cap(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    (call,) = await scene.settle(pay())
    await scene.step()
    await scene.wait(100)
    assert {row["max_fee_wei"] for row in await relays(scene.db)} == {GWEI // 50}
    scene.node.base_fee_wei = GWEI // 10
    scene.node.mine()
    (other,) = await scene.settle(pay(1))
    await scene.wait(20)
    assert len(await relays(scene.db)) == 1
    assert caplog.text.count("SPAWN_RELAY_FEE_CAP_GWEI") == 1
    scene.node.base_fee_wei = GWEI // 100
    scene.node.mine(only=())
    await scene.block(3)
    assert await settled(call)
    assert await settled(other)


# --- the chain changes its mind ---------------------------------------------------------------------------------


@policy(confirmations=3)
async def test_only_depth_confirms(scene: Scene) -> None:
    (call,) = await scene.settle(pay())
    await scene.block(2)
    assert not call.done()
    assert await scene.states() == ["broadcast"]
    await scene.block()
    assert await settled(call)


@pytest.mark.parametrize("lose", [False, True])
@policy(confirmations=3)
async def test_a_reorganised_block_sends_the_same_bytes_again(scene: Scene, lose: bool) -> None:
    calls = await scene.settle(*(pay(number) for number in range(3)))
    await scene.block(2)
    scene.node.reorganise(2, lose=lose)
    assert scene.node.transfers() == []
    await scene.step()
    assert len(set(scene.node.attempts)) == 1
    assert len(scene.node.pending) == 1
    await scene.block(3)
    assert {await settled(call) for call in calls} == set(scene.node.attempts)


@policy(confirmations=3)
async def test_a_receipt_from_before_a_reorganisation_is_not_as_deep_as_the_chain_is_high_after_it(
    scene: Scene,
) -> None:
    (call,) = await scene.settle(pay())
    await scene.block(2)
    node, asked = scene.node, scene.node.receipts

    async def block(number: int | None = None) -> Block | None:
        """Its answer takes longer than that for the receipts, and a reorganisation comes in between."""
        for _ in range(20):
            await asyncio.sleep(0)
        return await FakeNode.block(node, number)

    async def receipts(transactions: tuple[str, ...]) -> tuple[Receipt | None, ...]:
        found = await asked(transactions)
        node.reorganise(2, lose=True)
        return found

    node.block, node.receipts = block, receipts  # type: ignore[method-assign]  # for this one round
    await scene.step()
    assert node.transfers() == []
    assert await scene.states() == ["broadcast"]
    assert not call.done()


@policy(confirmations=3)
async def test_failed_only_when_no_history_can_bring_the_time_back(scene: Scene) -> None:
    (call,) = await scene.settle(pay())
    await scene.step()
    scene.node.forget()
    scene.node.faults.least_tip_wei = ETHER  # nobody takes it any more
    scene.clock.advance(301)
    for _ in range(2):
        scene.node.mine(only=())
        await scene.step()
        assert not call.done()
    scene.node.mine(only=())
    await scene.step()
    assert await rejected(call) == Reason.VALID_BEFORE


# --- nonces -----------------------------------------------------------------------------------------------------


async def test_a_nonce_that_somebody_else_used_costs_nobody_anything(scene: Scene) -> None:
    (call,) = await scene.settle(pay())
    await scene.step()
    scene.node.spend_nonce(ACCOUNT)
    await scene.wait(16)
    await scene.block()
    assert await settled(call)
    assert [row["state"] for row in await relays(scene.db)] == ["replaced", "confirmed"]
    assert scene.node.used(ACCOUNT) == 2


async def test_a_nonce_that_was_taken_a_moment_ago_is_no_trouble(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    def take(name: str) -> None:
        if name == "priority_fee_wei" and scene.node.used(ACCOUNT) == 0:
            scene.node.spend_nonce(ACCOUNT)

    scene.node.faults.on_call = take
    (call,) = await scene.settle(pay())
    await scene.wait(17)
    await scene.block()
    assert await settled(call)
    assert "refuses" not in caplog.text


@pytest.mark.parametrize("waiting", [0, 1])
@pytest.mark.parametrize("scene", [{}, {"in_flight_max": 1}], indirect=True)
async def test_a_gap_is_filled(scene: Scene, waiting: int) -> None:
    """A database that was put back, a transaction that only another copy knew: nonces 0 and 1 are nobody's."""
    for _ in range(2):
        scene.node.spend_nonce(ACCOUNT)
    (call,) = await scene.settle(pay())
    await scene.step()
    scene.node.reorganise(2, lose=True)
    assert scene.node.used(ACCOUNT) == 0
    calls = [call, *(await scene.settle(*(pay(1 + number) for number in range(waiting))))]
    await scene.wait(40)
    await scene.block(3)
    assert all([await settled(call) for call in calls])
    assert scene.node.used(ACCOUNT) == 3
    assert {row["nonce"] for row in await relays(scene.db)} == {0, 1, 2}


async def test_a_transaction_that_the_chain_lost_after_it_was_confirmed_is_sent_again(scene: Scene) -> None:
    (call,) = await scene.settle(pay(0))
    await scene.block()
    first = await settled(call)
    scene.node.reorganise(1, lose=True)
    (other,) = await scene.settle(pay(1))
    await scene.wait(40)
    await scene.block(2)
    assert await settled(other) != first
    assert len(scene.node.transfers()) == 2


# --- the next start ---------------------------------------------------------------------------------------------


async def test_what_was_signed_and_never_sent_is_sent_by_the_next_start(scene: Scene) -> None:
    scene.node.faults.lose_request = 1
    await scene.settle(pay(0), pay(1))
    await scene.step()
    assert scene.node.attempts == []
    await scene.restart()
    calls = await scene.settle(pay(0), pay(1))
    await scene.block()
    assert {await settled(call) for call in calls} == set(await scene.hashes()) == set(scene.node.attempts)


async def test_what_was_mined_while_we_were_away_is_found(scene: Scene) -> None:
    await scene.settle(pay())
    await scene.step()
    await scene.restart()
    scene.node.mine()
    await scene.step()
    assert await scene.states() == ["confirmed"]
    assert await scene.relayer.find(pay()) is not None
    assert len(await scene.hashes()) == 1


async def test_what_waited_when_we_died_goes_on(scene: Scene) -> None:
    await scene.settle(pay())
    await scene.restart()
    await scene.block()
    assert await scene.states() == ["confirmed"]


async def test_a_key_that_is_gone_leaves_nothing_undone(scene: Scene) -> None:
    await scene.settle(pay(0), pay(1))
    await scene.step()
    scene.node.forget()
    await scene.restart(keys=(OTHER_KEY,))
    scene.node.give_ether(address_of(OTHER_KEY), ETHER)
    (call,) = await scene.settle(pay(2))
    await scene.block(2)
    assert await settled(call)
    assert await scene.states() == ["confirmed"] * 3


async def test_no_key_is_ever_shown(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    scene.node.give_ether(ACCOUNT, -ETHER)
    await scene.settle(pay())
    await scene.wait(3)
    tenure = vars(vars(scene.relayer)["_role"])
    shown = (
        caplog.text
        + repr(vars(scene.relayer))
        + repr(tenure)
        + repr([vars(lane) for lane in tenure["_lanes"]])
    )
    assert ACCOUNT in shown
    assert KEY[2:] not in shown
