"""The `reservation` and `idempotency` tables: each payment or signature is used once, each answer is kept.

Invariant: a nonce names at most one reservation for ever, and an idempotency key at most one per wallet while
it is remembered; both are inserted before any money moves.
"""

from enum import StrEnum
from typing import Any, Final

import msgspec
from spawn_ledger.tx import Row, Tx
from spawn_schemas.ids import ActionId, Address, ReservationId
from spawn_schemas.money import Usdc


class Rail(StrEnum):
    X402 = "x402"
    SIGNED = "signed"


class State(StrEnum):
    """How far a paid call has come; each step is recorded before the next is taken."""

    RESERVED = "reserved"
    """The payment is ours to settle; nothing was asked of the chain, or its answer is not known."""
    SETTLED = "settled"
    """The money is in the ledger; the call has not been done."""
    REFUSED = "refused"
    """The payment did not settle. Final."""
    ACTED = "acted"
    """The call was done in our books; its operation's first answer is awaited."""
    DONE = "done"
    """Answered. Final."""


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """One identified call, `seal` as in its `Identity`.

    `id` is the name of the nonce that it took (`spawn.payments.nonces`), so that one index says both which call this
    is and that there is no other. `payment` is the encoded authorization, kept until it cannot be settled any more.
    `created_ms` counts milliseconds, because an index of names that begin with the second has a second's calls all
    over its pages, each to be written anew with every commit.
    """

    id: ReservationId
    wallet: Address
    rail: Rail
    idempotency_key: str | None
    fingerprint: str
    state: State
    fee: Usdc
    amount: Usdc
    payment: bytes | None
    seal: str | None
    valid_before: int
    settlement: str | None
    operation_id: ActionId | None
    answer: bytes | None
    claim: str | None
    claim_until: int
    created_ms: int
    keep_until: int

    @property
    def created_at(self) -> int:
        """The same in whole seconds."""
        return self.created_ms // 1000

    @property
    def reference(self) -> str:
        """What its movements of money are called after: the time first, so that an index grows at its end.

        With a part of the fingerprint, because a nonce that somebody uses for two requests is found out only later.
        """
        return f"{self.created_ms:011x}{self.fingerprint[:8]}{self.id}"


_COLUMNS: Final = Reservation.__struct_fields__

INSERT_RESERVATION: Final = """
INSERT INTO reservation (
  id, wallet, rail, idempotency_key, fingerprint, state, fee, amount, payment, seal, valid_before, settlement,
  operation_id, answer, claim, claim_until, created_ms, keep_until
) VALUES (
  :id, :wallet, :rail, :idempotency_key, :fingerprint, :state, :fee, :amount, :payment, :seal, :valid_before,
  :settlement, :operation_id, :answer, :claim, :claim_until, :created_ms, :keep_until
) ON CONFLICT (id) DO NOTHING
"""
# Its holder may have renewed the claim since it read the row.
UPDATE_RESERVATION: Final = """
UPDATE reservation SET
  state = :state, fee = :fee, settlement = :settlement, operation_id = :operation_id,
  answer = :answer, payment = :payment, claim = :claim,
  claim_until = CASE WHEN claim = :claim AND claim_until > :claim_until THEN claim_until ELSE :claim_until END
WHERE id = :id AND state = :expected_state AND claim IS NOT DISTINCT FROM :expected_claim
"""
RENEW_CLAIM: Final = "UPDATE reservation SET claim_until = :until WHERE id = :id AND claim = :claim"
# Apart, because naming the column costs an index a deletion and an insertion, and it changes only with a refusal.
UPDATE_KEEP_UNTIL: Final = "UPDATE reservation SET keep_until = :keep_until WHERE id = :id"
SELECT_BY_ID: Final = "SELECT * FROM reservation WHERE id = :id"
SELECT_BY_KEY: Final = """
SELECT reservation.* FROM idempotency JOIN reservation ON reservation.id = idempotency.reservation_id
WHERE idempotency.wallet = :wallet AND idempotency.key = :key AND idempotency.keep_until > :now
"""
DELETE_EXPIRED_KEY: Final = """
DELETE FROM idempotency WHERE wallet = :wallet AND key = :key AND keep_until <= :now
"""
INSERT_KEY: Final = """
INSERT INTO idempotency (wallet, key, reservation_id, keep_until)
VALUES (:wallet, :key, :reservation_id, :keep_until) ON CONFLICT (wallet, key) DO NOTHING
"""
DELETE_KEY: Final = "DELETE FROM idempotency WHERE reservation_id = :reservation_id"
# A claim further ahead than any is made was made before the clock was set back.
SELECT_UNSETTLED: Final = """
SELECT * FROM reservation
WHERE state = 'reserved' AND (claim_until <= :now OR claim_until > :claimed_until)
  AND (created_ms > :created_ms OR (created_ms = :created_ms AND id > :id))
ORDER BY created_ms, id LIMIT :limit
"""
RELEASE_CLAIMS: Final = """
UPDATE reservation SET claim = NULL, claim_until = 0
WHERE claim IS NOT NULL AND state IN ('reserved', 'settled', 'acted')
"""
DELETE_OLD_KEYS: Final = """
DELETE FROM idempotency WHERE reservation_id IN
  (SELECT reservation_id FROM idempotency WHERE keep_until <= :before ORDER BY keep_until LIMIT :limit)
"""
DELETE_OLD_RESERVATIONS: Final = """
DELETE FROM reservation WHERE id IN (
  SELECT id FROM reservation WHERE keep_until <= :before AND state <> 'reserved'
    AND NOT EXISTS (SELECT 1 FROM idempotency WHERE idempotency.reservation_id = reservation.id)
  ORDER BY keep_until LIMIT :limit)
"""


def reservation_from(row: Row) -> Reservation:
    """Read one row of `SELECT * FROM reservation`."""
    values: dict[str, Any] = {name: row[name] for name in _COLUMNS}
    values["rail"] = Rail(values["rail"])
    values["state"] = State(values["state"])
    return Reservation(**values)


def _params(reservation: Reservation) -> dict[str, Any]:
    values = msgspec.structs.asdict(reservation)
    values["rail"] = reservation.rail.value
    values["state"] = reservation.state.value
    return values


def insert_reservation(tx: Tx, reservation: Reservation) -> bool:
    """Take the nonce; False when somebody has it already."""
    return tx.execute(INSERT_RESERVATION, _params(reservation)) == 1


def insert_key(tx: Tx, reservation: Reservation, key: str, keep_until: int) -> bool:
    """Take the wallet's idempotency key; False when it is taken."""
    params = {
        "wallet": reservation.wallet,
        "key": key,
        "reservation_id": reservation.id,
        "keep_until": keep_until,
    }
    return tx.execute(INSERT_KEY, params) == 1


def update_reservation(tx: Tx, before: Reservation, after: Reservation) -> bool:
    """Move on by compare-and-set of state and claim; False when another got there first."""
    params = _params(after)
    params["expected_state"] = before.state.value
    params["expected_claim"] = before.claim
    moved = tx.execute(UPDATE_RESERVATION, params) == 1
    if moved and after.keep_until != before.keep_until:
        tx.execute(UPDATE_KEEP_UNTIL, {"id": after.id, "keep_until": after.keep_until})
    return moved


def forget_key(tx: Tx, reservation_id: ReservationId) -> None:
    """Keys remember only success: after a refusal the same key may be tried again."""
    tx.execute(DELETE_KEY, {"reservation_id": reservation_id})
