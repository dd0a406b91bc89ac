"""Many servers settled at once: the books are those of settling the wallets one by one, and who needs a look is left.

The books of one example are written twice; `burning` and then `Billing` settle the one copy, `Billing` alone the other.
"""

import sqlite3
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spawn_ledger.accounts import EXT_USDC, server_account, wallet_account
from spawn_ledger.accrual import DAY, NO_CAP_S, month_start, next_month
from spawn_ledger.transfers import Code, Transfer, TransferId, balance_of, post
from spawn_ledger.tx import Params
from spawn_ledger.verify import verify
from spawn_schemas.ids import Address, ServerId
from spawn_schemas.money import Usdc

from spawn.domain.warnings import Policy
from spawn.services.billing import Billing
from spawn.store.burning import INSERT_BURN_DUE, SELECT_LAST, START, Place, settle_chunk
from spawn.store.database import NO_PARAMS
from spawn.store.postgres_session import Connection
from spawn.store.servers import SELECT_DUE
from tests import databases
from tests.arch.sql import Query
from tests.harness import SeededEntropy
from tests.integration.ledger_books import NOW, Books, add_server, open_books

POLICY: Final = Policy()
EXAMPLES: Final = 150 if databases.engine() == "sqlite" else 40
"""A server's books take longer to write than a file's."""
HORIZON_S: Final = DAY + POLICY.thresholds_s[0]
WALLETS: Final = tuple(Address("0x" + f"{number:02x}" * 20) for number in range(3))


@dataclass(frozen=True)
class Case:
    """A metered server; `reserve_usdc` is beyond what it has burnt, times in seconds before now."""

    wallet: int = 0
    daily_usdc: int = 150_000
    remainder: int = 0
    unsettled_s: int = DAY
    lived_s: int = 3 * DAY
    overdue_s: int = 0
    capped_s: int = NO_CAP_S
    reserve_usdc: int = 5_000_000
    auto_renew: int = 1
    epoch: int = 1
    warned_s: int | None = None
    exhausted: bool = False
    reprice_in_s: int | None = None
    reprice_usdc: int = 400_000
    cost_daily_usdc: int | None = 120_000
    cost_capped_s: int = NO_CAP_S
    cost_remainder: int = 0


def cases() -> st.SearchStrategy[Case]:
    caps = st.sampled_from([NO_CAP_S, 10 * DAY, 20 * DAY + 7])
    daily = st.sampled_from([1, 999, 150_000, 86_399, 86_400, 400_001])
    remainder = st.integers(0, DAY - 1)
    return st.builds(
        Case,
        wallet=st.integers(0, len(WALLETS) - 1),
        daily_usdc=daily,
        remainder=remainder,
        unsettled_s=st.sampled_from([0, 1, 59, DAY, 3 * DAY + 1, 20 * DAY, 40 * DAY]),
        lived_s=st.integers(0, 50 * DAY),
        overdue_s=st.integers(0, 3),
        capped_s=caps,
        reserve_usdc=st.sampled_from([0, 1, 1_349_999, 1_350_000, 9_000_000]),
        auto_renew=st.integers(0, 1),
        warned_s=st.sampled_from([None, None, None, 7 * DAY, DAY]),
        reprice_in_s=st.sampled_from([None, None, None, 1, DAY, DAY + 1, 30 * DAY]),
        reprice_usdc=st.sampled_from([1, 400_000, 2_000_000]),
        cost_daily_usdc=st.sampled_from([None, 1, 120_000]),
        cost_capped_s=caps,
        cost_remainder=remainder,
    )


