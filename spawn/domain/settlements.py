"""How payments are put into transactions, what those may cost, and how they are pushed: rules without a chain.

Invariant: no fee is ever above the cap, and a transaction that takes another's place pays at least an eighth more of
both fees, which every node accepts (geth asks for a tenth, some for an eighth).
"""

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Final, Protocol, TypeVar

import msgspec
from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc

WEI: Final = 10**18
"""Wei in one ether."""

SELF_GAS: Final = 21_000
"""What a transaction without data costs (EIP-2718, yellow paper: G_transaction)."""
_BATCH_GAS: Final = 100_000
_SHARED_GAS: Final = 100_000
"""For each of several: they cost 40,000 to 60,000. 100 stay below the 2^24 that a transaction may have (EIP-7825)."""
_ALONE_GAS: Final = 150_000
"""For one transfer of USDC, which costs 65,000 to 90,000."""
_CODE_GAS: Final = 500_000
"""A wallet's own code checks its signature, some with a passkey's curve; the x402 SDK allows as much."""
_KEY_SIGNATURE: Final = 2 + 2 * 65
"""Length of an ordinary account's signature as 0x-hex."""


class SettlementState(StrEnum):
    """How far a payment has come; each step is recorded before the next is taken."""

    RESERVED = "reserved"
    """Ours to bring to the chain; no transaction that could still be mined has it."""
    SIGNED = "signed"
    """Its transaction is stored, and may have been sent."""
    BROADCAST = "broadcast"
    """A node has its transaction."""
    CONFIRMED = "confirmed"
    """The chain shows the transfer, deep enough. Final."""
    FAILED = "failed"
    """Nothing moved, and nothing of ours could move it any more. The payer may mend the cause and try again."""


LOOK_S: Final = 0.2


class RelayPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How a relayer behaves. Fees are in wei per gas, `eth_price_usdc` is what one ether costs."""

    multicall: Address
    batch_max: int
    alone_from_usdc: Usdc
    bump_after_s: int
    fee_cap_wei: int
    confirmations: int
    settle_wait_s: float
    eth_price_usdc: Usdc
    in_flight_max: int = 16
    """Transactions that one key may have in flight: nodes keep 16 for an account without asking (geth)."""
    examined_max: int = 200
    """Payments that one step tries out in one `eth_call`, whose gas nodes limit to one block's."""
    poll_s: float = 0.5
    """How often a transaction in flight is looked at; Base makes a block every two seconds."""
    look_s: float = LOOK_S
    """How often the process that relays looks for what others wrote down, and they for what became of it."""
    linger_s: float = 0.01
    """How long the first payment after a pause waits for company."""


class Fees(msgspec.Struct, frozen=True, kw_only=True):
    """EIP-1559: the most per gas, and the part of it that goes to whoever makes the block; in wei."""

    max_fee_wei: int
    priority_fee_wei: int


class Payable(Protocol):
    """What the rules look at in a payment that waits."""

    @property
    def value(self) -> int: ...

    @property
    def signature(self) -> str: ...

    @property
    def apart(self) -> bool:
        """Whether it must not share a transaction, whatever its value."""
        ...


P = TypeVar("P", bound=Payable)


def market_fees(*, base_fee_wei: int, tip_wei: int, cap_wei: int) -> Fees | None:
    """What to offer now: twice the base fee, which six full blocks do not reach, and the tip.

    None when not even the base fee is below the cap: nothing would be mined at a price that we pay.
    """
    if base_fee_wei > cap_wei:
        return None
    max_fee = min(2 * base_fee_wei + tip_wei, cap_wei)
    return Fees(max_fee_wei=max_fee, priority_fee_wei=min(tip_wei, max_fee))


def bumped(old: Fees, market: Fees | None, *, cap_wei: int) -> Fees | None:
    """What to offer instead of `old` at the same nonce; None when that is more than the cap."""
    least = Fees(
        max_fee_wei=_eighth_more(old.max_fee_wei), priority_fee_wei=_eighth_more(old.priority_fee_wei)
    )
    wanted = market or least
    max_fee = max(least.max_fee_wei, wanted.max_fee_wei)
    tip = max(least.priority_fee_wei, wanted.priority_fee_wei)
    # The market's maximum has its own tip in it; ours may be more.
    max_fee = max(max_fee, tip)
    return None if max_fee > cap_wei else Fees(max_fee_wei=max_fee, priority_fee_wei=tip)


def _eighth_more(wei: int) -> int:
    """At least one more, because an eighth of nothing takes no other's place."""
    return wei + max(1, -(-wei // 8))


def signed_by_key(signature: str) -> bool:
    """Whether this is the signature of an ordinary account (0x-hex of r, s, v), and not of a wallet's code."""
    return len(signature) == _KEY_SIGNATURE


def plan(waiting: Iterable[P], policy: RelayPolicy, *, room: int) -> list[tuple[P, ...]]:
    """Which payments go together, the oldest first: at most `room` transactions with `examined_max` payments.

    A large payment goes alone, so that nobody else's can harm it; so does one whose payer's code is run, since code
    may use up the gas of a whole transaction.
    """
    plans: list[tuple[P, ...]] = []
    small: list[P] = []
    for payment in _first(waiting, policy.examined_max):
        if len(plans) + bool(small) >= room and not (small and _shares(payment, policy)):
            break
        if _shares(payment, policy):
            small.append(payment)
            if len(small) == policy.batch_max:
                plans.append(tuple(small))
                small = []
        else:
            plans.append((payment,))
    return [*plans, tuple(small)] if small else plans


def _first(waiting: Iterable[P], count: int) -> Iterator[P]:
    for number, payment in enumerate(waiting):
        if number >= count:
            return
        yield payment


def _shares(payment: Payable, policy: RelayPolicy) -> bool:
    small = payment.value < policy.alone_from_usdc
    return small and not payment.apart and signed_by_key(payment.signature)


def gas_limit(count: int, *, by_code: bool = False) -> int:
    """The most gas for a transaction with `count` payments; `by_code`: the payers' own code checks signatures."""
    match count:
        case 0:
            return SELF_GAS
        case 1:
            return _CODE_GAS if by_code else _ALONE_GAS
        case _:
            return _BATCH_GAS + count * (_CODE_GAS if by_code else _SHARED_GAS)


def gas_cost_usdc(gas_wei: int, eth_price_usdc: Usdc) -> Usdc:
    """What gas cost us, in whole micro-USDC, rounded up."""
    return Usdc(-(-gas_wei * eth_price_usdc // WEI))
