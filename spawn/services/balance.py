"""The wallet's own money: balance, statement, top-up.

Invariant: a top-up does nothing but be a payment; the credit happened before this code runs.
"""

from typing import Final

from spawn_ledger.accounts import wallet_account
from spawn_ledger.tx import Tx
from spawn_ledger.wallets import NEWEST, STATEMENT, Kind, statement_from, statement_params
from spawn_schemas import api
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.money import Usdc, format_usdc

from spawn.domain.barring import Barred
from spawn.services import standing, views
from spawn.services.calls import Acted, Context, Read, UseCase
from spawn.services.moments import moment
from spawn.store.reservations import Reservation

PAID_IN_SINCE: Final = """
SELECT CAST(
  COALESCE((SELECT SUM(amount) FROM transfer WHERE credit = :account AND code = 'topup' AND at > :since), 0)
  + COALESCE((SELECT SUM(amount) FROM reservation WHERE wallet = :wallet AND state = 'reserved'), 0)
AS BIGINT) AS paid
"""


class ShowBalance(Read):
    """`GET /v1/balance`, accrued to this second."""

    def act(self, tx: Tx, context: Context) -> Acted:
        return Acted(answer=views.encode(views.balance_view(context.standing)))


class ListTransactions(Read):
    """`GET /v1/balance/transactions`, newest first; the cursor is opaque to callers."""

    def __init__(self, *, cursor: str | None, limit: int) -> None:
        self._before = NEWEST if cursor is None else _read_cursor(cursor)
        self._limit = limit

    def act(self, tx: Tx, context: Context) -> Acted:
        params = statement_params(context.wallet, before=self._before, limit=self._limit + 1)
        lines = statement_from(tx.all(STATEMENT, params))
        page = lines[: self._limit]
        return Acted(
            answer=views.encode(
                api.TransactionList(
                    transactions=tuple(
                        api.TransactionView(
                            id=f"txn_{line.seq}",
                            kind=line.code.value,
                            amount=format_usdc(line.amount),
                            internal=line.kind is Kind.INTERNAL,
                            reference=line.reference,
                            at=moment(line.at),
                        )
                        for line in page
                    ),
                    next_cursor=f"c{page[-1].seq}" if len(lines) > len(page) else None,
                )
            )
        )


class TopUp(UseCase):
    """`POST /v1/balance/deposit`: all of the payment is credit."""

    open_to = frozenset({Barred.SUSPENDED})

    def act(self, tx: Tx, context: Context) -> Acted:
        view = views.balance_view(standing.of(tx, context.wallet, context.now))
        return Acted(
            answer=views.encode(
                api.Deposited(
                    deposited=format_usdc(context.payment_usdc),
                    balance=view.balance,
                    reserved=view.reserved,
                    available=view.available,
                )
            )
        )


def _read_cursor(cursor: str) -> int:
    if not (cursor.startswith("c") and cursor[1:].isascii() and cursor[1:].isdigit() and len(cursor) < 20):
        raise SpawnError(
            Code.INVALID_REQUEST, "That cursor is none of ours.", next="Use next_cursor of the page before."
        )
    return int(cursor[1:])


def check_daily_cap(tx: Tx, payment: Reservation, *, cap_usdc: Usdc) -> None:
    """Raise `deposit_limit` when this reserved payment brings its wallet's last 24 hours over the cap.

    Payments that are on their way count, so that many at once are one too many together.
    """
    since = payment.created_at - 86_400
    params = {"account": wallet_account(payment.wallet), "wallet": payment.wallet, "since": since}
    found = tx.one(PAID_IN_SINCE, params)
    paid = Usdc((0 if found is None else found["paid"]) - payment.amount)
    if paid + payment.amount > cap_usdc:
        raise SpawnError(
            Code.DEPOSIT_LIMIT,
            f"A wallet may pay in {format_usdc(cap_usdc)} USDC within 24 hours; "
            f"{format_usdc(Usdc(max(0, cap_usdc - paid)))} is left of that.",
            details={"cap": format_usdc(cap_usdc), "paid": format_usdc(paid)},
            retry_after_s=3600,
            next="Pay in less, or wait.",
        )
