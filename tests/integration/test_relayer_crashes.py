"""Random histories: a relayer that dies at any write and any question, on a chain where everything goes wrong.

What holds after each is the promise of the relayer; a failure names its seed.
"""

import asyncio
import random
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Final, TypeVar

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from spawn_ledger.accounts import COST_GAS
from spawn_ledger.transfers import balance_of
from spawn_ledger.tx import Params, Row, Tx
from spawn_ledger.verify import verify

from spawn.domain.settlements import gas_cost_usdc
from spawn.payments.exact import ExactPayment
from spawn.payments.facilitator import Rejected, Settled, SettlementUnclear
from spawn.services.relayer import Relayer
from spawn.store.database import NO_PARAMS, Database
from tests.fake_node import GWEI, FakeNode
from tests.harness import VirtualClock
from tests.payments import NOW, TERMS, authorize
from tests.relaying import ACCOUNT, ETHER, POLICY, make_relayer, open_database, relays, settlements

T = TypeVar("T")

CONFIRMATIONS: Final = 3
STEPS: Final = 90
PAYERS: Final[list[LocalAccount]] = [Account.from_key(f"0x{number:064x}") for number in range(0x200, 0x206)]


class Crash(Exception):
    """The process died here."""


class Fuse:
    """Burns down with each write and each call of the node; at the end the process dies."""

    def __init__(self) -> None:
        self.left: int | None = None

    def burn(self, _: str = "") -> None:
        if self.left is None:
            return
        self.left -= 1
        if self.left <= 0:
            raise Crash


class CrashingDatabase:
    """A database whose user may die before a write, or after it was kept and before it was answered."""

    def __init__(self, db: Database, fuse: Fuse) -> None:
        self._db = db
        self._fuse = fuse

    @property
    def exclusive(self) -> bool:
        return self._db.exclusive

    async def read(self, sql: str, params: Params = NO_PARAMS) -> list[Row]:
        return await self._db.read(sql, params)

    async def write(self, fn: Callable[[Tx], T]) -> T:
        self._fuse.burn()
        answer = await self._db.write(fn)
        self._fuse.burn()
        return answer

    async def close(self) -> None:
        await self._db.close()


