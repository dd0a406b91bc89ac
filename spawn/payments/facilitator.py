"""What it takes to move a caller's money, whoever carries it to the chain.

Invariant: `Settled` is a fact of the chain and never taken back. Everything short of certainty is
`SettlementUnclear`; nobody may treat that as a refusal, because the money may have moved.
"""

from typing import Protocol

import msgspec

from spawn.payments.exact import ExactPayment


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """This authorization moved `value` from `payer` to `pay_to`, in this transaction (0x, 64 hex digits)."""

    transaction: str


class Rejected(msgspec.Struct, frozen=True, kw_only=True):
    """This call did not move the money and has nothing under way that could: the caller may pay anew.

    `reason` is a word of the x402 protocol (a remote facilitator may bring its own), `message` is public.
    It is no promise about the future: whoever holds the signature can submit it until `validBefore`, and
    what arrives that way is seen by `find`.
    """

    reason: str
    message: str


class SettlementUnclear(Exception):
    """The outcome is not known yet. Ask `find`, or `settle` the same payment again; never charge another one.

    `transaction` is the hash of what was sent, if anything is known to have been.
    """

    def __init__(self, message: str, *, transaction: str | None = None) -> None:
        super().__init__(message)
        self.transaction = transaction


class Facilitator(Protocol):
    """Settles authorizations that `identify` accepted on our terms.

    Both methods may be called at any time, any number of times, from several tasks and processes, also after
    a crash of ours at any point: what the chain remembers decides, not what we do. Cancelling a call leaves
    its outcome unclear.
    """

    async def settle(self, payment: ExactPayment) -> Settled | Rejected:
        """Move the money, once. The effect is idempotent by (payer, nonce).

        - This authorization moved the money already (an earlier call of ours, or a stranger who submitted the
          caller's signature): `Settled`, with the hash of that transfer, even after it has expired.
        - Its nonce was cancelled, or spent by another authorization: `Rejected` (`…nonce_already_used`).
        - Expired, not yet valid, wrongly signed or not covered: `Rejected`; the nonce is not spent. A payer
          who has found the money may send the same authorization again.
        - Not known: raises SettlementUnclear.
        """
        ...

    async def find(self, payment: ExactPayment) -> Settled | None:
        """What the chain shows: the transfer that spent this nonce for this payee and value, or None.

        None means "not, as far as the chain shows now"; `is_over` tells when it is final. Raises
        SettlementUnclear when the chain cannot be asked.
        """
        ...

    async def is_over(self, payment: ExactPayment) -> bool:
        """Whether the chain's time has passed `valid_before`: a None of `find`, asked for after this, is final.

        Our own clock does not tell. A chain that stood still comes back with blocks of the time in between, and a
        node may lag behind its chain. Raises SettlementUnclear when the chain cannot be asked.
        """
        ...
