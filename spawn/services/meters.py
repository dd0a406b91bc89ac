"""A server's meter and the legs it posts: burn, what the provider asks beside it, the minimum, and what goes back.

Invariant: every function runs inside a transaction it is handed, and leaves meter, reserve and posted burn in
agreement. A stretch is named by both its ends, so that no second is posted twice, and never spans the start of a month.
"""

from typing import Final

from msgspec.structs import asdict, replace
from spawn_ledger import accrual, runway
from spawn_ledger.accounts import (
    COST_PROVIDER,
    EXP_OVERRUN,
    OWED_PROVIDER,
    REV_COMPUTE,
    AccountId,
    host_account,
    server_account,
    wallet_account,
)
from spawn_ledger.accrual import Meter
from spawn_ledger.transfers import Code, Transfer, TransferId, post, transfer_id
from spawn_ledger.tx import Tx
from spawn_schemas.money import Usdc

from spawn.domain.pins import Owed, Pin
from spawn.domain.servers import Server
from spawn.services import funds, overage
from spawn.store.servers import Billed

NOTHING: Final = Usdc(0)


def funding(billed: Billed) -> runway.Funding:
    """What the server burns, and what pays for it."""
    meter = billed.server.meter
    if meter is None:
        raise RuntimeError(f"{billed.server.id} is due but has no meter")
    return runway.Funding(
        server_id=billed.server.id,
        meter=meter,
        reserve_usdc=billed.reserve_usdc,
        auto_renew=billed.server.auto_renew,
    )


def started(server: Server, now: int) -> Server:
    """The provider has accepted: from this second the server costs money."""
    return replace(
        server,
        metered_from=now,
        charged_until=now,
        due_at=now,
        minimum_usdc=accrual.one_hour(server.daily_usdc),
        cost_until=None if server.cost_daily_usdc is None else now,
    )


def resized(server: Server, pin: Pin, now: int) -> Server:
    """From this second the server is another machine. What is not paid for by now is owed at the price so far.

    A dearer one begins a month of its own: its days are not free because those of a cheaper one were.
    """
    return paid_up(owing(server, pin, now, since=now, is_resize=True))


def owing(server: Server, pin: Pin, now: int, *, since: int, is_resize: bool) -> Server:
    """The server with another price from `since` on, before which it may owe something yet."""
    past = Owed(until=since, pin=server.pin, resized=is_resize)
    return replace(pinned(server, pin, now), owed=(*server.owed, past), cost_until=server.cost_until)


def paid_up(server: Server) -> Server:
    """The server without the stretches of time that its watermark has passed."""
    return server if server.charged_until is None else _passed(server, server.charged_until)


def _passed(server: Server, until: int) -> Server:
    while server.owed and server.owed[0].until <= until:
        past = server.owed[0]
        server = replace(server, owed=server.owed[1:])
        is_dearer = past.resized and server.due_pin.daily_usdc > past.pin.daily_usdc
        server = replace(
            server,
            month_s=0 if is_dearer else server.month_s,
            cost_until=None if server.due_pin.cost_daily_usdc is None else until,
        )
    return server


def pinned(server: Server, pin: Pin, now: int) -> Server:
    """From this second the server burns at another rate; it is settled up to now.

    The remainder is a fraction of a micro-dollar whatever the rate, so it is carried over; so are the seconds of the
    month that count for its cap.
    """
    return replace(
        server,
        **asdict(pin),
        cost_until=None if pin.cost_daily_usdc is None else server.charged_until,
        minimum_usdc=Usdc(max(server.minimum_usdc, accrual.one_hour(pin.daily_usdc))),
        priced_at=now,
        reprice_at=None,
        reprice_usdc=None,
    )


