"""The relayer on a chain in memory: each state and each thing that goes wrong, on a virtual clock."""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from spawn_ledger.accounts import COST_GAS, EXT_GAS
from spawn_ledger.transfers import balance_of
from spawn_schemas.ids import Address
from spawn_schemas.x402 import Reason

from spawn.evm.transactions import address_of
from spawn.payments.exact import ExactPayment
from spawn.payments.facilitator import Rejected, Settled, SettlementUnclear
from spawn.services.relayer import Relayer
from spawn.store.sqlite import SqliteDatabase
from tests.fake_node import GWEI, FakeNode
from tests.harness import VirtualClock
from tests.payments import NOW, TERMS, authorize
from tests.relaying import ACCOUNT, ETHER, KEY, make_relayer, open_database, relays, settlements

PAYERS: list[LocalAccount] = [Account.from_key(f"0x{number:064x}") for number in range(0x100, 0x140)]
OTHER_KEY = "0x" + "6f" * 32
BLOCK_S = 2

Outcome = Settled | Rejected


def wallet(number: int) -> Address:
    return Address(PAYERS[number].address.lower())


def pay(number: int = 0, **changes: Any) -> ExactPayment:
    """One of the payers authorizes 1,000 micro-USDC, or what `changes` say."""
    return authorize(PAYERS[number], **({"value": 1_000} | changes))


class Scene:
    """A relayer that does nothing by itself, on a chain that makes no block by itself."""

    def __init__(self, folder: Path, db: SqliteDatabase, **changes: Any) -> None:
        self.path = folder / "spawn.db"
        self.db = db
        self.clock = VirtualClock(NOW)
        self.node = FakeNode(TERMS, now=self.clock.now_s, automine=False)
        self.node.give_ether(ACCOUNT, ETHER)
        for number in range(len(PAYERS)):
            self.node.fund(wallet(number), 1_000_000)
        self._changes = changes
        self._calls: list[asyncio.Task[Outcome]] = []
        self.relayer = self._make()

    def _make(self, **changes: Any) -> Relayer:
        return make_relayer(self.db, self.node, self.clock, **(self._changes | changes))

    async def close(self) -> None:
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        await self.relayer.stop()

    async def restart(self, **changes: Any) -> None:
        """The process dies, and comes back."""
        await self.close()
        self.relayer = self._make(**changes)

    async def settle(self, *payments: ExactPayment) -> list["asyncio.Task[Outcome]"]:
        """Calls that have begun: their payments are written down."""
        calls = [asyncio.create_task(self.relayer.settle(payment)) for payment in payments]
        self._calls += calls
        ids = {payment.nonce_key(TERMS.chain_id, TERMS.asset) for payment in payments}
        async with asyncio.timeout(10):
            while not ids <= {row["id"] for row in await settlements(self.db) if row["state"] != "failed"}:
                pass
        return calls

    async def step(self) -> None:
        """One round, at this second."""
        await self.relayer.step(self.clock.now_s())

    async def block(self, count: int = 1) -> None:
        """So many blocks, each with a round before and after."""
        for _ in range(count):
            await self.step()
            self.clock.advance(BLOCK_S)
            self.node.mine()
            await self.step()

    async def wait(self, seconds: int, step_s: int = 1) -> None:
        """Time passes and no block comes."""
        for _ in range(0, seconds, step_s):
            self.clock.advance(step_s)
            await self.step()

    async def states(self) -> list[str]:
        return [row["state"] for row in await settlements(self.db)]

    async def hashes(self) -> list[str]:
        return [row["hash"] for row in await relays(self.db)]


@pytest.fixture
async def scene(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    async with open_database(tmp_path) as db:
        scene = Scene(tmp_path, db, **getattr(request, "param", {}))
        yield scene
        await scene.close()


def policy(**changes: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("scene", [changes], indirect=True)


async def settled(call: "asyncio.Task[Outcome]") -> str:
    outcome = await asyncio.wait_for(call, 1)
    assert isinstance(outcome, Settled), outcome
    return outcome.transaction


async def rejected(call: "asyncio.Task[Outcome]") -> str:
    outcome = await asyncio.wait_for(call, 1)
    assert isinstance(outcome, Rejected), outcome
    return outcome.reason


# --- the straight way -----------------------------------------------------------------------------------------


async def test_each_step_is_recorded_before_the_next(scene: Scene) -> None:
    (call,) = await scene.settle(pay())
    assert await scene.states() == ["reserved"]
    at_send: list[tuple[str, str, bytes]] = []

    def look(name: str) -> None:
        if name == "send":
            with sqlite3.connect(f"file:{scene.path}?mode=ro", uri=True) as db:
                at_send.extend(
                    db.execute(
                        "SELECT s.state, r.state, r.raw FROM settlement s JOIN relay r ON r.hash = s.transaction_hash"
                    )
                )
            db.close()

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
    assert limits == [850_000, 150_000]


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
    await scene.block()
    done = [await asyncio.wait_for(call, 1) for call in calls]
    assert sum(isinstance(one, Settled) for one in done) == 2
    assert {one.reason for one in done if isinstance(one, Rejected)} == {Reason.INSUFFICIENT_FUNDS}
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
    assert caplog.text.count("the node does not answer") == 1
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
    shown = (
        caplog.text + repr(vars(scene.relayer)) + repr([vars(lane) for lane in vars(scene.relayer)["_lanes"]])
    )
    assert ACCOUNT in shown
    assert KEY[2:] not in shown
