"""When a wallet's money ends, server by server, and who pays what until then.

A server burns its own reserve first, then, if it renews, the wallet's available money, which all renewing
servers share. A second that the wallet cannot pay for all of them who need it, it pays for none: those end at
the second before, T, and the others, whose reserves last longer, go on and may use what is left. Less than a
second's price stays where it lies.

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
    ends = _ends(fundings, available_usdc, now)
    charges = tuple(_charge(funding, ends[funding.server_id], now) for funding in fundings)
    return Settlement(
        charges=charges,
        available_left=Usdc(available_usdc - sum(charge.from_wallet for charge in charges)),
    )


def runways(fundings: Sequence[Funding], available_usdc: Usdc, now: int) -> dict[ServerId, int | None]:
    """The unix second each server is paid up to, its last; None when that is `HORIZON_S` or more away.

    It may be before `now`, for servers that are not settled yet.
    """
    horizon = now + HORIZON_S
    ends = _ends(fundings, available_usdc, horizon)
    return {server_id: end if end < horizon else None for server_id, end in ends.items()}


def next_due(fundings: Sequence[Funding], available_usdc: Usdc, now: int) -> dict[ServerId, int]:
    """When the burn job must look at each server again: just after its end, and at least daily."""
    ends = _ends(fundings, available_usdc, now + DAY)
    return {server_id: min(end + 1, now + DAY) for server_id, end in ends.items()}


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


def _ends(fundings: Sequence[Funding], available_usdc: Usdc, until: int) -> dict[ServerId, int]:
    """The last fully paid second of each server, exact below `until`, else `until` or later."""
    if len(fundings) == 1:
        # The wallet has nobody else to pay for: its money and the server's are one.
        (alone,) = fundings
        own_usdc = Usdc(alone.reserve_usdc + (available_usdc if alone.auto_renew else 0))
        return {alone.server_id: paid_until(alone.meter, own_usdc)}
    ends = {f.server_id: paid_until(f.meter, f.reserve_usdc) for f in fundings}
    sharers = sorted(
        (_Sharer(funding=f, reserve_ends_at=ends[f.server_id]) for f in fundings if f.auto_renew),
        key=_reserve_ends_at,
    )
    left_usdc: int = available_usdc
    end = min(until, sharers[0].reserve_ends_at) if sharers else until
    while (end := _last_covered(sharers, left_usdc, end, until)) < until:
        drawing = bisect_right(sharers, end, key=_reserve_ends_at)
        ended = [sharer for sharer in sharers[:drawing] if sharer.needs_next(end)]
        ends.update((sharer.funding.server_id, end) for sharer in ended)
        left_usdc -= sum(sharer.shortfall_usdc(end) for sharer in ended)
        sharers = [s for s in sharers[:drawing] if not s.needs_next(end)] + sharers[drawing:]
    ends.update((s.funding.server_id, max(until, s.reserve_ends_at)) for s in sharers)
    return ends


def _last_covered(sharers: Sequence[_Sharer], available_usdc: int, since: int, until: int) -> int:
    """The largest second, at most `until`, whose shortfall is covered, knowing that `since` is.

    The shortfall only grows with time: mostly all of it is covered. Else the answer lies between bounds that exact
    fractions give, seconds apart, because rounding down hides less than a micro-USDC per server.
    """
    if _shortfall_usdc(sharers, until) <= available_usdc:
        return until
    low, high = _bounds(sharers, available_usdc, since, until)
    candidates = range(low, high + 1)
    covered = bisect_right(candidates, available_usdc, key=lambda second: _shortfall_usdc(sharers, second))
    return candidates[covered - 1]


def _bounds(sharers: Sequence[_Sharer], available_usdc: int, since: int, until: int) -> tuple[int, int]:
    """A second that is covered and one, not before it, after which none is. `sharers` are in order of their ends.

    Up to the next end the servers that draw are the same, and what they have used, in 86 400ths of a micro-USDC, is
    `rate · second + offset`.
    """
    low, high = since, until
    rate = offset = affordable = 0
    for count, sharer in enumerate(sharers, 1):
        meter = sharer.funding.meter
        rate += meter.daily_usdc
        offset += meter.remainder - meter.daily_usdc * meter.charged_until
        affordable += sharer.funding.reserve_usdc
        next_end = sharers[count].reserve_ends_at if count < len(sharers) else until
        if rate == 0:
            continue
        exact_end = (DAY * (available_usdc + affordable) - offset) // rate
        # Before its own end a server leaves something over, which is not the wallet's to count on.
        if min(exact_end, next_end) > sharer.reserve_ends_at:
            low = max(low, min(exact_end, next_end, until))
        high = min(high, (DAY * (available_usdc + affordable + count) - offset) // rate)
        if high < next_end:
            break
    return low, max(low, high)


def _shortfall_usdc(sharers: Sequence[_Sharer], second: int) -> int:
    """What the wallet must add up to `second`; only the sharers whose reserves ended before it draw."""
    drawing = bisect_left(sharers, second, key=_reserve_ends_at)
    return sum(sharer.shortfall_usdc(second) for sharer in sharers[:drawing])


def _reserve_ends_at(sharer: _Sharer) -> int:
    return sharer.reserve_ends_at
