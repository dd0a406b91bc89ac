"""What each route costs, as data: a pure function of the route and the decoded body.

Invariant: the same request is always quoted the same price, so that the paid retry of a 402 reprices
identically.
"""

from enum import StrEnum
from typing import Final

import msgspec
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.money import Usdc, parse_usdc

NO_MINIMUM: Final = Usdc(0)


class Kind(StrEnum):
    """How a route is paid for."""

    FREE = "free"
    """Anybody may call it; nobody is identified."""
    IDENTIFIED = "identified"
    """Free, but the caller must prove who it is; an x402 payment does, and is credited in full."""
    FEE = "fee"
    """A fixed fee, from a payment or from the balance."""
    FUNDED = "funded"
    """A fixed fee plus whatever the body's `fund` adds to the balance."""
    DEPOSIT = "deposit"
    """Pays into the balance; only an x402 payment can."""


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """A route's price. `fee_usdc` is kept for a successful call; the rest of a payment is credited."""

    kind: Kind
    fee_usdc: Usdc = Usdc(0)


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """What one call costs: `fee_usdc` is ours, `fund_usdc` stays the caller's.

    No x402 payment is smaller than `minimum_usdc`, because each costs us a settlement whatever it pays for; what it
    carries above the rest stays the caller's too. A call from the balance knows no minimum.
    """

    fee_usdc: Usdc
    fund_usdc: Usdc
    minimum_usdc: Usdc = NO_MINIMUM

    @property
    def payment_usdc(self) -> Usdc:
        """What an x402 payment for the call must carry."""
        return max(Usdc(self.fee_usdc + self.fund_usdc), self.minimum_usdc)

    @property
    def is_raised(self) -> bool:
        """Whether a payment carries more than was asked for by route and body."""
        return self.payment_usdc > self.fee_usdc + self.fund_usdc


def _fee(micro_usdc: int) -> Charge:
    return Charge(kind=Kind.FEE, fee_usdc=Usdc(micro_usdc))


FREE: Final = Charge(kind=Kind.FREE)
IDENTIFIED: Final = Charge(kind=Kind.IDENTIFIED)
DEPOSIT: Final = Charge(kind=Kind.DEPOSIT)
CREATE_SERVER: Final = Charge(kind=Kind.FUNDED, fee_usdc=Usdc(10_000))
READ: Final = _fee(1_000)
UPDATE: Final = _fee(1_000)
POWER: Final = _fee(2_000)
EXEC: Final = _fee(2_000)
RESIZE: Final = _fee(10_000)
REBUILD: Final = _fee(5_000)
DESTROY: Final = _fee(5_000)
SSH_KEY: Final = _fee(1_000)
WEBHOOK: Final = _fee(1_000)

IDENTIFYING_PAYMENT: Final = Usdc(1_000)
"""What a stock client pays to identify itself on a free route, credited in full."""


def quote(
    charge: Charge, *, fund: str | None, default_deposit_usdc: Usdc, minimum_usdc: Usdc = NO_MINIMUM
) -> Price:
    """Price one call.

    `fund` is the body's `fund` (create) or `amount` (deposit); `minimum_usdc` the least that an x402 payment carries.
    Raises `invalid_request` for an amount that is no amount.
    """
    fee, funded = Usdc(0), Usdc(0)
    match charge.kind:
        case Kind.FREE:
            minimum_usdc = NO_MINIMUM
        case Kind.FEE:
            fee = charge.fee_usdc
        case Kind.IDENTIFIED:
            funded = IDENTIFYING_PAYMENT
        case Kind.FUNDED:
            fee, funded = charge.fee_usdc, Usdc(0) if fund is None else amount(fund)
        case Kind.DEPOSIT:
            funded = default_deposit_usdc if fund is None else amount(fund)
    return Price(fee_usdc=fee, fund_usdc=funded, minimum_usdc=minimum_usdc)


def amount(text: str) -> Usdc:
    """Read an amount a caller sent; raises `invalid_request` when it is none."""
    try:
        return parse_usdc(text)
    except ValueError as error:
        raise SpawnError(Code.INVALID_REQUEST, f"{error}.", next="Write it like 5.00.") from error
