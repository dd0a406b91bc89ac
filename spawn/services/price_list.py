"""What is for sale at this moment: the provider's catalog with what the operator announced since.

Invariant: whoever announces a price in this process quotes it from the next order on; another process does within
one tick of its `listing` job. What an order costs is read once more in the transaction that does it.
"""

from collections.abc import Sequence
from typing import Self

from msgspec.structs import replace
from spawn_ledger.tx import Tx
from spawn_providers.catalog import Catalog, Offer
from spawn_schemas.money import Usdc

from spawn.domain import price_changes, prices
from spawn.services.economics import price_list
from spawn.settings import Settings
from spawn.store import price_changes as rows
from spawn.store.database import Database


class PriceList:
    """The catalog that is sold from, kept current by `refresh`."""

    def __init__(self, listed: Catalog, settings: Settings) -> None:
        """`listed` is the provider's own catalog."""
        self._eur_usdc = settings.eur_price_usdc
        self._percent = settings.price_floor_percent
        self._base = price_list(listed, settings)
        self._catalog = self._base

    @classmethod
    async def read(cls, listed: Catalog, settings: Settings, db: Database) -> Self:
        """The price list of this moment."""
        prices = cls(listed, settings)
        await prices.refresh(db)
        return prices

    @property
    def base(self) -> Catalog:
        """What would be sold if nothing had ever been announced."""
        return self._base

    @property
    def catalog(self) -> Catalog:
        return self._catalog

    def floor_usdc(self, offer: Offer) -> Usdc:
        """The least that 24 h of it may be sold for; one micro-USDC where nothing says what it costs us."""
        if offer.wholesale is None:
            return Usdc(1)
        return max(
            Usdc(1), prices.floor_usdc(offer.wholesale, eur_usdc=self._eur_usdc, percent=self._percent)
        )

    async def refresh(self, db: Database) -> None:
        """Read what was announced. A price that has come to lie below its floor is raised to it again."""
        changes = [rows.change_from(row) for row in await db.read(rows.SELECT_NEWEST, {})]
        self._catalog = self._sold(self._base, changes)

    def current(self, tx: Tx, offer: Offer) -> Offer:
        """The offer at its newest price, which another process may have announced since this list was read."""
        listed = self._base.find(offer.type, offer.location)
        if listed is None:
            return offer
        newest = rows.list_of_offer(tx, offer.type, offer.location, limit=1)
        (sold,) = self._sold(replace(self._base, offers=(listed,)), newest).offers
        return sold

    def _sold(self, listed: Catalog, changes: Sequence[price_changes.PriceChange]) -> Catalog:
        return prices.floored(
            price_changes.overlay(listed, changes), eur_usdc=self._eur_usdc, percent=self._percent
        )
