"""What was sent outside a call, on the wire: `/v1/suspense`."""

import msgspec

from spawn_schemas.api import BalanceView, Moment
from spawn_schemas.money import UsdcText


class ArrivalView(msgspec.Struct, frozen=True, kw_only=True):
    """USDC that reached us outside a call. `transaction` is the chain's."""

    transaction: str
    amount: UsdcText
    at: Moment


class SuspenseView(msgspec.Struct, frozen=True, kw_only=True):
    """What you sent us outside a call and have not claimed: the oldest 100 of `arrivals`, and the `total` of all."""

    arrivals: tuple[ArrivalView, ...]
    total: UsdcText


class SuspenseClaimed(BalanceView, frozen=True, kw_only=True):
    """`claimed` is part of the balance now. `left` waits for another claim: one takes the oldest 100 arrivals."""

    claimed: UsdcText
    left: UsdcText
