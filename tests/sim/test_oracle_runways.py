"""What the oracle of money reckons, beside second-by-second sums, and beside years of the service's own books."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from fractions import Fraction
from random import Random
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spawn_schemas.ids import Address

from spawn.domain.warnings import Policy
from tests.harness import START_S
from tests.integration.living import Town
from tests.integration.ten_years import YEAR, Decade
from tests.sim.client_types import Answer, Request
from tests.sim.disk import _watch, read_changes
from tests.sim.made_up_books import CALLED, DEPOSIT, SERVER, T0, Life, Stub, Wrong, a_life
from tests.sim.oracle.part import Changes, Part
from tests.sim.oracle.rates import DAY, Bill, Rate, next_month, thresholds_s
from tests.sim.oracle.runways import Runways, Tab, ends

VERBS: Final = (
    "pay_in",
    "rent",
    "fund",
    "renew",
    "resize",
    "power",
    "destroy",
    "read",
    "burn",
    "obey",
    "announce",
)
"""What happens in a town, each a commit or a few."""

# --- the arithmetic -----------------------------------------------------------------------------------------------


def _second_by_second(rates: list[Rate], until: int) -> Fraction:
    total, used_s = Fraction(0), 0
    for second in range(rates[0].since, until):
        if second == next_month(second - 1):
            used_s = 0
        for rate in rates:
            used_s = 0 if rate.since == second and rate.own_month else used_s
        rate = [rate for rate in rates if rate.since <= second][-1]
        total += Fraction(rate.daily_usdc, DAY) if used_s < rate.capped_s else 0
        used_s += 1
    return total


MONTH_END: Final = int(datetime(2026, 4, 1, tzinfo=UTC).timestamp())


@given(
    steps=st.lists(
        st.tuples(st.integers(1, 60), st.integers(1, 10**7), st.integers(0, 90), st.booleans()),
        min_size=1,
        max_size=4,
    ),
    looks=st.lists(st.integers(0, 300), max_size=5),
)
def test_a_bill_is_the_sum_of_its_seconds(steps: list[tuple[int, int, int, bool]], looks: list[int]) -> None:
    rates: list[Rate] = []
    at = MONTH_END - 60
    for span_s, daily_usdc, capped_s, own_month in steps:
        rates.append(Rate(at, daily_usdc, capped_s, own_month and bool(rates)))
        at += span_s
    bill = Bill(rates)
    for look in looks:
        until = rates[0].since + look
        assert bill.owed(until) == _second_by_second(rates, until)


def _ends_second_by_second(tabs: list[Tab], available_usdc: int, until: int) -> dict[str, int]:
    """Each second is paid for all who need the wallet's money, or for none of them."""
    found: dict[str, int] = {}
    for second in range(min(tab.since for tab in tabs), until):
        for tab in tabs:
            if tab.server_id not in found and not tab.renews and tab.lacks_usdc(second + 1):
                found[tab.server_id] = second
        while True:
            alive = [tab for tab in tabs if tab.renews and tab.server_id not in found]
            gone = [tab for tab in tabs if tab.renews and tab.server_id in found]
            left = available_usdc - sum(tab.lacks_usdc(found[tab.server_id]) for tab in gone)
            if sum(tab.lacks_usdc(second + 1) for tab in alive) <= left:
                break
            found.update(
                (tab.server_id, second)
                for tab in alive
                if tab.lacks_usdc(second + 1) > tab.lacks_usdc(second)
            )
    return {tab.server_id: found.get(tab.server_id, until) for tab in tabs}


@given(
    servers=st.lists(
        st.tuples(
            st.integers(0, 20),
            st.integers(0, 3 * DAY),
            st.integers(0, 100),
            st.booleans(),
            st.integers(0, 90),
        ),
        min_size=1,
        max_size=3,
    ),
    available_usdc=st.integers(0, 300),
)
def test_the_end_is_the_second_that_cannot_be_paid(
    servers: list[tuple[int, int, int, bool, int]], available_usdc: int
) -> None:
    since = MONTH_END - 50
    tabs = [
        Tab(
            server_id=f"srv_{number}",
            since=since + late_s,
            owed=0,
            month_s=0,
            capped_s=capped_s,
            rates=((since + late_s, daily_usdc), (since + 40, DAY)),
            reserve_usdc=reserve_usdc,
            renews=renews,
        )
        for number, (late_s, daily_usdc, reserve_usdc, renews, capped_s) in enumerate(servers)
    ]
    until = since + 200
    assert ends(tabs, available_usdc, until) == _ends_second_by_second(tabs, available_usdc, until)


