"""The books in the words of hledger and of beancount, two accounting programs that are not ours and check every sum.

Invariant: each transfer is one transaction, in micro-USDC to the last digit, and after them each account is asserted
to be what its transfers in the database add up to. Whoever changes, drops or adds an amount is refused by both.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from spawn_schemas.money import USDC, Usdc

from spawn_ledger.accounts import (
    COST_GAS,
    COST_PROVIDER,
    EXP_GOODWILL,
    EXP_OVERRUN,
    EXT_GAS,
    EXT_USDC,
    HOST,
    OWED_PROVIDER,
    REV_COMPUTE,
    REV_OPFEE,
    REV_TRAFFIC,
    SUSPENSE,
    AccountId,
)
from spawn_ledger.accrual import DAY, FAR_FUTURE
from spawn_ledger.tx import Row, Tx

PAGE: Final = 5_000
"""Transfers read at a time."""

SELECT_TRANSFERS: Final = """
SELECT seq, id, debit, credit, amount, code, reference, at FROM transfer
WHERE seq > :after AND at >= :since AND at < :until ORDER BY seq LIMIT :limit
"""
SELECT_PERIOD: Final = """
SELECT MIN(at) AS first, MAX(at) AS last FROM transfer WHERE at >= :since AND at < :until
"""
# Debits less credits, as both programs count: what is owed and earned is below zero.
SELECT_ACCOUNTS: Final = """
SELECT leg.id, CAST(SUM(leg.amount) AS BIGINT) AS closing,
  CAST(SUM(CASE WHEN leg.at < :since THEN leg.amount ELSE 0 END) AS BIGINT) AS opening
FROM (
  SELECT debit AS id, amount, at FROM transfer UNION ALL SELECT credit AS id, -amount AS amount, at FROM transfer
) AS leg WHERE leg.at < :until GROUP BY leg.id ORDER BY leg.id
"""

_NAMES: Final = {
    EXT_USDC: "Assets:USDC",
    EXT_GAS: "Assets:Gas",
    SUSPENSE: "Liabilities:Suspense",
    OWED_PROVIDER: "Liabilities:Provider",
    REV_OPFEE: "Income:Fees",
    REV_COMPUTE: "Income:Compute",
    REV_TRAFFIC: "Income:Traffic",
    COST_PROVIDER: "Expenses:Provider",
    COST_GAS: "Expenses:Gas",
    EXP_OVERRUN: "Expenses:Overrun",
    EXP_GOODWILL: "Expenses:Goodwill",
}
_WALLET: Final = "wallet:"
_SERVER: Final = "srv:"


class Format(StrEnum):
    """Whose language: hledger 1.25 and later (hledger.org/hledger.html), beancount 3 (its language syntax)."""

    HLEDGER = "hledger"
    BEANCOUNT = "beancount"


def account_name(format: Format, account: AccountId) -> str:
    """The account's place in the tree. Raises ValueError for one that has none.

    Beancount takes letters, digits and hyphens, and a capital or a digit first: `srv_…` becomes `Srv-…` there.
    """
    if account in _NAMES:
        return _NAMES[account]
    if account.startswith(_WALLET):
        return f"Liabilities:Wallets:{account.removeprefix(_WALLET)}"
    if account.startswith(_SERVER):
        server = account.removeprefix(_SERVER)
        if format is Format.BEANCOUNT:
            server = server.replace("srv_", "Srv-", 1)
        return f"Liabilities:Servers:{server}"
    if account.startswith(HOST):
        host = account.removeprefix(HOST)
        if format is Format.BEANCOUNT:
            host = host.replace("host_", "Host-", 1)
        return f"Liabilities:Hosts:{host}"
    raise ValueError(f"{account} has no name in a journal")


def export(tx: Tx, format: Format, *, since: int = 0, until: int = FAR_FUTURE) -> Iterator[str]:
    """The transfers of `since` (a unix second) up to and without `until`, as pieces of text.

    What was there before is one transaction of opening balances. Run it where all its statements see one moment. The
    accounts are held in memory, the transfers a page at a time.
    """
    period = {"since": since, "until": until}
    (seen,) = tx.all(SELECT_PERIOD, period)
    first = since if since > 0 or seen["first"] is None else seen["first"]
    last = first if seen["last"] is None else seen["last"]
    accounts = [
        _Account(account_name(format, row["id"]), Usdc(row["opening"]), Usdc(row["closing"]))
        for row in tx.all(SELECT_ACCOUNTS, period)
    ]
    language = _LANGUAGES[format]
    yield language.head(accounts, first)
    opening = [(account.name, account.opening) for account in accounts if account.opening]
    if opening:
        yield language.opening(opening, first)
    after = 0
    while page := tx.all(SELECT_TRANSFERS, period | {"after": after, "limit": PAGE}):
        yield "".join(language.transaction(row) for row in page)
        after = page[-1]["seq"]
    yield language.closing(accounts, last)


class _Account(NamedTuple):
    name: str
    opening: Usdc
    closing: Usdc


class _Language(Protocol):
    """Pieces of a journal, in the order of the file. Times are unix seconds."""

    def head(self, accounts: list[_Account], first: int) -> str:
        """What is declared before the first transaction, which is at `first` or later."""
        ...

    def opening(self, balances: list[tuple[str, Usdc]], first: int) -> str:
        """One transaction, at `first`, of what was on the accounts; there is at least one."""
        ...

    def transaction(self, row: Row) -> str:
        """One row of `SELECT_TRANSFERS`."""
        ...

    def closing(self, accounts: list[_Account], last: int) -> str:
        """What each account must be after `last`, the time of the newest transfer."""
        ...


class _Hledger:
    """Its files have no order but that of dates, and an assertion holds where it stands among its own date's."""

    def head(self, accounts: list[_Account], first: int) -> str:
        names = "".join(f"account {account.name}\n" for account in accounts)
        return f"; The books of spawn from {_date(first)} on.\ndecimal-mark .\ncommodity 1000.000000 USDC\n{names}\n"

    def opening(self, balances: list[tuple[str, Usdc]], first: int) -> str:
        legs = "".join(f"    {name}  {_usdc(amount)} USDC\n" for name, amount in balances)
        return f"{_date(first)} * opening balances\n{legs}\n"

    def transaction(self, row: Row) -> str:
        debit, credit = (account_name(Format.HLEDGER, row[side]) for side in ("debit", "credit"))
        amount = _usdc(row["amount"])
        return (
            f"{_date(row['at'])} * {row['code']}\n"
            f"    ; id: {_line(row['id'])}\n"
            f"    ; reference: {_line(row['reference'])}\n"
            f"    ; at: {row['at']}\n"
            f"    {debit}  {amount} USDC\n"
            f"    {credit}  -{amount} USDC\n\n"
        )

    def closing(self, accounts: list[_Account], last: int) -> str:
        if not accounts:
            return ""
        legs = "".join(
            f"    {account.name}  0.000000 USDC == {_usdc(account.closing)} USDC\n" for account in accounts
        )
        return f"{_date(last)} * closing balances\n{legs}"


