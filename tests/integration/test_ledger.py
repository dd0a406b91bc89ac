"""Money on a real, migrated database: what was recorded stays, repeats are free, nothing is overdrawn."""

import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from spawn_ledger.accounts import (
    COST_GAS,
    EXT_GAS,
    EXT_USDC,
    REV_COMPUTE,
    REV_OPFEE,
    SUSPENSE,
    server_account,
)
from spawn_ledger.transfers import (
    Balance,
    Code,
    HoldNotFound,
    HoldResolved,
    InsufficientFunds,
    TransferId,
    TransferIdReused,
    balance_of,
    hold,
    list_pending,
    post,
    post_hold,
    release_hold,
)
from spawn_ledger.tx import Params
from spawn_ledger.verify import verify
from spawn_ledger.wallets import Kind
from spawn_schemas.ids import Address, ServerId
from spawn_schemas.money import Usdc

from spawn.store.database import NO_PARAMS
from tests.integration.ledger_books import (
    ALICE,
    BOB,
    NOW,
    OPERATION,
    OTHER_WALLET,
    RESERVE,
    SERVER,
    WALLET,
    Books,
    WalletTotals,
    burn,
    deposit_hold,
    fee,
    insert,
    open_books,
    statement,
    topup,
    totals,
)


@pytest.fixture
def tx(tmp_path: Path) -> Iterator[Books]:
    tx = open_books(tmp_path / "spawn.db")
    yield tx
    tx.close()


def everything(tx: Books) -> list[list[tuple[Any, ...]]]:
    """Every row about money that is not an account at zero, to see that nothing changed."""
    return [
        tx.rows(f"SELECT * FROM {table} AS found ORDER BY id")
        for table in ("(SELECT * FROM account WHERE balance <> 0 OR held <> 0)", "transfer", "hold")
    ]


def rules_broken(tx: Books) -> set[str]:
    return {violation.rule for violation in verify(tx)}


# Transfers


def test_a_transfer_moves_money_once_however_often_it_is_posted(tx: Books) -> None:
    assert post(tx, topup(500))
    assert not post(tx, topup(500))
    assert not post(tx, msgspec.structs.replace(topup(500), at=NOW + 60)), "a retry comes later"
    assert balance_of(tx, WALLET) == Balance(balance=Usdc(500), held=Usdc(0))
    assert balance_of(tx, EXT_USDC).balance == 500
    assert verify(tx) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("debit", REV_OPFEE),
        ("credit", OTHER_WALLET),
        ("amount", Usdc(501)),
        ("code", Code.FEE_REFUND),
        ("reference", "res_2"),
    ],
)
def test_an_id_stands_for_one_movement_only(tx: Books, field: str, value: object) -> None:
    post(tx, topup(500))
    before = everything(tx)
    with pytest.raises(TransferIdReused, match=f"topup.1 is already recorded with another {field}") as caught:
        post(tx, msgspec.structs.replace(topup(500), **{field: value}))
    assert caught.value.field == field
    assert everything(tx) == before


def test_an_overdraft_is_refused_and_changes_nothing(tx: Books) -> None:
    post(tx, topup(500))
    hold(tx, deposit_hold(100))
    before = everything(tx)
    with pytest.raises(InsufficientFunds) as caught:
        post(tx, fee(401))
    assert (caught.value.account, caught.value.need, caught.value.have) == (WALLET, 401, 400)
    assert str(caught.value) == f"{WALLET} has 0.0004 USDC available and needs 0.000401"
    assert everything(tx) == before
    assert post(tx, fee(400)), "the last micro can be spent, and a refused id can be used"


def test_an_account_nobody_used_has_nothing_to_spend(tx: Books) -> None:
    with pytest.raises(InsufficientFunds) as caught:
        post(tx, fee(1))
    assert caught.value.have == 0
    assert everything(tx) == [[], [], []]


def test_both_directions_of_a_move_lock_the_same_account_first() -> None:
    locked: list[str] = []

    class Recording(Books):
        def execute(self, sql: str, params: Params = NO_PARAMS, /) -> int:
            if "INSERT INTO account" in sql:
                locked.append(params["account"])
            return super().execute(sql, params)

    with tempfile.TemporaryDirectory() as folder:
        tx = Recording(open_books(Path(folder) / "spawn.db").connection)
        post(tx, topup(500))
        locked.clear()
        there = msgspec.structs.replace(fee(50), credit=RESERVE, id=TransferId("there"))
        post(tx, there)
        post(tx, msgspec.structs.replace(there, debit=RESERVE, credit=WALLET, id=TransferId("back")))
        tx.close()
    assert locked == [RESERVE, WALLET] * 2


