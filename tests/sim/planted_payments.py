"""Bugs of payments: what settles, is credited, is replayed."""

from typing import Final

from tests.sim.planted_bug import Bug

PAID_CALLS: Final = "spawn/services/paid_calls.py"
FUNDS: Final = "spawn/services/funds.py"
ROWS: Final = "spawn/store/reservations.py"
OF_PAYMENTS: Final = ("paid", "books", "answers", "live", "foreign")

IN_PAYMENTS: Final = (
    Bug(
        name="a replay is accepted",
        file=PAID_CALLS,
        before="            id=identity.nonce_key,\n",
        after='            id=type(identity.nonce_key)(f"{identity.nonce_key}{now_ms}"),\n',
        promises=OF_PAYMENTS,
    ),
    Bug(
        name="an idempotency key crosses wallets",
        file=ROWS,
        before="WHERE idempotency.wallet = :wallet AND idempotency.key = :key",
        after="WHERE (idempotency.wallet = :wallet OR 1 = 1) AND idempotency.key = :key",
        promises=OF_PAYMENTS,
    ),
    Bug(
        name="an idempotency key is forgotten early",
        file=ROWS,
        before="(SELECT reservation_id FROM idempotency WHERE keep_until <= :before ORDER",
        after="(SELECT reservation_id FROM idempotency WHERE keep_until <= :before + 86380 ORDER",
        promises=OF_PAYMENTS,
    ),
    Bug(
        name="one key for two requests",
        file=PAID_CALLS,
        before="        if known.fingerprint != call.request.fingerprint():",
        after="        if known.fingerprint[:0] != call.request.fingerprint()[:0]:",
        promises=OF_PAYMENTS,
    ),
    Bug(
        name="credit before the settlement is known",
        file=PAID_CALLS,
        before="            raise _pending(error) from error",
        after='            outcome = Settled(transaction=getattr(error, "transaction", None) or reservation.id)',
        promises=OF_PAYMENTS,
    ),
    Bug(
        name="a settlement is forgotten after an unclear answer",
        file="spawn/jobs/settlements.py",
        before="        if settled is not None:",
        after="        if settled is not None and reservation.created_ms == 0:",
        promises=(*OF_PAYMENTS, "crash"),
    ),
    Bug(
        name="credit twice after a crash between settling and crediting",
        file=FUNDS,
        before="        id=payment_id(nonce_key),\n",
        after='        id=transfer_id("topup", nonce_key, at),\n',
        promises=OF_PAYMENTS,
    ),
    Bug(
        name="a payment whose call was refused is not credited",
        file="spawn/services/reservations.py",
        before="    after = book(tx, reservation, settled, now)\n    move(tx, reservation, after)\n    return after",
        after=(
            "    after = replace(reservation, state=State.SETTLED, settlement=settled.transaction, payment=None)\n"
            "    move(tx, reservation, after)\n"
            "    return after"
        ),
        promises=OF_PAYMENTS,
    ),
    Bug(
        name="an event without its effect",
        file="spawn/services/billing.py",
        before="        if told.exhausted_at is not None and was.exhausted_at is None:",
        after="        if told.exhausted_at is not None:",
        promises=(*OF_PAYMENTS, "unwarned"),
    ),
    Bug(
        name="suspense is claimed twice",
        file=FUNDS,
        before=(
            "    return arrivals.mark_claimed(tx, arrival, at) and post(\n"
            "        tx,\n"
            "        Transfer(\n"
            '            id=transfer_id("claim", arrival.id),'
        ),
        after=(
            "    return post(\n"
            "        tx,\n"
            "        Transfer(\n"
            '            id=transfer_id("claim", arrival.id, at),'
        ),
        promises=OF_PAYMENTS,
    ),
    Bug(
        name="an arrival that the chain may take back is believed",
        file="spawn/payments/arrivals.py",
        before="        deepest = head.number - self._confirmations + 1",
        after="        deepest = head.number",
        promises=OF_PAYMENTS,
    ),
    Bug(
        name="a settlement that the chain may take back is believed",
        file="spawn/payments/onchain.py",
        before="        if receipt is None or receipt.block_number + self._confirmations - 1 > head.number:",
        after="        if receipt is None:",
        promises=OF_PAYMENTS,
    ),
    Bug(
        name="a transaction is believed while the chain may take it back",
        file="spawn/services/relayer_lane.py",
        before="if max(0, head.number - receipt.block_number) + 1 >= policy.confirmations:",
        after="if receipt.block_number > 0:",
        promises=OF_PAYMENTS,
    ),
)
