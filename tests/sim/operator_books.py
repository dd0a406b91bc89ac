"""The books in other hands: journals that are added up, copies that are proven, books that are wrong on purpose.

Invariants: a journal adds up, account for account, to what the rows add up to; a copy is one moment of the books and
passes; and whoever changes a figure behind the ledger's back is told of by `verify`, by the name of the rule.
"""

import re
import shutil
import sqlite3
from collections import defaultdict
from contextlib import closing
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Final

from spawn_ledger.accrual import FAR_FUTURE
from spawn_ledger.journal import Format, export
from spawn_ledger.verify import verify

from spawn.store.backup import UnsoundBackup, back_up, inspect
from spawn.store.database import StoreError
from spawn.store.snapshot import snapshot
from tests.sim.operator_desk import database_of, is_restoring

if TYPE_CHECKING:
    from tests.sim.world import World

DAY_S: Final = 86_400
COPIES_KEPT: Final = 2

_ACCOUNTS: Final = {
    "ext:usdc": "Assets:USDC",
    "ext:gas": "Assets:Gas",
    "suspense": "Liabilities:Suspense",
    "owed:provider": "Liabilities:Provider",
    "rev:opfee": "Income:Fees",
    "rev:compute": "Income:Compute",
    "rev:traffic": "Income:Traffic",
    "cost:provider": "Expenses:Provider",
    "cost:gas": "Expenses:Gas",
    "exp:overrun": "Expenses:Overrun",
    "exp:goodwill": "Expenses:Goodwill",
}
_HLEDGER_LEG: Final = re.compile(r"    (\S+)  (-?[0-9.]+) USDC(?: == (-?[0-9.]+) USDC)?")
_BEANCOUNT_LEG: Final = re.compile(r"  (\S+)  (-?[0-9.]+) USDC")
_BEANCOUNT_BALANCE: Final = re.compile(r"[0-9-]+ balance (\S+)  (-?[0-9.]+) ~ 0 USDC")

Sums = dict[str, int]


def _micro(text: str) -> int:
    return int(Fraction(text) * 1_000_000)


def _name(account: str, format_: Format) -> str:
    kind, _, rest = account.partition(":")
    if kind == "wallet":
        return f"Liabilities:Wallets:{rest}"
    if kind == "srv":
        return f"Liabilities:Servers:{'Srv-' + rest[4:] if format_ is Format.BEANCOUNT else rest}"
    return _ACCOUNTS[account]


# --- journals -------------------------------------------------------------------------------------------------------


def export_journal(world: "World") -> None:
    """Export all, or some days, in either language, and add up what was written."""
    format_ = world.random.choice(list(Format))
    now = world.clock.now_s()
    since = world.random.choice((0, now - world.random.randint(0, 40) * DAY_S))
    until = world.random.choice((FAR_FUTURE, since + world.random.randint(1, 30) * DAY_S))
    with world.books.snapshot() as tx:
        text = "".join(export(tx, format_, since=since, until=until))
    sums, asserted = _read_hledger(text) if format_ is Format.HLEDGER else _read_beancount(text)
    mine = _sums(world, format_, until)
    if asserted != mine or {name: total for name, total in sums.items() if total} != {
        name: total for name, total in mine.items() if total
    }:
        world.violation("books", f"the journal ({format_}, {since} to {until}) says {sums}, the rows {mine}")
    world.step(f"exported {len(text)} characters of {format_}")


def _sums(world: "World", format_: Format, until: int) -> Sums:
    sums: Sums = defaultdict(int)
    for row in world.rows("SELECT debit, credit, amount FROM transfer WHERE at < :until", until=until):
        sums[_name(row["debit"], format_)] += row["amount"]
        sums[_name(row["credit"], format_)] -= row["amount"]
    return dict(sums)


def _read_hledger(text: str) -> tuple[Sums, Sums]:
    """What the postings add up to, and what is asserted to be so. Raises ValueError where one does not balance."""
    sums: Sums = defaultdict(int)
    asserted: Sums = {}
    for block in text.split("\n\n"):
        balance = 0
        for account, amount, closing_ in _HLEDGER_LEG.findall(block):
            sums[account] += _micro(amount)
            balance += _micro(amount)
            if closing_:
                asserted[account] = _micro(closing_)
        if balance:
            raise ValueError(f"a transaction of the journal does not balance: {block}")
    return dict(sums), asserted


def _read_beancount(text: str) -> tuple[Sums, Sums]:
    """As `_read_hledger`."""
    sums: Sums = defaultdict(int)
    for block in text.split("\n\n"):
        legs = _BEANCOUNT_LEG.findall(block)
        if sum(_micro(amount) for _, amount in legs):
            raise ValueError(f"a transaction of the journal does not balance: {block}")
        for account, amount in legs:
            sums[account] += _micro(amount)
    return dict(sums), {account: _micro(amount) for account, amount in _BEANCOUNT_BALANCE.findall(text)}


# --- copies ---------------------------------------------------------------------------------------------------------


def copies(world: "World") -> list[Path]:
    """The backups there are, the oldest first."""
    return sorted(world.folder.glob("copy-*.db"))


def back_up_now(world: "World") -> None:
    """Copy the database beside the service, prove the copy, and keep it."""
    if is_restoring(world):
        return
    copy = world.folder / f"copy-{world.moves_played:06d}.db"
    try:
        contents = back_up(database_of(world), copy, replace=True)
    except UnsoundBackup as wrong:
        world.violation("books", str(wrong))
    (row,) = world.rows(
        "SELECT COUNT(*) AS n, MAX(at) AS newest, "
        "COALESCE(SUM(CASE WHEN debit = 'ext:usdc' THEN amount WHEN credit = 'ext:usdc' THEN -amount END), 0) AS held "
        "FROM transfer"
    )
    found = (contents.transfers, contents.newest_at, contents.paid_in_usdc)
    if found != (row["n"], row["newest"], row["held"]):
        world.violation("books", f"the copy holds {contents}, the database {row}")
    for old in copies(world)[:-COPIES_KEPT]:
        old.unlink()
    world.step(f"copied {contents.transfers} transfers")