def charge(tx: Tx, server: Server, charged: runway.Charge) -> Server:
    """Post what the server burnt since its watermark, and what that costs us; answers it with its meter moved."""
    before, after = server.charged_until or 0, charged.meter.charged_until
    if after == before:
        return server
    for leg, account, amount in (
        ("reserve", server_account(server.id), charged.from_reserve),
        ("wallet", wallet_account(server.wallet), charged.from_wallet),
    ):
        _post(
            tx,
            transfer_id("burn", server.id, before, after, leg),
            (account, REV_COMPUTE),
            amount,
            Code.BURN,
            server,
            after,
        )
    return replace(
        _cost_charged(tx, server, after),
        remainder=charged.meter.remainder,
        charged_until=after,
        month_s=charged.meter.month_s,
        charged_usdc=Usdc(server.charged_usdc + charged.from_reserve + charged.from_wallet),
    )


def _cost_charged(tx: Tx, server: Server, until: int) -> Server:
    meter = _cost_meter(server)
    if meter is None:
        return server
    amount, moved = accrual.accrue(meter, until)
    name = transfer_id("cost", server.id, meter.charged_until, until)
    _post(tx, name, (COST_PROVIDER, owed_to(server)), amount, Code.COST, server, until)
    return replace(
        server,
        cost_remainder=moved.remainder,
        cost_until=until,
        cost_usdc=Usdc(server.cost_usdc + amount),
    )


def owed_to(server: Server) -> AccountId:
    """Who is owed what the server costs us: the owner of its lent machine, or providers."""
    return OWED_PROVIDER if server.host_id is None else host_account(server.host_id)


def _cost_meter(server: Server) -> Meter | None:
    """What the provider asks for the same seconds; None where it does not say, or for a machine that is gone."""
    pin = server.due_pin
    if pin.cost_daily_usdc is None or server.cost_until is None:
        return None
    return Meter(
        daily_usdc=pin.cost_daily_usdc,
        remainder=server.cost_remainder,
        charged_until=server.cost_until,
        capped_s=pin.cost_capped_s,
        # Whose meters end at the same second, they count the same seconds of the month.
        month_s=server.month_s,
    )


def _month_s(server: Server, at: int) -> int:
    """How many seconds of the month of `at` count by then: a meter never pauses."""
    start = accrual.month_start(at)
    if server.charged_until is not None and accrual.month_start(server.charged_until) == start:
        return server.month_s - (server.charged_until - at)
    missed_at = server.missing_since
    if missed_at is not None and missed_at <= at and accrual.month_start(missed_at) == start:
        return server.missing_month_s + at - missed_at
    return at - max(start, server.metered_from or 0)


def missed(server: Server, since: int | None) -> Server:
    """Remember since when its machine is missing (None: it is there), and what of that month counted by then.

    A dearer machine began a month of its own, which nobody can tell any more once the watermark is in the next.
    """
    if since is None:
        return replace(server, missing_since=None)
    return replace(server, missing_since=since, missing_month_s=_month_s(server, since))


def close(tx: Tx, server: Server, now: int, *, owes_hour: bool) -> tuple[Server, Usdc]:
    """End billing: charge what the minimum hour still asks, return the rest; the server is settled already.

    Answers the server, not written back, without its meter, and what came back to the wallet. What the provider asks
    from here on is no longer the wallet's: see `overrun`.
    """
    if owes_hour:
        server = _minimum_charged(tx, server, now)
    refund = funds.reserve_usdc(tx, server.id)
    funds.withdraw(tx, server, refund, id=transfer_id("refund", server.id), at=now)
    server = overage.write_off(tx, server, now)
    return replace(server, charged_until=None, due_at=None), refund


def _minimum_charged(tx: Tx, server: Server, now: int) -> Server:
    owed = accrual.minimum_due(server.charged_usdc, server.minimum_usdc)
    amount = Usdc(min(owed, funds.reserve_usdc(tx, server.id)))
    name = transfer_id("minimum", server.id)
    _post(tx, name, (server_account(server.id), REV_COMPUTE), amount, Code.MINIMUM, server, now)
    server = replace(server, charged_usdc=Usdc(server.charged_usdc + amount))
    return server if server.host_id is None else _share_of_minimum(tx, server, amount, now)


