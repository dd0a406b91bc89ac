"""The order in which a paid call is identified, reserved, settled, credited, acted and answered.

Invariant: each step is recorded before the next is taken, a nonce and an idempotency key buy one effect, and a
call that is refused has cost nothing (what was settled for it is credit).
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Protocol

import msgspec
from msgspec.structs import replace
from spawn_ledger.transfers import InsufficientFunds
from spawn_ledger.tx import Tx
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.ids import Address, Entropy
from spawn_schemas.money import Usdc, format_usdc

from spawn.clock import Clock
from spawn.payments import exact
from spawn.payments.exact import PaymentInvalid
from spawn.payments.facilitator import Facilitator, Rejected, Settled, SettlementUnclear
from spawn.services import reservations, standing
from spawn.services.acting import Progress, Transactions
from spawn.services.billing import Billing
from spawn.services.calls import Answer, Identity, PaidCall, Proof, UseCase
from spawn.services.claims import CLAIM_S, kept
from spawn.services.operator import Operator
from spawn.services.purse import insufficient_deposit
from spawn.services.reservations import AlreadyKnown
from spawn.services.signals import Signals
from spawn.store import reservations as rows
from spawn.store.database import Database, StoreError
from spawn.store.reservations import Rail, Reservation, State

log = logging.getLogger(__name__)

SETTLE_TIMEOUT_S = 90
"""Far beyond what a rail waits by itself, because whoever is cut off says no hash."""
STOPPING_S = 1
"""How long one may still take once the service stops: uvicorn waits a few seconds, and cuts off without an answer."""
_X402, _SIGNED, _RESERVED, _SETTLED = Rail.X402, Rail.SIGNED, State.RESERVED, State.SETTLED
# As names of the module, because looking a member up in its class is slow.
_FINAL = frozenset({State.DONE, State.REFUSED})


class Turns(Protocol):
    """How often a wallet may call."""

    def take_wallet(self, wallet: Address) -> None:
        """Take one of its turns. Raises SpawnError(rate_limited)."""
        ...

    def give_back(self, wallet: Address) -> None:
        """Undo that for a call that turned out to be a copy."""
        ...


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
        billing: Billing,
        *,
        wall: Clock,
        first_answer_s: float,
        in_flight_wait_s: float,
        daily_cap_usdc: Usdc,
        turns: Turns,
    ) -> None:
        self._db = db
        self._facilitator = facilitator
        self._operator = operator
        self._signals = signals
        self._clock = clock
        self._wall = wall
        self._entropy = entropy
        self._first_answer_s = first_answer_s
        self._in_flight_wait_s = in_flight_wait_s
        self._do = Transactions(clock, billing, daily_cap_usdc=daily_cap_usdc)
        self._turns = turns
        self._settling: set[asyncio.Timeout] = set()
        self._is_stopping = False

    async def run(self, call: PaidCall, use_case: UseCase) -> Answer:
        """Do the call once, however often it is sent.

        Raises `PaymentInvalid` for a payment that does not match the price, `SpawnError` for a refusal.
        """
        answer = await self._once(call, use_case)
        told = await use_case.tell(answer.body)
        return answer if told is answer.body else replace(answer, body=told)

    async def _once(self, call: PaidCall, use_case: UseCase) -> Answer:
        try:
            if use_case.refusal is not None:
                raise use_case.refusal
            self._admit(call, self._wall.now_s())
            await use_case.wait(self._db, call.identity.wallet, self._clock.now_s())
            # The wait may have been a minute.
            in_steps = call.identity.payment is not None or not use_case.only_reads
            reservation = self._new_reservation(call, self._clock.now_ms(), claimed=in_steps)
            progress = await self._write(lambda tx: self._do.begin(tx, call, reservation, use_case))
        except AlreadyKnown as taken:
            if call.rate_limited:
                # A payment that settled can be read on chain: sending it again must not use up its payer's turns.
                self._turns.give_back(call.identity.wallet)
            return await self._replay(taken.by, call, use_case)
        except (PaymentInvalid, SpawnError):
            # What is in its way may be its own work, or a copy's: whatever was begun before is finished.
            known = await self._find(call)
            if known is None:
                raise
            return await self._replay(known, call, use_case)
        return await self._go_on(progress, call.identity, use_case)

    async def knows(self, identity: Identity) -> bool:
        """Whether this very payment, in these very bytes, was taken for a call before."""
        found = await self._db.read(rows.SELECT_BY_ID, {"id": identity.nonce_key})
        return bool(found) and identity.seal is not None and found[0]["seal"] == identity.seal

    def _admit(self, call: PaidCall, now: int) -> None:
        """Raise what can be told without looking anything up."""
        if call.identity.payment is not None:
            exact.check(call.identity.payment, amount_usdc=call.price.payment_usdc, now=now)
        if call.rate_limited:
            self._turns.take_wallet(call.identity.wallet)

    def _new_reservation(self, call: PaidCall, now_ms: int, *, claimed: bool) -> Reservation:
        """`claimed` for a call that may take more than its first transaction."""
        identity = call.identity
        remembered = identity.payment is not None or call.request.idempotency_key is not None
        return Reservation(
            id=identity.nonce_key,
            wallet=identity.wallet,
            rail=_SIGNED if identity.payment is None else _X402,
            idempotency_key=call.request.idempotency_key,
            fingerprint=call.request.fingerprint(),
            state=_RESERVED,
            fee=call.price.fee_usdc,
            amount=Usdc(0) if identity.payment is None else call.price.payment_usdc,
            payment=None if identity.payment is None else msgspec.json.encode(identity.payment),
            seal=identity.seal,
            valid_before=identity.valid_before,
            settlement=None,
            operation_id=None,
            answer=None,
            claim=self._token() if claimed else None,
            claim_until=now_ms // 1000 + CLAIM_S if claimed else 0,
            created_ms=now_ms,
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
        found = await self._db.read(rows.SELECT_BY_ID, {"id": call.identity.nonce_key})
        return rows.reservation_from(found[0]) if found else None

    def stop_waiting(self) -> None:
        """Let whoever waits for a settlement, now or from now on, soon hear that it is unclear."""
        self._is_stopping = True
        end = asyncio.get_running_loop().time() + STOPPING_S
        for limit in self._settling:
            limit.reschedule(end)

    # --- what is known already --------------------------------------------------------------------------------

    async def _replay(self, known: Reservation, call: PaidCall, use_case: UseCase) -> Answer:
        if call.identity.proof is Proof.SIGN_IN and not await self._spend(call):
            # It binds no request, so whoever shows it again need not be who was answered.
            raise SpawnError(
                Code.INVALID_SIGNATURE,
                "This sign-in was used already.",
                details={"reason": "nonce_used"},
                next="Sign in anew for each call, or once for many: POST /v1/sessions.",
            )
        if known.id == call.identity.nonce_key and known.seal != call.identity.seal:
            raise SpawnError(
                Code.IDEMPOTENCY_CONFLICT,
                "This payment was used already, by a request that carried it in other bytes.",
                next="To repeat a call, send the very same header again, or use an Idempotency-Key from the start.",
            )
        if known.fingerprint != call.request.fingerprint():
            raise SpawnError(
                Code.IDEMPOTENCY_CONFLICT,
                "This idempotency key or payment was already used for a different request.",
                next="Use a new Idempotency-Key and a new payment for a new request.",
            )
        current = await self._wait_for(known)
        now = self._clock.now_s()
        if current.state in _FINAL:
            found = await standing.read(self._db, current.wallet, now)
            return reservations.stored_answer(current, found.left)
        if _is_claimed(current, now):
            raise SpawnError(
                Code.IN_PROGRESS,
                "This very request is still being worked on.",
                retry_after_s=2,
                next="Send the same request again: it will not be paid or done twice.",
            )
        claimed = replace(current, claim=self._token(), claim_until=now + CLAIM_S)
        if not await self._db.write(lambda tx: rows.update_reservation(tx, current, claimed)):
            return await self._replay(current, call, use_case)
        return await self._go_on(Progress(reservation=claimed), call.identity, use_case)

    async def _spend(self, call: PaidCall) -> bool:
        """Take the nonce of a proof whose call is answered from what is known; False when it was used before."""
        spent = replace(
            self._new_reservation(call, self._clock.now_ms(), claimed=False),
            idempotency_key=None,
            state=State.REFUSED,
        )
        return await self._db.write(lambda tx: rows.insert_reservation(tx, spent))

    async def _wait_for(self, known: Reservation) -> Reservation:
        async def read() -> Reservation:
            found = await self._db.read(rows.SELECT_BY_ID, {"id": known.id})
            return rows.reservation_from(found[0]) if found else known

        def settled(current: Reservation) -> bool:
            return current.state in _FINAL or not _is_claimed(current, self._clock.now_s())

        return await self._signals.wait_until(known.id, read, settled, timeout_s=self._in_flight_wait_s)

    # --- step by step -----------------------------------------------------------------------------------------

    async def _go_on(self, progress: Progress, identity: Identity, use_case: UseCase) -> Answer:
        """Take a claimed reservation from wherever it stands to its answer."""
        reservation = progress.reservation
        try:
            if progress.done is None:
                with kept(self._db, self._clock, reservation):
                    if progress.reservation.state is _RESERVED:
                        progress = await self._settle(reservation, identity, use_case)
                    if progress.reservation.state is _SETTLED:
                        progress = await self._act(progress.reservation, identity, use_case)
                    if progress.done is None:
                        return await self._complete(progress.reservation, use_case)
            done = progress.done
            return reservations.answer_of(progress.reservation, done.body, done.left, replayed=False)
        except Exception:
            await self._release(progress.reservation)
            raise
        finally:
            self._signals.notify(reservation.id)

    async def _settle(self, reservation: Reservation, identity: Identity, use_case: UseCase) -> Progress:
        """Ask the chain; whatever it says is recorded before anything else happens.

        Mostly the call is done in the transaction that books the payment. Where it cannot be, the payment is
        booked alone.
        """
        fresh = identity.payment if identity.nonce_key == reservation.id else None
        payment = fresh or reservations.stored_payment(reservation)
        try:
            outcome = await self._ask_facilitator(payment)
        except (SettlementUnclear, TimeoutError) as error:
            log.warning("settlement of %s is unclear: %s", reservation.id, error)
            raise _pending(error) from error
        match outcome:
            case Settled():
                try:
                    return await self._db.write(
                        lambda tx: self._do.credit_and_act(tx, reservation, outcome, identity, use_case)
                    )
                except StoreError:
                    raise
                except Exception as error:
                    if not isinstance(error, SpawnError | InsufficientFunds):
                        log.exception("%s could not be done with its payment", reservation.id)
                    now = self._clock.now_s()
                    credited = await self._db.write(
                        lambda tx: reservations.credit(tx, reservation, outcome, now)
                    )
                    return Progress(reservation=credited)
            case Rejected(reason=reason, message=message):
                refusal = SpawnError(
                    Code.SETTLEMENT_FAILED,
                    f"The payment was refused: {message}",
                    details={"reason": reason},
                    next="Nothing was charged. Mend the cause, then repeat the request with a new payment.",
                )
                await self._db.write(lambda tx: reservations.refuse(tx, reservation, State.REFUSED, refusal))
                raise refusal

    async def _ask_facilitator(self, payment: exact.ExactPayment) -> Settled | Rejected:
        """Raises SettlementUnclear, or TimeoutError."""
        async with asyncio.timeout(STOPPING_S if self._is_stopping else SETTLE_TIMEOUT_S) as limit:
            self._settling.add(limit)
            try:
                return await self._facilitator.settle(payment)
            finally:
                self._settling.discard(limit)

    async def _release(self, reservation: Reservation) -> None:
        """Let a copy of the request go on at once; without this it could when the claim runs out."""
        free = replace(reservation, claim=None, claim_until=0)
        with contextlib.suppress(SpawnError, StoreError):
            await self._db.write(lambda tx: rows.update_reservation(tx, reservation, free))

    async def _act(self, reservation: Reservation, identity: Identity, use_case: UseCase) -> Progress:
        """Do what was paid for earlier. A refusal is final, and the payment stays credit."""
        try:
            return await self._write(
                lambda tx: self._do.act(tx, reservation, reservation, identity, use_case)
            )
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

    async def _write(self, fn: Callable[[Tx], Progress]) -> Progress:
        try:
            return await self._db.write(fn)
        except InsufficientFunds as error:
            raise insufficient_deposit(error.need, error.have) from error

    async def _complete(self, reservation: Reservation, use_case: UseCase) -> Answer:
        """Wait for the provider's first word, then fix the answer."""
        action_id = reservation.operation_id
        if action_id is None:
            raise RuntimeError(f"{reservation.id} waits for no operation")
        self._operator.kick(action_id)
        await self._operator.first_answer(action_id, self._first_answer_s)
        now = self._clock.now_s()
        completed, left = await self._db.write(
            lambda tx: (
                reservations.finish(tx, reservation, use_case),
                standing.of(tx, reservation.wallet, now).left,
            )
        )
        if isinstance(completed, SpawnError):
            raise completed
        return reservations.answer_of(reservation, completed.answer, left, replayed=False)


def _pending(error: SettlementUnclear | TimeoutError) -> SpawnError:
    """Not yet, and never a new challenge: a conforming client would pay it."""
    why, transaction = "Its outcome is not known.", None
    if isinstance(error, SettlementUnclear):
        why, transaction = str(error), error.transaction
    return SpawnError(
        Code.SETTLEMENT_PENDING,
        f"The payment is not settled yet. {why}",
        # Where the caller can see what becomes of it.
        details=None if transaction is None else {"transaction": transaction},
        retry_after_s=5,
        next="Send the very same request with the same payment again; do not sign a new one.",
    )


def _is_claimed(reservation: Reservation, now: int) -> bool:
    """Whether somebody is at it. A claim further ahead than any is made is from before the clock was set back."""
    return now < reservation.claim_until <= now + CLAIM_S