class _Beancount:
    """A balance is asserted for the beginning of a day, and and without `~ 0` it may be wrong in its last digit."""

    def head(self, accounts: list[_Account], first: int) -> str:
        day = _date(first)
        opened = "".join(f"{day} open {account.name} USDC\n" for account in accounts)
        return (
            'option "title" "The books of spawn"\noption "operating_currency" "USDC"\n'
            f"{day} commodity USDC\n{opened}\n"
        )

    def opening(self, balances: list[tuple[str, Usdc]], first: int) -> str:
        legs = "".join(f"  {name}  {_usdc(amount)} USDC\n" for name, amount in balances)
        return f'{_date(first)} * "opening balances"\n{legs}\n'

    def transaction(self, row: Row) -> str:
        debit, credit = (account_name(Format.BEANCOUNT, row[side]) for side in ("debit", "credit"))
        amount = _usdc(row["amount"])
        return (
            f'{_date(row["at"])} * "{row["code"]}"\n'
            f'  id: "{_quoted(row["id"])}"\n'
            f'  reference: "{_quoted(row["reference"])}"\n'
            f"  at: {row['at']}\n"
            f"  {debit}  {amount} USDC\n"
            f"  {credit}  -{amount} USDC\n\n"
        )

    def closing(self, accounts: list[_Account], last: int) -> str:
        day = _date(last + DAY)
        return "".join(
            f"{day} balance {account.name}  {_usdc(account.closing)} ~ 0 USDC\n" for account in accounts
        )


_LANGUAGES: Final[dict[Format, _Language]] = {Format.HLEDGER: _Hledger(), Format.BEANCOUNT: _Beancount()}


def _usdc(amount: Usdc) -> str:
    whole, fraction = divmod(abs(amount), USDC)
    return f"{'-' if amount < 0 else ''}{whole}.{fraction:06d}"


def _line(text: str) -> str:
    """Whatever it has, it stays a comment on one line."""
    return " ".join(text.split())


def _quoted(text: str) -> str:
    return _line(text).replace("\\", "\\\\").replace('"', '\\"')


_ERA_DAYS: Final = 146_097
_EPOCH_DAYS: Final = 719_468


def _date(at: int) -> str:
    """The UTC day, by the proleptic Gregorian calendar, whose cycle of 400 years is counted from a 1st of March.

    The arithmetic is that of H. Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
    """
    era, day_of_era = divmod(at // DAY + _EPOCH_DAYS, _ERA_DAYS)
    year_of_era = (
        day_of_era - day_of_era // 1_460 + day_of_era // 36_524 - day_of_era // (_ERA_DAYS - 1)
    ) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    march_month = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * march_month + 2) // 5 + 1
    month = march_month + 3 if march_month < 10 else march_month - 9
    return f"{year_of_era + era * 400 + (month <= 2):04d}-{month:02d}-{day:02d}"
