"""The only code that moves money: transfers, and holds that become transfers or nothing.

Invariants: a transfer is never changed; an id means one movement for ever, so that a repeat is a no-op; no
customer account goes below zero or below what is held on it; a hold resolves at most once.

Money moves from `debit` to `credit`; a customer's balance is credits − debits. Every function runs in a
transaction that it is handed. It locks the customer rows first, two of them in one order everywhere, and looks at
what is recorded only then: the answer is right under READ COMMITTED, and two movements cannot deadlock.
"""

from enum import StrEnum
from typing import Final, NewType

import msgspec
from spawn_schemas.money import Usdc, format_usdc

from spawn_ledger.accounts import AccountId, grows_by_debit, is_customer
from spawn_ledger.tx import Row, Tx

TransferId = NewType("TransferId", str)
"""Chosen by the caller from what the movement is for; holds and transfers share one space of ids."""


class Code(StrEnum):
    """Why money moved."""

    TOPUP = "topup"
    FEE = "fee"
    FEE_REFUND = "fee_refund"
    DEPOSIT = "deposit"
    DEPOSIT_REFUND = "deposit_refund"
    BURN = "burn"
    MINIMUM = "minimum"
    BURN_REFUND = "burn_refund"
    SUSPENSE = "suspense"
    """USDC arrived, and nobody has said yet whose it is."""
    CLAIM = "claim"
    """It was its sender's, and is in the sender's wallet."""
    GAS = "gas"
    """A transaction of ours was mined."""
    COST = "cost"
    """A provider ran a server while its wallet paid for it."""
    OVERRUN = "overrun"
    """A provider ran a server after its money had ended."""
    TRAFFIC = "traffic"
    """A server sent more than was included."""
    GOODWILL = "goodwill"
    """An operator gave money to a wallet."""


class HoldState(StrEnum):
    """Where a hold has come to; the last two are final."""

    PENDING = "pending"
    POSTED = "posted"
    RELEASED = "released"


class _Movement(msgspec.Struct, frozen=True, kw_only=True):
    id: TransferId
    debit: AccountId
    credit: AccountId
    amount: Usdc
    code: Code
    reference: str
    at: int

    def __post_init__(self) -> None:
        if self.amount <= 0 or self.debit == self.credit:
            raise ValueError("a movement takes a positive amount from one account to another")


class Transfer(_Movement, frozen=True, kw_only=True):
    """`amount` micro-USDC moved from `debit` to `credit`, recorded at `at` (unix seconds).

    `reference` is the server or the reservation that it is for.
    """


class Hold(_Movement, frozen=True, kw_only=True):
    """A transfer that may come: until it resolves, `amount` is set aside on `debit`, a customer account.

    `reference` is the operation whose outcome decides.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_customer(self.debit):
            raise ValueError("only a customer's money is held")


class Balance(msgspec.Struct, frozen=True, kw_only=True):
    """What lies on an account, and how much of that is held."""

    balance: Usdc
    held: Usdc

    @property
    def available(self) -> Usdc:
        return Usdc(self.balance - self.held)


class InsufficientFunds(Exception):
    """The account has less than the movement needs. Nothing was changed."""

    def __init__(self, account: AccountId, need: Usdc, have: Usdc) -> None:
        super().__init__(f"{account} has {format_usdc(have)} USDC available and needs {format_usdc(need)}")
        self.account = account
        self.need = need
        self.have = have


class TransferIdReused(Exception):
    """This id already stands for another movement: a defect of the caller. Nothing was changed."""

    def __init__(self, id: TransferId, field: str) -> None:
        super().__init__(f"{id} is already recorded with another {field}")
        self.id = id
        self.field = field


class HoldNotFound(LookupError):
    """No hold has this id."""

    def __init__(self, id: TransferId) -> None:
        super().__init__(f"there is no hold {id}")
        self.id = id


class HoldResolved(Exception):
    """The hold already ended the other way. Nothing was changed."""

    def __init__(self, id: TransferId, state: HoldState) -> None:
        super().__init__(f"hold {id} is already {state.value}")
        self.id = id
        self.state = state


# Opens an account at zero, or locks its row: PostgreSQL locks nothing for a row that does not exist yet.
_LOCK = """
INSERT INTO account (id, balance, held) VALUES (:account, 0, 0)
ON CONFLICT (id) DO UPDATE SET held = account.held
"""
_TAKE = "UPDATE account SET balance = balance - :amount WHERE id = :account AND balance - held >= :amount"
_GIVE = "UPDATE account SET balance = balance + :amount WHERE id = :account"
_SET_ASIDE = "UPDATE account SET held = held + :amount WHERE id = :account AND balance - held >= :amount"
_TAKE_HELD = "UPDATE account SET balance = balance - :amount, held = held - :amount WHERE id = :account"
_LET_GO = "UPDATE account SET held = held - :amount WHERE id = :account"
_BALANCE = "SELECT balance, held FROM account WHERE id = :account"
_CREDITS_LESS_DEBITS = """
SELECT CAST(
    COALESCE((SELECT SUM(amount) FROM transfer WHERE credit = :account), 0)
    - COALESCE((SELECT SUM(amount) FROM transfer WHERE debit = :account), 0) AS BIGINT) AS balance
