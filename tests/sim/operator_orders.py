"""What the operator orders: gifts, bars in the middle of calls, prices; each repeated until it was answered.

Invariant: an order is repeated as it was, the gift with its id; what is refused was worth refusing.
"""

import asyncio
from typing import TYPE_CHECKING, Final

from spawn_schemas.errors import Code, SpawnError

from spawn.domain.barring import Verb
from spawn.services.admin import AnnouncePrice, Bar, Credit, Order, WithdrawPrice
from tests.sim.client_types import ConnectionLost
from tests.sim.operator_desk import ask, bars_of, carry_out, insist
from tests.sim.oracle.bars import Ordered
from tests.sim.oracle.prices import LISTED

if TYPE_CHECKING:
    from tests.sim.process import Process
    from tests.sim.world import World

DAY_S: Final = 86_400
_LIFTED_BY: Final = {Verb.SUSPEND: Verb.RESTORE, Verb.BLOCK: Verb.UNBLOCK}


def wallets(world: "World") -> list[str]:
    """Whoever has an account, in the order of their addresses."""
    return [
        row["id"].removeprefix("wallet:")
        for row in world.rows("SELECT id FROM account WHERE id LIKE 'wallet:%' ORDER BY id")
    ]


def _busy(world: "World") -> list[str]:
    """Whoever is in the middle of something."""
    return [
        row["wallet"]
        for row in world.rows(
            "SELECT wallet FROM operation WHERE status = 'running' UNION "
            "SELECT wallet FROM reservation WHERE state IN ('reserved', 'settled', 'acted') ORDER BY wallet"
        )
    ]


def _somebody(world: "World") -> str | None:
    found = _busy(world) if world.random.random() < 0.5 else []
    found = found or wallets(world)
    return world.random.choice(found) if found else None


async def _expect_refusal(world: "World", order: Order, *codes: Code) -> None:
    """Order what must be refused, once: after a restore it may be none of it any more."""
    try:
        said = await carry_out(world, order)
    except ConnectionLost:
        return
    except SpawnError as refusal:
        if refusal.code in codes:
            return
        world.violation("answers", f"{order} was refused as {refusal.code.value}: {refusal}")
    world.violation("books", f"{order} was carried out: {said}")


# --- gifts --------------------------------------------------------------------------------------------------------


def credit(world: "World") -> None:
    """A gift, once; perhaps ordered twice at once, or again later."""
    wallet = _somebody(world)
    if wallet is None:
        return
    usdc = world.random.choice((1, 1_234_567, world.random.randint(1, 30_000_000)))
    name = f"gift {world.moves_played}"
    bars_of(world).ordered[name] = Ordered(wallet=wallet, usdc=usdc)
    order = Credit(id=name, wallet=wallet, usdc=usdc, reason="the outage of May 4")
    for copy in range(world.random.choice((1, 1, 2, 3))):
        _ = world.spawn(give(world, order), name=f"{name}, copy {copy}")


async def give(world: "World", order: Credit) -> None:
    """See to it that it is given; once."""
    said = await insist(world, order)
    if not said[0].startswith(("Given: ", "Given before, and not again: ")):
        world.violation("answers", f"{order} was answered {said}")
    bars_of(world).ordered[order.id].heard = True


def bad_credit(world: "World") -> None:
    """A slip of the pen: too much, no reason, or another amount under an id that was used."""
    wallet, given = _somebody(world), [name for name, one in bars_of(world).ordered.items() if one.heard]
    if wallet is None:
        return
    slip = world.random.choice(("much", "reason", "reason", "again"))
    name, usdc, reason, code = f"slip {world.moves_played}", 5_000_000, "a slip", Code.INVALID_REQUEST
    if slip == "much":
        usdc = 1_000_000_001
    elif slip == "reason":
        reason = world.random.choice(("", " \t", "two\nlines"))
    elif given:
        name, code = world.random.choice(given), Code.CONFLICT
        usdc = bars_of(world).ordered[name].usdc + 1
    else:
        return
    order = Credit(id=name, wallet=wallet, usdc=usdc, reason=reason)
    _ = world.spawn(_expect_refusal(world, order, code), name=name)


# --- bars -----------------------------------------------------------------------------------------------------------


def bar(world: "World") -> None:
    """Bar somebody, by preference in the middle of a call; mostly it is lifted some time later."""
    wallet, verb = _somebody(world), world.random.choice((Verb.SUSPEND, Verb.SUSPEND, Verb.BLOCK))
    if wallet is not None:
        lifted_after_s = world.random.choice((5, 3_600, 3 * DAY_S, None))
        _ = world.spawn(_bar(world, wallet, verb, lifted_after_s), name=f"{verb} {wallet}")


