"""Finds out what became of payments whose outcome nobody waited for.

Invariant: this job never moves money on the chain; it books what the chain shows, and gives up on a payment only
when it can no longer settle.
"""

import logging
from typing import Final

from spawn.payments.facilitator import Facilitator, SettlementUnclear
from spawn.services import reservations
from spawn.services.claims import CLAIM_S
from spawn.store import reservations as rows
from spawn.store.database import Database
from spawn.store.reservations import Reservation

log = logging.getLogger(__name__)

PER_TICK: Final = 100
FINALITY_S: Final = 120
"""How long after `validBefore` the chain may still show a transfer that was made in time."""


class Settlements:
    """Goes round the unsettled payments, a page a tick, so that a hundred hopeless ones hide no other."""

    def __init__(self, db: Database, facilitator: Facilitator) -> None:
        self._db = db
        self._facilitator = facilitator
        self._after: tuple[int, str] = (0, "")

    async def tick(self, now: int) -> None:
        created_ms, id_ = self._after
        params = {
            "now": now,
            "claimed_until": now + CLAIM_S,
            "limit": PER_TICK,
            "created_ms": created_ms,
            "id": id_,
        }
        page = [rows.reservation_from(row) for row in await self._db.read(rows.SELECT_UNSETTLED, params)]
        self._after = (page[-1].created_ms, page[-1].id) if len(page) == PER_TICK else (0, "")
        undecided: dict[str, int] = {}
        for reservation in page:
            try:
                await self._resolve(reservation, now)
            except SettlementUnclear as error:
                undecided[str(error)] = undecided.get(str(error), 0) + 1
            except Exception:
                # One payment that cannot be looked at must not keep the others waiting.
                log.exception("payment %s stays unresolved", reservation.id)
        for why, count in undecided.items():
            log.warning("%d payments are not decided yet: %s", count, why)

    async def _resolve(self, reservation: Reservation, now: int) -> None:
        payment = reservations.stored_payment(reservation)
        # Asked first: what the chain shows afterwards is its last word then.
        is_over = now > reservation.valid_before + FINALITY_S and await self._facilitator.is_over(payment)
        settled = await self._facilitator.find(payment)
        if settled is not None:
            await self._db.write(lambda tx: reservations.credit_found(tx, reservation, settled, now))
        elif is_over:
            await self._db.write(lambda tx: reservations.expire(tx, reservation, now))
