"""What `verify` says of time that was charged, of machines that cost us, and of what hangs on a wallet."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from spawn_ledger.accounts import COST_PROVIDER, EXP_OVERRUN, OWED_PROVIDER
from spawn_ledger.accrual import DAY, next_month
from spawn_ledger.transfers import Code, Transfer, TransferId, post
from spawn_ledger.verify import verify
from spawn_schemas.money import Usdc

from tests.integration.ledger_books import (
    ALICE,
    BOB,
    NOW,
    RESERVE,
    SERVER,
    WALLET,
    Books,
    burn,
    insert,
    open_books,
    topup,
)

MONTH = next_month(NOW)
"""The first second of a month."""


@pytest.fixture
def tx(tmp_path: Path) -> Iterator[Books]:
    """Two stretches of a server's life that meet at the start of a month, each with both its legs and its cost."""
    tx = open_books(tmp_path / "spawn.db")
    post(tx, topup(9_000_000))
    post(tx, topup(9_000_000, id="topup|2", wallet=RESERVE))
    charge(tx, MONTH - DAY, MONTH)
    charge(tx, MONTH, MONTH + DAY)
    over = cost("overrun|srv_1", MONTH + DAY, 7)
    post(tx, replace(over, debit=EXP_OVERRUN, code=Code.OVERRUN))
    tx.execute("UPDATE server SET cost_usdc = 207 WHERE id = 'srv_1'")
    assert verify(tx) == []
    yield tx
    tx.close()


def charge(tx: Books, since: int, until: int) -> None:
    for leg, account in (("reserve", RESERVE), ("wallet", WALLET)):
        post(tx, stretch(since, until, leg, 75_000, account))
    post(tx, cost(f"cost|{SERVER}|{since}|{until}", until, 100))
    tx.execute("UPDATE server SET charged_usdc = charged_usdc + 150000 WHERE id = 'srv_1'")


def stretch(since: int, until: int, leg: str, amount: int, account: object = RESERVE) -> Transfer:
    return replace(
        burn(amount), id=TransferId(f"burn|{SERVER}|{since}|{until}|{leg}"), debit=account, at=until
    )


def cost(id: str, at: int, amount: int) -> Transfer:
    return Transfer(
        id=TransferId(id),
        debit=COST_PROVIDER,
        credit=OWED_PROVIDER,
        amount=Usdc(amount),
        code=Code.COST,
        reference=SERVER,
        at=at,
    )


def said(tx: Books) -> list[tuple[str, str]]:
    return [(violation.rule, violation.sentence) for violation in verify(tx)]


@pytest.mark.parametrize(
    ("corruption", "rule"),
    [
        ("UPDATE server SET cost_usdc = cost_usdc - 1 WHERE id = 'srv_1'", "cost"),
        ("UPDATE server SET cost_usdc = 1 WHERE id = 'srv_2'", "cost"),
        ("INSERT INTO burn_due VALUES ('srv_1', 0, 0, 0, 0, 0)", "burn set"),
        (
            "UPDATE server SET ended_at = 5, charged_until = NULL, cost_until = 5 WHERE id = 'srv_2'",
            "machine that is gone",
        ),
        ("UPDATE account SET barred = 'suspended' WHERE id = 'srv:srv_1'", "barred"),
        (f"UPDATE account SET barred = 'angry' WHERE id = 'wallet:{ALICE}'", "barred"),
    ],
)
def test_a_fault_is_found_and_named(tx: Books, corruption: str, rule: str) -> None:
    assert tx.execute(corruption) == 1
    assert [violation.rule for violation in verify(tx)] == [rule]


def test_a_wallet_may_be_barred(tx: Books) -> None:
    tx.execute(f"UPDATE account SET barred = 'blocked' WHERE id = 'wallet:{ALICE}'")
    assert verify(tx) == []


