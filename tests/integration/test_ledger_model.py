"""Any sequence of movements, against plain dictionaries."""

import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from spawn_ledger.accounts import EXT_USDC, REV_OPFEE, AccountId, is_customer
from spawn_ledger.transfers import (
    Balance,
    Code,
    Hold,
    HoldNotFound,
    HoldResolved,
    InsufficientFunds,
    Transfer,
    TransferId,
    TransferIdReused,
    balance_of,
    hold,
    list_pending,
    post,
    post_hold,
    release_hold,
    transfer_id,
)
from spawn_ledger.verify import verify
from spawn_ledger.wallets import NEWEST, Kind, StatementLine
from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc

from tests import databases
from tests.integration.ledger_books import (
    ALICE,
    BOB,
    NOW,
    OPERATION,
    OTHER_OPERATION,
    OTHER_RESERVE,
    OTHER_WALLET,
    RESERVE,
    WALLET,
    open_books,
    statement,
    totals,
)

OWNED = ((ALICE, WALLET, RESERVE, OPERATION), (BOB, OTHER_WALLET, OTHER_RESERVE, OTHER_OPERATION))
ROUTES = [
    route
    for _, wallet, reserve, _ in OWNED
    for route in (
        (EXT_USDC, wallet),
        (wallet, reserve),
        (reserve, wallet),
        (wallet, REV_OPFEE),
        (reserve, REV_OPFEE),
        (REV_OPFEE, wallet),
    )
]
ACCOUNTS = sorted({account for route in ROUTES for account in route})
ids = st.integers(1, 12)
small_amounts = st.integers(1, 40).map(Usdc)


class LedgerMachine(RuleBasedStateMachine):
    """Few ids and small amounts, so that repeats, collisions and overdrafts are common."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.tx = open_books(Path(self.folder.name) / "spawn.db")
        self.balance = dict.fromkeys(ACCOUNTS, 0)
        self.held = dict.fromkeys(ACCOUNTS, 0)
        self.posted: list[Transfer] = []
        self.transfers: dict[TransferId, Transfer] = {}
        self.holds: dict[TransferId, tuple[Hold, str]] = {}

    def teardown(self) -> None:
        self.tx.close()
        self.folder.cleanup()

    def available(self, account: AccountId) -> int:
        return self.balance[account] - self.held[account]

    def apply(self, transfer: Transfer) -> None:
        self.balance[transfer.debit] -= transfer.amount
        self.balance[transfer.credit] += transfer.amount
        self.transfers[transfer.id] = transfer
        self.posted.append(transfer)

    @rule(number=ids, route=st.sampled_from(ROUTES), amount=small_amounts)
    def post(self, number: int, route: tuple[AccountId, AccountId], amount: Usdc) -> None:
        transfer = Transfer(
            id=transfer_id("transfer", number),
            debit=route[0],
            credit=route[1],
            amount=amount,
            code=Code.FEE,
            reference="res_1",
            at=NOW,
        )
        known = self.transfers.get(transfer.id)
        if known is not None and known != transfer:
            with pytest.raises(TransferIdReused):
                post(self.tx, transfer)
        elif known is None and is_customer(transfer.debit) and self.available(transfer.debit) < amount:
            with pytest.raises(InsufficientFunds) as caught:
                post(self.tx, transfer)
            assert caught.value.have == self.available(transfer.debit)
        else:
            assert post(self.tx, transfer) is (known is None)
            if known is None:
                self.apply(transfer)

    @rule(number=ids, owner=st.sampled_from(OWNED), amount=small_amounts)
    def hold(self, number: int, owner: tuple[Address, AccountId, AccountId, str], amount: Usdc) -> None:
        _, wallet, reserve, operation_id = owner
        wanted = Hold(
            id=transfer_id("hold", number),
            debit=wallet,
            credit=reserve,
            amount=amount,
            code=Code.DEPOSIT,
            reference=operation_id,
            at=NOW,
        )
        known = self.holds.get(wanted.id)
        if known is not None and known[0] != wanted:
            with pytest.raises(TransferIdReused):
                hold(self.tx, wanted)
        elif known is None and self.available(wallet) < amount:
            with pytest.raises(InsufficientFunds):
                hold(self.tx, wanted)
        else:
            assert hold(self.tx, wanted) is (known is None)
            if known is None:
                self.held[wallet] += amount
                self.holds[wanted.id] = (wanted, "pending")

    @rule(number=ids, state=st.sampled_from(["posted", "released"]))
    def resolve(self, number: int, state: str) -> None:
        hold_id = transfer_id("hold", number)
        resolve = post_hold if state == "posted" else release_hold
        if hold_id not in self.holds:
            with pytest.raises(HoldNotFound):
                resolve(self.tx, hold_id, NOW)
            return
        held, was = self.holds[hold_id]
        if was not in {"pending", state}:
            with pytest.raises(HoldResolved):
                resolve(self.tx, hold_id, NOW)
            return
        assert resolve(self.tx, hold_id, NOW) is (was == "pending")
        if was == "pending":
            self.holds[hold_id] = (held, state)
            self.held[held.debit] -= held.amount
            if state == "posted":
                self.apply(Transfer(**msgspec.structs.asdict(held)))

    @rule(owner=st.sampled_from(OWNED), limit=st.integers(1, 5))
    def read_the_statement(self, owner: tuple[Address, AccountId, AccountId, str], limit: int) -> None:
        wallet, *_ = owner
        lines: list[StatementLine] = []
        while page := statement(self.tx, wallet, before=lines[-1].seq if lines else NEWEST, limit=limit):
            assert not lines or page[0].seq < lines[-1].seq
            lines += page
        own = [t for t in reversed(self.posted) if {t.debit, t.credit} & set(owner[1:3])]
        assert [abs(line.amount) for line in lines] == [t.amount for t in own]
        total = sum(line.amount for line in lines if line.kind is not Kind.INTERNAL)
        assert total == totals(self.tx, wallet).total

    @invariant()
    def books_are_right(self) -> None:
        for account in ACCOUNTS:
            natural = -1 if account == EXT_USDC else 1
            expected = Balance(balance=Usdc(natural * self.balance[account]), held=Usdc(self.held[account]))
            assert balance_of(self.tx, account) == expected
        assert verify(self.tx) == []
        pending = [held for held, state in self.holds.values() if state == "pending"]
        listed = [h for *_, operation_id in OWNED for h in list_pending(self.tx, operation_id)]
        assert sorted(listed, key=lambda h: h.id) == sorted(pending, key=lambda h: h.id)


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(
    max_examples=40 if databases.engine() == "sqlite" else 15, stateful_step_count=40, deadline=None
)