@pytest.mark.parametrize("amount", [0, -1])
def test_a_movement_moves_something(amount: int) -> None:
    with pytest.raises(ValueError, match="positive amount"):
        fee(amount)
    with pytest.raises(ValueError, match="positive amount"):
        msgspec.structs.replace(fee(1), credit=WALLET)


def test_operator_balances_have_their_natural_sign(tx: Books) -> None:
    post(tx, topup(500))
    post(tx, fee(30))
    assert balance_of(tx, EXT_USDC) == Balance(balance=Usdc(500), held=Usdc(0))
    assert balance_of(tx, REV_OPFEE) == Balance(balance=Usdc(30), held=Usdc(0))
    assert [row["id"] for row in tx.all("SELECT id FROM account")] == [WALLET]


REPEATED = (
    "INSERT INTO transfer (id, debit, credit, amount, code, reference, at) "
    "VALUES ('topup|1', 'ext:usdc', 'wallet:x', 1, 'topup', 'res_1', 0)"
)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE transfer SET amount = 1 WHERE id = 'topup|1'",
        "DELETE FROM transfer WHERE id = 'topup|1'",
        f"{REPEATED} ON CONFLICT (id) DO UPDATE SET amount = 1",
        pytest.param(REPEATED.replace("INSERT", "INSERT OR REPLACE"), marks=pytest.mark.embedded),
    ],
)
def test_a_recorded_transfer_cannot_be_changed(tx: Books, statement: str) -> None:
    post(tx, topup(500))
    before = everything(tx)
    refused = pytest.raises((sqlite3.IntegrityError, psycopg.Error), match="a transfer is never changed")
    with refused, tx.undone():
        tx.execute(statement)
    assert everything(tx) == before


# Holds


def test_a_hold_sets_money_aside_and_posts_once(tx: Books) -> None:
    post(tx, topup(500))
    assert hold(tx, deposit_hold(200))
    assert not hold(tx, deposit_hold(200))
    assert balance_of(tx, WALLET) == Balance(balance=Usdc(500), held=Usdc(200))
    assert balance_of(tx, WALLET).available == 300
    assert list_pending(tx, OPERATION) == [deposit_hold(200)]
    assert verify(tx) == []

    assert post_hold(tx, deposit_hold(200).id, NOW + 5)
    assert not post_hold(tx, deposit_hold(200).id, NOW + 6)
    assert not hold(tx, deposit_hold(200)), "a late repeat of the hold takes nothing again"
    with pytest.raises(HoldResolved, match="already posted"):
        release_hold(tx, deposit_hold(200).id, NOW + 7)
    assert balance_of(tx, WALLET) == Balance(balance=Usdc(300), held=Usdc(0))
    assert balance_of(tx, RESERVE) == Balance(balance=Usdc(200), held=Usdc(0))
    assert list_pending(tx, OPERATION) == []
    assert tx.rows("SELECT id, at FROM transfer WHERE code = 'deposit'") == [("deposit|1", NOW + 5)]
    assert verify(tx) == []


def test_a_hold_releases_once_and_leaves_no_transfer(tx: Books) -> None:
    post(tx, topup(500))
    hold(tx, deposit_hold(200))
    assert release_hold(tx, deposit_hold(200).id, NOW + 5)
    assert not release_hold(tx, deposit_hold(200).id, NOW + 6)
    with pytest.raises(HoldResolved, match="already released"):
        post_hold(tx, deposit_hold(200).id, NOW + 7)
    assert balance_of(tx, WALLET) == Balance(balance=Usdc(500), held=Usdc(0))
    assert tx.one("SELECT id FROM transfer WHERE code = 'deposit'") is None
    assert verify(tx) == []


def test_a_hold_takes_no_more_than_is_available_and_its_id_is_its_own(tx: Books) -> None:
    post(tx, topup(500))
    hold(tx, deposit_hold(200))
    before = everything(tx)
    with pytest.raises(InsufficientFunds) as caught:
        hold(tx, deposit_hold(301, id="deposit|2"))
    assert (caught.value.need, caught.value.have) == (301, 300)
    with pytest.raises(TransferIdReused, match="another amount"):
        hold(tx, deposit_hold(201))
    assert everything(tx) == before


@pytest.mark.parametrize("resolve", [post_hold, release_hold])
def test_resolving_what_was_never_held_is_an_error(
    tx: Books, resolve: Callable[[Books, TransferId, int], bool]
) -> None:
    with pytest.raises(HoldNotFound, match="no hold deposit"):
        resolve(tx, TransferId("deposit|9"), NOW)


def test_only_a_customers_money_is_held() -> None:
    with pytest.raises(ValueError, match="only a customer's"):
        msgspec.structs.replace(deposit_hold(5), debit=REV_OPFEE)


# What the owner sees


