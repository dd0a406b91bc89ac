"""The payments of a process that does not relay: it has written them down, and another brings them to the chain.

Invariant: what is answered here is a row that was final when it was read, after this process's own write of it; so a
failure that was there before the payer mended its cause is nobody's answer.
"""

from typing import Final

import msgspec

from spawn.domain.settlements import SettlementState
from spawn.payments.exact import ExactPayment
from spawn.payments.facilitator import Rejected, Settled
from spawn.services.relayer_desk import Desk, Handed, Item, Outcome
from spawn.store import settlements as rows
from spawn.store.database import Database
from spawn.store.settlements import Settlement

# Made at import: two threads that make the first one of a type at once crash the process.
_payments: Final = msgspec.json.Decoder(ExactPayment)


class Watch:
    """On its desk, what waits is what is written down: its rows are read until they are final."""

    token: int | None = None
    is_complete = False
    """There is always a lease to wait for."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.desk = Desk()

    async def look(self) -> None:
        """Tell those whose payment has come to its end. What nobody waits for is not watched any more."""
        for item in list(self.desk.waiting):
            if item.askers == 0:
                self.desk.end(item, Handed())
        waiting = {item.id: item for item in self.desk.waiting}
        ids = list(waiting)
        for start in range(0, len(ids), rows.SOME):
            params = rows.some_ids(ids[start : start + rows.SOME])
            for row in await self._db.read(rows.SELECT_SOME, params):
                self._tell(waiting[row["id"]], rows.settlement_from(row))

    def _tell(self, item: Item, row: Settlement) -> None:
        outcome = outcome_of(row)
        item.transaction = row.transaction_hash
        if outcome is not None:
            # It may be that of another authorization with the same nonce.
            item.payment = stored(row)
            self.desk.end(item, outcome)

    async def step(self, _now: int) -> bool:
        """There is nothing to bring to the chain."""
        return False

    def start(self) -> None:
        """See `Tenure.start`."""

    async def stop(self) -> None:
        """See `Tenure.stop`."""

    def wake(self) -> None:
        """See `Tenure.wake`."""


def stored(settlement: Settlement) -> ExactPayment:
    """The authorization that the row is about."""
    return _payments.decode(settlement.payment)


def outcome_of(settlement: Settlement) -> Outcome | None:
    """What became of it; None while that is open."""
    match settlement:
        case Settlement(state=SettlementState.CONFIRMED, transaction_hash=str(transaction)):
            return Settled(transaction=transaction)
        case Settlement(state=SettlementState.FAILED, reason=str(reason), message=str(message)):
            return Rejected(reason=reason, message=message)
        case _:
            return None
