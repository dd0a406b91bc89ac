"""The order in which a paid call is identified, reserved, settled, credited, acted and answered.

Invariant: each step is recorded before the next is taken, a nonce and an idempotency key buy one effect, and a
call that is refused has cost nothing (what was settled for it is credit).
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable

import msgspec
from msgspec.structs import replace
from spawn_ledger.transfers import InsufficientFunds
from spawn_ledger.tx import Tx
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.ids import Entropy, new_reservation_id
from spawn_schemas.money import Usdc, format_usdc

from spawn.clock import Clock
from spawn.payments import exact
from spawn.payments.exact import ExactPayment, PaymentInvalid
from spawn.payments.facilitator import Facilitator, Rejected, Settled, SettlementUnclear
from spawn.services import endings, funds, reservations
from spawn.services.balance import check_daily_cap
from spawn.services.calls import (
    Acted,
    Answer,
    Context,
    PaidCall,
    UseCase,
)
from spawn.services.operator import Operator
from spawn.services.purse import Purse, insufficient_deposit, require_fee
from spawn.services.signals import Signals
from spawn.store import reservations as rows
from spawn.store.database import Database, StoreError
from spawn.store.reservations import Rail, Reservation, State

log = logging.getLogger(__name__)

CLAIM_S = 60
SETTLE_TIMEOUT_S = 30
_FINAL = frozenset({State.DONE, State.REFUSED})


class PaidCalls:
    """Runs any `UseCase` for a caller who has proven who pays."""

    def __init__(
        self,
        db: Database,
        facilitator: Facilitator,
        operator: Operator,
        signals: Signals,
        clock: Clock,
        entropy: Entropy,
        *,
        first_answer_s: float,
        in_flight_wait_s: float,
        daily_cap_usdc: Usdc,
    ) -> None:
        self._db = db
        self._facilitator = facilitator
        self._operator = operator
        self._signals = signals
        self._clock = clock
        self._entropy = entropy
        self._first_answer_s = first_answer_s
        self._in_flight_wait_s = in_flight_wait_s
        self._daily_cap_usdc = daily_cap_usdc

    async def run(self, call: PaidCall, use_case: UseCase) -> Answer:
        """Do the call once, however often it is sent.

        Raises `PaymentInvalid` for a payment that does not match the price, `SpawnError` for a refusal.
        """
        known = await self._prepare(call, use_case)
        if known is not None:
            return await self._replay(known, call, use_case)
        reservation = self._new_reservation(call)
        if call.identity.payment is None:
            outcome = await self._write(lambda tx: self._reserve_and_act(tx, reservation, use_case))
        else:
            outcome = await self._db.write(lambda tx: self._reserve_payment(tx, call, reservation))
        if outcome.id != reservation.id:
            return await self._replay(outcome, call, use_case)
        return await self._go_on(outcome, use_case)

    async def _prepare(self, call: PaidCall, use_case: UseCase) -> Reservation | None:
        """Raise what dooms the call; but what is in its way may be its own work, or a copy's: then answer that.

        A call that nothing dooms and that is known all the same is found when it is reserved.
        """
        try:
            await self._check(call, use_case)
        except (PaymentInvalid, SpawnError):
            copy = await self._find(call)
            if copy is None:
                raise
            return copy
        return None

    async def _check(self, call: PaidCall, use_case: UseCase) -> None:
        now = self._clock.now_s()
        payment = call.identity.payment
        if payment is not None:
            exact.check(payment, amount_usdc=call.price.payment_usdc, now=now)
        purse = Purse(
            self._db,
            call.identity.wallet,
            payment_usdc=None if payment is None else call.price.payment_usdc,
            fee_usdc=call.price.fee_usdc,
            now=now,
        )
        await use_case.prepare(self._db, call.identity.wallet, purse, now)

    def _new_reservation(self, call: PaidCall) -> Reservation:
        now = self._clock.now_s()
        identity = call.identity
        remembered = identity.payment is not None or call.request.idempotency_key is not None
        return Reservation(
            id=new_reservation_id(self._entropy),
            nonce_key=identity.nonce_key,
            wallet=identity.wallet,
            rail=Rail.SIGNED if identity.payment is None else Rail.X402,
            idempotency_key=call.request.idempotency_key,
            fingerprint=call.request.fingerprint(),
            state=State.RESERVED,
            fee=call.price.fee_usdc,
            amount=Usdc(0) if identity.payment is None else call.price.payment_usdc,
            payment=None if identity.payment is None else msgspec.json.encode(identity.payment),
            valid_before=identity.valid_before,
            settlement=None,
            operation_id=None,
            answer=None,
            claim=self._token(),
            claim_until=now + CLAIM_S,
            created_at=now,
            keep_until=identity.valid_before
            + (reservations.REMEMBER_S if remembered else reservations.FORGET_S),
        )

    def _token(self) -> str:
        return f"call-{self._entropy.bytes(8).hex()}"

    async def _find(self, call: PaidCall) -> Reservation | None:
        """The reservation this key or nonce already has; the key decides, a fresh nonce beside it stays unspent."""
        key = call.request.idempotency_key
        if key is not None:
            found = await self._db.read(
                rows.SELECT_BY_KEY, {"wallet": call.identity.wallet, "key": key, "now": self._clock.now_s()}
            )
            if found:
                return rows.reservation_from(found[0])
        found = await self._db.read(rows.SELECT_BY_NONCE, {"nonce_key": call.identity.nonce_key})
        return rows.reservation_from(found[0]) if found else None

    # --- what is known already --------------------------------------------------------------------------------

    async def _replay(self, known: Reservation, call: PaidCall, use_case: UseCase) -> Answer:
        if known.fingerprint != call.request.fingerprint():
            raise SpawnError(
                Code.IDEMPOTENCY_CONFLICT,
                "This idempotency key or payment was already used for a different request.",
                next="Use a new Idempotency-Key and a new payment for a new request.",
            )
        current = await self._wait_for(known)
        if current.state in _FINAL:
            return reservations.stored_answer(current)
        now = self._clock.now_s()
        if current.claim_until > now:
            raise SpawnError(
                Code.IN_PROGRESS,
                "This very request is still being worked on.",
                retry_after_s=2,
                next="Send the same request again: it will not be paid or done twice.",
            )
        claimed = replace(current, claim=self._token(), claim_until=now + CLAIM_S)
        if not await self._db.write(lambda tx: rows.update_reservation(tx, current, claimed)):
            return await self._replay(current, call, use_case)
        return await self._go_on(claimed, use_case)

    async def _wait_for(self, known: Reservation) -> Reservation:
        async def read() -> Reservation:
            found = await self._db.read(rows.SELECT_BY_ID, {"id": known.id})
            return rows.reservation_from(found[0]) if found else known

        def settled(current: Reservation) -> bool:
            return current.state in _FINAL or current.claim_until <= self._clock.now_s()

        return await self._signals.wait_until(known.id, read, settled, timeout_s=self._in_flight_wait_s)

    # --- step by step -----------------------------------------------------------------------------------------

    async def _go_on(self, reservation: Reservation, use_case: UseCase) -> Answer:
        """Take a claimed reservation from wherever it stands to its answer."""
        try:
            if reservation.state is State.RESERVED:
                reservation = await self._settle(reservation)
            if reservation.state is State.SETTLED:
                reservation = await self._act(reservation, use_case)
            if reservation.state is State.ACTED:
                return await self._complete(reservation, use_case)
            return reservations.fresh_answer(reservation)
        except Exception:
            await self._release(reservation)
            raise
        finally:
            self._signals.notify(reservation.id)

    async def _settle(self, reservation: Reservation) -> Reservation:
        """Ask the chain; whatever it says is recorded before anything else happens."""
        payment = msgspec.json.decode(reservation.payment or b"", type=ExactPayment)
        try:
            async with asyncio.timeout(SETTLE_TIMEOUT_S):
                outcome = await self._facilitator.settle(payment)
        except (SettlementUnclear, TimeoutError) as error:
            log.warning("settlement of %s is unclear: %s", reservation.id, error)
            raise SpawnError(
                Code.SETTLEMENT_PENDING,
                "The payment was sent and its outcome is not known yet.",
                retry_after_s=5,
                next="Send the very same request with the same payment again; do not sign a new one.",
            ) from error
        match outcome:
            case Settled():
                return await self._db.write(
                    lambda tx: reservations.credit(tx, reservation, outcome, self._clock.now_s())
                )
            case Rejected(reason=reason, message=message):
                refusal = SpawnError(
                    Code.SETTLEMENT_FAILED,
                    f"The payment was refused: {message}",
                    details={"reason": reason},
                    next="Nothing was charged. Mend the cause, then repeat the request with a new payment.",
                )
                await self._db.write(lambda tx: reservations.refuse(tx, reservation, State.REFUSED, refusal))
                raise refusal

    async def _release(self, reservation: Reservation) -> None:
        """Let a copy of the request go on at once; without this it could when the claim runs out."""
        free = replace(reservation, claim=None, claim_until=0)
        with contextlib.suppress(SpawnError, StoreError):
            await self._db.write(lambda tx: rows.update_reservation(tx, reservation, free))

    async def _act(self, reservation: Reservation, use_case: UseCase) -> Reservation:
        try:
            return await self._write(lambda tx: self._act_in(tx, reservation, use_case))
        except SpawnError as error:
            if error.code in {Code.OVERLOADED, Code.IN_PROGRESS}:
                raise
            credited = SpawnError(
                error.code,
                error.message,
                details={**(error.details or {}), "credited": format_usdc(reservation.amount)},
                next=error.next,
                retry_after_s=error.retry_after_s,
            )
            await self._db.write(lambda tx: reservations.refuse(tx, reservation, State.DONE, credited))
            raise credited from error

    async def _write(self, fn: Callable[[Tx], Reservation]) -> Reservation:
        try:
            return await self._db.write(fn)
        except InsufficientFunds as error:
            raise insufficient_deposit(error.need, error.have) from error

    def _reserve_payment(self, tx: Tx, call: PaidCall, reservation: Reservation) -> Reservation:
        taken = reservations.reserve(tx, reservation)
        if taken.id == reservation.id and call.price.fund_usdc > 0:
            check_daily_cap(tx, taken, cap_usdc=self._daily_cap_usdc)
        return taken

    def _reserve_and_act(self, tx: Tx, reservation: Reservation, use_case: UseCase) -> Reservation:
        """A signed call has nothing to settle: taking its nonce and doing it is one transaction."""
        taken = reservations.reserve(tx, reservation)
        return taken if taken.id != reservation.id else self._act_in(tx, reservation, use_case)

    def _act_in(self, tx: Tx, reservation: Reservation, use_case: UseCase) -> Reservation:
        now = self._clock.now_s()
        pressing = funds.pressing(tx, reservation.wallet, now)
        ended = endings.settle_wallet(tx, reservation.wallet, now, self._entropy) if pressing else {}
        if reservation.rail is Rail.SIGNED and not use_case.fee_from_refund:
            require_fee(funds.available_usdc(tx, reservation.wallet), reservation.fee)
        acted: Acted = use_case.act(
            tx,
            Context(
                wallet=reservation.wallet,
                reservation=reservation.id,
                fee_usdc=reservation.fee,
                payment_usdc=reservation.amount,
                now=now,
                ended=ended,
            ),
        )
        if pressing:
            funds.reschedule(tx, reservation.wallet, now)
        done = acted.operation is None
        after = replace(
            reservation,
            state=State.DONE if done else State.ACTED,
            operation_id=acted.operation,
            fee=reservation.fee if acted.fee_usdc is None else acted.fee_usdc,
            answer=reservations.encode_body(acted.stored or acted.answer) if done else acted.answer,
            claim=None if done else reservation.claim,
            claim_until=0 if done else reservation.claim_until,
        )
        reservations.move(tx, reservation, after)
        # A secret is in the answer of this moment only, never in the one that is kept.
        return replace(after, answer=reservations.encode_body(acted.answer)) if done else after

    async def _complete(self, reservation: Reservation, use_case: UseCase) -> Answer:
        """Wait for the provider's first word, then fix the answer."""
        action_id = reservation.operation_id
        if action_id is None:
            raise RuntimeError(f"{reservation.id} waits for no operation")
        self._operator.kick(action_id)
        await self._operator.first_answer(action_id, self._first_answer_s)
        completed = await self._db.write(lambda tx: reservations.finish(tx, reservation, use_case))
        if isinstance(completed, SpawnError):
            raise completed
        return reservations.answer_of(reservation, completed.answer, replayed=False)
