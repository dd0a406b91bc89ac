"""The export of the books, read and added up by the two programs it is written for."""

import csv
import random
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Final

import pytest
from spawn_ledger.accounts import (
    COST_GAS,
    COST_PROVIDER,
    EXP_GOODWILL,
    EXP_OVERRUN,
    EXT_GAS,
    EXT_USDC,
    OWED_PROVIDER,
    REV_COMPUTE,
    REV_OPFEE,
    REV_TRAFFIC,
    SUSPENSE,
    AccountId,
    host_account,
)
from spawn_ledger.journal import PAGE, Format, account_name, export
from spawn_ledger.transfers import Code, Transfer, balance_of, post, transfer_id
from spawn_schemas.ids import HostId
from spawn_schemas.money import Usdc

from tests.engines import bean_check, require
from tests.integration.ledger_books import RESERVE, SERVER, WALLET, Books, open_books

DAY: Final = 86_400
FIRST: Final = int(datetime(2027, 1, 31, 23, 0, tzinfo=UTC).timestamp())

MOVES: Final[dict[Code, tuple[AccountId, AccountId]]] = {
    Code.TOPUP: (EXT_USDC, WALLET),
    Code.FEE: (WALLET, REV_OPFEE),
    Code.FEE_REFUND: (REV_OPFEE, WALLET),
    Code.DEPOSIT: (WALLET, RESERVE),
    Code.DEPOSIT_REFUND: (RESERVE, WALLET),
    Code.BURN: (RESERVE, REV_COMPUTE),
    Code.MINIMUM: (RESERVE, REV_COMPUTE),
    Code.BURN_REFUND: (REV_COMPUTE, WALLET),
    Code.SUSPENSE: (EXT_USDC, SUSPENSE),
    Code.CLAIM: (SUSPENSE, WALLET),
    Code.GAS: (COST_GAS, EXT_GAS),
    Code.COST: (COST_PROVIDER, OWED_PROVIDER),
    Code.OVERRUN: (EXP_OVERRUN, OWED_PROVIDER),
    Code.GOODWILL: (EXP_GOODWILL, WALLET),
    Code.TRAFFIC: (RESERVE, REV_TRAFFIC),
}
"""From where to where each kind of transfer goes."""
AMOUNTS: Final = {Code.TOPUP: 9_000_001, Code.DEPOSIT: 5_000_000, Code.SUSPENSE: 300_003}


def books(folder: Path) -> Books:
    """One transfer of every kind, each an hour and a half after the last, so that they lie on two days."""
    tx = open_books(folder / "books.db")
    for number, (code, (debit, credit)) in enumerate(MOVES.items()):
        reference = 'a "reason", with; all sorts\nof | signs \\' if code is Code.GOODWILL else SERVER
        assert post(
            tx,
            Transfer(
                id=transfer_id(code.value, number),
                debit=debit,
                credit=credit,
                amount=Usdc(AMOUNTS.get(code, 1_000 + 7**number % 1_000)),
                code=code,
                reference=reference,
                at=FIRST + number * 5_400,
            ),
        )
    return tx


def written(tx: Books, format: Format, folder: Path, **period: int) -> Path:
    path = folder / f"books.{format.value}"
    path.write_text("".join(export(tx, format, **period)), encoding="utf-8")
    return path


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def check(format: Format, path: Path) -> subprocess.CompletedProcess[str]:
    """Let the program itself judge the file, as strictly as it can."""
    require(format.value)
    if format is Format.HLEDGER:
        return run("hledger", "-f", str(path), "check", "--strict")
    program = bean_check()
    assert program is not None
    return run(program, "--no-cache", str(path))


def accepted(format: Format, path: Path) -> bool:
    return check(format, path).returncode == 0


def test_every_kind_of_transfer_has_an_example() -> None:
    assert MOVES.keys() == set(Code)


