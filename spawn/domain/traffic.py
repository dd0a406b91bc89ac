"""What a server sends: counted from a provider's counters, and priced beyond what a month includes.

Invariant: whatever the readings, each byte is counted once at most, and all charges together are
floor(Σ price of a TB · bytes beyond the included / TB): what does not fill a micro-USDC is carried, never rounded away.
A counter that has fallen is believed when it was seen so twice, a while apart: seen once, a list may have been late. If
both have fallen to half or less a new period has begun, and all that they show is new; otherwise they were corrected.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec.structs import replace
from spawn_ledger.accrual import month_start
from spawn_providers.base import Traffic
from spawn_providers.catalog import TB
from spawn_schemas.ids import ServerId
from spawn_schemas.money import Usdc

from spawn.domain.pins import Pin

APART_S: Final = 300
"""How long a counter must have fallen."""
_STEP_BACK_S: Final = 3_600
"""A clock that is set back by no more than this begins no month anew."""


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a server's traffic: the counters as last believed, and the sums of the month (UTC) from `month`.

    `billed_bytes` of that month were priced, `month_usdc` in all. The remainders count `TB`ths of a micro-USDC.
    """

    last_ingoing: int
    last_outgoing: int
    fallen_at: int | None = None
    month: int
    ingoing_bytes: int = 0
    outgoing_bytes: int = 0
    included_bytes: int
    billed_bytes: int = 0
    month_usdc: Usdc = Usdc(0)
    remainder: int = 0
    cost_remainder: int = 0


class Priced(msgspec.Struct, frozen=True, kw_only=True):
    """What a reading added: for the server's owner to pay, and for us."""

    counted: Counted
    charge_usdc: Usdc
    cost_usdc: Usdc


def begun(pin: Pin, now: int, *, before: Traffic | None = None) -> Counted:
    """Nothing is counted yet; what a machine sent `before` is nobody's to pay."""
    return Counted(
        last_ingoing=0 if before is None else before.ingoing_bytes,
        last_outgoing=0 if before is None else before.outgoing_bytes,
        month=month_start(now),
        included_bytes=pin.included_bytes,
    )


def at(counted: Counted, pin: Pin, now: int) -> Counted:
    """The sums of the month of `now`: those of a month that is over are history."""
    if counted.month in {month_start(now), month_start(now + _STEP_BACK_S)}:
        return replace(counted, included_bytes=max(counted.included_bytes, pin.included_bytes))
    return replace(
        counted,
        month=month_start(now),
        ingoing_bytes=0,
        outgoing_bytes=0,
        included_bytes=pin.included_bytes,
        billed_bytes=0,
        month_usdc=Usdc(0),
    )


def read(before: Counted, reading: Traffic, pin: Pin, now: int) -> Priced:
    """Count what a look at the machine showed. Of what is included in a month, the most of it holds all month."""
    counted = at(before, pin, now)
    has_fallen = reading.ingoing_bytes < before.last_ingoing or reading.outgoing_bytes < before.last_outgoing
    if has_fallen:
        since = now if before.fallen_at is None else min(before.fallen_at, now)
        if now - since < APART_S:
            return Priced(counted=replace(counted, fallen_at=since), charge_usdc=Usdc(0), cost_usdc=Usdc(0))
    began_anew = has_fallen and _is_of_a_new_period(before, reading)
    ingoing = max(0, reading.ingoing_bytes - (0 if began_anew else before.last_ingoing))
    outgoing = max(0, reading.outgoing_bytes - (0 if began_anew else before.last_outgoing))
    included_bytes = max(counted.included_bytes, reading.included_bytes)
    billed_bytes = max(counted.billed_bytes, counted.outgoing_bytes + outgoing - included_bytes)
    fresh = billed_bytes - counted.billed_bytes
    charge_usdc, remainder = divmod(fresh * (pin.tb_usdc or 0) + counted.remainder, TB)
    cost_usdc, cost_remainder = divmod(fresh * (pin.cost_tb_usdc or 0) + counted.cost_remainder, TB)
    moved = replace(
        counted,
        last_ingoing=reading.ingoing_bytes,
        last_outgoing=reading.outgoing_bytes,
        fallen_at=None,
        ingoing_bytes=counted.ingoing_bytes + ingoing,
        outgoing_bytes=counted.outgoing_bytes + outgoing,
        included_bytes=included_bytes,
        billed_bytes=billed_bytes,
        month_usdc=Usdc(counted.month_usdc + charge_usdc),
        remainder=remainder,
        cost_remainder=cost_remainder,
    )
    return Priced(counted=moved, charge_usdc=Usdc(charge_usdc), cost_usdc=Usdc(cost_usdc))


def _is_of_a_new_period(before: Counted, reading: Traffic) -> bool:
    return (
        2 * reading.ingoing_bytes <= before.last_ingoing
        and 2 * reading.outgoing_bytes <= before.last_outgoing
    )


class Debtor(msgspec.Struct, frozen=True, kw_only=True):
    """A server that sent what nobody could pay for yet, and what may pay: its reserve, then the wallet if it renews."""

    server_id: ServerId
    owed_usdc: Usdc
    reserve_usdc: Usdc
    auto_renew: bool


class Paid(msgspec.Struct, frozen=True, kw_only=True):
    from_reserve: Usdc
    from_wallet: Usdc

    @property
    def total_usdc(self) -> Usdc:
        return Usdc(self.from_reserve + self.from_wallet)


def paid(debtors: Sequence[Debtor], available_usdc: Usdc) -> dict[ServerId, Paid]:
    """What each can pay of what it owes; the wallet's money goes round in the order of their ids."""
    found: dict[ServerId, Paid] = {}
    left: int = available_usdc
    for debtor in sorted(debtors, key=lambda each: each.server_id):
        from_reserve = min(debtor.owed_usdc, debtor.reserve_usdc)
        from_wallet = min(debtor.owed_usdc - from_reserve, left) if debtor.auto_renew else 0
        left -= from_wallet
        found[debtor.server_id] = Paid(from_reserve=Usdc(from_reserve), from_wallet=Usdc(from_wallet))
    return found


def unpaid_cost(owed_usdc: Usdc, pin: Pin) -> Usdc:
    """What it costs us that this much is never paid."""
    return Usdc(owed_usdc * (pin.cost_tb_usdc or 0) // pin.tb_usdc) if pin.tb_usdc else Usdc(0)