async def _bar(world: "World", wallet: str, verb: Verb, lifted_after_s: int | None) -> None:
    try:
        await insist(world, Bar(verb=verb, wallet=wallet, reason="abuse report 112"))
        if world.random.random() < 0.3:
            # What something ran on has stayed on.
            await asyncio.sleep(world.random.uniform(1, 200))
            await insist(world, Bar(verb=verb, wallet=wallet, reason="abuse report 112, again"))
        if lifted_after_s is not None:
            await asyncio.sleep(world.random.uniform(0, lifted_after_s))
            await insist(world, Bar(verb=_LIFTED_BY[verb], wallet=wallet, reason=""))
    except SpawnError as refusal:
        # Somebody else's bar, of the other kind, is in the way.
        if refusal.code is not Code.CONFLICT:
            world.violation("answers", f"{verb} {wallet} was refused as {refusal.code.value}: {refusal}")


def lift(world: "World") -> None:
    """Lift a bar, with the right verb or the wrong one."""
    barred = bars_of(world).barred
    wallet = world.random.choice(sorted(barred)) if barred else _somebody(world)
    if wallet is not None:
        verb = world.random.choice((Verb.RESTORE, Verb.UNBLOCK))
        _ = world.spawn(_lift(world, wallet, verb), name=f"{verb} {wallet}")


async def _lift(world: "World", wallet: str, verb: Verb) -> None:
    try:
        await insist(world, Bar(verb=verb, wallet=wallet, reason="it was a mistake"))
    except SpawnError as refusal:
        if refusal.code is not Code.CONFLICT:
            world.violation("answers", f"{verb} {wallet} was refused as {refusal.code.value}: {refusal}")


# --- prices ---------------------------------------------------------------------------------------------------------


def announce(world: "World") -> None:
    """Change what an offer costs: mostly one that somebody has, up or down, at once or later."""
    held = world.rows(
        "SELECT DISTINCT type, location FROM server WHERE ended_at IS NULL ORDER BY type, location"
    )
    offers = [(row["type"], row["location"]) for row in held] if world.random.random() < 0.8 else []
    type_, location = world.random.choice(offers or [(type_, location) for type_, location, _, _ in LISTED])
    factor = world.random.choice((0.2, 0.8, 0.97, 1.0, 1.03, 1.3, 2.0, 9.0, 11.0))
    listed = next(daily for type__, location_, daily, _ in LISTED if (type__, location_) == (type_, location))
    ahead_s = world.random.choice((None, None, None, 0, 29 * DAY_S, 31 * DAY_S, 60 * DAY_S, 400 * DAY_S))
    order = AnnouncePrice(
        type=type_,
        location=location,
        daily_usdc=max(1, int(listed * factor)),
        effective_at=None if ahead_s is None else world.clock.now_s() + ahead_s,
    )
    _ = world.spawn(_order_price(world, order), name=f"announce {type_} in {location}")


async def _order_price(world: "World", order: AnnouncePrice | WithdrawPrice) -> None:
    """Prices are refused for many good reasons; which, the oracle of prices judges by what came of it."""
    try:
        await insist(world, order)
    except SpawnError as refusal:
        if refusal.code not in {Code.CONFLICT, Code.INVALID_REQUEST, Code.NOT_FOUND}:
            world.violation("answers", f"{order} was refused as {refusal.code.value}: {refusal}")


def withdraw(world: "World") -> None:
    """Take back a price, mostly one that is not in force yet."""
    now = world.clock.now_s()
    rows = world.rows("SELECT id, effective_at FROM price_change ORDER BY announced_at")
    pending = [row["id"] for row in rows if row["effective_at"] > now]
    any_ = [row["id"] for row in rows] + ["prc_0000000000"]
    change = world.random.choice(pending if pending and world.random.random() < 0.8 else any_)
    _ = world.spawn(_order_price(world, WithdrawPrice(id=change)), name=f"withdraw {change}")


def refresh(world: "World") -> None:
    """Read the price list anew, at any moment."""

    async def tick(process: "Process") -> None:
        await process.service.jobs["listing"].tick(world.clock.now_s())

    async def once() -> None:
        try:
            await ask(world, tick)
        except ConnectionLost:
            world.count("operator: nobody there")

    _ = world.spawn(once(), name="refresh prices")