@pytest.mark.parametrize("format", Format)
def test_the_program_accepts_every_kind_of_transfer(tmp_path: Path, format: Format) -> None:
    done = check(format, written(books(tmp_path), format, tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr


def hledger_balances(path: Path) -> dict[str, Usdc]:
    require("hledger")
    done = run("hledger", "-f", str(path), "balance", "--flat", "--no-total", "--empty", "-O", "csv")
    assert done.returncode == 0, done.stderr
    lines = list(csv.reader(StringIO(done.stdout)))[1:]
    return {name: Usdc(round(float(amount.removesuffix(" USDC")) * 1_000_000)) for name, amount in lines}


def test_the_balances_that_hledger_finds_are_ours(tmp_path: Path) -> None:
    tx = books(tmp_path)
    found = hledger_balances(written(tx, Format.HLEDGER, tmp_path))
    accounts = {account for move in MOVES.values() for account in move}
    ours = {account_name(Format.HLEDGER, account): balance_of(tx, account).balance for account in accounts}
    signs = {"Assets": 1, "Expenses": 1, "Liabilities": -1, "Income": -1}
    shown = {name: Usdc(amount * signs[name.partition(":")[0]]) for name, amount in found.items()}
    assert shown == ours
    assert sum(found.values()) == 0
    assert {"Assets:USDC", f"Liabilities:Servers:{SERVER}", "Expenses:Goodwill"} <= found.keys()


TAMPERINGS: Final[dict[str, Callable[[str], str]]] = {
    "an amount, by the least there is": lambda text: text.replace("9.000001", "9.000002", 1),
    "both legs of a transfer": lambda text: text.replace("9.000001", "9.000002"),
    "a transfer left out": lambda text: _without(text, "fee|1"),
    "an account of a posting": lambda text: text.replace("Income:Fees  -", "Income:Compute  -", 1),
}


def _without(text: str, id: str) -> str:
    pieces = text.split("\n\n")
    kept = [piece for piece in pieces if f"id: {id}\n" not in piece and f'id: "{id}"\n' not in piece]
    assert len(kept) == len(pieces) - 1
    return "\n\n".join(kept)


@pytest.mark.parametrize("tampering", TAMPERINGS)
@pytest.mark.parametrize("format", Format)
def test_a_tampered_export_is_refused(tmp_path: Path, format: Format, tampering: str) -> None:
    path = written(books(tmp_path), format, tmp_path)
    text = path.read_text()
    changed = TAMPERINGS[tampering](text)
    assert changed != text
    path.write_text(changed)
    assert not accepted(format, path)


@pytest.mark.parametrize("format", Format)
def test_a_page_that_was_lost_on_the_way_is_missed(tmp_path: Path, format: Format) -> None:
    """What is asserted is summed by the database, apart from the stream of transfers."""
    head, _, closing = export(books(tmp_path), format)
    path = tmp_path / "cut"
    path.write_text(head + closing)
    assert not accepted(format, path)


@pytest.mark.parametrize("format", Format)
def test_a_period_begins_with_what_was_there(tmp_path: Path, format: Format) -> None:
    tx = books(tmp_path)
    midnight = FIRST // DAY * DAY + DAY
    path = written(tx, format, tmp_path, since=midnight, until=midnight + DAY)
    assert accepted(format, path), check(format, path).stderr
    text = path.read_text()
    assert "opening balances" in text
    assert "topup|0" not in text
    assert "goodwill|13" in text
    before = written(tx, format, tmp_path, until=midnight)
    assert accepted(format, before)
    assert "topup|0" in before.read_text()
    assert "goodwill|13" not in before.read_text()


@pytest.mark.parametrize("format", Format)
def test_books_without_a_transfer_are_a_journal_too(tmp_path: Path, format: Format) -> None:
    assert accepted(format, written(open_books(tmp_path / "books.db"), format, tmp_path))


def test_pages_are_joined_without_a_gap(tmp_path: Path) -> None:
    tx = open_books(tmp_path / "books.db")
    count = PAGE + 3
    for number in range(count):
        insert_topup(tx, number, FIRST + number)
    path = written(tx, Format.HLEDGER, tmp_path)
    assert path.read_text().count("; id: ") == count
    assert accepted(Format.HLEDGER, path)


def test_a_lent_machine_is_a_creditor() -> None:
    account = host_account(HostId("host_abc"))
    assert account_name(Format.HLEDGER, account) == "Liabilities:Hosts:host_abc"
    assert account_name(Format.BEANCOUNT, account) == "Liabilities:Hosts:Host-abc"


def test_an_account_without_a_place_is_a_defect() -> None:
    with pytest.raises(ValueError, match="pot:1 has no name"):
        account_name(Format.HLEDGER, AccountId("pot:1"))


def test_every_day_has_the_date_of_the_calendar(tmp_path: Path) -> None:
    leaps = [datetime(year, 2, 28, 23, 59, 59, tzinfo=UTC) for year in (1972, 2000, 2024, 2100, 2400, 9999)]
    edges = [int(moment.timestamp()) + late_s for moment in leaps for late_s in (0, 1, DAY, 2 * DAY)]
    dice = random.Random(5)
    moments = [0, *edges, *(dice.randrange(253_402_300_799) for _ in range(3_000))]
    tx = open_books(tmp_path / "books.db")
    for number, at in enumerate(moments):
        insert_topup(tx, number, at)
    lines = "".join(export(tx, Format.HLEDGER)).splitlines()
    found = [line.partition(" ")[0] for line in lines if line.endswith("* topup")]
    assert found == [
        (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=at)).date().isoformat() for at in moments
    ]


def insert_topup(tx: Books, number: int, at: int) -> None:
    """A transfer as `post` records it, and quicker."""
    tx.execute(
        "INSERT INTO transfer (id, debit, credit, amount, code, reference, at) "
        "VALUES (:id, :debit, :credit, 1, 'topup', 'r', :at)",
        {"id": f"t{number}", "debit": EXT_USDC, "credit": WALLET, "at": at},
    )
