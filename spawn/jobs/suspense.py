"""Reads what arrived on chain, and accounts for what no call does.

Invariant: the cursor moves in the write that accounts for what is before it, and an arrival that is read again
changes nothing: a crash, a second watcher or a repeated page costs a look.
"""

import logging
from typing import Final

from spawn_ledger.tx import Tx

from spawn.evm.node import NodeUnavailable
from spawn.payments.arrivals import START, Arrivals, Arrived
from spawn.services import suspense
from spawn.store.arrivals import MOVE_WATCH, SELECT_WATCH
from spawn.store.database import Database

log = logging.getLogger(__name__)

PAGES_PER_TICK: Final = 50
PER_WRITE: Final = 100
"""Arrivals in one transaction: nearly all of them are payments that are booked, and a look each."""


class Suspense:
    """Follows one log of arrivals."""

    def __init__(self, db: Database, arrivals: Arrivals) -> None:
        self._db = db
        self._arrivals = arrivals

    async def tick(self, now: int) -> None:
        found = await self._db.read(SELECT_WATCH, {"name": self._arrivals.name})
        cursor: str = found[0]["cursor"] if found else START
        for _ in range(PAGES_PER_TICK):
            try:
                arrived, behind = await self._arrivals.page(cursor)
            except NodeUnavailable as error:
                log.warning("what arrived after %s cannot be read yet: %s", cursor or "the start", error)
                return
            if behind == cursor:
                return
            await self._take(arrived, behind, now)
            cursor = behind

    async def _take(self, arrived: tuple[Arrived, ...], behind: str, now: int) -> None:
        for start in range(0, max(1, len(arrived)), PER_WRITE):
            some = arrived[start : start + PER_WRITE]
            is_last = start + PER_WRITE >= len(arrived)
            kept = await self._db.write(lambda tx: self._receive(tx, some, behind if is_last else None, now))  # noqa: B023 - run before the next round
            for one in kept:
                log.info("%s micro-USDC of %s wait in suspense (%s)", one.amount, one.sender, one.id)

    def _receive(self, tx: Tx, arrived: tuple[Arrived, ...], behind: str | None, now: int) -> list[Arrived]:
        kept = [one for one in arrived if suspense.receive(tx, one, now)]
        if behind is not None:
            tx.execute(MOVE_WATCH, {"name": self._arrivals.name, "cursor": behind})
        return kept