# --- wrong books ------------------------------------------------------------------------------------------------------

_DAMAGES: Final[tuple[tuple[str, str], ...]] = (
    ("cached balance", "UPDATE account SET balance = balance + 1 WHERE id LIKE 'wallet:%'"),
    ("held", "UPDATE account SET held = held + 1 WHERE balance > held"),
    ("charged", "UPDATE server SET charged_usdc = charged_usdc + 1"),
    ("cost", "UPDATE server SET cost_usdc = cost_usdc + 1"),
    ("remainder", "UPDATE server SET remainder = 86400"),
    ("ended server", "UPDATE server SET charged_until = created_at WHERE ended_at IS NOT NULL"),
    ("machine that is gone", "UPDATE server SET cost_until = created_at WHERE ended_at IS NOT NULL"),
    ("hold resolves once", "UPDATE hold SET state = 'released' WHERE state = 'posted'"),
    ("hold resolves once", "UPDATE hold SET state = 'posted' WHERE state = 'released'"),
    ("hold of no running operation", "UPDATE hold SET reference = 'nobody' WHERE state = 'pending'"),
    ("suspense", "UPDATE arrival SET state = 'claimed' WHERE state = 'suspense'"),
    ("claim", "UPDATE arrival SET amount = amount + 1 WHERE state = 'claimed'"),
    ("delivery", "UPDATE delivery SET resource = 'another'"),
    ("barred", "UPDATE account SET barred = 'suspended' WHERE id LIKE 'srv:%'"),
    ("operator is derived", "INSERT INTO account (id, balance, held) VALUES ('rev:opfee', 0, 0)"),
    ("burn set", "INSERT INTO burn_due VALUES ('srv_x', 0, 0, 0, 0, 0)"),
    # Not one that was barred before it ever paid: nothing in the books would miss it.
    ("customer has a row", "DELETE FROM account WHERE id LIKE 'wallet:%' AND balance = 0 AND held = 0 "
     "AND id IN (SELECT debit FROM transfer UNION SELECT credit FROM transfer)"),
    ("reserve has a server", "UPDATE account SET id = id || 'x' WHERE id LIKE 'srv:%' AND balance > 0"),
    ("books balance", "DELETE FROM transfer WHERE code = 'burn'"),
    ("cached balance", "UPDATE transfer SET amount = amount + 1 WHERE code = 'topup'"),
    ("charged once", "INSERT INTO transfer (id, debit, credit, amount, code, reference, at) SELECT "
     "REPLACE(id, '|' || at || '|', '|' || (at + 1) || '|'), debit, credit, 1, code, reference, at + 1 FROM transfer "
     "WHERE id LIKE 'burn|%|reserve'"),
    ("month cap", "UPDATE server SET priced_at = 0, capped_s = 0 WHERE charged_usdc > 1000000"),
    ("within a month", "INSERT INTO transfer (id, debit, credit, amount, code, reference, at) SELECT "
     "'burn|' || id || '|0|' || (charged_until + 9) || '|reserve', 'ext:usdc', 'rev:compute', 1, 'burn', id, "
     "charged_until + 9 FROM server WHERE charged_until IS NOT NULL"),
)  # fmt: skip
"""The rule that must say so, and what is done to the books; each is done to one row, where there is one."""


def damage(world: "World") -> None:
    """Take a copy, change one thing in it behind the ledger's back, and let it be found."""
    rule, sql = world.random.choice(_DAMAGES)
    copy = world.folder / "damaged.db"
    back_up(database_of(world), copy, replace=True)
    try:
        with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
            for trigger in ("transfer_no_update", "transfer_no_delete"):
                connection.execute(f"DROP TRIGGER {trigger}")
            if not connection.execute(_once(sql)).rowcount:
                return
        with snapshot(copy) as tx:
            found = {violation.rule for violation in verify(tx)}
        if rule not in found:
            world.violation("books", f"{sql}: {rule} does not say so, only {sorted(found)}")
        _refused(world, copy)
    finally:
        copy.unlink()
    world.step(f"wrong books are found by {rule}")


def _once(sql: str) -> str:
    """The statement for one row: the first that its condition meets."""
    verb, _, rest = sql.partition(" ")
    if verb == "INSERT":
        return sql if "SELECT" not in sql else f"{sql} LIMIT 1"
    table = rest.split()[1] if verb == "DELETE" else rest.split()[0]
    head, _, condition = sql.partition(" WHERE ")
    return f"{head} WHERE rowid = (SELECT rowid FROM {table} WHERE {condition or '1 = 1'} ORDER BY rowid LIMIT 1)"


def _refused(world: "World", copy: Path) -> None:
    """What is wrong is no backup, and no truncated file is one either."""
    try:
        contents = inspect(copy)
    except UnsoundBackup:
        pass
    else:
        world.violation("books", f"wrong books are a good backup: {contents}")
    short = copy.with_name("short.db")
    shutil.copyfile(copy, short)
    with short.open("r+b") as file:
        file.truncate(max(4_096, copy.stat().st_size // 2 // 4_096 * 4_096))
    try:
        inspect(short)
    except StoreError:
        return
    finally:
        for file_ in sorted(short.parent.glob("short.db*")):
            file_.unlink()
    world.violation("books", "half of a file is a good backup")


def moment(at: int) -> str:
    """As the operator reads it."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