def test_totals_and_statement_follow_the_money(tx: Books) -> None:
    post(tx, topup(1000))
    post(tx, fee(10))
    hold(tx, deposit_hold(300))
    post_hold(tx, deposit_hold(300).id, NOW)
    post(tx, burn(40))
    hold(tx, deposit_hold(5, id="deposit|2"))
    post(tx, topup(77, id="topup|bob", wallet=OTHER_WALLET))

    assert totals(tx, ALICE) == WalletTotals(available=Usdc(685), reserved=Usdc(265))
    assert totals(tx, ALICE).total == 950
    assert [(line.kind, line.code, line.amount, line.reference) for line in statement(tx, ALICE)] == [
        (Kind.OUT, Code.BURN, -40, SERVER),
        (Kind.INTERNAL, Code.DEPOSIT, 300, OPERATION),
        (Kind.OUT, Code.FEE, -10, "res_1"),
        (Kind.IN, Code.TOPUP, 1000, "res_1"),
    ]
    assert [line.amount for line in statement(tx, BOB)] == [77]


def test_a_wallet_nobody_knows_has_nothing(tx: Books) -> None:
    assert totals(tx, Address("0x" + "00" * 20)) == WalletTotals(available=Usdc(0), reserved=Usdc(0))
    assert statement(tx, Address("0x" + "00" * 20)) == []


@pytest.mark.embedded
def test_a_page_of_the_statement_costs_the_same_however_long_the_history(tx: Books) -> None:
    def steps_to_read_a_page() -> int:
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return 0

        assert isinstance(tx.connection, sqlite3.Connection)
        tx.connection.set_progress_handler(count, 10)
        assert len(statement(tx, ALICE, limit=20)) == 20
        tx.connection.set_progress_handler(None, 0)
        return steps

    def live(first: int, last: int) -> None:
        for number in range(first, last):
            post(tx, topup(5, id=f"topup|{number}"))
            post(
                tx, msgspec.structs.replace(fee(5, id=f"deposit|{number}"), credit=RESERVE, code=Code.DEPOSIT)
            )
            post(tx, msgspec.structs.replace(burn(5), id=TransferId(f"burn|{number}")))

    live(0, 50)
    short = steps_to_read_a_page()
    live(50, 1000)
    assert steps_to_read_a_page() < 1.3 * short


# Verification


def funded(tx: Books) -> None:
    """Books with something of everything in them, and nothing wrong."""
    post(tx, topup(1000))
    post(tx, fee(10))
    hold(tx, deposit_hold(300))
    post_hold(tx, deposit_hold(300).id, NOW)
    post(tx, burn(40))
    post(tx, burn(2, Code.MINIMUM))
    tx.execute("UPDATE server SET charged_usdc = 42 WHERE id = :id", {"id": SERVER})
    hold(tx, deposit_hold(50, id="deposit|pending"))
    assert verify(tx, chain_balance_usdc=Usdc(1000)) == []


@pytest.mark.parametrize(
    ("corruption", "broken"),
    [
        (
            "UPDATE account SET balance = balance + 1 WHERE id LIKE 'wallet:%'",
            {"cached balance", "books balance"},
        ),
        ("UPDATE account SET held = held - 1 WHERE id LIKE 'wallet:%'", {"held"}),
        (
            "UPDATE account SET balance = -5 WHERE id LIKE 'srv:%'",
            {"cached balance", "never negative", "books balance"},
        ),
        ("UPDATE account SET held = balance + 1 WHERE id LIKE 'srv:%'", {"held", "never negative"}),
        ("DELETE FROM account WHERE id LIKE 'srv:%'", {"customer has a row", "books balance"}),
        (
            "INSERT INTO account (id, balance, held) VALUES ('rev:opfee', 0, 0)",
            {"cached balance", "operator is derived"},
        ),
        (
            "INSERT INTO transfer (id, debit, credit, amount, code, reference, at) "
            f"VALUES ('stray', '{EXT_USDC}', '{WALLET}', 7, 'topup', 'res_9', 0)",
            {"cached balance", "books balance"},
        ),
        ("UPDATE server SET charged_usdc = charged_usdc - 1 WHERE id = 'srv_1'", {"charged"}),
        ("UPDATE server SET remainder = 86400 WHERE id = 'srv_2'", {"remainder"}),
        ("UPDATE server SET remainder = -1 WHERE id = 'srv_2'", {"remainder"}),
        ("UPDATE server SET ended_at = 1 WHERE id = 'srv_2'", {"ended server"}),
        (
            "UPDATE server SET ended_at = 1, charged_until = NULL WHERE id = 'srv_1'",
            {"ended server", "hold of an ended server"},
        ),
        ("UPDATE operation SET status = 'success' WHERE id = 'act_1'", {"hold of no running operation"}),
        ("UPDATE hold SET reference = 'act_9' WHERE state = 'pending'", {"hold of no running operation"}),
        (
            "UPDATE hold SET state = 'posted' WHERE state = 'pending'",
            {"held", "hold resolves once"},
        ),
        ("UPDATE hold SET state = 'released' WHERE state = 'posted'", {"hold resolves once"}),
        ("UPDATE hold SET amount = amount + 1 WHERE state = 'posted'", {"hold resolves once"}),
    ],
)
def test_every_corruption_is_found_and_named(tx: Books, corruption: str, broken: set[str]) -> None:
    funded(tx)
    tx.accept_anything()
    assert tx.execute(corruption) == 1
    assert rules_broken(tx) == broken


