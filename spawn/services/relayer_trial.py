"""Trying payments out before they cost gas, and finding out why one would not settle.

Invariant: a payment is rejected only for a cause that the chain shows now, and only while no transaction of ours that
could be mined has it. Everything uncertain waits.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from msgspec.structs import replace
from spawn_schemas.ids import Address
from spawn_schemas.x402 import Reason

from spawn.domain.settlements import RelayPolicy, gas_limit
from spawn.evm.eip3009 import balance_of_call
from spawn.evm.multicall import Call, aggregate3, results
from spawn.evm.node import Block, CallReverted, Node, NodeUnavailable
from spawn.payments.exact import PaymentInvalid, Terms, require_signature
from spawn.payments.facilitator import Rejected, SettlementUnclear
from spawn.payments.onchain import OnChain
from spawn.services.relayer_desk import Desk, Item, Outcome

log = logging.getLogger(__name__)

T = TypeVar("T")

AT_ONCE: Final = 16
"""Questions to the node at a time, about payments that seem doomed."""
QUIET_S: Final = 30
"""After so long without a block a chain is one that makes them only when something happens."""
REST_MAX_S: Final = 60
"""The longest that a payment rests which the chain says nothing about yet; looking at it is a dozen questions."""
FAILURES_MAX: Final = 2
"""Mined transactions that a payment may cost us: code that settles when tried and not when mined burns our gas."""


class Trial:
    """Asks the chain what would become of payments."""

    def __init__(
        self,
        node: Node,
        on_chain: OnChain,
        terms: Terms,
        policy: RelayPolicy,
        desk: Desk,
        *,
        has_code: Callable[[Address], Awaitable[bool]],
    ) -> None:
        """`has_code` tells whether code decides for an account. Raises NodeUnavailable."""
        self._node = node
        self._on_chain = on_chain
        self._terms = terms
        self._policy = policy
        self._desk = desk
        self._has_code = has_code
        self._can_batch: bool | None = None

    async def policy(self) -> RelayPolicy:
        """The policy on this chain: without a Multicall3 contract every payment goes alone."""
        if self._can_batch is None:
            self._can_batch = await self._has_multicall()
            if not self._can_batch:
                self._policy = replace(self._policy, batch_max=1)
                log.error(
                    "incident: no Multicall3 contract at %s (SPAWN_RELAY_MULTICALL): each payment goes alone",
                    self._policy.multicall,
                )
        return self._policy

    async def _has_multicall(self) -> bool:
        try:
            return results(await self._node.call(self._policy.multicall, aggregate3([]))) == ()
        except (CallReverted, ValueError):
            return False

    async def passing(self, items: Sequence[Item], head: Block, now: int) -> list[Item]:
        """Which of these would settle if they were mined now, one after the other. Raises NodeUnavailable."""
        for item in items:
            # A chain that makes no blocks while nothing happens (a development chain) tells an old time. On any other
            # the next block is waited for: what is sent untried costs us gas, and its payer nothing.
            item.untried = head.at <= item.payment.valid_after < now and now - head.at >= QUIET_S
        await self._set_apart([item for item in items if not item.by_code])
        together = [item for item in items if not item.by_code and not item.untried]
        if self._policy.batch_max == 1 or len(together) == 1:
            together = []
        passed: set[str] = set()
        if together:
            calls = [Call(to=self._terms.asset, data=item.call) for item in together]
            try:
                tried = results(
                    await self._node.call(self._policy.multicall, aggregate3(calls), block=head.number)
                )
            except CallReverted:
                together = []  # too much gas for one question
            else:
                passed |= {item.id for item, result in zip(together, tried, strict=True) if result.succeeded}
        asked = {item.id for item in together}
        alone = [item for item in items if item.id not in asked]
        settles = await _each(alone, lambda item: self._would_settle(item, head))
        passed |= {item.id for item, fine in zip(alone, settles, strict=True) if fine}
        return [item for item in items if item.id in passed and item.failures < FAILURES_MAX]

    async def _set_apart(self, items: Sequence[Item]) -> None:
        """Code that says yes when tried could burn the gas of all its neighbours when mined."""
        for item, is_code in zip(
            items, await _each(items, lambda item: self._has_code(item.payment.payer)), strict=True
        ):
            item.apart = item.apart or is_code

    async def _would_settle(self, item: Item, head: Block) -> bool:
        if item.untried:
            return True
        try:
            gas = gas_limit(1, by_code=item.by_code)
            await self._node.call(self._terms.asset, item.call, gas=gas, block=head.number)
        except CallReverted:
            return False
        return True

    async def judge(self, items: Sequence[Item], head: Block, now: int) -> list[tuple[Item, Outcome]]:
        """What became of payments that did not pass; those that are not decided yet are left out."""

        async def outcome(item: Item) -> Outcome | None:
            try:
                return await self._outcome(item, head, now)
            except (SettlementUnclear, NodeUnavailable):
                # Somebody who spent a nonce long ago could have us search for it all day.
                item.rest_s = min(item.rest_s + 1, REST_MAX_S)
                item.rests_until = now + item.rest_s
                return None

        outcomes = await _each(items, outcome)
        return [(item, found) for item, found in zip(items, outcomes, strict=True) if found is not None]

    async def _outcome(self, item: Item, head: Block, now: int) -> Outcome | None:
        payment = item.payment
        found = await self._on_chain.find(payment, head)
        if found is not None:
            return found
        if payment.valid_before <= head.at:
            return Rejected(reason=Reason.VALID_BEFORE.value, message="The authorization has expired.")
        if head.at <= payment.valid_after < now:
            return None  # its block comes next
        if payment.valid_after >= head.at:
            return Rejected(reason=Reason.VALID_AFTER.value, message="The authorization is not valid yet.")
        try:
            require_signature(payment, self._terms)
        except PaymentInvalid as error:
            if not await self._node.code(payment.payer):
                return Rejected(reason=Reason.SIGNATURE.value, message=str(error))
        answer = await self._node.call(self._terms.asset, balance_of_call(payment.payer), block=head.number)
        if int.from_bytes(answer, "big") < payment.value + self._desk.under_way_usdc(payment.payer):
            return _uncovered(item)
        return await self._last_resort(item, head)

    async def _last_resort(self, item: Item, head: Block) -> Outcome | None:
        """Nothing explains it: its neighbours or its own code may have used up the gas. Alone it has more."""
        item.apart = True
        if item.failures < FAILURES_MAX and await self._would_settle(item, head):
            return None
        if await self._node.code(item.payment.payer):
            return Rejected(
                reason=Reason.SIGNATURE.value, message="The code of the paying account does not accept it."
            )
        # A pause, a blacklist, or terms that are not the token's: payers are told no, and only we could mend it.
        log.error("incident: the token refuses a payment of %s for no known reason", item.payment.payer)
        return Rejected(
            reason="invalid_transaction_state",  # x402 specification, section 9
            message="The token refuses this transfer. Ask its issuer about the paying account.",
        )


def _uncovered(item: Item) -> Rejected:
    payment = item.payment
    return Rejected(
        reason=Reason.INSUFFICIENT_FUNDS.value,
        message=f"{payment.payer} does not hold the {payment.value} micro-USDC it authorized.",
    )


async def _each(items: Sequence[Item], ask: Callable[[Item], Awaitable[T]]) -> list[T]:
    """Ask about each, a few at a time."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(item: Item) -> T:
        async with turns:
            return await ask(item)

    return await asyncio.gather(*map(one, items))
