"""What is made of a provider's lists whenever they are read, and which prices that changes.

Invariant: pure. Reading the same lists again changes nothing; a price is changed only by an announcement, which is the
same as an operator's, so that no server's price rises without its notice.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

import msgspec
from msgspec.structs import replace
from spawn_providers.catalog import Catalog, Offer
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.money import Usdc

from spawn.domain import prices
from spawn.domain.price_changes import PriceChange, PriceChangeId, announced

IGNORED_PERCENT: Final = 2
"""What a price should be may drift by less than this without anybody being told: the euro moves every day."""

Place = tuple[str, str]
"""A type and a location."""


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """How prices are made: the price of one euro, the margin in percent of a price, the floor in percent of a cost."""

    eur_usdc: Usdc
    margin_percent: int
    floor_percent: int

    def retail(self, catalog: Catalog) -> Catalog:
        return prices.retail(
            catalog,
            eur_usdc=self.eur_usdc,
            margin_percent=self.margin_percent,
            floor_percent=self.floor_percent,
        )

    def floor_usdc(self, offer: Offer) -> Usdc:
        """The least that 24 h may be sold for; one micro-USDC where nothing says what they cost us."""
        if offer.wholesale is None:
            return Usdc(1)
        floor = prices.floor_usdc(offer.wholesale, eur_usdc=self.eur_usdc, percent=self.floor_percent)
        return max(Usdc(1), floor)


class Sheet(msgspec.Struct, frozen=True, kw_only=True):
    """What the provider's lists were last made into.

    Each offer has the price it was first sold at: what was announced since is a `PriceChange`. `targets`, in the order
    of the offers, is what was last asked for each: as long as that stays, what an operator announces stays, too.
    """

    catalog: Catalog
    targets: tuple[Usdc, ...]


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """`offer` at what it is sold for until now, and what changes."""

    offer: Offer
    change: PriceChange

    @property
    def rises(self) -> bool:
        return self.change.daily_usdc > self.offer.daily_usdc


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """An offer that goes on being sold at its price although it should cost `wanted_usdc`, and why."""

    offer: Offer
    wanted_usdc: Usdc
    why: str


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """The new sheet, and what is different from the one before."""

    sheet: Sheet
    moves: tuple[Move, ...] = ()
    held: tuple[Held, ...] = ()
    new: tuple[Offer, ...] = ()
    gone: tuple[Offer, ...] = ()


def first(listed: Catalog, terms: Terms) -> Sheet:
    """The sheet where nothing was ever sold: whatever it says is what is asked."""
    sold = terms.retail(listed)
    return Sheet(catalog=sold, targets=tuple(offer.daily_usdc for offer in sold.offers))


def reread(
    before: Sheet,
    listed: Catalog,
    changes: Mapping[Place, PriceChange],
    *,
    was: Terms,
    terms: Terms,
    new_id: Callable[[], PriceChangeId],
    now: int,
) -> Reading:
    """What `listed`, the provider's lists of `now`, change.

    `changes` are the newest of each offer; `was` are the terms that `before` was sold at.
    """
    known = {
        _place(offer): (offer, target)
        for offer, target in zip(before.catalog.offers, before.targets, strict=True)
    }
    fresh = first(listed, terms).catalog
    offers: list[Offer] = []
    targets: list[Usdc] = []
    moves: list[Move] = []
    held: list[Held] = []
    for offer in fresh.offers:
        old, target = known.get(_place(offer), (None, offer.daily_usdc))
        newest = changes.get(_place(offer))
        offers.append(offer if old is None else prices.repriced(offer, old.daily_usdc))
        sold = _sold(offer, offer if old is None else old, newest, terms if old is None else was)
        targets.append(offer.daily_usdc)
        if old is not None and not _passes_on(target, offer.daily_usdc, terms.floor_usdc(offer)):
            targets[-1] = target
        elif offer.daily_usdc != sold.daily_usdc:
            try:
                moves.append(_move(sold, offer, old, newest, terms, new_id, now))
            except SpawnError as refusal:
                targets[-1] = target if old is not None else sold.daily_usdc
                if old is not None and refusal.code is Code.INVALID_REQUEST:
                    # A leap is not believed: what it says that the machine costs us would be its floor.
                    offers[-1] = old
                held.append(Held(offer=sold, wanted_usdc=offer.daily_usdc, why=refusal.message))
    there = set(map(_place, fresh.offers))
    return Reading(
        sheet=Sheet(catalog=replace(fresh, offers=tuple(offers)), targets=tuple(targets)),
        moves=tuple(moves),
        held=tuple(held),
        new=tuple(offer for offer in fresh.offers if _place(offer) not in known),
        gone=tuple(_gone(before, there)),
    )


def _place(offer: Offer) -> Place:
    return offer.type, offer.location


def _sold(offer: Offer, base: Offer, newest: PriceChange | None, was: Terms) -> Offer:
    """The offer at what it has been sold for. One that is new, or is back, may have been announced long ago."""
    daily = base.daily_usdc if newest is None else newest.daily_usdc
    if base.wholesale is not None:
        daily = max(daily, was.floor_usdc(base))
    return prices.repriced(offer, daily)


def _passes_on(target: Usdc, wanted: Usdc, floor_usdc: Usdc) -> bool:
    """Whether a price that should be `wanted`, and was `target`, is changed for it."""
    if wanted == target:
        return False
    return target < floor_usdc or abs(wanted - target) * 100 >= IGNORED_PERCENT * target


def _move(
    sold: Offer,
    offer: Offer,
    old: Offer | None,
    newest: PriceChange | None,
    terms: Terms,
    new_id: Callable[[], PriceChangeId],
    now: int,
) -> Move:
    change = announced(
        sold,
        offer.daily_usdc,
        id=new_id(),
        effective_at=None,
        floor_usdc=terms.floor_usdc(offer),
        newest=newest,
        now=now,
    )
    if old is not None and old.provider_type != offer.provider_type:
        # Another machine under the same name: who has the one before keeps its price, which its cost did not change.
        change = replace(change, effective_at=now, told_to=None)
    return Move(offer=sold, change=change)


def _gone(before: Sheet, there: set[Place]) -> Iterator[Offer]:
    return (offer for offer in before.catalog.offers if _place(offer) not in there)
