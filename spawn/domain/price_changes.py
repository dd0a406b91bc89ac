"""Prices that the operator changes: announced, told to every server that is concerned, and then in force.

Invariant: no server's price rises sooner than `NOTICE_S` after its owner was told, however late that was. New orders
pay the newest announced price at once.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final, NewType

import msgspec
from msgspec.structs import replace
from spawn_providers.catalog import Catalog, Offer
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.money import Usdc, format_usdc

from spawn.domain.prices import repriced

PriceChangeId = NewType("PriceChangeId", str)

NOTICE_S: Final = 30 * 86_400
"""How long before a rise its owners are told."""
AHEAD_MAX_S: Final = 366 * 86_400
"""A change further ahead than this is a slip of the pen."""
LEAP_MAX: Final = 10
"""A price that changes by more than this factor is a slip of the pen, too."""


class State(StrEnum):
    """Where a change has come to."""

    ANNOUNCED = "announced"
    IN_FORCE = "in force"
    WITHDRAWN = "withdrawn"
    REPLACED = "replaced"


class PriceChange(msgspec.Struct, frozen=True, kw_only=True):
    """From `effective_at` on, 24 h of `type` in `location` cost `daily_usdc`. Times are unix seconds.

    `told_to`: the id up to which the servers were told; None once all were.
    """

    id: PriceChangeId
    type: str
    location: str
    daily_usdc: Usdc
    announced_at: int
    effective_at: int
    told_to: str | None

    def is_pending(self, now: int) -> bool:
        """Whether it can still be withdrawn, or has not been told to all yet."""
        return now < self.effective_at or self.told_to is not None


def announced(
    offer: Offer,
    daily_usdc: Usdc,
    *,
    id: PriceChangeId,
    effective_at: int | None,
    floor_usdc: Usdc,
    newest: PriceChange | None,
    now: int,
) -> PriceChange:
    """A change of what `offer` costs now; without `effective_at` from the earliest moment on.

    `newest` is the last change of this offer. Raises SpawnError where it is pending, and for what cannot be meant.
    """
    if newest is not None and newest.is_pending(now):
        raise SpawnError(
            Code.CONFLICT,
            f"{newest.id} already announces {format_usdc(newest.daily_usdc)} USDC for {newest.type} in "
            f"{newest.location}.",
            next="Wait until it is in force and told to all, or take it back with `spawn admin price-withdraw "
            f"{newest.id}`.",
        )
    _check_amount(offer, daily_usdc, floor_usdc)
    rises = daily_usdc > offer.daily_usdc
    earliest = now + NOTICE_S if rises else now
    effective_at = earliest if effective_at is None else effective_at
    if effective_at < earliest:
        raise SpawnError(
            Code.INVALID_REQUEST,
            "A price rises 30 days after it was announced at the earliest."
            if rises
            else "That is over already.",
            next="Leave --from out for the earliest moment there is.",
        )
    if effective_at > now + AHEAD_MAX_S:
        raise SpawnError(
            Code.INVALID_REQUEST,
            "That is more than a year ahead.",
            next="Announce it again, with a --from nearer by.",
        )
    return PriceChange(
        id=id,
        type=offer.type,
        location=offer.location,
        daily_usdc=daily_usdc,
        announced_at=_after(newest, now),
        effective_at=effective_at,
        told_to="",
    )


def _check_amount(offer: Offer, daily_usdc: Usdc, floor_usdc: Usdc) -> None:
    current = offer.daily_usdc
    if daily_usdc == current:
        raise SpawnError(
            Code.CONFLICT,
            f"That is what {offer.type} in {offer.location} costs already.",
            next="Nothing to do.",
        )
    if daily_usdc < floor_usdc:
        raise SpawnError(
            Code.INVALID_REQUEST,
            f"{format_usdc(daily_usdc)} USDC is less than the floor of {format_usdc(floor_usdc)}.",
            next="Ask for more, or lower SPAWN_PRICE_FLOOR_PERCENT; `spawn economics` shows what it costs us.",
        )
    if not current <= daily_usdc * LEAP_MAX <= current * LEAP_MAX * LEAP_MAX:
        raise SpawnError(
            Code.INVALID_REQUEST,
            f"From {format_usdc(current)} to {format_usdc(daily_usdc)} USDC is more than a factor of {LEAP_MAX}.",
            next="Look at the amount again: it is USDC for 24 hours.",
        )


def withdrawal(
    change: PriceChange, newest: PriceChange, before_usdc: Usdc, *, id: PriceChangeId, now: int
) -> PriceChange:
    """The change that takes `change` back: the price before it, announced anew and in force at once.

    Whoever ordered at the withdrawn price in between is treated as by any other change. Raises `conflict` where
    there is nothing to take back any more.
    """
    if newest.id != change.id:
        raise SpawnError(
            Code.CONFLICT,
            f"{change.id} is {state(change, newest, now)} already.",
            next="`spawn admin price-changes` lists what can be withdrawn.",
        )
    if now >= change.effective_at:
        raise SpawnError(
            Code.CONFLICT, f"{change.id} is in force already.", next="Announce another price instead."
        )
    return replace(
        change,
        id=id,
        daily_usdc=before_usdc,
        announced_at=_after(change, now),
        effective_at=now,
        told_to="",
    )


def _after(newest: PriceChange | None, now: int) -> int:
    """The changes of an offer are in the order of their announcement, whatever the clock does."""
    return now if newest is None else max(now, newest.announced_at + 1)


def reprice_at(change: PriceChange, daily_usdc: Usdc, now: int) -> int:
    """When the price of a server that costs `daily_usdc` changes, whose owner is told of it `now`.

    What counts as a rise is each server's own price, and its notice runs from when its owner heard: the telling may
    have been held up for days.
    """
    return max(change.effective_at, now + NOTICE_S if change.daily_usdc > daily_usdc else now)


def state(change: PriceChange, successor: PriceChange | None, now: int) -> State:
    """`successor` is the next change of the same offer."""
    if successor is not None:
        return State.WITHDRAWN if successor.announced_at < change.effective_at else State.REPLACED
    return State.ANNOUNCED if now < change.effective_at else State.IN_FORCE


def overlay(catalog: Catalog, changes: Sequence[PriceChange]) -> Catalog:
    """The catalog with the newest announced price of each offer; there is one change of an offer at most."""
    if not changes:
        return catalog
    daily = {(change.type, change.location): change.daily_usdc for change in changes}
    return replace(
        catalog,
        offers=tuple(
            repriced(offer, daily.get((offer.type, offer.location), offer.daily_usdc))
            for offer in catalog.offers
        ),
    )
