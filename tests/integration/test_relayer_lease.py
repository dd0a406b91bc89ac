"""Several processes share the relayer's keys: one relays for all, and when it is gone another goes on with its rows."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
from eth_abi.abi import decode
from eth_account.typed_transactions.typed_transaction import TypedTransaction
from hexbytes import HexBytes
from spawn_ledger.accounts import COST_GAS
from spawn_ledger.transfers import balance_of
from spawn_ledger.tx import Row
from spawn_ledger.verify import verify
from spawn_schemas.x402 import Reason

from spawn.domain.settlements import gas_cost_usdc
from spawn.payments.curve import keccak256
from spawn.payments.exact import ExactPayment
from spawn.payments.facilitator import Settled, SettlementUnclear
from spawn.rails import self_rail
from spawn.services.relayer import RELAYING
from spawn.store import settlements as rows
from spawn.store.leases import SELECT_LEASE
from spawn.store.sqlite import SqliteDatabase
from tests.calldata import AGGREGATE3
from tests.harness import settings_in
from tests.integration.relayer_scene import Scene, open_scene, pay, rejected, settled, wallet
from tests.integration.two_relayers import Pair, open_pair
from tests.payments import NOW, TERMS
from tests.relaying import ACCOUNT, ETHER, KEY, POLICY, relays, settlements

DOOMED: Final = 1_000_001
"""More than a payer has."""
EVERY: Final = 3
"""Of the instants at which a process can stop, every so many is tried by one test."""


@pytest.fixture
async def pair(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    async with open_pair(tmp_path, **getattr(request, "param", {})) as pair:
        yield pair


def calls_in(raw: bytes) -> frozenset[bytes]:
    """What this transaction asks of the token."""
    data = bytes(TypedTransaction.from_bytes(HexBytes(raw)).as_dict()["data"])
    if data[:4] != AGGREGATE3:
        return frozenset({data})
    (calls,) = decode(["(address,bool,bytes)[]"], data[4:])
    return frozenset(call for _, _, call in calls)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with open_scene(tmp_path) as scene:
        yield scene


# --- both receive payments --------------------------------------------------------------------------------------


async def test_one_relays_for_both(pair: Pair) -> None:
    await pair.step()
    calls = [*await pair.first.settle(pay(0)), *await pair.second.settle(pay(1), pay(2))]
    await pair.block()
    assert len({await settled(call) for call in calls}) == 1
    assert await pair.holder() == "first"
    assert pair.second.sent == []


async def test_a_refusal_reaches_who_asked_elsewhere_and_so_does_what_came_after_it(pair: Pair) -> None:
    await pair.step()
    (call,) = await pair.second.settle(pay(0, value=DOOMED))
    await pair.block()
    assert await rejected(call) == Reason.INSUFFICIENT_FUNDS
    pair.node.fund(wallet(0), 1)
    again = asyncio.create_task(pair.second.relayer.settle(pay(0, value=DOOMED)))
    await pair.block(2)
    assert await settled(again)


async def test_two_authorizations_of_one_nonce_move_money_once(pair: Pair) -> None:
    await pair.step()
    (first,) = await pair.first.settle(pay(nonce=7))
    (other,) = await pair.second.settle(pay(nonce=7, value=2_000))
    (same,) = await pair.second.settle(pay(nonce=7))
    await pair.block(2)
    assert await settled(first) == await settled(same)
    assert await rejected(other) == Reason.NONCE_USED


async def test_however_many_wait_all_are_seen(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "PAGE", 3)
    calls = await pair.second.settle(*(pay(number) for number in range(11)))
    await pair.first.step()
    calls += await pair.second.settle(*(pay(20 + number) for number in range(11)))
    await pair.block(8)
    assert len([await settled(call) for call in calls]) == 22


@pytest.mark.parametrize("pair", [{"settle_wait_s": 0.0}], indirect=True)
async def test_who_waits_too_long_is_told_the_hash_by_the_row(pair: Pair) -> None:
    await pair.step()
    await asyncio.gather(*await pair.second.settle(pay()), return_exceptions=True)
    await pair.step()
    with pytest.raises(SettlementUnclear) as unclear:
        await pair.second.relayer.settle(pay())
    (hash_,) = [row["hash"] for row in await relays(pair.db)]
    assert unclear.value.transaction == hash_
    await pair.block()
    assert await pair.second.relayer.settle(pay()) == Settled(transaction=hash_)


async def test_they_do_it_by_themselves(pair: Pair) -> None:
    pair.node.automine = True
    first, second = pair.first.relayer, pair.second.relayer
    await first.start()
    await second.start()
    assert await pair.holder() == "first"
    async with asyncio.timeout(10):
        assert isinstance(await second.settle(pay(0)), Settled)
        going_on = asyncio.create_task(second.settle(pay(1)))
        await first.stop()
        assert isinstance(await going_on, Settled)
        assert isinstance(await second.settle(pay(2)), Settled)
    assert await pair.holder() == "second"


@pytest.mark.embedded
async def test_with_a_database_to_itself_it_holds_the_lease_from_its_start_and_renews_nothing(
    scene: Scene,
) -> None:
    assert isinstance(scene.db, SqliteDatabase)
    scene.node.automine = True
    await scene.relayer.start()
    held = await scene.db.read(SELECT_LEASE, {"name": RELAYING.name})
    scene.clock.advance(3_600)
    # Beside the payment's own: signed, sent, and what came of it.
    before = scene.db.commits
    assert isinstance(await scene.relayer.settle(pay(valid_before=NOW + 7_200)), Settled)
    assert scene.db.commits - before <= 4
    assert await scene.db.read(SELECT_LEASE, {"name": RELAYING.name}) == held


# --- one takes over from the other --------------------------------------------------------------------------------


async def test_who_ends_in_order_is_followed_at_once(pair: Pair) -> None:
    await pair.step()
    calls = await pair.second.settle(pay(0), pay(1))
    await pair.first.step()
    await pair.first.relayer.stop()
    assert await pair.holder() == ""
    pair.node.mine()
    await pair.second.step()
    assert await pair.holder() == "second"
    assert len({await settled(call) for call in calls}) == 1


async def test_who_is_gone_is_followed_when_its_lease_is_old(pair: Pair) -> None:
    await pair.step()
    (call,) = await pair.second.settle(pay(0))
    for _ in range(RELAYING.lease_s - 1):
        pair.clock.advance(1)
        await pair.second.step()
    assert await pair.holder() == "first"
    assert await relays(pair.db) == []
    pair.clock.advance(1)
    await pair.second.step()
    assert await pair.holder() == "second"
    pair.node.mine()
    await pair.second.step()
    assert await settled(call)


@pytest.mark.parametrize(("lease_s", "lasts_s"), [(50, RELAYING.lease_s), (6, 6)])
async def test_it_lasts_no_longer_than_the_lease_of_the_jobs(
    pair: Pair, tmp_path: Path, lease_s: int, lasts_s: int
) -> None:
    settings = settings_in(tmp_path, payments="self", relayer_key=KEY, lease_s=lease_s)
    gone, follower = (
        self_rail(settings, pair.db, pair.clock, pair.node, name).relayer for name in ("gone", "follower")
    )
    assert gone is not None
    assert follower is not None
    await gone.step(NOW)
    await follower.step(NOW)
    pair.clock.advance(lasts_s - 1)
    await follower.step(NOW)
    assert await pair.holder() == "gone"
    pair.clock.advance(1)
    await follower.step(NOW)
    assert await pair.holder() == "follower"


async def test_a_nonce_that_was_about_to_be_taken_is_the_successors(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """The first stops with a signed transaction in its hands that is stored nowhere."""
    await pair.step()
    first, second = await pair.first.settle(pay(0)), await pair.second.settle(pay(1))
    # A look at what others wrote comes before the write that takes the nonce.
    pair.first.gate.stop_at(pair.first.gate.passed + 2)
    await pair.first.step()
    assert pair.first.gate.stopped.is_set()
    assert await relays(pair.db) == []
    await pair.wait(RELAYING.lease_s + 1)
    await pair.first.wake()
    assert pair.first.sent == []
    assert {row["hash"] for row in await relays(pair.db)} == set(pair.node.attempts)
    await pair.block(2)
    assert await settled(first[0]) == await settled(second[0])
    assert pair.node.used(ACCOUNT) == 1
    assert "relays payments no more" in caplog.text


async def test_what_comes_late_is_a_transaction_that_the_successor_knows(pair: Pair) -> None:
    """The first stops between storing and sending; meanwhile the second offers more for the same nonce."""
    await pair.step()
    await pair.first.settle(pay(0))
    pair.first.gate.stop_at(pair.first.gate.passed + 3)
    await pair.first.step()
    assert len(await relays(pair.db)) == 1
    assert pair.node.attempts == []
    await pair.wait(RELAYING.lease_s + POLICY.bump_after_s + 2)
    dear = [row["hash"] for row in await relays(pair.db)][1:]
    assert dear
    pair.node.forget()  # so that the late one is not refused
    await pair.first.wake()
    (late,) = pair.node.pending
    assert late not in dear
    await pair.block(2)
    assert await settled(next(iter(pair.first.calls.values()))) == late
    assert len(pair.node.transfers()) == 1


# --- at every instant ---------------------------------------------------------------------------------------------


class Story:
    """Both receive payments, fees are raised, a block is taken back; and the first stops at some instant."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.good = [pay(number) for number in range(12)]
        self.doomed = [pay(20 + number, value=DOOMED) for number in range(4)]

    @property
    def payments(self) -> list[ExactPayment]:
        return [*self.good, *self.doomed]

    async def tell(self) -> None:
        pair, good, doomed = self.pair, self.good, self.doomed
        await pair.step()
        await pair.first.settle(*good[:2], doomed[0])
        await pair.second.settle(*good[2:5], doomed[1])
        await pair.block(2)
        await pair.first.settle(good[5])
        await pair.second.settle(good[6])
        await pair.wait(POLICY.bump_after_s + 2)
        await pair.first.settle(good[7], doomed[2])
        await pair.block()
        pair.node.reorganise(1, lose=True)
        await pair.step()
        await pair.second.settle(*good[8:10], doomed[3])
        await pair.block(2)
        await pair.first.settle(*good[10:])
        await pair.block(3)

    async def come_back(self) -> None:
        """The second holds the lease; the first wakes, and has nothing to say."""
        pair = self.pair
        await pair.wait(RELAYING.lease_s + 1)
        assert await pair.holder() == "second"
        signed, payments = await relays(pair.db), await self._decided()
        sent = len(pair.first.sent)
        await pair.first.wake()
        assert await relays(pair.db) == signed, "what it was about to write was written"
        # A payment that failed may be asked for again by whoever did not hear of that; no other may be touched.
        asked = {row["id"] for row in await settlements(pair.db) if row["state"] == "reserved"}
        kept = [row for row in payments if row["state"] != "failed" or row["id"] not in asked]
        assert await self._decided() == kept, "what it was about to write was written"
        assert set(pair.first.sent[sent:]) <= {row["raw"] for row in signed}, "it sent what nobody knows"

    async def _decided(self) -> list[Row]:
        return [row for row in await settlements(self.pair.db) if row["state"] != "reserved"]

    async def end(self) -> None:
        """Clients ask again, the second this time; until nothing is left to do."""
        pair = self.pair
        await pair.wait(RELAYING.lease_s + 1)
        await pair.second.settle(*(one for one in self.payments if self._name(one) not in self._asked()))
        for _ in range(60):
            await pair.block()
            pair.clock.advance(3)
            calls = [*pair.first.calls.values(), *pair.second.calls.values()]
            if all(call.done() for call in calls):
                return
        raise AssertionError("somebody is never answered")

    def _asked(self) -> set[str]:
        return {*self.pair.first.calls, *self.pair.second.calls}

    def _name(self, payment: ExactPayment) -> str:
        return payment.nonce_key(TERMS.chain_id, TERMS.asset)

    async def check(self) -> None:
        node, db = self.pair.node, self.pair.db
        moved = node.transfers_by_transaction()
        keys = [key for some in moved.values() for key in some]
        assert sorted(keys) == sorted((one.payer, one.nonce) for one in self.good)
        for payment in self.payments:
            for process in (self.pair.first, self.pair.second):
                call = process.calls.get(self._name(payment))
                if call is None:
                    continue
                if payment in self.doomed:
                    assert await rejected(call) == Reason.INSUFFICIENT_FUNDS
                else:
                    assert (payment.payer, payment.nonce) in moved[await settled(call)]
        stored = await relays(db)
        at = {row["hash"]: (row["relayer"], row["nonce"]) for row in stored}
        contents: dict[tuple[str, int], set[frozenset[bytes]]] = {}
        for raw in (*self.pair.first.sent, *self.pair.second.sent):
            contents.setdefault(at["0x" + keccak256(raw).hex()], set()).add(calls_in(raw))
        assert all(len(some) == 1 for some in contents.values()), "one nonce, different payments"
        assert {row["nonce"] for row in stored} == set(range(node.used(ACCOUNT))), "a nonce was left out"
        mined = [row["gas_wei"] for row in stored if row["state"] == "confirmed"]
        assert sum(mined) == ETHER - node.ether_wei(ACCOUNT)
        booked = await db.write(lambda tx: balance_of(tx, COST_GAS).balance)
        assert booked == sum(gas_cost_usdc(wei, POLICY.eth_price_usdc) for wei in mined)
        assert await db.write(verify) == []


@pytest.mark.parametrize("start", range(1, EVERY + 1))
@pytest.mark.parametrize("comes_back", [False, True], ids=["killed", "frozen"])
async def test_whenever_one_stops_the_other_goes_on(tmp_path: Path, start: int, comes_back: bool) -> None:
    """Before each write, and before each transaction that is sent: after the one is before the next."""
    instant, tried = start, 0
    while True:
        folder = tmp_path / str(instant)
        folder.mkdir()
        async with open_pair(folder, confirmations=2, batch_max=3, in_flight_max=3) as pair:
            story = Story(pair)
            pair.first.gate.stop_at(instant)
            await story.tell()
            if not pair.first.gate.stopped.is_set():
                break
            if comes_back:
                await story.come_back()
            else:
                await pair.first.kill()
            await story.end()
            await story.check()
        instant, tried = instant + EVERY, tried + 1
    assert tried > 20, "the story has become short"