"""
_FIND_TRANSFER = "SELECT debit, credit, amount, code, reference FROM transfer WHERE id = :id"
_RECORD_TRANSFER = """
INSERT INTO transfer (id, debit, credit, amount, code, reference, at)
VALUES (:id, :debit, :credit, :amount, :code, :reference, :at)
ON CONFLICT (id) DO NOTHING
"""
_FIND_HOLD = "SELECT id, debit, credit, amount, code, reference, at, state FROM hold WHERE id = :id"
_RECORD_HOLD = """
INSERT INTO hold (id, debit, credit, amount, code, reference, state, at)
VALUES (:id, :debit, :credit, :amount, :code, :reference, 'pending', :at)
"""
_RESOLVE_HOLD = """
UPDATE hold SET state = :state, resolved_at = :at WHERE id = :id AND state = 'pending'
"""
_PENDING_BY_REFERENCE = """
SELECT id, debit, credit, amount, code, reference, at FROM hold
WHERE reference = :reference AND state = 'pending' ORDER BY at, id
"""

# A retry comes later than the first try, so `at` is when it was first recorded and no part of what it is.
_IDENTITY: Final = ("debit", "credit", "amount", "code", "reference")


def transfer_id(*parts: str | int) -> TransferId:
    """Name a movement by what it is for, such as `burn|srv_…|1700000000`: the same cause, the same id."""
    return TransferId("|".join(map(str, parts)))


def post(tx: Tx, transfer: Transfer) -> bool:
    """Record `transfer`; return False, changing nothing, when the very same one is already there.

    Raises `TransferIdReused` when the id stands for another movement, `InsufficientFunds` when the debited
    customer account has less available than the amount; both leave every balance as it was.
    """
    if is_customer(transfer.debit) and is_customer(transfer.credit):
        _lock(tx, transfer.debit, transfer.credit)
    try:
        _take(tx, transfer.debit, transfer.amount)
    except InsufficientFunds:
        if _is_recorded(transfer, tx.one(_FIND_TRANSFER, {"id": transfer.id})):
            return False
        raise
    if tx.execute(_RECORD_TRANSFER, _params(transfer)) == 1:
        _give(tx, transfer.credit, transfer.amount)
        return True
    _give(tx, transfer.debit, transfer.amount)
    _is_recorded(transfer, tx.one(_FIND_TRANSFER, {"id": transfer.id}))
    return False


def hold(tx: Tx, pending: Hold) -> bool:
    """Set money aside; return False when the very same hold was made before, whatever became of it.

    Raises `TransferIdReused` and `InsufficientFunds` as `post` does.
    """
    _lock(tx, pending.debit)
    if _is_recorded(pending, tx.one(_FIND_HOLD, {"id": pending.id})):
        return False
    if tx.execute(_SET_ASIDE, {"account": pending.debit, "amount": pending.amount}) == 0:
        raise _insufficient(tx, pending.debit, pending.amount)
    tx.execute(_RECORD_HOLD, _params(pending))
    return True


def post_hold(tx: Tx, hold_id: TransferId, at: int) -> bool:
    """Turn a pending hold into the transfer of the same id; return False when that was done before.

    Raises `HoldResolved` when it was released, `HoldNotFound` when there is none.
    """
    held = _resolve(tx, hold_id, HoldState.POSTED, at)
    if held is None:
        return False
    _lock(tx, held.debit, held.credit)
    tx.execute(_TAKE_HELD, {"account": held.debit, "amount": held.amount})
    _give(tx, held.credit, held.amount)
    tx.execute(_RECORD_TRANSFER, _params(Transfer(**{**msgspec.structs.asdict(held), "at": at})))
    return True


def release_hold(tx: Tx, hold_id: TransferId, at: int) -> bool:
    """Give a pending hold back to its account; return False when that was done before.

    Raises `HoldResolved` when it was posted, `HoldNotFound` when there is none.
    """
    held = _resolve(tx, hold_id, HoldState.RELEASED, at)
    if held is None:
        return False
    tx.execute(_LET_GO, {"account": held.debit, "amount": held.amount})
    return True


def list_pending(tx: Tx, reference: str) -> list[Hold]:
    """The holds that wait for `reference`, oldest first; an operation has a handful at most."""
    return [_hold_from(row) for row in tx.all(_PENDING_BY_REFERENCE, {"reference": reference})]


def balance_of(tx: Tx, account: AccountId) -> Balance:
    """What lies on an account; a customer account nobody used yet has nothing.

    An operator account has no cache: its balance is a sum over its transfers, growing with them.
    """
    if is_customer(account):
        row = tx.one(_BALANCE, {"account": account})
        return Balance(balance=Usdc(row["balance"] if row else 0), held=Usdc(row["held"] if row else 0))
    (row,) = tx.all(_CREDITS_LESS_DEBITS, {"account": account})
    return Balance(balance=Usdc(-row["balance"] if grows_by_debit(account) else row["balance"]), held=Usdc(0))


def open_account(tx: Tx, account: AccountId) -> None:
    """Give a customer account its row, empty, before any money comes to it."""
    _lock(tx, account)


def _lock(tx: Tx, *accounts: AccountId) -> None:
    for account in sorted(filter(is_customer, accounts)):
        tx.execute(_LOCK, {"account": account})


def _is_recorded(movement: _Movement, row: Row | None) -> bool:
    if row is None:
        return False
    for field in _IDENTITY:
        if row[field] != getattr(movement, field):
            raise TransferIdReused(movement.id, field)
    return True


def _take(tx: Tx, account: AccountId, amount: Usdc) -> None:
    """Take what is available from a customer; an operator's account has no cache to change."""
    if is_customer(account) and tx.execute(_TAKE, {"account": account, "amount": amount}) == 0:
        raise _insufficient(tx, account, amount)


