"""What is for sale at this moment: the provider's catalog with what was announced since.

Invariant: whoever announces a price in this process quotes it from the next order on; another process does within
one tick of its `listing` job, and sells from the same sheet. What an order costs is read once more in the transaction
that does it.
"""

from collections.abc import Sequence
from typing import Self

from msgspec.structs import replace
from spawn_ledger.tx import Tx
from spawn_providers.base import Provider
from spawn_providers.catalog import Catalog, Offer
from spawn_schemas.money import Usdc

from spawn.domain import price_changes, prices
from spawn.domain.price_sheets import Terms
from spawn.services.economics import price_list, terms_of
from spawn.settings import Settings
from spawn.store import price_changes as rows
from spawn.store import price_sheets
from spawn.store.database import Database


class PriceList:
    """The catalog that is sold from, kept current by `refresh`."""

    def __init__(self, listed: Catalog, settings: Settings) -> None:
        """`listed` is the provider's own catalog, sold from until a sheet was made of it."""
        self._settings = settings
        self._terms = terms_of(settings, settings.eur_price_usdc)
        self._base = price_list(listed, settings)
        self._catalog = self._base
        self._taken: price_sheets.Kept | None = None

    @classmethod
    async def read(cls, listed: Catalog, settings: Settings, db: Database) -> Self:
        """The price list of this moment."""
        prices = cls(listed, settings)
        await prices.refresh(db)
        return prices

    @classmethod
    async def open(cls, provider: Provider, settings: Settings, db: Database) -> Self:
        """The price list of this moment; the provider is asked only where no sheet of it is kept.

        Raises ProviderError.
        """
        kept = await db.read(price_sheets.SELECT_SHEET, {"provider": settings.providers})
        listed = price_sheets.kept_from(kept[0]).sheet.catalog if kept else await provider.catalog()
        return await cls.read(listed, settings, db)

    @property
    def base(self) -> Catalog:
        """What would be sold if nothing had ever been announced."""
        return self._base

    @property
    def catalog(self) -> Catalog:
        return self._catalog

    @property
    def eur_usdc(self) -> Usdc:
        """What a euro costs."""
        return self._terms.eur_usdc

    @property
    def eur_setting_usdc(self) -> Usdc:
        """What the operator says that it costs: the price where no source is set, and until one was read."""
        return self._settings.eur_price_usdc

    def floor_usdc(self, offer: Offer) -> Usdc:
        """The least that 24 h of it may be sold for; one micro-USDC where nothing says what it costs us."""
        return self._terms.floor_usdc(offer)

    async def refresh(self, db: Database) -> None:
        """Read what was announced. A price that has come to lie below its floor is raised to it again."""
        params = {"provider": self._settings.providers}
        for row in await db.read(price_sheets.SELECT_SHEET, params):
            kept = price_sheets.kept_from(row)
            if kept != self._taken:
                self._take(kept)
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

    def terms_at(self, eur_usdc: Usdc) -> Terms:
        """How prices would be made at another price of the euro."""
        return terms_of(self._settings, eur_usdc)

    def _take(self, kept: price_sheets.Kept) -> None:
        if self._settings.eur_source:
            self._terms = self.terms_at(kept.eur_usdc)
        self._base = self._floored(kept.sheet.catalog)
        self._taken = kept

    def _sold(self, listed: Catalog, changes: Sequence[price_changes.PriceChange]) -> Catalog:
        return self._floored(price_changes.overlay(listed, changes))

    def _floored(self, catalog: Catalog) -> Catalog:
        return prices.floored(catalog, eur_usdc=self._terms.eur_usdc, percent=self._terms.floor_percent)
