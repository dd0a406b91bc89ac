"""Money is a whole number of micro-USDC: never a float, never a Decimal at rest.

Invariant: `parse_usdc(format_usdc(x)) == x` for every amount.
"""

import re
from typing import Annotated, Final, NewType

import msgspec

Usdc = NewType("Usdc", int)
"""An amount in micro-USDC (10⁻⁶ USDC), the smallest unit the token has."""

USDC: Final = 1_000_000
"""Micro-USDC in one USDC."""

MAX_USDC: Final = Usdc(1_000_000_000 * USDC)
"""More than any single amount we accept; keeps every sum far inside 64 bits."""

UsdcText = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^-?[0-9]{1,10}(\.[0-9]{1,6})?$(?!\n)",
        description="USDC as a decimal string with up to six decimals.",
        examples=["5.00"],
    ),
]
"""How an amount looks on the wire."""

_AMOUNT = re.compile(r"([0-9]{1,10})(?:\.([0-9]{1,6}))?")


def parse_usdc(text: str) -> Usdc:
    """Read a non-negative decimal string exactly; raise ValueError for anything else."""
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise ValueError("an amount is a decimal string such as 5.00, with at most six decimals")
    whole, fraction = match.groups()
    amount = int(whole) * USDC + int((fraction or "").ljust(6, "0"))
    if amount > MAX_USDC:
        raise ValueError("that amount is larger than this service handles")
    return Usdc(amount)


def format_usdc(amount: Usdc) -> str:
    """Two decimals at least, six at most: `5.00`, `0.001`, `-1.50`."""
    whole, fraction = divmod(abs(amount), USDC)
    decimals = f"{fraction:06d}".rstrip("0").ljust(2, "0")
    return f"{'-' if amount < 0 else ''}{whole}.{decimals}"
