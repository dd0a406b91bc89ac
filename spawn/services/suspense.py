"""USDC that reached us outside a call: it waits in suspense until its sender says so, and nobody else can.

Invariant: whatever arrives enters the books once. A transfer that spent an authorization enters under the name of
that authorization's nonce, as the payment of a call does, so that the watcher of the chain and the call come to the
same entry, whichever is first.
"""

from collections.abc import Callable
from typing import Final

from spawn_ledger.accounts import EXT_USDC, SUSPENSE
from spawn_ledger.transfers import Code, Transfer, TransferIdReused, post, transfer_id
from spawn_ledger.tx import Tx
from spawn_schemas import suspense as wire
from spawn_schemas.events import EventType, PaymentData
from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc, format_usdc

from spawn.domain.barring import Barred
from spawn.payments.arrivals import START, Arrivals, Arrived
from spawn.services import funds, standing, views
from spawn.services.calls import Acted, Context, Read, UseCase
from spawn.services.events import emit
from spawn.services.moments import moment
from spawn.store import arrivals as rows
from spawn.store import reservations
from spawn.store.arrivals import MOVE_WATCH, SELECT_WATCH, Arrival, State
from spawn.store.database import Database

AT_ONCE: Final = 100
"""Arrivals in one list, and claimed by one call: somebody who sends us thousands repeats the call."""
PER_WRITE: Final = 100
"""Arrivals in one transaction: nearly all of them are payments that are booked, and a look each."""

LOST_UNTIL: Final = "lost until"
"""Under which name `watch` keeps, after a restore, until when a payment may be that of a call our books forgot."""


async def follow(
    db: Database, arrivals: Arrivals, now: int, *, pages: int, kept: Callable[[Arrived], None]
) -> None:
    """Account for what arrived since the cursor, `pages` at most; tell `kept` what waits in suspense from now on.

    The cursor moves in the write that accounts for what is before it. Raises NodeUnavailable.
    """
    found = await db.read(SELECT_WATCH, {"name": arrivals.name})
    cursor: str = found[0]["cursor"] if found else START
    for _ in range(pages):
        arrived, behind = await arrivals.page(cursor)
        if behind == cursor:
            return
        for start in range(0, max(1, len(arrived)), PER_WRITE):
            some = arrived[start : start + PER_WRITE]
            moved = {"name": arrivals.name, "cursor": behind} if start + PER_WRITE >= len(arrived) else None
            for one in await db.write(lambda tx: _receive_all(tx, some, moved, now)):  # noqa: B023 - run before the next round
                kept(one)
        cursor = behind


def _receive_all(
    tx: Tx, arrived: tuple[Arrived, ...], moved: dict[str, str] | None, now: int
) -> list[Arrived]:
    kept = [one for one in arrived if receive(tx, one, now)]
    if moved is not None:
        tx.execute(MOVE_WATCH, moved)
    return kept


def receive(tx: Tx, arrived: Arrived, now: int) -> bool:
    """Account for what arrived, once; True when it waits in suspense from now on.

    What spent the authorization of a call of ours is that call's payment, whatever became of the call: we may have
    refused it, and somebody carried it to the chain all the same; or our books were lost with the call in them.
    """
    try:
        if arrived.nonce_key is not None and _is_of_a_call(tx, arrived.nonce_key, arrived.at):
            funds.credit_payment(
                tx,
                arrived.sender,
                arrived.amount,
                nonce_key=arrived.nonce_key,
                reference=arrived.transaction,
                at=now,
            )
            return False
        return _suspend(tx, arrived, now)
    except TransferIdReused:
        # It is a wallet's already: the call's own settlement was first.
        return False


def _is_of_a_call(tx: Tx, nonce_key: str, at: int) -> bool:
    if tx.one(reservations.SELECT_BY_ID, {"id": nonce_key}) is not None:
        return True
    restored = tx.one(SELECT_WATCH, {"name": LOST_UNTIL})
    return restored is not None and at < int(restored["cursor"])


def _suspend(tx: Tx, arrived: Arrived, now: int) -> bool:
    key = arrived.nonce_key
    name = transfer_id("suspense", arrived.id) if key is None else funds.payment_id(key)
    is_new = post(
        tx,
        Transfer(
            id=name,
            debit=EXT_USDC,
            credit=SUSPENSE,
            amount=arrived.amount,
            code=Code.SUSPENSE,
            reference=arrived.transaction,
            at=now,
        ),
    )
    if is_new:
        rows.insert_arrival(
            tx,
            Arrival(
                id=arrived.id,
                transaction_hash=arrived.transaction,
                sender=arrived.sender,
                amount=arrived.amount,
                nonce_key=arrived.nonce_key,
                state=State.SUSPENSE,
                at=arrived.at,
                claimed_at=None,
            ),
        )
        _tell(tx, EventType.SUSPENSE_RECEIVED, arrived.sender, arrived.amount, arrived.transaction, now)
    return is_new


class ListSuspense(Read):
    """`GET /v1/suspense`, oldest first."""

    def act(self, tx: Tx, context: Context) -> Acted:
        waiting = _waiting(tx, context.wallet)
        total = _total(tx, context.wallet)
        return Acted(
            answer=views.encode(
                wire.SuspenseView(
                    arrivals=tuple(
                        wire.ArrivalView(
                            transaction=arrival.transaction_hash,
                            amount=format_usdc(arrival.amount),
                            at=moment(arrival.at),
                        )
                        for arrival in waiting
                    ),
                    total=format_usdc(total),
                )
            )
        )


class ClaimSuspense(UseCase):
    """`POST /v1/suspense/claim`: what waits becomes the balance of whoever sent it."""

    open_to = frozenset({Barred.SUSPENDED})

    def act(self, tx: Tx, context: Context) -> Acted:
        waiting = _waiting(tx, context.wallet)
        taken = [arrival for arrival in waiting if funds.claim(tx, arrival, context.now)]
        for arrival in taken:
            _tell(
                tx,
                EventType.SUSPENSE_CLAIMED,
                context.wallet,
                arrival.amount,
                arrival.transaction_hash,
                context.now,
            )
        view = views.balance_view(standing.of(tx, context.wallet, context.now))
        return Acted(
            answer=views.encode(
                wire.SuspenseClaimed(
                    claimed=format_usdc(Usdc(sum(arrival.amount for arrival in taken))),
                    left=format_usdc(_total(tx, context.wallet)),
                    balance=view.balance,
                    reserved=view.reserved,
                    available=view.available,
                )
            )
        )


def _tell(tx: Tx, type: EventType, sender: Address, amount: Usdc, transaction: str, now: int) -> None:
    data = PaymentData(amount=format_usdc(amount), transaction=transaction, reason=None)
    emit(tx, sender, type, data, resource=transaction, at=now)


def _waiting(tx: Tx, sender: Address) -> list[Arrival]:
    return [
        rows.arrival_from(row) for row in tx.all(rows.SELECT_WAITING, {"sender": sender, "limit": AT_ONCE})
    ]


def _total(tx: Tx, sender: Address) -> Usdc:
    (row,) = tx.all(rows.SUM_WAITING, {"sender": sender})
    return Usdc(row["amount"])