@pytest.mark.parametrize(
    ("since", "until", "begins", "ended"),
    [
        (MONTH + DAY - 1, MONTH + DAY + 9, MONTH + DAY - 1, MONTH + DAY),
        (MONTH + 5, MONTH + 6, MONTH + 5, MONTH + DAY),
        (MONTH, MONTH + 6, MONTH, MONTH + 6),
    ],
    ids=["reaches back", "lies within", "begins again"],
)
@pytest.mark.parametrize("code", ["burn", "cost"])
def test_a_second_that_was_charged_twice_is_found(
    tx: Books, code: str, since: int, until: int, begins: int, ended: int
) -> None:
    if code == "burn":
        post(tx, stretch(since, until, "reserve", 1))
        tx.execute("UPDATE server SET charged_usdc = charged_usdc + 1 WHERE id = 'srv_1'")
    else:
        post(tx, cost(f"cost|{SERVER}|{since}|{until}", until, 1))
        tx.execute("UPDATE server SET cost_usdc = cost_usdc + 1 WHERE id = 'srv_1'")
    ((rule, sentence),) = said(tx)
    assert rule == "charged once"
    assert sentence.endswith(f"begins at {begins}, although the stretch before it ended at {ended}")


@pytest.mark.parametrize("year", [1972, 1999, 2000, 2024, 2100, 2399, 2400])
def test_a_stretch_that_spans_the_start_of_a_month_is_found(tx: Books, year: int) -> None:
    """Every month of years of every kind; the stretches that end there, or begin there, are right."""
    at, starts = (year - 1970) * 365 * DAY, list[int]()
    while len(starts) < 16:
        at = next_month(at)
        starts.append(at)
    for start in starts:
        with tx.undone():
            check_start(tx, start)


def check_start(tx: Books, start: int) -> None:
    post(tx, stretch(start - 2, start, "reserve", 1))
    post(tx, stretch(start, start + 2, "reserve", 1))
    tx.execute("UPDATE server SET charged_usdc = charged_usdc + 2 WHERE id = 'srv_1'")
    assert said(tx) == []
    post(tx, cost(f"cost|{SERVER}|{start - 1}|{start + 1}", start + 1, 1))
    tx.execute("UPDATE server SET cost_usdc = cost_usdc + 1 WHERE id = 'srv_1'")
    assert said(tx) == [("within a month", f"cost|srv_1|{start - 1}|{start + 1} spans the start of a month")]


def test_more_than_a_month_costs_at_most_is_found(tx: Books) -> None:
    """150,000 a day, of which the last month has two days' cap: a micro-dollar more may come from the month before."""
    tx.execute("UPDATE server SET capped_s = 2 * 86400 - 1 WHERE id = 'srv_1'")
    tx.execute("UPDATE server SET charged_usdc = 450000 WHERE id = 'srv_1'")
    post(tx, stretch(MONTH + DAY, MONTH + 3 * DAY, "reserve", 149_999))
    post(tx, stretch(MONTH + 3 * DAY, MONTH + 4 * DAY, "reserve", 1))
    ((rule, sentence),) = said(tx)
    assert rule == "month cap"
    assert sentence == f"srv_1 was charged 300000 in the month of {MONTH}, and a month costs 299999 at most"
    tx.execute("UPDATE server SET capped_s = 2 * 86400 WHERE id = 'srv_1'")
    assert said(tx) == []
    tx.execute(f"UPDATE server SET capped_s = 0, priced_at = {MONTH + 1} WHERE id = 'srv_1'")
    assert said(tx) == [], "what its months cost at other prices cannot be said"


@pytest.mark.parametrize(
    ("corruption", "found"),
    [
        (f"UPDATE webhook SET wallet = '{BOB}'", True),
        ("UPDATE delivery SET resource = 'srv_2'", True),
        ("UPDATE webhook SET enabled = 0", False),
    ],
)
def test_an_event_that_goes_to_a_stranger_is_found(tx: Books, corruption: str, found: bool) -> None:
    hook = {"types": '["*"]', "description": "", "enabled": 1, "created_at": NOW}
    insert(tx, "webhook", id="wh_1", wallet=ALICE, url="https://hooks.example/", **hook)
    insert(tx, "event", seq=1, wallet=ALICE, type="deposit.low", resource=SERVER, at=NOW, data="{}")
    state = {"state": "pending", "attempts": 0, "next_at": NOW, "claim_until": 0, "created_at": NOW}
    insert(tx, "delivery", webhook_id="wh_1", seq=1, resource=SERVER, **state)
    assert verify(tx) == []
    assert tx.execute(corruption) == 1
    expected = [("delivery", "event 1 is to be delivered to wh_1, which did not ask for it")] if found else []
    assert said(tx) == expected
