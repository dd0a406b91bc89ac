"""Reads what arrived on chain, and accounts for what no call does.

Invariant: an arrival that is read again changes nothing: a crash, a second watcher or a repeated page costs a look.
"""

import logging
from typing import Final

from spawn.evm.node import NodeUnavailable
from spawn.payments.arrivals import Arrivals, Arrived
from spawn.services import suspense
from spawn.store.database import Database

log = logging.getLogger(__name__)

PAGES_PER_TICK: Final = 50


class Suspense:
    """Follows one log of arrivals."""

    def __init__(self, db: Database, arrivals: Arrivals) -> None:
        self._db = db
        self._arrivals = arrivals

    async def tick(self, now: int) -> None:
        try:
            await suspense.follow(self._db, self._arrivals, now, pages=PAGES_PER_TICK, kept=_log)
        except NodeUnavailable as error:
            log.warning("what arrived on chain cannot be read yet: %s", error)


def _log(one: Arrived) -> None:
    log.info("%s micro-USDC of %s wait in suspense (%s)", one.amount, one.sender, one.id)
