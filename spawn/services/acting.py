"""What a paid call does inside its transactions: refuse what is doomed, take the fee, act, remember the answer.

Invariant: whatever raises in here leaves nothing behind, and a reservation that is recorded as done was done in the
same transaction.
"""

import msgspec
from msgspec.structs import replace
from spawn_ledger.tx import Tx
from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc

from spawn.clock import Clock
from spawn.domain.barring import Barred, barred_error
from spawn.payments.facilitator import Settled
from spawn.services import funds, reservations, standing
from spawn.services.balance import check_daily_cap
from spawn.services.billing import Billing
from spawn.services.calls import Acted, Context, Identity, PaidCall, UseCase
from spawn.services.purse import Purse, require_fee
from spawn.services.standing import Left
from spawn.store import wallets
from spawn.store.reservations import Rail, Reservation, State

_X402, _SIGNED, _DONE = Rail.X402, Rail.SIGNED, State.DONE
# As names of the module, because looking a member up in its class is slow.


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of this moment, which may carry a secret that the stored one does not, and what is left."""

    body: bytes
    left: Left


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a call has come; `done` when that is all the way."""

    reservation: Reservation
    done: Done | None = None


class Transactions:
    """The steps of a call, each to be run in a transaction of its own."""

    def __init__(self, clock: Clock, billing: Billing, *, daily_cap_usdc: Usdc) -> None:
        self._clock = clock
        self._billing = billing
        self._daily_cap_usdc = daily_cap_usdc

    def begin(self, tx: Tx, call: PaidCall, reservation: Reservation, use_case: UseCase) -> Progress:
        """Take key and nonce for a payment and refuse what is doomed, before money moves on chain.

        A call from the balance has nothing to settle: all of it is this transaction. Raises AlreadyKnown, and what
        speaks against the call: that its wallet is barred, or what `check` sees.
        """
        if call.identity.payment is None:
            reservations.refuse_known_key(tx, reservation)
            if not use_case.only_reads:
                _refuse_barred(tx, reservation.wallet, use_case, pays=False)
                self._check(tx, call, reservation, use_case)
            return self.act(tx, None, reservation, call.identity, use_case)
        reservations.reserve(tx, reservation)
        _refuse_barred(tx, reservation.wallet, use_case, pays=True)
        if call.price.fund_usdc > 0:
            check_daily_cap(tx, reservation, cap_usdc=self._daily_cap_usdc)
        self._check(tx, call, reservation, use_case)
        return Progress(reservation=reservation)

    def _check(self, tx: Tx, call: PaidCall, reservation: Reservation, use_case: UseCase) -> None:
        wallet, now = reservation.wallet, reservation.created_at
        paid_usdc = None if call.identity.payment is None else call.price.payment_usdc
        purse = Purse(tx, wallet, payment_usdc=paid_usdc, fee_usdc=call.price.fee_usdc, now=now)
        use_case.check(tx, wallet, purse, now)

    def credit_and_act(
        self, tx: Tx, reservation: Reservation, settled: Settled, identity: Identity, use_case: UseCase
    ) -> Progress:
        """Book a payment and do at once what it was for."""
        credited = reservations.book(tx, reservation, settled, self._clock.now_s())
        return self.act(tx, reservation, credited, identity, use_case)

    def act(
        self,
        tx: Tx,
        stored: Reservation | None,
        current: Reservation,
        identity: Identity,
        use_case: UseCase,
    ) -> Progress:
        """Do it, and record that it is done. `stored` is what the table holds, `current` what we know since."""
        now, wallet = self._clock.now_s(), current.wallet
        reference = current.reference
        if stored is not None and not use_case.only_reads:
            # Barred since it was reserved: what it paid stays its credit.
            _refuse_barred(tx, wallet, use_case, pays=False)
        from_payment = use_case.only_reads and current.rail is _X402
        if from_payment:
            # First of all: what was paid for this call is not there for what the wallet's servers owe.
            funds.charge_fee(tx, wallet, current.fee, reference, now)
        before = standing.of(tx, wallet, now)
        ended = {}
        if before.pressing:
            ended = self._billing.settle(tx, wallet, now, sparing=use_case.saves)
            before = standing.of(tx, wallet, now)
        if current.rail is _SIGNED and not use_case.fee_from_refund:
            require_fee(before.available_usdc, current.fee)
        if use_case.only_reads and not from_payment:
            funds.charge_fee(tx, wallet, current.fee, reference, now)
            before = before.less(current.fee)
        context = Context(
            wallet=wallet,
            binds_request=identity.binds_request,
            reference=reference,
            fee_usdc=current.fee,
            payment_usdc=current.amount,
            now=now,
            ended=ended,
            standing=before,
        )
        acted = use_case.act(tx, context)
        if before.pressing:
            self._billing.reschedule(tx, wallet, now)
        after = _after(current, acted)
        reservations.record(tx, stored, after)
        if acted.operation is not None:
            return Progress(reservation=after)
        left = context.standing if use_case.only_reads else standing.of(tx, wallet, now)
        return Progress(reservation=after, done=Done(body=acted.answer, left=left.left))


def _refuse_barred(tx: Tx, wallet: Address, use_case: UseCase, *, pays: bool) -> None:
    """Raise `suspended` for what a barred wallet may not do, and for any payment of a blocked one."""
    barred = wallets.barred(tx, wallet)
    if barred is None:
        return
    may_act = use_case.only_reads or barred in use_case.open_to
    if not may_act or (pays and barred is Barred.BLOCKED):
        raise barred_error(barred)


def _after(current: Reservation, acted: Acted) -> Reservation:
    fee = current.fee if acted.fee_usdc is None else acted.fee_usdc
    if acted.operation is not None:
        return replace(current, state=State.ACTED, operation_id=acted.operation, fee=fee, answer=acted.answer)
    body = reservations.encode_body(acted.stored or acted.answer)
    return replace(current, state=_DONE, fee=fee, answer=body, claim=None, claim_until=0)
