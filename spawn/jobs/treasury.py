"""Compares the books with the chain once a day, and raises an alarm when they claim more than there is.

Invariant: one comparison is one line in the log at most, and what was found last can be read in `spawn treasury`.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from spawn_schemas.ids import Address
from spawn_schemas.money import format_usdc

from spawn.evm.node import NodeUnavailable
from spawn.payments.holdings import Holdings
from spawn.payments.standings import Standing
from spawn.services import treasury
from spawn.services.treasury import Compared
from spawn.store.arrivals import MOVE_WATCH
from spawn.store.database import Database

log = logging.getLogger(__name__)


class Treasury:
    """Called every minute or so; what is due lies in the database, so that restarts put nothing off."""

    def __init__(
        self,
        db: Database,
        holdings: Holdings,
        pay_to: Address,
        *,
        every_s: int,
        facilitators: Callable[[], Sequence[Standing]] = tuple,
    ) -> None:
        """`facilitators` tells how those that settle for us fare; this process alone knows."""
        self._db = db
        self._holdings = holdings
        self._pay_to = pay_to
        self._every_s = every_s
        self._facilitators = facilitators
        self._noted: tuple[Standing, ...] = ()
        self._looked_short = False

    async def tick(self, now: int) -> None:
        await self._note_facilitators()
        last = await treasury.last_comparison(self._db)
        # A comparison made in the future was made before the clock was set back.
        if last is not None and last.at <= now < last.at + self._every_s:
            return
        try:
            compared = await treasury.compare(self._db, self._holdings, self._pay_to, now)
        except NodeUnavailable as error:
            log.warning("the books cannot be compared with the chain yet: %s", error)
            return
        if compared.is_short and not self._looked_short:
            # Behind one address there may be many nodes, and one of them lags: the next tick looks again.
            self._looked_short = True
            return
        self._looked_short = False
        await self._keep(treasury.COMPARED, compared)
        _report(compared)

    async def _note_facilitators(self) -> None:
        notes = tuple(self._facilitators())
        if notes != self._noted:
            await self._keep(treasury.FACILITATORS, notes)
            self._noted = notes

    async def _keep(self, name: str, what: Any) -> None:
        text = msgspec.json.encode(what).decode()
        await self._db.write(lambda tx: tx.execute(MOVE_WATCH, {"name": name, "cursor": text}))


def _report(compared: Compared) -> None:
    if compared.is_short:
        log.critical("treasury: %s", treasury.shortage(compared))
    else:
        log.info(
            "treasury: the chain has %s USDC, %s beyond the books",
            format_usdc(compared.chain_usdc),
            format_usdc(compared.difference_usdc),
        )
