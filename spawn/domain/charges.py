"""What each route costs, as data: a pure function of the route and the decoded body.

Invariant: the same request is always quoted the same price, so that the paid retry of a 402 reprices
identically.
"""

from enum import StrEnum
from typing import Final

import msgspec
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.money import Usdc, parse_usdc


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
    """What one call costs: `fee_usdc` is ours, `fund_usdc` stays the caller's."""

    fee_usdc: Usdc
    fund_usdc: Usdc

    @property
    def payment_usdc(self) -> Usdc:
        """What an x402 payment for the call must carry."""
        return Usdc(self.fee_usdc + self.fund_usdc)


def _fee(micro_usdc: int) -> Charge:
    return Charge(kind=Kind.FEE, fee_usdc=Usdc(micro_usdc))


FREE: Final = Charge(kind=Kind.FREE)
IDENTIFIED: Final = Charge(kind=Kind.IDENTIFIED)
DEPOSIT: Final = Charge(kind=Kind.DEPOSIT)
CREATE_SERVER: Final = Charge(kind=Kind.FUNDED, fee_usdc=Usdc(10_000))
READ: Final = _fee(1_000)
UPDATE: Final = _fee(1_000)
POWER: Final = _fee(2_000)
RESIZE: Final = _fee(10_000)
REBUILD: Final = _fee(5_000)
DESTROY: Final = _fee(5_000)
SSH_KEY: Final = _fee(1_000)

IDENTIFYING_PAYMENT: Final = Usdc(1_000)
"""What a stock client pays to identify itself on a free route, credited in full."""


def quote(charge: Charge, *, fund: str | None, default_deposit_usdc: Usdc) -> Price:
    """Price one call.

    `fund` is the body's `fund` (create) or `amount` (deposit). Raises `invalid_request` for an amount that
    is no amount.
    """
    match charge.kind:
        case Kind.FREE | Kind.FEE:
            return Price(fee_usdc=charge.fee_usdc, fund_usdc=Usdc(0))
        case Kind.IDENTIFIED:
            return Price(fee_usdc=Usdc(0), fund_usdc=IDENTIFYING_PAYMENT)
        case Kind.FUNDED:
            return Price(fee_usdc=charge.fee_usdc, fund_usdc=Usdc(0) if fund is None else amount(fund))
        case Kind.DEPOSIT:
            return Price(fee_usdc=Usdc(0), fund_usdc=default_deposit_usdc if fund is None else amount(fund))


def amount(text: str) -> Usdc:
    """Read an amount a caller sent; raises `invalid_request` when it is none."""
    try:
        return parse_usdc(text)
    except ValueError as error:
        raise SpawnError(Code.INVALID_REQUEST, f"{error}.", next="Write it like 5.00.") from error