class History:
    """One random history, and what it promises."""

    def __init__(self, db: Database, seed: int) -> None:
        self.random = random.Random(seed)
        self.db = db
        self.fuse = Fuse()
        self.clock = VirtualClock(NOW)
        self.node = FakeNode(TERMS, now=self.clock.now_s, automine=False)
        self.node.faults.on_call = self.fuse.burn
        self.node.give_ether(ACCOUNT, ETHER)
        for payer in PAYERS:
            self.node.fund(payer.address.lower(), 5_000)
        self.crashes = 0
        self._nonces: Iterator[int] = count()
        self._payments: list[ExactPayment] = []
        self._calls: list[asyncio.Task[Settled | Rejected]] = []
        self.relayer = self._make()

    def _make(self) -> Relayer:
        return make_relayer(
            CrashingDatabase(self.db, self.fuse),
            self.node,
            self.clock,
            batch_max=4,
            in_flight_max=4,
            confirmations=CONFIRMATIONS,
            alone_from_usdc=2_500,
        )

    async def run(self) -> None:
        acts = [
            (self._pay, 8),
            (self._step, 16),
            (self._mine, 8),
            (self._pass_time, 4),
            (self._reorganise, 2),
            (self._drop, 2),
            (self._fault, 4),
            (self._stranger, 2),
            (self._cancel, 1),
            (self._light, 3),
        ]
        for _ in range(STEPS):
            (act,) = self.random.choices([act for act, _ in acts], [weight for _, weight in acts])
            await act()

    async def _pay(self) -> None:
        payment = authorize(
            self.random.choice(PAYERS),
            value=self.random.choice([500, 1_000, 3_000]),
            nonce=next(self._nonces),
            valid_before=self.clock.now_s() + self.random.choice([8, 60, 300]),
        )
        self._payments.append(payment)
        await self._ask(payment)

    async def _ask(self, payment: ExactPayment) -> None:
        self._calls.append(asyncio.create_task(self.relayer.settle(payment)))
        await asyncio.sleep(0)

    async def _step(self) -> None:
        try:
            await self.relayer.step(self.clock.now_s())
        except Crash:
            await self._die()

    async def _die(self) -> None:
        self.crashes += 1
        self.fuse.left = None
        for call in self._calls:
            call.cancel()
        answers = await asyncio.gather(*self._calls, return_exceptions=True)
        for answer in answers:
            assert isinstance(
                answer, Settled | Rejected | SettlementUnclear | Crash | asyncio.CancelledError
            ), answer
        self._calls = []
        await self.relayer.stop()
        await self.db.write(lambda _: None)  # what a dead process had begun to write is written, or never
        self.relayer = self._make()
        if self._payments and self.random.random() < 0.5:
            await self._ask(self.random.choice(self._payments))  # its client tries again

    async def _mine(self) -> None:
        self.clock.advance(2)
        waiting = self.node.pending
        some = self.random.random() < 0.3
        self.node.mine(only=self.random.sample(waiting, len(waiting) // 2) if some else None)

    async def _pass_time(self) -> None:
        self.clock.advance(self.random.choice([1, 5, 20]))

    async def _reorganise(self) -> None:
        """Never as deep as what counts as final."""
        self.node.reorganise(self.random.randint(1, CONFIRMATIONS - 1), lose=self.random.random() < 0.5)

    async def _drop(self) -> None:
        self.node.forget()

    async def _fault(self) -> None:
        faults = self.node.faults
        match self.random.randrange(6):
            case 0:
                faults.lose_request += 1
            case 1:
                faults.lose_answer += 1
            case 2:
                faults.swallow += 1
            case 3:
                faults.down = not faults.down
            case 4:
                faults.least_tip_wei = self.random.choice([0, GWEI // 500])
            case _:
                self.node.base_fee_wei = self.random.choice([GWEI // 100, GWEI // 20, 20 * GWEI])

    async def _stranger(self) -> None:
        fresh = [one for one in self._payments if self._could_move(one)]
        if fresh:
            self.node.submit(self.random.choice(fresh))

    def _could_move(self, payment: ExactPayment) -> bool:
        unspent = (payment.payer, payment.nonce) not in self.node.transfers()
        return (
            unspent
            and not self.node.is_spent(payment)
            and payment.valid_before > self.clock.now_s()
            and self.node.balance(payment.payer) >= payment.value
        )

    async def _cancel(self) -> None:
        if self._payments:
            payment = self.random.choice(self._payments)
            self.node.cancel(payment.payer, payment.nonce)

    async def _light(self) -> None:
        if self.fuse.left is None:
            self.fuse.left = self.random.randint(1, 14)

    async def calm(self) -> None:
        """Everything works again; until nothing is left to do."""
        await self._die()
        faults = self.node.faults
        faults.down, faults.least_tip_wei = False, 0
        faults.lose_request = faults.lose_answer = faults.swallow = 0
        self.node.base_fee_wei = GWEI // 100
        for _ in range(120):
            await self._step()
            self.clock.advance(5)
            self.node.mine()
            left = await self._unfinished()
            self._calls = [call for call in self._calls if not call.done()]
            if not left and not self._calls:
                return
        raise AssertionError(await self._unfinished())

    async def _unfinished(self) -> list[str]:
        """Payments and transactions that are neither done nor given up."""
        payments = [row["id"] for row in await settlements(self.db) if row["finished_at"] is None]
        open_relays = [
            row["hash"] for row in await relays(self.db) if row["state"] in {"signed", "broadcast"}
        ]
        return payments + open_relays

    async def check(self) -> None:
        chain = self.node.transfers_by_transaction()
        moved = [key for keys in chain.values() for key in keys]
        assert len(moved) == len(set(moved)), "one authorization moved money twice"
        signed = await relays(self.db)
        ours = {row["hash"] for row in signed}
        rows = {row["id"]: row for row in await settlements(self.db)}
        for payment in self._payments:
            row = rows.get(payment.nonce_key(TERMS.chain_id, TERMS.asset))
            key = (payment.payer, payment.nonce)
            where = next((hash_ for hash_, keys in chain.items() if key in keys), None)
            if row is not None and row["state"] == "confirmed":
                assert row["transaction_hash"] == where, "confirmed, and not moved there"
            if where in ours:
                assert row is not None
                assert row["state"] == "confirmed", "moved by us, and not confirmed"
            if where is not None:
                assert await self.relayer.find(payment) == Settled(transaction=where)
        nonces = {row["nonce"] for row in signed}
        assert nonces == set(range(self.node.used(ACCOUNT))), "a nonce was left out"
        assert self.node.pending == []
        mined = [row["gas_wei"] for row in signed if row["state"] == "confirmed"]
        assert len(mined) == len(nonces)
        assert sum(mined) == ETHER - self.node.ether_wei(ACCOUNT)
        booked = await self.db.write(lambda tx: balance_of(tx, COST_GAS).balance)
        assert booked == sum(gas_cost_usdc(wei, POLICY.eth_price_usdc) for wei in mined)
        assert await self.db.write(verify) == []


@pytest.mark.parametrize("seed", range(25))
async def test_whatever_happens_the_promise_holds(seed: int, tmp_path: Path) -> None:
    async with open_database(tmp_path) as db:
        history = History(db, seed)
        await history.run()
        await history.calm()
        history.node.mine(CONFIRMATIONS)
        await history.check()
        await history.relayer.stop()
        assert history.crashes > 0, "nothing happened"