def _share_of_minimum(tx: Tx, server: Server, amount: Usdc, now: int) -> Server:
    """Its host has the same share of this as of the seconds, and of the micro-USDC that none of them filled."""
    exact = amount * (server.cost_daily_usdc or 0) * accrual.DAY // server.daily_usdc
    share, remainder = divmod(exact + server.cost_remainder, accrual.DAY)
    name = transfer_id("minimum-cost", server.id)
    _post(tx, name, (COST_PROVIDER, owed_to(server)), Usdc(share), Code.COST, server, now)
    return replace(server, cost_usdc=Usdc(server.cost_usdc + share), cost_remainder=remainder)


def overrun(tx: Tx, server: Server, gone_at: int, *, of: str = "") -> Server:
    """The machine is gone: what its provider asks for the time since billing ended, started steps included, is ours.

    `of` tells one that was not a server's last from the others. A host has its share of what was paid, and asks for
    nothing else.
    """
    if server.host_id is not None:
        return replace(server, cost_until=None, owed=())
    unpaid_usdc, server = _unpaid_cost(server)
    meter = _cost_meter(server)
    if meter is None:
        return server
    began, step = server.metered_from or 0, server.cost_step_s
    until = max(meter.charged_until, began - (began - gone_at) // step * step)
    last_usdc, moved = accrual.accrue(meter, until)
    amount = Usdc(unpaid_usdc + last_usdc)
    name = transfer_id("overrun", server.id, *filter(None, (of,)))
    _post(tx, name, (EXP_OVERRUN, OWED_PROVIDER), amount, Code.OVERRUN, server, gone_at)
    return replace(
        server,
        cost_remainder=moved.remainder,
        cost_until=None,
        cost_usdc=Usdc(server.cost_usdc + amount),
    )


def _unpaid_cost(server: Server) -> tuple[Usdc, Server]:
    """What the provider asks for the time that its owner never paid for, and the server past that time."""
    amount = 0
    while server.owed:
        until, meter = server.owed[0].until, _cost_meter(server)
        if meter is not None:
            cost_usdc, moved = accrual.accrue(meter, until)
            amount += cost_usdc
            server = replace(server, cost_remainder=moved.remainder, month_s=moved.month_s)
        server = _passed(server, until)
    return Usdc(amount), server


def unburnt(tx: Tx, server: Server, since: int, now: int) -> Server:
    """Give back what was charged for the time from `since` on: there was no machine any more, and nobody asks for it.

    One rate holds for all of that time, because what is not there is not resized.
    """
    meter = server.meter
    since = max(since, server.priced_at, server.metered_from or 0)
    if meter is None or meter.charged_until <= since:
        return server
    amount, remainder = _undone(meter, since, _month_s(server, since))
    _give_back(tx, server, amount, now)
    name = transfer_id("cost-refund", server.id)
    return _cost_undone(tx, server, _burn_undone(server, since, amount, remainder), since, now, name)


def _burn_undone(server: Server, since: int, amount: Usdc, remainder: int) -> Server:
    return replace(
        server,
        remainder=remainder,
        charged_until=since,
        month_s=_month_s(server, since),
        charged_usdc=Usdc(server.charged_usdc - amount),
    )


def _cost_undone(tx: Tx, server: Server, restored: Server, since: int, now: int, name: TransferId) -> Server:
    """What the seconds from `since` on cost us is owed to nobody; `server` is as it was charged."""
    cost = _cost_meter(server)
    if cost is None:
        return restored
    amount, remainder = _undone(cost, since, _month_s(server, since))
    _post(tx, name, (owed_to(server), COST_PROVIDER), amount, Code.COST, server, now)
    return replace(
        restored, cost_remainder=remainder, cost_until=since, cost_usdc=Usdc(server.cost_usdc - amount)
    )


def paused(tx: Tx, server: Server, since: int, now: int) -> Server:
    """Stop the meter: nobody reaches the machine since `since`. What was charged for the time after is in the reserve.

    The server is settled up to now. It may pause as often as it likes: the refund is named by the stretch that it
    takes back.
    """
    meter = server.meter
    since = max(since, server.priced_at, server.metered_from or 0)
    if meter is not None and meter.charged_until > since:
        amount, remainder = _undone(meter, since, _month_s(server, since))
        ends = (since, meter.charged_until)
        name = transfer_id("pause-refund", server.id, *ends)
        _post(tx, name, (REV_COMPUTE, server_account(server.id)), amount, Code.BURN_REFUND, server, now)
        restored = _burn_undone(server, since, amount, remainder)
        server = _cost_undone(tx, server, restored, since, now, transfer_id("pause-cost", server.id, *ends))
    return replace(server, charged_until=None, due_at=None, cost_until=None, exhausted_at=None)


def resumed(server: Server, now: int) -> Server:
    """The machine is reached again: from this second the server costs money as before."""
    return replace(
        server,
        metered_from=now,
        charged_until=now,
        due_at=now,
        cost_until=None if server.cost_daily_usdc is None else now,
    )


def _undone(meter: Meter, since: int, month_s: int) -> tuple[Usdc, int]:
    """What was charged from `since` to the watermark, and the remainder that was carried at `since`."""
    nothing_carried = replace(meter, charged_until=since, remainder=0, month_s=month_s)
    whole, moved = accrual.accrue(nothing_carried, meter.charged_until)
    units = whole * accrual.DAY + moved.remainder
    carried = (meter.remainder - units) % accrual.DAY
    return Usdc((carried + units - meter.remainder) // accrual.DAY), carried


def reverse(tx: Tx, server: Server, now: int) -> Server:
    """A machine that was promised and never came costs its owner nothing: all its burn and its deposit go back.

    Nor is a host owed anything for it.
    """
    _give_back(tx, server, server.charged_usdc, now)
    server = _owed_nothing(tx, server, now)
    refund = funds.reserve_usdc(tx, server.id)
    funds.withdraw(tx, server, refund, id=transfer_id("refund", server.id), at=now)
    return replace(server, charged_until=None, due_at=None, charged_usdc=NOTHING)


def unmade(tx: Tx, server: Server, which: str, now: int) -> Server:
    """Its machine broke while it was made, and another follows: all its burn comes back, the deposit stays.

    `which` tells one such machine of a server from another.
    """
    _give_back(tx, server, server.charged_usdc, now, of=which)
    return replace(
        _owed_nothing(tx, overrun(tx, server, now, of=which), now, of=which),
        charged_until=None,
        due_at=None,
        charged_usdc=NOTHING,
        minimum_usdc=NOTHING,
        remainder=0,
        month_s=0,
        metered_from=None,
        cost_remainder=0,
    )


def _owed_nothing(tx: Tx, server: Server, now: int, *, of: str = "") -> Server:
    """Whoever lends a machine has a share of what is paid for it, and of what was given back none."""
    if server.host_id is None or server.cost_usdc == 0:
        return server
    name = transfer_id("cost-refund", server.id, *filter(None, (of,)))
    _post(tx, name, (owed_to(server), COST_PROVIDER), server.cost_usdc, Code.COST, server, now)
    return replace(server, cost_usdc=NOTHING, cost_remainder=0, cost_until=None)


def _give_back(tx: Tx, server: Server, amount: Usdc, now: int, *, of: str = "") -> None:
    """Once for each machine of a server at most."""
    name = transfer_id("burn-refund", server.id, *filter(None, (of,)))
    _post(tx, name, (REV_COMPUTE, wallet_account(server.wallet)), amount, Code.BURN_REFUND, server, now)


def _post(
    tx: Tx,
    name: TransferId,
    way: tuple[AccountId, AccountId],
    amount: Usdc,
    code: Code,
    server: Server,
    at: int,
) -> None:
    """Move what there is to move; `way` is from debit to credit."""
    if amount > 0:
        post(
            tx,
            Transfer(
                id=name, debit=way[0], credit=way[1], amount=amount, code=code, reference=server.id, at=at
            ),
        )
