"""The oracle of money, on made-up books: right ones pass, and each thing that can be wrong with them is found."""

from collections.abc import Callable
from typing import Any, Final, cast

import pytest

from tests.sim.made_up_books import (
    CALL,
    DEPOSIT,
    OWN,
    RESERVE,
    SERVER,
    T0,
    Life,
    Stub,
    Wrong,
    a_life,
    metered,
    moved,
    ordered,
)
from tests.sim.oracle.part import Changes, Row
from tests.sim.oracle.rates import DAY
from tests.sim.oracle.runways import Runways
from tests.sim.world import World


@pytest.fixture
def life() -> Life:
    return a_life()


def test_right_books_pass(life: Life) -> None:
    for part in life.play():
        assert part.unsettled() == []


Break = Callable[[Life], None]


def _leg(life: Life, commit: str, name: str) -> Row:
    return next(leg for leg in life.commits[commit][1].transfers if leg["id"].startswith(name))


def _row(life: Life, commit: str, table: str, key: str) -> Row:
    row = life.commits[commit][1].rows[table][key]
    assert row is not None
    return row


def _change_leg(commit: str, name: str, **fields: Any) -> Break:
    return lambda life: _leg(life, commit, name).update(fields)


def _change_row(commit: str, table: str, key: str, **fields: Any) -> Break:
    return lambda life: (
        life.commits[commit][1].rows[table].update({key: _row(life, commit, table, key) | fields})
    )


def _more(commit: str, *transfer: Any) -> Break:
    """One more movement, with the balances that follow from it."""

    def change(life: Life) -> None:
        _, changes = life.commits[commit]
        leg = moved(*transfer)
        leg["seq"] = 1_000
        changes.transfers.append(leg)
        names = list(life.commits)
        for name in names[names.index(commit) :]:
            for side, sign in (("debit", -1), ("credit", 1)):
                account = life.commits[name][1].rows["account"].get(leg[side])
                if account is not None:
                    account["balance"] += sign * leg["amount"]

    return change


def _without(commit: str, name: str) -> Break:
    return lambda life: life.commits[commit][1].transfers.remove(_leg(life, commit, name))