def moments() -> st.SearchStrategy[int]:
    """In the middle of a month, and just about its start."""
    start = next_month(NOW)
    return st.sampled_from([NOW, start - 1, start, start + 1, start + DAY // 2, start + 10 * DAY])


def books(path: Path, cases: list[Case], now: int, available_usdc: int = 1_000_000) -> Books:
    """Fresh books with these servers and nothing else that is metered."""
    tx = open_books(path)
    tx.execute("UPDATE server SET charged_until = NULL, due_at = NULL")
    for number, case in enumerate(cases):
        _add(tx, ServerId(f"srv_case{number}"), case, now)
    for number, wallet in enumerate(WALLETS):
        _give(tx, f"topup|{number}", wallet_account(wallet), available_usdc)
    return tx


def _add(tx: Books, server_id: ServerId, case: Case, now: int) -> None:
    add_server(tx, server_id, WALLETS[case.wallet], f"act_{server_id}")
    tx.execute("DELETE FROM operation WHERE server_id = :id", {"id": server_id})
    charged_until = now - case.unsettled_s
    metered_from = charged_until - case.lived_s
    values: dict[str, Any] = {
        "id": server_id,
        "daily": case.daily_usdc,
        "remainder": case.remainder,
        "charged_until": charged_until,
        "metered_from": metered_from,
        "month_s": charged_until - max(month_start(charged_until), metered_from),
        "due_at": now - case.overdue_s,
        "capped_s": case.capped_s,
        "auto_renew": case.auto_renew,
        "epoch": case.epoch,
        "warned_s": case.warned_s,
        "exhausted_at": charged_until if case.exhausted else None,
        "reprice_at": None if case.reprice_in_s is None else now + case.reprice_in_s,
        "reprice_usdc": None if case.reprice_in_s is None else case.reprice_usdc,
        "cost_daily": case.cost_daily_usdc,
        "cost_capped_s": case.cost_capped_s,
        "cost_remainder": case.cost_remainder,
        "cost_until": None if case.cost_daily_usdc is None else charged_until,
    }
    tx.execute(
        "UPDATE server SET daily_usdc = :daily, remainder = :remainder, charged_until = :charged_until, "
        "metered_from = :metered_from, month_s = :month_s, due_at = :due_at, capped_s = :capped_s, "
        "auto_renew = :auto_renew, epoch = :epoch, warned_s = :warned_s, exhausted_at = :exhausted_at, "
        "reprice_at = :reprice_at, reprice_usdc = :reprice_usdc, cost_daily_usdc = :cost_daily, "
        "cost_capped_s = :cost_capped_s, cost_remainder = :cost_remainder, cost_until = :cost_until WHERE id = :id",
        values,
    )
    _give(tx, f"deposit|{server_id}", server_account(server_id), case.reserve_usdc)


def _give(tx: Books, id: str, account: Any, amount: int) -> None:
    tx.execute("INSERT INTO account (id, balance, held) VALUES (:id, 0, 0)", {"id": account})
    if amount:
        name = TransferId(id)
        post(
            tx,
            Transfer(
                id=name,
                debit=EXT_USDC,
                credit=account,
                amount=Usdc(amount),
                code=Code.TOPUP,
                reference=id,
                at=0,
            ),
        )


def settle_all(tx: Books, now: int, limit: int = 1_000) -> int:
    """Every chunk there is; fails rather than going round for ever."""
    settled, place = 0, START
    for _ in range(1_000):
        chunk = settle_chunk(tx, now=now, horizon_s=HORIZON_S, after=place, limit=limit)
        settled += chunk.settled
        if chunk.next is None:
            return settled
        place = chunk.next
    raise AssertionError("the chunks have no end")


def by_wallet(tx: Books, now: int) -> None:
    billing = Billing(SeededEntropy(), POLICY)
    for wallet in WALLETS:
        billing.settle(tx, wallet, now)


def rows(tx: Books, sql: str) -> list[tuple[Any, ...]]:
    return tx.rows(sql)


def contents(tx: Books, *tables: str) -> dict[str, list[tuple[Any, ...]]]:
    wanted = tables or ("server", "account", "transfer", "event", "burn_due")
    return {table: rows(tx, f"SELECT * FROM {table} ORDER BY 1") for table in wanted}


def the_books(tx: Books) -> dict[str, Any]:
    """What must be the same whoever settles, in whatever order."""
    found: dict[str, Any] = contents(tx, "server", "account")
    found["transfers"] = set(rows(tx, "SELECT id, debit, credit, amount, code, reference, at FROM transfer"))
    found["events"] = set(rows(tx, "SELECT wallet, type, resource, cause, at, data FROM event"))
    return found


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(servers=st.lists(cases(), min_size=1, max_size=6), now=moments(), limit=st.integers(1, 7))
def test_at_once_and_one_by_one_write_the_same_books(
    tmp_path: Path, servers: list[Case], now: int, limit: int
) -> None:
    together = books(tmp_path / "together.db", servers, now)
    apart = books(tmp_path / "apart.db", servers, now)
    settle_all(together, now, limit)
    assert not together.all("SELECT id FROM burn_due")
    by_wallet(together, now)
    by_wallet(apart, now)
    assert the_books(together) == the_books(apart)
    together.close()
    apart.close()


def test_what_is_settled_is_charged_to_the_second_and_the_micro_dollar(tmp_path: Path) -> None:
    start = next_month(NOW)
    now = start + DAY
    # 2 days and 1 second of the old month, of which the caps leave 86 400 - 600 s and 2 days; then a day.
    case = Case(
        daily_usdc=86_400,
        remainder=5,
        unsettled_s=3 * DAY + 1,
        lived_s=400 * DAY,
        capped_s=start - month_start(NOW) - DAY - 601,
        cost_daily_usdc=43_200,
        cost_capped_s=start - month_start(NOW) - 1,
    )
    tx = books(tmp_path / "books.db", [case], now)
    assert settle_all(tx, now) == 1
    billed_s = (DAY - 600) + DAY
    (server,) = tx.all("SELECT * FROM server WHERE id = 'srv_case0'")
    assert (server["charged_usdc"], server["remainder"]) == (billed_s, 5)
    assert (server["cost_usdc"], server["cost_remainder"]) == (3 * DAY // 2, 0)
    assert (server["charged_until"], server["cost_until"], server["month_s"]) == (now, now, DAY)
    assert server["due_at"] == now + DAY
    assert balance_of(tx, server_account(ServerId("srv_case0"))).balance == 5_000_000 - billed_s
    since = now - 3 * DAY - 1
    assert rows(tx, "SELECT id, amount, at FROM transfer WHERE code <> 'topup'") == [
        (f"burn|srv_case0|{since}|{start}|reserve", DAY - 600, start),
        (f"cost|srv_case0|{since}|{start}", DAY, start),
        (f"burn|srv_case0|{start}|{now}|reserve", DAY, now),
        (f"cost|srv_case0|{start}|{now}", DAY // 2, now),
    ]
    assert verify(tx) == []


BARELY: Final = Case(reserve_usdc=150_000 + 8 * 150_000 + 1)
"""Its reserve pays for the day that is due, a day to come, and the longest warning."""


def test_who_is_safe_is_settled_and_then_rests_for_a_day(tmp_path: Path) -> None:
    tx = books(
        tmp_path / "books.db", [BARELY, replace(BARELY, reprice_in_s=DAY + 1, reprice_usdc=150_000)], NOW
    )
    assert settle_all(tx, NOW) == 2
    before = contents(tx)
    assert settle_all(tx, NOW) == 0, "a chunk that runs again finds nobody"
    assert settle_all(tx, NOW - 3_600) == 0, "nor does one whose clock was set back"
    assert settle_all(tx, NOW + DAY - 1) == 0
    assert contents(tx) == before
    assert settle_all(tx, NOW + DAY) == 0, "now its wallet has to be looked at"


@pytest.mark.parametrize(
    "change",
    [
        {"reserve_usdc": BARELY.reserve_usdc - 1},
        {"unsettled_s": 0},
        {"overdue_s": -1},
        {"unsettled_s": 60 * DAY, "reserve_usdc": 50_000_000},
        {"epoch": 0},
        {"warned_s": 7 * DAY},
        {"exhausted": True},
        {"reprice_in_s": DAY, "reprice_usdc": 1},
        {"reprice_in_s": DAY + 1, "reprice_usdc": 150_001},
    ],
    ids="-".join,
)
def test_who_needs_a_look_is_left_as_it_is(tmp_path: Path, change: dict[str, Any]) -> None:
    tx = books(tmp_path / "books.db", [BARELY, replace(BARELY, **change)], NOW)
    before = contents(tx)
    assert settle_all(tx, NOW) == 1
    after = contents(tx)
    assert [new for old, new in zip(before["server"], after["server"], strict=True) if new != old] == [
        new for new in after["server"] if new[0] == "srv_case0"
    ]


def test_a_machine_whose_cost_has_another_watermark_is_left(tmp_path: Path) -> None:
    tx = books(tmp_path / "books.db", [BARELY], NOW)
    tx.execute("UPDATE server SET cost_until = cost_until - 1 WHERE id = 'srv_case0'")
    assert settle_all(tx, NOW) == 0
    tx.execute("UPDATE server SET cost_until = NULL WHERE id = 'srv_case0'")
    assert settle_all(tx, NOW) == 0


def test_money_that_is_set_aside_counts_for_nothing(tmp_path: Path) -> None:
    tx = books(tmp_path / "books.db", [BARELY], NOW)
    tx.execute("UPDATE account SET held = 1 WHERE id = 'srv:srv_case0'")
    assert settle_all(tx, NOW) == 0


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
def test_chunks_meet_every_due_server_once_however_many_share_a_second(tmp_path: Path, limit: int) -> None:
    tx = books(tmp_path / "books.db", [replace(BARELY, overdue_s=number // 4) for number in range(7)], NOW)
    assert settle_all(tx, NOW, limit) == 7
    assert verify(tx) == []


class Crash(Exception):
    """The process dies here."""


class CrashingTx(Books):
    """A transaction that dies at its n-th statement."""

    def __init__(self, connection: sqlite3.Connection | Connection, statements: int) -> None:
        super().__init__(connection)
        self.left = statements

    def execute(self, sql: str, params: Params = NO_PARAMS, /) -> int:
        self._count()
        return super().execute(sql, params)

    def one(self, sql: str, params: Params = NO_PARAMS, /) -> Any:
        self._count()
        return super().one(sql, params)

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Crash


def test_a_crash_anywhere_is_repaired_by_going_on(tmp_path: Path) -> None:
    now = next_month(NOW) + DAY // 2  # both months' stretches are in it
    servers = [replace(BARELY, wallet=number % 3) for number in range(4)]
    whole = books(tmp_path / "whole.db", servers, now)
    assert settle_all(whole, now, 2) == 4
    crashes = 0
    for statements in range(100):
        tx = books(tmp_path / "crash.db", servers, now)
        settle_chunk(tx, now=now, horizon_s=HORIZON_S, limit=2)
        place = Place(due_at=now, id=ServerId("srv_case1"))
        tx.execute("SAVEPOINT committed")
        try:
            settle_chunk(
                CrashingTx(tx.connection, statements), now=now, horizon_s=HORIZON_S, after=place, limit=2
            )
        except Crash:
            crashes += 1
            tx.execute("ROLLBACK TO committed")
            settle_all(tx, now)
        assert the_books(tx) == the_books(whole)
        tx.close()
        if crashes <= statements:
            break
    assert crashes == 13, "two looks for the page and the set, then the legs of both stretches"


def test_a_meter_that_moved_meanwhile_undoes_the_chunk(tmp_path: Path) -> None:
    """On PostgreSQL another replica may settle between the look and the legs; here a statement does."""

    class Moving(Books):
        def execute(self, sql: str, params: Params = NO_PARAMS, /) -> int:
            done = super().execute(sql, params)
            if sql == INSERT_BURN_DUE and done:
                super().execute("UPDATE server SET charged_until = charged_until + 1 WHERE id = 'srv_case0'")
            return done

    tx = books(tmp_path / "books.db", [BARELY, BARELY], NOW)
    with pytest.raises(RuntimeError, match="meter moved"):
        settle_chunk(Moving(tx.connection), now=NOW, horizon_s=HORIZON_S)


@pytest.mark.embedded
@pytest.mark.parametrize(("query", "seen"), [(SELECT_LAST, 1), (INSERT_BURN_DUE, 2), (SELECT_DUE, 1)])
def test_only_due_servers_are_looked_at(tmp_path: Path, query: str, seen: int) -> None:
    tx = books(tmp_path / "books.db", [], NOW)
    anything = dict.fromkeys(Query(name="explained", sql=query).parameters, 0)
    plan = [row["detail"] for row in tx.all(f"EXPLAIN QUERY PLAN {query}", anything)]
    assert len(plan) == seen, plan
    assert "INDEX server_due ((due_at,id)>" in plan[0], plan
    assert all(line.startswith("SEARCH") for line in plan), plan
