"""Reading the provider's lists again: what they change is announced, and a list that cannot be read changes nothing.

Invariant: the sheet and the announcements that it comes with are one transaction. Whoever looks beforehand
(`spawn prices refresh --dry-run`) is shown what the same decisions would do.
"""

import logging
from typing import Final

import msgspec
from spawn_ledger.tx import Tx
from spawn_providers.base import Provider, ProviderError
from spawn_providers.catalog import Catalog
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.ids import Entropy
from spawn_schemas.money import Usdc, format_usdc

from spawn.clock import Clock
from spawn.domain.price_sheets import Reading, first, reread
from spawn.outbound.exchange import Exchange, RateUnknown
from spawn.services.moments import moment
from spawn.services.price_changes import new_id
from spawn.services.price_list import PriceList
from spawn.store import price_changes as change_rows
from spawn.store import price_sheets as rows
from spawn.store.database import Database
from spawn.store.price_sheets import Kept

log = logging.getLogger(__name__)


class Unread(Exception):
    """The provider's lists could not be read, or are not to be believed; the message says which."""


class Lists(msgspec.Struct, frozen=True, kw_only=True):
    """What was read: the provider's catalog, and the euro; None where its source says nothing new.

    `eur_at` is the day of the rate, None where it is a setting.
    """

    listed: Catalog
    eur_usdc: Usdc | None
    eur_at: int | None


class Refresher:
    """Reads one provider's lists. `name` is what the sheet is kept under."""

    def __init__(
        self,
        provider: Provider,
        name: str,
        prices: PriceList,
        exchange: Exchange | None,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._provider = provider
        self._name = name
        self._prices = prices
        self._exchange = exchange
        self._clock = clock
        self._entropy = entropy

    async def run(self, db: Database) -> Reading:
        """Read the lists, keep what they say, announce what they change. Raises Unread, and then nothing was changed.

        The first owners are told by the next tick of the `prices` job.
        """
        try:
            lists = await self.read()
        except Unread as error:
            now, why = self._clock.now_s(), str(error)
            await db.write(lambda tx: rows.set_failing(tx, self._name, why, now))
            raise
        reading = await db.write(lambda tx: self._record(tx, lists))
        await self._prices.refresh(db)
        for held in reading.held:
            log.warning(
                "%s in %s should cost %s USDC a day and stays at %s: %s",
                held.offer.type,
                held.offer.location,
                format_usdc(held.wanted_usdc),
                format_usdc(held.offer.daily_usdc),
                held.why,
            )
        return reading

    async def read(self) -> Lists:
        """Ask the provider and the euro's source; without the latter the last known rate stays. Raises Unread."""
        try:
            listed = await self._provider.catalog()
        except ProviderError as error:
            raise Unread(str(error)) from error
        if not listed.offers:
            raise Unread(f"{self._name} sells nothing where we sell, which is not believed.")
        if self._exchange is None:
            return Lists(listed=listed, eur_usdc=self._prices.eur_setting_usdc, eur_at=None)
        try:
            rate = await self._exchange.read()
        except RateUnknown as error:
            log.warning("the last known price of the euro stays: %s", error)
            return Lists(listed=listed, eur_usdc=None, eur_at=None)
        return Lists(listed=listed, eur_usdc=rate.usdc, eur_at=rate.at)

    def plan(self, tx: Tx, lists: Lists) -> tuple[Reading, Kept]:
        """What the lists would change, and what would be kept; writes nothing."""
        now, before = self._clock.now_s(), rows.find(tx, self._name)
        eur_usdc, eur_at = self._euro(lists, before, now)
        terms = self._prices.terms_at(eur_usdc)
        if before is None:
            sheet = first(lists.listed, terms)
            reading = Reading(sheet=sheet, new=sheet.catalog.offers)
        else:
            reading = reread(
                before.sheet,
                lists.listed,
                {(change.type, change.location): change for change in change_rows.list_newest(tx)},
                was=self._prices.terms_at(before.eur_usdc),
                terms=terms,
                new_id=lambda: new_id(self._entropy),
                now=now,
            )
        return reading, Kept(sheet=reading.sheet, eur_usdc=eur_usdc, eur_at=eur_at, read_at=now)

    def _euro(self, lists: Lists, before: Kept | None, now: int) -> tuple[Usdc, int | None]:
        if lists.eur_usdc is not None:
            return lists.eur_usdc, lists.eur_at
        if before is not None:
            return before.eur_usdc, now if before.eur_at is None else before.eur_at
        return self._prices.eur_setting_usdc, now

    def _record(self, tx: Tx, lists: Lists) -> Reading:
        reading, kept = self.plan(tx, lists)
        for move in reading.moves:
            change_rows.insert_change(tx, move.change)
        rows.save(tx, self._name, kept)
        return reading


async def refreshed(refresher: Refresher | None, db: Database) -> tuple[str, ...]:
    """What an operator is answered. Raises SpawnError where nothing could be read."""
    if refresher is None:
        raise SpawnError(
            Code.CONFLICT,
            "The simulated provider sells what this version comes with: there is nothing to read.",
            next="Announce a price with `spawn admin price-change`.",
        )
    try:
        reading = await refresher.run(db)
    except Unread as error:
        raise SpawnError(
            Code.PROVIDER_FAILED,
            f"The prices stay as they are: {error}",
            next="Try again later; the service does so each hour.",
        ) from error
    return tuple(said(reading))


NOTHING: Final = "Nothing is different."


def said(reading: Reading) -> list[str]:
    """What came of a reading, in sentences."""
    lines = [
        f"{move.change.id}: {move.change.type} in {move.change.location} costs "
        f"{format_usdc(move.change.daily_usdc)} USDC a day instead of {format_usdc(move.offer.daily_usdc)}, "
        f"from {moment(move.change.effective_at)} on."
        for move in reading.moves
    ]
    lines += [f"{one.type} in {one.location} is sold from now on." for one in reading.new]
    lines += [f"{one.type} in {one.location} is not sold any more." for one in reading.gone]
    lines += [
        f"{held.offer.type} in {held.offer.location} stays at {format_usdc(held.offer.daily_usdc)} USDC a day instead "
        f"of {format_usdc(held.wanted_usdc)}: {held.why}"
        for held in reading.held
    ]
    return lines or [NOTHING]
