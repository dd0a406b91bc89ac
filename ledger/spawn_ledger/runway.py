"""When a wallet's money ends, server by server, and who pays what until then.

A server burns its own reserve first, then, if it renews, the wallet's available money, which all renewing
servers share. A second that the wallet cannot pay for all of them who need it, it pays for none: those end at
the second before, T, and the others, whose reserves last longer or who have used up what a month costs at most, go on
and may use what is left. Less than a second's price stays where it lies.

Invariants: no charge exceeds what pays for it; a server is charged to its last fully paid second, however
late it is settled; settling in steps charges what settling once does; `runways` names the second at which
`settle` ends a server. They hold for a wallet's servers taken together: pass every one that is metered.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Final

import msgspec
from spawn_schemas.ids import ServerId
from spawn_schemas.money import Usdc

from spawn_ledger.accrual import DAY, Meter, accrue, charge_until, paid_until

HORIZON_S: Final = 3_650 * DAY
"""How far ahead an end is looked for, about ten years."""

_FOLLOWED: Final = 3


class Funding(msgspec.Struct, frozen=True, kw_only=True):
    """A metered server and what pays for it: `reserve_usdc`, then the wallet if `auto_renew`."""

    server_id: ServerId
    meter: Meter
    reserve_usdc: Usdc
    auto_renew: bool


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """What one server owes since its watermark, by source, and its meter afterwards.

    `exhausted_at` is the last second that was paid for, or None while the money lasts.
    """

    server_id: ServerId
    from_reserve: Usdc
    from_wallet: Usdc
    meter: Meter
    exhausted_at: int | None


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """The charges, in the order of the fundings, and what the wallet has available after them."""

    charges: tuple[Charge, ...]
    available_left: Usdc


class _Sharer(msgspec.Struct, frozen=True, kw_only=True):
    """A renewing server, with the second at which its own reserve ends."""

    funding: Funding
    reserve_ends_at: int

    def shortfall_usdc(self, second: int) -> int:
        """What its reserve lacks up to `second`: max(0, charge − reserve)."""
        return max(0, charge_until(self.funding.meter, second) - self.funding.reserve_usdc)

    def needs_next(self, second: int) -> bool:
        """Whether the second after `second` takes more of the wallet's money."""
        return self.shortfall_usdc(second + 1) > self.shortfall_usdc(second)


def settle(fundings: Sequence[Funding], available_usdc: Usdc, now: int) -> Settlement:
    """Charge every server to `now`, or to its last fully paid second (DESIGN section 4)."""
    ends_at = ends(fundings, available_usdc, now)
    charges = tuple(_charge(funding, ends_at[funding.server_id], now) for funding in fundings)
    return Settlement(
        charges=charges,
        available_left=Usdc(available_usdc - sum(charge.from_wallet for charge in charges)),
    )


def runways(fundings: Sequence[Funding], available_usdc: Usdc, now: int) -> dict[ServerId, int | None]:
    """The unix second each server is paid up to, its last; None when that is `HORIZON_S` or more away.

    It may be before `now`, for servers that are not settled yet.
    """
    horizon = now + HORIZON_S
    found = ends(fundings, available_usdc, horizon)
    return {server_id: end if end < horizon else None for server_id, end in found.items()}


def first_end(fundings: Sequence[Funding], available_usdc: Usdc, now: int) -> int | None:
    """The earliest of `runways`, None when all of them are `HORIZON_S` or more away."""
    horizon = now + HORIZON_S
    first = min(ends(fundings, available_usdc, horizon).values(), default=horizon)
    return first if first < horizon else None


