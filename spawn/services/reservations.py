"""The steps of a paid call that are transactions: reserve, credit, refuse, finish; and the stored answers.

Invariant: each step moves its reservation by compare-and-set in the transaction of its effect, so that whatever
runs it twice (a copy of the request, a job, the next start) finds it done.
"""

from typing import Final

import msgspec
from msgspec.structs import replace
from spawn_ledger.tx import Tx
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.events import EventType, PaymentData
from spawn_schemas.money import format_usdc

from spawn.domain.operations import Operation, OperationStatus
from spawn.payments.exact import ExactPayment
from spawn.payments.facilitator import Settled
from spawn.services import endings, funds
from spawn.services.calls import Answer, Completed, Refusal, StoredBody, UseCase, refusal_of
from spawn.services.events import emit
from spawn.services.standing import Left
from spawn.store import reservations as rows
from spawn.store.operations import get_operation
from spawn.store.reservations import Rail, Reservation, State

# Made at import, as every decoder here: two threads that make the first one of a type at once crash the process.
_answers: Final[msgspec.json.Decoder[StoredBody | Refusal]] = msgspec.json.Decoder(StoredBody | Refusal)
_payments: Final = msgspec.json.Decoder(ExactPayment)

REMEMBER_S = 86_400
"""How long an idempotency key, and what a payment bought, are remembered."""
FORGET_S = 300
"""How long a nonce is kept after it expired where nothing but the nonce has to be remembered."""


def book(tx: Tx, reservation: Reservation, settled: Settled, now: int) -> Reservation:
    """The chain says that the money is ours: credit it. The caller records the reservation that is answered."""
    funds.credit_payment(
        tx,
        reservation.wallet,
        reservation.amount,
        nonce_key=reservation.id,
        reference=settled.transaction,
        at=now,
    )
    return replace(reservation, state=State.SETTLED, settlement=settled.transaction, payment=None)


def credit(tx: Tx, reservation: Reservation, settled: Settled, now: int) -> Reservation:
    """Book a payment and remember that it is booked, in one transaction."""
    after = book(tx, reservation, settled, now)
    move(tx, reservation, after)
    return after


class AlreadyKnown(Exception):
    """Key or nonce are taken: `by` a copy of this request, or by another that may not have them."""

    def __init__(self, by: Reservation) -> None:
        super().__init__(by.id)
        self.by = by


def reserve(tx: Tx, reservation: Reservation) -> None:
    """Take key and nonce. Raises AlreadyKnown."""
    refuse_known_key(tx, reservation)
    if not rows.insert_reservation(tx, reservation):
        known = tx.one(rows.SELECT_BY_ID, {"id": reservation.id})
        if known is None:
            raise RuntimeError(f"{reservation.id} is taken by nobody")
        raise AlreadyKnown(rows.reservation_from(known))
    key = reservation.idempotency_key
    if key is not None and not rows.insert_key(tx, reservation, key, reservation.created_at + REMEMBER_S):
        raise RuntimeError("an idempotency key appeared within one transaction")


def refuse_known_key(tx: Tx, reservation: Reservation) -> None:
    """Raise AlreadyKnown when the wallet has used this key; a key that is not remembered any more is free again."""
    if reservation.idempotency_key is None:
        return
    params = {
        "wallet": reservation.wallet,
        "key": reservation.idempotency_key,
        "now": reservation.created_at,
    }
    known = tx.one(rows.SELECT_BY_KEY, params)
    if known is not None:
        raise AlreadyKnown(rows.reservation_from(known))
    tx.execute(rows.DELETE_EXPIRED_KEY, params)


def record(tx: Tx, stored: Reservation | None, after: Reservation) -> None:
    """Write down how far a call has come: a new one takes key and nonce with it, or raises AlreadyKnown."""
    if stored is None:
        reserve(tx, after)
    else:
        move(tx, stored, after)


def move(tx: Tx, before: Reservation, after: Reservation) -> None:
    if not rows.update_reservation(tx, before, after):
        raise SpawnError(
            Code.IN_PROGRESS,
            "Another copy of this request took over.",
            retry_after_s=1,
            next="Send it again.",
        )