def test_burn_that_was_refunded_is_not_charged(tx: Books) -> None:
    funded(tx)
    refund = msgspec.structs.replace(
        burn(42, Code.BURN_REFUND), debit=REV_COMPUTE, credit=WALLET, id=TransferId("burn-refund|1")
    )
    post(tx, refund)
    assert [violation.sentence for violation in verify(tx)] == [
        "srv_1 says that 42 was charged, but its burn adds up to 0"
    ]
    tx.execute("UPDATE server SET charged_usdc = 0 WHERE id = :id", {"id": SERVER})
    assert verify(tx) == []


def test_a_reserve_of_no_server_is_found(tx: Books) -> None:
    funded(tx)
    post(tx, topup(5, id="topup|lost", wallet=server_account(ServerId("srv_9"))))
    assert [violation.sentence for violation in verify(tx)] == [
        "srv:srv_9 holds 5 for a server that does not exist"
    ]


def suspended(tx: Books) -> None:
    """Two arrivals, of which Alice has claimed the second."""
    funded(tx)
    for number, state in enumerate(("suspense", "claimed")):
        arrival = {"id": f"0x{number}|0", "sender": ALICE, "amount": 5, "state": state, "at": NOW}
        insert(tx, "arrival", transaction_hash=f"0x{number}", **arrival)
        moved = msgspec.structs.replace(topup(5, id=f"suspense|0x{number}|0"), credit=SUSPENSE)
        post(tx, msgspec.structs.replace(moved, code=Code.SUSPENSE))
    claim = msgspec.structs.replace(topup(5, id="claim|0x1|0"), debit=SUSPENSE, code=Code.CLAIM)
    post(tx, claim)


def test_suspense_is_part_of_what_the_chain_shows(tx: Books) -> None:
    suspended(tx)
    assert verify(tx, chain_balance_usdc=Usdc(1010)) == []
    assert [violation.rule for violation in verify(tx, chain_balance_usdc=Usdc(1009))] == ["chain"]


@pytest.mark.parametrize(
    ("corruption", "broken"),
    [
        ("UPDATE arrival SET amount = 6 WHERE state = 'suspense'", {"suspense"}),
        ("DELETE FROM arrival WHERE state = 'suspense'", {"suspense"}),
        ("UPDATE arrival SET state = 'claimed' WHERE state = 'suspense'", {"suspense", "claim"}),
        ("UPDATE arrival SET state = 'suspense' WHERE state = 'claimed'", {"suspense", "claim"}),
        ("UPDATE arrival SET amount = 6 WHERE state = 'claimed'", {"claim"}),
        (f"UPDATE arrival SET sender = '{BOB}' WHERE state = 'claimed'", {"claim"}),
    ],
)
def test_what_is_wrong_with_suspense_is_found(tx: Books, corruption: str, broken: set[str]) -> None:
    suspended(tx)
    assert tx.execute(corruption) == 1
    assert rules_broken(tx) == broken


def test_gas_is_a_cost_that_no_customer_bears(tx: Books) -> None:
    funded(tx)
    gas = msgspec.structs.replace(topup(7, id="gas|0x1"), debit=COST_GAS, credit=EXT_GAS, code=Code.GAS)
    post(tx, gas)
    assert (balance_of(tx, COST_GAS).balance, balance_of(tx, EXT_GAS).balance) == (7, -7)
    assert verify(tx, chain_balance_usdc=Usdc(1000)) == []


def test_more_on_the_books_than_on_chain_is_found(tx: Books) -> None:
    funded(tx)
    assert [violation.sentence for violation in verify(tx, chain_balance_usdc=Usdc(999))] == [
        "ext:usdc is 1000, but the chain shows only 999"
    ]


def test_a_violation_says_what_is_wrong_and_where(tx: Books) -> None:
    funded(tx)
    tx.execute("UPDATE account SET balance = balance + 1 WHERE id = :id", {"id": WALLET})
    assert [violation.sentence for violation in verify(tx)] == [
        f"{WALLET} shows a balance of 691, but its transfers add up to 690",
        "customers and revenue add up to 1001, but ext:usdc is 1000",
    ]