BREAKS: Final[dict[str, tuple[Break, str]]] = {
    "a balance that no movement explains": (
        _change_row("paid", "account", OWN, balance=6_000_000),
        "movements add up to 5000000",
    ),
    "held without a hold": (_change_row("paid", "account", OWN, held=5), "pending holds add up to 0"),
    "a movement of nothing": (_change_leg("paid", "topup", amount=0), "moves 0"),
    "money out of thin air": (_change_leg("paid", "topup", debit="exp:goodwill"), "none goes there"),
    "a code of its own": (_change_leg("paid", "topup", code="gift"), "none goes there"),
    "numbers that go back": (_change_leg("accepted", "fee", seq=1), "was given before"),
    "a name twice": (_change_leg("accepted", "fee", id="topup|n", code="topup"), "moved money twice"),
    "somebody else's server": (
        _more("burnt", "deposit|x", "wallet:0xcd", RESERVE, 5, "deposit", SERVER, T0),
        "does not own it",
    ),
    "the fee of no call": (
        _change_row("ordered", "reservation", "sig_1", operation_id="act_2"),
        "of no call",
    ),
    "a dearer fee than the price": (_change_row("ordered", "reservation", "sig_1", fee=5_000), "costs 5000"),
    "two fees of one call": (
        _more("burnt", f"fee|{CALL}", OWN, "rev:opfee", 10_000, "fee", CALL, T0),
        "second fee",
    ),
    "a hold of two minds": (
        _change_row("accepted", "hold", "fee|act_1", state="released"),
        "released, and its transfer is",
    ),
    "a hold posted without money": (_without("accepted", "deposit"), "and its transfer is None"),
    "a hold that grows": (_change_row("accepted", "hold", "fee|act_1", amount=20_000), "become another"),
    "an operation that is over, with money set aside": (
        lambda life: life.commits["ordered"][1].rows.update(operation=cast("Any", ordered("success"))),
        "still set aside",
    ),
    "a failed call that cost something": (
        _change_row("done", "operation", "act_1", status="error", error_code="out_of_capacity"),
        "was not given back",
    ),
    "a fee given back for a call that was done": (
        _more("done", "fee-refund|act_1", "rev:opfee", OWN, 10_000, "fee_refund", "act_1", T0),
        "to be kept",
    ),
    "a second twice": (
        _change_leg("ended", "burn", id=f"burn|{SERVER}|{T0 + 999}|{T0 + 2_000}|reserve"),
        "before",
    ),
    "a stretch over two months": (
        _change_leg(
            "burnt",
            "burn",
            id=f"burn|{SERVER}|{T0}|{T0 + 1_000 + 40 * DAY}|reserve",
            at=T0 + 1_000 + 40 * DAY,
        ),
        "one month into another",
    ),
    "a micro-USDC too much": (_change_leg("burnt", "burn", amount=1_001), "movements add up"),
    "the wallet before the reserve": (_change_leg("burnt", "burn", debit=OWN), "movements add up"),
    "charged ahead of time": (
        lambda life: life.commits.update(burnt=(T0 + 999, life.commits["burnt"][1])),
        "at the latest",
    ),
    "a watermark that moves alone": (
        _change_row("burnt", "server", SERVER, charged_until=T0 + 999, cost_until=T0 + 999),
        "owes 999 up to",
    ),
    "a sum that says something else": (
        _change_row("burnt", "server", SERVER, charged_usdc=999),
        "moved were 1000",
    ),
    "another price by nobody's word": (
        _change_row("burnt", "server", SERVER, daily_usdc=1),
        "nobody was told",
    ),
    "a minimum that is none": (_change_row("burnt", "server", SERVER, minimum_usdc=1), "at least"),
    "a cost that is not booked": (_change_row("burnt", "server", SERVER, cost_usdc=1), "booked are 500"),
    "an end that nobody is told of": (
        lambda life: life.commits["ended"][1].events.clear(),
        "nobody was told",
    ),
    "an end for want of money that is there": (
        _change_row("ended", "server", SERVER, reason="deposit_exhausted"),
        "had not ended",
    ),
    "an overrun of the wrong length": (_change_row("gone", "server", SERVER, ended_at=T0 + 3_700), "cost us"),
    "a look that comes too late": (
        _change_row("burnt", "server", SERVER, due_at=T0 + DEPOSIT + 5),
        "its money ends at",
    ),
    "a warning that comes too late": (
        _change_row("burnt", "server", SERVER, due_at=T0 + DEPOSIT - 3 * DAY + 5, warned_s=7 * DAY),
        "falls to 259200",
    ),
    "an early end": (
        _change_row("burnt", "server", SERVER, exhausted_at=T0 + 1_000),
        "its money lasts until",
    ),
}


@pytest.mark.parametrize(("change", "said"), BREAKS.values(), ids=BREAKS)
def test_each_wrong_is_found(life: Life, change: Break, said: str) -> None:
    change(life)
    with pytest.raises(Wrong, match=said):
        life.play()


def test_a_refund_that_never_comes_is_found(life: Life) -> None:
    life.commits["ended"][1].transfers.remove(_leg(life, "ended", "refund"))
    for name in ("ended", "gone"):
        _row(life, name, "account", OWN)["balance"] -= DEPOSIT - 3_600
        _row(life, name, "account", RESERVE)["balance"] = DEPOSIT - 3_600
    with pytest.raises(Wrong, match="did not come back"):
        life.play()


def test_what_is_charged_beyond_the_money_is_found(life: Life) -> None:
    """Two servers share a wallet; one is charged for seconds that the other's need left nothing for."""
    stub = Stub(now=T0 + 10_000)
    runways = Runways(cast("World", stub))
    rows = {
        name: metered(T0, id=name, auto_renew=1, due_at=T0, remainder=0, month_s=0)
        for name in ("srv_a", "srv_b")
    }
    accounts = {
        account: {"id": account, "balance": balance, "held": 0}
        for account, balance in ((OWN, 1_000), ("srv:srv_a", 0), ("srv:srv_b", 0))
    }
    runways.committed(Changes(rows={"server": cast("Any", rows), "account": cast("Any", accounts)}))
    after = {
        "srv_a": rows["srv_a"] | {"charged_until": T0 + 1_000},
        "srv_b": rows["srv_b"] | {"exhausted_at": T0},
    }
    with pytest.raises(Wrong, match=f"charged up to {T0 + 1_000}, and its money ended at {T0 + 500}"):
        runways.committed(Changes(rows={"server": cast("Any", after)}))