def test_thresholds_are_read_as_they_are_set() -> None:
    assert thresholds_s("6h, 7d,3d,1d") == (7 * DAY, 3 * DAY, DAY, 21_600)


# --- what is said -------------------------------------------------------------------------------------------------


def _shown(life: Life, expires_at: str) -> tuple[Runways, Answer]:
    server = {"id": SERVER, "deposit_expires_at": expires_at, "root_password": None}
    row = {**CALLED["sig_1"], "state": "done", "answer": json.dumps({"body": {"server": server}}).encode()}
    (runways,) = (part for part in life.play("burnt") if isinstance(part, Runways))
    runways.committed(Changes(rows={"reservation": {"sig_1": row}}))
    body = json.dumps({"server": server}).encode()
    return runways, Answer(200, {"spawn-runway": str(DEPOSIT - 1_000)}, body)


def test_the_end_that_is_said_is_the_end() -> None:
    life = a_life()
    ends_at = datetime.fromtimestamp(T0 + DEPOSIT, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    runways, answer = _shown(life, ends_at)
    request = Request(method="GET", path=f"/v1/servers/{SERVER}")
    runways.answered(request, answer)
    with pytest.raises(Wrong, match="runway of 7 seconds"):
        runways.answered(request, Answer(200, {"spawn-runway": "7"}, answer.body))
    with pytest.raises(Wrong, match="is said to end at"):
        _shown(life, "2026-03-11T00:00:00Z")


# --- on the service's own books -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Town, list[Part]]]:
    """Two years of four wallets, each commit of which was shown to the oracle; in between it had to begin anew."""
    town = Town(tmp_path_factory.mktemp("town") / "spawn.db", Policy(), START_S)
    _watch(town.connection)
    stub, marks = Stub(connection=town.connection), dict[str, int]()
    parts = stub.parts()

    def look() -> None:
        changes = read_changes(town.connection, marks)
        stub.now = town.now
        for part in parts:
            part.stepped()
            part.committed(changes)

    for name in VERBS:
        setattr(town, name, _shown_after(getattr(town, name), look))
    decade = Decade(town, [Address("0x" + f"{n:02x}" * 20) for n in range(1, 5)], 12, Random(3))
    decade._lose = lambda: None  # type: ignore[method-assign]  # nobody reconciles in this town
    decade.live(START_S + YEAR, 125)
    for part in parts:
        part.restored()
    decade.live(START_S + 2 * YEAR, 125)
    with closing(town):
        yield town, parts


def _shown_after(verb: Callable[..., Any], look: Callable[[], None]) -> Callable[..., Any]:
    def shown(*args: Any, **kwargs: Any) -> Any:
        done = verb(*args, **kwargs)
        look()
        return done

    return shown


def _rest(parts: list[Part]) -> None:
    for part in parts:
        part.at_rest()


def test_the_service_agrees_with_the_oracle(lived: tuple[Town, list[Part]]) -> None:
    _, parts = lived
    _rest(parts)
    for part in parts:
        part.restored()
    _rest(parts)


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("UPDATE account SET balance = balance + 1 WHERE id LIKE 'wallet:%'", "movements add up to"),
        ("UPDATE transfer SET amount = amount + 1 WHERE seq = 3", "was changed afterwards"),
        ("DELETE FROM transfer WHERE seq = 3", "not those that were committed"),
        ("UPDATE server SET auto_renew = 1 - auto_renew", "past every commit"),
        ("INSERT INTO burn_due VALUES ('srv_x', 0, 0, 0, 0, 0)", "verification disagrees"),
    ],
)
def test_books_changed_past_the_service_are_found(
    lived: tuple[Town, list[Part]], sql: str, said: str
) -> None:
    town, parts = lived
    town.connection.execute("SAVEPOINT right")
    for verb in ("update", "delete"):
        town.connection.execute(f"DROP TRIGGER transfer_no_{verb}")
    town.connection.execute(sql)
    with pytest.raises(Wrong, match=said):
        _rest(parts)
    town.connection.execute("ROLLBACK TO right")