def _give(tx: Tx, account: AccountId, amount: Usdc) -> None:
    if is_customer(account) and tx.execute(_GIVE, {"account": account, "amount": amount}) == 0:
        _lock(tx, account)
        tx.execute(_GIVE, {"account": account, "amount": amount})


def _insufficient(tx: Tx, account: AccountId, amount: Usdc) -> InsufficientFunds:
    return InsufficientFunds(account, amount, balance_of(tx, account).available)


def _resolve(tx: Tx, hold_id: TransferId, state: HoldState, at: int) -> Hold | None:
    """Move a pending hold to `state` and return it, or return None when it is there already."""
    changed = tx.execute(_RESOLVE_HOLD, {"id": hold_id, "state": state.value, "at": at})
    row = tx.one(_FIND_HOLD, {"id": hold_id})
    if row is None:
        raise HoldNotFound(hold_id)
    if row["state"] != state:
        raise HoldResolved(hold_id, HoldState(row["state"]))
    return _hold_from(row) if changed else None


def _hold_from(row: Row) -> Hold:
    return Hold(
        id=TransferId(row["id"]),
        debit=AccountId(row["debit"]),
        credit=AccountId(row["credit"]),
        amount=Usdc(row["amount"]),
        code=Code(row["code"]),
        reference=row["reference"],
        at=row["at"],
    )


def _params(movement: _Movement) -> dict[str, str | int]:
    return {**msgspec.structs.asdict(movement), "code": movement.code.value}