def ends(fundings: Sequence[Funding], available_usdc: Usdc, until: int) -> dict[ServerId, int]:
    """The last fully paid second of each server, exact below `until`, else `until` or later.

    Raises ValueError for money that is below zero: no second would be the last.
    """
    if available_usdc < 0:
        raise ValueError(f"a wallet never has {available_usdc} micro-USDC")
    if len(fundings) == 1:
        # The wallet has nobody else to pay for: its money and the server's are one.
        (alone,) = fundings
        own_usdc = Usdc(alone.reserve_usdc + (available_usdc if alone.auto_renew else 0))
        return {alone.server_id: paid_until(alone.meter, own_usdc)}
    found = {f.server_id: paid_until(f.meter, f.reserve_usdc) for f in fundings}
    sharers = sorted(
        (_Sharer(funding=f, reserve_ends_at=found[f.server_id]) for f in fundings if f.auto_renew),
        key=_reserve_ends_at,
    )
    left_usdc: int = available_usdc
    end = min(until, sharers[0].reserve_ends_at) if sharers else until
    while (end := _last_covered(sharers, left_usdc, end, until)) < until:
        drawing = bisect_right(sharers, end, key=_reserve_ends_at)
        ended = [sharer for sharer in sharers[:drawing] if sharer.needs_next(end)]
        found.update((sharer.funding.server_id, end) for sharer in ended)
        left_usdc -= sum(sharer.shortfall_usdc(end) for sharer in ended)
        sharers = [s for s in sharers[:drawing] if not s.needs_next(end)] + sharers[drawing:]
    found.update((s.funding.server_id, max(until, s.reserve_ends_at)) for s in sharers)
    return found


def _charge(funding: Funding, end: int, now: int) -> Charge:
    charge_usdc, meter = accrue(funding.meter, min(end, now))
    from_reserve = min(charge_usdc, funding.reserve_usdc)
    return Charge(
        server_id=funding.server_id,
        from_reserve=from_reserve,
        from_wallet=Usdc(charge_usdc - from_reserve),
        meter=meter,
        exhausted_at=end if end < now else None,
    )


def _last_covered(sharers: Sequence[_Sharer], available_usdc: int, since: int, until: int) -> int:
    """The largest second, at most `until`, whose shortfall is covered, knowing that `since` is.

    The shortfall only grows with time: mostly all of it is covered. Else the money is followed as if no second were
    free, and again with what free seconds saved; that mostly ends seconds before the answer, and a search in growing
    steps does the rest.
    """
    if _shortfall_usdc(sharers, until) <= available_usdc:
        return until
    low = since
    for _ in range(_FOLLOWED):
        low = _followed(sharers, available_usdc - _shortfall_usdc(sharers, low), low, until)
    step_s = 1
    while _shortfall_usdc(sharers, min(low + step_s, until)) <= available_usdc:
        low, step_s = low + step_s, 2 * step_s
    candidates = range(low, min(low + step_s, until))
    covered = bisect_right(candidates, available_usdc, key=lambda second: _shortfall_usdc(sharers, second))
    return candidates[covered - 1]


def _followed(sharers: Sequence[_Sharer], left_usdc: int, since: int, until: int) -> int:
    """A second, from `since` on, that is covered when `left_usdc` are left at `since`.

    `sharers` are in order of their reserves' ends, at which each begins to draw. Rounding down may have hidden up to a
    micro-USDC per server at `since`.
    """
    left = DAY * (left_usdc - len(sharers))
    second, rate = since, 0
    for sharer in sharers:
        joins_at = min(sharer.reserve_ends_at, until)
        if joins_at > second:
            if left < rate * (joins_at - second):
                break
            left -= rate * (joins_at - second)
            second = joins_at
        rate += sharer.funding.meter.daily_usdc
    return min(second + left // rate, until) if left > 0 and rate > 0 else second


def _shortfall_usdc(sharers: Sequence[_Sharer], second: int) -> int:
    """What the wallet must add up to `second`; only the sharers whose reserves ended before it draw."""
    drawing = bisect_left(sharers, second, key=_reserve_ends_at)
    return sum(sharer.shortfall_usdc(second) for sharer in sharers[:drawing])


def _reserve_ends_at(sharer: _Sharer) -> int:
    return sharer.reserve_ends_at