def refuse(tx: Tx, reservation: Reservation, state: State, refusal: SpawnError) -> None:
    after = replace(
        reservation,
        state=state,
        answer=msgspec.json.encode(refusal_of(refusal)),
        payment=None,
        claim=None,
        claim_until=0,
        keep_until=reservation.valid_before + FORGET_S if state is State.REFUSED else reservation.keep_until,
    )
    move(tx, reservation, after)
    rows.forget_key(tx, reservation.id)


def finish(tx: Tx, reservation: Reservation, use_case: UseCase) -> Completed | SpawnError:
    if reservation.operation_id is None or reservation.answer is None:
        raise RuntimeError(f"{reservation.id} has no draft to finish")
    operation = get_operation(tx, reservation.operation_id)
    if operation.status is OperationStatus.ERROR and operation.accepted_at is None:
        refusal = _provider_refusal(operation)
        refuse(tx, reservation, State.DONE, refusal)
        return refusal
    completed = use_case.complete(tx, reservation.answer, operation)
    after = replace(
        reservation, state=State.DONE, answer=encode_body(completed.stored), claim=None, claim_until=0
    )
    move(tx, reservation, after)
    return completed


def _provider_refusal(operation: Operation) -> SpawnError:
    superseded = operation.error_code == endings.SUPERSEDED
    code = Code.CONFLICT if superseded else Code(operation.error_code or Code.INTERNAL.value)
    unavailable = code in {Code.HETZNER_UNAVAILABLE, Code.OUT_OF_CAPACITY, Code.PROVIDER_FAILED}
    return SpawnError(
        code,
        operation.error_message or "The provider refused.",
        details={"action": operation.id},
        next="Deposit and fee are back in the balance: change the order, or repeat it later.",
        retry_after_s=30 if unavailable else None,
    )


def stored_payment(reservation: Reservation) -> ExactPayment:
    """The payment of a reservation whose settlement is not decided."""
    return _payments.decode(reservation.payment or b"")


def encode_body(body: bytes) -> bytes:
    return msgspec.json.encode(StoredBody(body=msgspec.Raw(body)))


def stored_answer(reservation: Reservation, left: Left) -> Answer:
    stored = _answers.decode(reservation.answer or b"")
    match stored:
        case StoredBody(body=body):
            return answer_of(reservation, bytes(body), left, replayed=True)
        case Refusal():
            raise _raise_again(stored)


def _raise_again(refusal: Refusal) -> SpawnError:
    return SpawnError(
        Code(refusal.code),
        refusal.message,
        details=refusal.details,
        next=refusal.next,
        retry_after_s=refusal.retry_after_s,
    )


def answer_of(reservation: Reservation, body: bytes, left: Left, *, replayed: bool) -> Answer:
    return Answer(
        body=body,
        left=left,
        wallet=reservation.wallet,
        settlement=reservation.settlement,
        paid_usdc=None if reservation.rail is Rail.SIGNED else reservation.amount,
        replayed=replayed,
        fee_usdc=reservation.fee,
    )


def credit_found(tx: Tx, reservation: Reservation, settled: Settled, now: int) -> None:
    """Book a payment that settled while nobody waited; whoever repeats the call finds it and goes on."""
    current = tx.one(rows.SELECT_BY_ID, {"id": reservation.id})
    if current is not None and rows.reservation_from(current) == reservation:
        credit(tx, reservation, settled, now)


def expire(tx: Tx, reservation: Reservation, now: int) -> None:
    """Give up on a payment that the chain did not take while it was valid."""
    current = tx.one(rows.SELECT_BY_ID, {"id": reservation.id})
    if current is not None and rows.reservation_from(current) == reservation:
        refusal = SpawnError(
            Code.SETTLEMENT_FAILED,
            "The payment expired before it was settled.",
            details={"reason": "invalid_exact_evm_payload_authorization_valid_before"},
            next="Nothing was charged. Repeat the request with a new payment.",
        )
        refuse(tx, reservation, State.REFUSED, refusal)
        # Its caller may be gone: whoever still waits for it hears that it never will settle.
        data = PaymentData(amount=format_usdc(reservation.amount), transaction=None, reason=refusal.message)
        emit(tx, reservation.wallet, EventType.PAYMENT_REFUSED, data, resource=reservation.reference, at=now)
