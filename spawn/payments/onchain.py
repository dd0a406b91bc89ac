"""What a chain shows of an authorization: whether it paid us, whoever submitted it.

Invariant: the token's events decide. A nonce that is spent says nothing by itself: it may have been cancelled, or
spent by an authorization for somebody else (EIP-3009), and `Rejected` without the event that proves it is said only
when the chain's time has passed the authorization's.
"""

from typing import Final

from spawn_schemas.x402 import Reason

from spawn.evm.eip3009 import (
    AUTHORIZATION_CANCELED,
    AUTHORIZATION_USED,
    address_topic,
    authorization_state_call,
    moves,
)
from spawn.evm.node import Block, CallReverted, Log, Node, NodeUnavailable
from spawn.payments.exact import MAX_LIFE_S, ExactPayment, Terms
from spawn.payments.facilitator import Rejected, Settled, SettlementUnclear

BLOCKS_PER_QUESTION: Final = 1_000
"""Nodes refuse to search more blocks at once; the strictest known limit of a paid one is this."""
_QUESTIONS_MAX: Final = 100
"""Bounds one search; an authorization's life on Base (2 s a block) takes three."""
_CLOCKS_APART_S: Final = 600
"""How far the chain's clock and ours may disagree about when an authorization was shown to us."""

_USED_UP: Final = Rejected(
    reason=Reason.NONCE_USED.value,
    message="The nonce was cancelled or spent by another authorization. Sign one with a fresh nonce.",
)


class OnChain:
    """Asks one node about payments on our terms. Every method raises SettlementUnclear when it cannot be asked."""

    def __init__(
        self,
        node: Node,
        terms: Terms,
        *,
        confirmations: int = 1,
        blocks_per_question: int = BLOCKS_PER_QUESTION,
    ) -> None:
        """`confirmations`: how many blocks, its own included, must have a transfer for it to be called settled."""
        self._node = node
        self._terms = terms
        self._confirmations = confirmations
        self._stride = blocks_per_question

    async def is_over(self, payment: ExactPayment) -> bool:
        """Whether a block as deep as we ask for is beyond the authorization's time; see `Facilitator.is_over`."""
        try:
            head = await self._head()
            deep = await self._node.block(max(0, head.number - self._confirmations + 1))
        except NodeUnavailable as error:
            raise _unreachable() from error
        return deep is not None and deep.at >= payment.valid_before

    async def find(self, payment: ExactPayment, head: Block | None = None) -> Settled | Rejected | None:
        """What became of the payment's nonce; None while it is unspent.

        `Settled`: this payment was made. `Rejected`: the nonce was cancelled, or spent by another authorization.
        Either by a transaction as deep as we ask for; until it is, SettlementUnclear. None is final only if
        `is_over` was true before this was asked. As of `head`, or of the newest block.
        """
        try:
            return await self._find(payment, head or await self._head())
        except NodeUnavailable as error:
            raise _unreachable() from error

    async def _find(self, payment: ExactPayment, head: Block) -> Settled | Rejected | None:
        if not await self._is_spent(payment, head):
            return None
        log = await self._spending_log(payment, head)
        if log is None:
            # Used before anybody showed it to us, or cancelled after its life: no payment either way. Before that
            # time, though, the event may be in a block that this node has not shown us yet.
            if head.at > payment.valid_before + _CLOCKS_APART_S:
                return _USED_UP
            raise SettlementUnclear("The nonce is spent; the node does not show by what yet.")
        return await self._outcome(payment, log, head)

    async def _is_spent(self, payment: ExactPayment, head: Block) -> bool:
        try:
            state = await self._node.call(
                self._terms.asset,
                authorization_state_call(payment.payer, payment.nonce),
                block=head.number,
            )
        except CallReverted:
            state = b""
        if len(state) != 32:
            raise SettlementUnclear("The token does not tell the state of authorizations.")
        return any(state)

    async def _spending_log(self, payment: ExactPayment, head: Block) -> Log | None:
        """The event that spent this nonce, in the blocks of the authorization's life."""
        born_at = max(payment.valid_after, payment.valid_before - MAX_LIFE_S - _CLOCKS_APART_S)
        first = await self._block_before(born_at, head)
        topics = (
            (AUTHORIZATION_USED, AUTHORIZATION_CANCELED),
            address_topic(payment.payer),
            bytes.fromhex(payment.nonce[2:]),
        )
        for _ in range(_QUESTIONS_MAX):
            last = min(first + self._stride - 1, head.number)
            found = await self._node.logs(self._terms.asset, topics, first_block=first, last_block=last)
            if found:
                return found[0]
            end = await self._node.block(last)
            if last == head.number or (end is not None and end.at >= payment.valid_before):
                return None
            first = last + 1
        raise SettlementUnclear("The chain has too many blocks in this authorization's life to search them.")

    async def _block_before(self, at: int, head: Block) -> int:
        """The number of a block that is not after `at`, near it if blocks come about as often as of late."""
        distance = self._stride
        for _ in range(_QUESTIONS_MAX):
            number = max(0, head.number - distance)
            block = await self._node.block(number)
            if block is None:
                raise SettlementUnclear("The node does not show old blocks.")
            if number == 0 or block.at <= at:
                return number
            # From the pace so far, a tenth more; at least twice, at most sixteen times as far back.
            pace = distance * (head.at - at) * 11 // (max(1, head.at - block.at) * 10)
            distance = min(max(pace, 2 * distance), 16 * distance)
        raise SettlementUnclear("No block is old enough.")

    async def _outcome(self, payment: ExactPayment, log: Log, head: Block) -> Settled | Rejected:
        (receipt,) = await self._node.receipts((log.transaction,))
        if receipt is None or receipt.block_number + self._confirmations - 1 > head.number:
            used = log.topics[0] == AUTHORIZATION_USED
            raise SettlementUnclear(
                "What spent the nonce is not deep enough in the chain yet.",
                transaction=log.transaction if used else None,
            )
        paid = moves(receipt.logs, asset=self._terms.asset, pay_to=payment.pay_to)
        if any(
            (move.sender, move.nonce, move.amount) == (payment.payer, payment.nonce, payment.value)
            for move in paid
        ):
            return Settled(transaction=log.transaction)
        return _USED_UP

    async def _head(self) -> Block:
        head = await self._node.block()
        if head is None:
            raise NodeUnavailable("the node shows no block")
        return head


def _unreachable() -> SettlementUnclear:
    return SettlementUnclear("The chain cannot be asked right now.")
