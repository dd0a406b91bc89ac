"""Ten years of 200 servers in 40 wallets: what was charged is the exact rational sum, to the micro-dollar."""

import subprocess
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from math import ceil
from pathlib import Path
from random import Random
from typing import Final

import pytest
from spawn_ledger.accounts import COST_PROVIDER, EXP_OVERRUN, REV_COMPUTE, REV_OPFEE, wallet_account
from spawn_ledger.journal import Format, export
from spawn_ledger.transfers import balance_of
from spawn_ledger.verify import verify
from spawn_schemas.ids import Address

from spawn.domain.servers import Reason
from spawn.domain.warnings import Policy
from tests.engines import require
from tests.harness import START_S
from tests.integration.living import Town
from tests.integration.ten_years import HOUR, YEAR, Decade, Life

pytestmark = pytest.mark.embedded

WALLETS: Final = 40
SERVERS: Final = 200
YEARS: Final = 10
STEPS: Final = 1_300
SEED: Final = 5


@pytest.fixture(scope="module")
def decade(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decade]:
    """Ten years, lived once for all tests here."""
    town = Town(tmp_path_factory.mktemp("town") / "spawn.db", Policy(grace_s=2 * HOUR), START_S)
    wallets = [Address("0x" + f"{number:02x}" * 20) for number in range(1, WALLETS + 1)]
    decade = Decade(town, wallets, SERVERS, Random(SEED))
    for wallet in wallets:
        town.pay_in(wallet, 20_000_000)
    decade.live(START_S + YEARS * YEAR, STEPS)
    decade.end()
    decade.bury_all()
    yield decade
    town.close()


@cache
def sums(town: Town) -> Counter[tuple[str, str]]:
    """Debits less credits, by what they are for and by account."""
    found: Counter[tuple[str, str]] = Counter()
    for row in town.tx.all("SELECT reference, debit, credit, amount FROM transfer"):
        found[row["reference"], row["debit"]] += row["amount"]
        found[row["reference"], row["credit"]] -= row["amount"]
    return found


def total(town: Town, life: Life, *accounts: str) -> int:
    """What was debited less what was credited to these accounts for the server."""
    return sum(sums(town)[life.id, account] for account in accounts)


def test_ten_years_were_full(decade: Decade) -> None:
    reasons = [decade.town.server(life.id).reason for life in decade.lives.values()]
    assert len(decade.lives) == SERVERS
    assert min(reasons.count(r) for r in (Reason.REQUESTED, Reason.DEPOSIT_EXHAUSTED, Reason.VANISHED)) >= 5
    lives = decade.lives.values()
    assert sum(len(life.price.rates) > 2 for life in lives) > SERVERS // 4, "prices and sizes change"
    assert sum(life.until is not None and life.until - life.since > YEAR for life in lives) > SERVERS // 4


def test_every_server_was_charged_the_exact_sum(decade: Decade) -> None:
    capped = 0
    for life in decade.lives.values():
        assert life.until is not None
        exact = life.price.charged(life.until)
        capped += life.price.capped_months
        charged = -total(decade.town, life, REV_COMPUTE)
        assert charged == max(exact, life.price.least()), life
        assert charged == decade.town.server(life.id).charged_usdc
    assert capped > 500, "months are capped on the way"


def test_whoever_had_only_its_deposit_ended_in_its_last_paid_second(decade: Decade) -> None:
    seen = 0
    for life in decade.lives.values():
        if life.deposits_usdc is None or decade.town.server(life.id).reason is not Reason.DEPOSIT_EXHAUSTED:
            continue
        assert life.until is not None
        assert life.price.charged(life.until) <= life.deposits_usdc < life.price.charged(life.until + 1)
        seen += 1
    assert seen >= 3


def test_what_the_machines_cost_us_is_the_exact_sum_of_started_hours(decade: Decade) -> None:
    capped = 0
    for life in decade.lives.values():
        assert life.until is not None
        assert total(decade.town, life, COST_PROVIDER) == life.cost.charged(life.until), life
        paid_until = life.until
        if life.gone_at is not None:
            paid_until = life.since + ceil(Fraction(life.gone_at - life.since, HOUR)) * HOUR
        assert total(decade.town, life, COST_PROVIDER, EXP_OVERRUN) == life.cost.charged(paid_until), life
        capped += life.cost.capped_months
    assert capped > 500


def test_all_money_that_came_in_is_somewhere(decade: Decade) -> None:
    town = decade.town
    assert verify(town.tx, chain_balance_usdc=None) == []
    charged = sum(-total(town, life, REV_COMPUTE) for life in decade.lives.values())
    left = sum(balance_of(town.tx, wallet_account(wallet)).balance for wallet in decade.wallets)
    fees = -sum(amount for (_, account), amount in sums(town).items() if account == REV_OPFEE)
    assert town.paid_in == charged + left + fees


def test_hledger_finds_the_books_balanced(decade: Decade, tmp_path: Path) -> None:
    require("hledger")
    path = tmp_path / "spawn.journal"
    with path.open("w") as file:
        file.writelines(export(decade.town.tx, Format.HLEDGER))
    command = ["hledger", "-f", str(path), "check", "--strict"]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert checked.returncode == 0, checked.stderr
