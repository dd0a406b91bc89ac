"""Announcing what servers will cost, telling every owner, and taking it back.

Invariant: each server is told in the transaction that moves the cursor past it, so that a crash anywhere neither
leaves out nor repeats anybody.
"""

from typing import Final

from msgspec.structs import replace
from spawn_ledger.tx import Tx
from spawn_providers.catalog import Offer
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.events import EventType, PriceData
from spawn_schemas.ids import Entropy
from spawn_schemas.money import Usdc, format_usdc

from spawn.domain import price_changes as decisions
from spawn.domain.price_changes import PriceChange, PriceChangeId
from spawn.services.create_server import find_offer
from spawn.services.events import emit
from spawn.services.moments import moment
from spawn.services.price_list import PriceList
from spawn.store import price_changes as rows
from spawn.store.price_changes import Concerned

CHUNK: Final = 500
"""Living servers that one transaction passes; a few milliseconds each hundred."""
ID_BYTES: Final = 5


def announce(
    tx: Tx,
    prices: PriceList,
    *,
    type: str,
    location: str,
    daily_usdc: Usdc,
    effective_at: int | None,
    entropy: Entropy,
    now: int,
) -> PriceChange:
    """Announce a price, and tell the first chunk of servers. Raises SpawnError for what cannot be meant."""
    offer = _offer(tx, prices, type, location)
    change = decisions.announced(
        offer,
        daily_usdc,
        id=new_id(entropy),
        effective_at=effective_at,
        floor_usdc=prices.floor_usdc(offer),
        newest=_newest(tx, type, location),
        now=now,
    )
    return _begin(tx, change, now)


def withdraw(
    tx: Tx, prices: PriceList, change_id: PriceChangeId, *, entropy: Entropy, now: int
) -> PriceChange:
    """Take a change back before it is in force; answers the change that puts the price before it back."""
    change = rows.find_change(tx, change_id)
    if change is None:
        raise SpawnError(
            Code.NOT_FOUND,
            f"There is no price change {change_id}.",
            next="`spawn admin price-changes` lists them.",
        )
    newest, *older = rows.list_of_offer(tx, change.type, change.location, limit=2)
    before_usdc = (
        older[0].daily_usdc if older else find_offer(prices.base, change.type, change.location).daily_usdc
    )
    back = decisions.withdrawal(change, newest, before_usdc, id=new_id(entropy), now=now)
    rows.stop_telling(tx, change.id)
    return _begin(tx, back, now)


def tell(tx: Tx, now: int) -> bool:
    """Tell the next chunk of servers of the oldest change that some have not heard of; False when nothing is left.

    Nothing is left to do either while a server waits for the burn to cut it at the price change before this one.
    """
    change = rows.find_untold(tx)
    return change is not None and _tell_chunk(tx, change, now) is not None


def _offer(tx: Tx, prices: PriceList, type: str, location: str) -> Offer:
    """The offer at its newest price, read here: another process may have announced one."""
    return find_offer(decisions.overlay(prices.base, rows.list_newest(tx)), type, location)


def _newest(tx: Tx, type: str, location: str) -> PriceChange | None:
    return next(iter(rows.list_of_offer(tx, type, location, limit=1)), None)


def new_id(entropy: Entropy) -> PriceChangeId:
    """An id for a change."""
    return PriceChangeId(f"prc_{entropy.bytes(ID_BYTES).hex()}")


def _begin(tx: Tx, change: PriceChange, now: int) -> PriceChange:
    """Record it and tell as many as one transaction does; answers how far that came."""
    rows.insert_change(tx, change)
    return _tell_chunk(tx, change, now) or change


def _tell_chunk(tx: Tx, change: PriceChange, now: int) -> PriceChange | None:
    """Tell the next servers; None, and nothing done, while one of them waits for the change before this one."""
    after = change.told_to or ""
    last = rows.find_chunk_end(tx, after, limit=CHUNK)
    concerned = [] if last is None else rows.list_concerned(tx, change, after=after, last=last, now=now)
    if any(server.reprice_at is not None and server.reprice_at <= now for server in concerned):
        return None
    for server in concerned:
        _tell_one(tx, change, server, now)
    is_last = last is None or rows.find_chunk_end(tx, last, limit=1) is None
    told = replace(change, told_to=None if is_last else last)
    rows.move_told(tx, change, told)
    return told


def _tell_one(tx: Tx, change: PriceChange, server: Concerned, now: int) -> None:
    if server.daily_usdc == change.daily_usdc:
        # What was announced before is withdrawn, and its price stays.
        at = now
        rows.clear_reprice(tx, server.id)
    else:
        at = decisions.reprice_at(change, server.daily_usdc, now)
        rows.set_reprice(tx, server.id, at=at, daily_usdc=change.daily_usdc)
    emit(
        tx,
        server.wallet,
        EventType.PRICE_ANNOUNCED,
        PriceData(
            server=server.id,
            type=change.type,
            location=change.location,
            daily_burn=format_usdc(server.daily_usdc),
            new_daily_burn=format_usdc(change.daily_usdc),
            effective_at=moment(at),
        ),
        resource=server.id,
        at=now,
    )
