"""The rail `facilitator`: others bring our callers' payments to the chain, asked over HTTP, the preferred one first.

What a facilitator says moves nothing in our books. `success: true` credits nobody: it is the chain, asked through our
own node and as deep as the settings want, that says `Settled`, because a credit without a transfer is our loss and a
facilitator may be wrong, hacked or on a fork. A refusal is believed only where it means that nothing was sent, and
after the chain has shown no transfer by anybody.

Who is asked: `/verify` first, at each. It moves nothing, so that whoever hangs, is down or refuses what we verified
ourselves costs a payment nothing, and the next is asked. `/settle` is sent to the first that agrees. Once that request
may have been read, no other is asked within this call: two facilitators would race, and the loser would pay gas for a
transaction that reverts, and tell us a refusal. A later call for the same payment asks anew, and may come to another if
the first is set aside by then; that is safe, because the token lets an authorization move money once (EIP-3009), and
each call begins by looking at the chain.

Invariant: `Rejected` is said only if no request of this process that could move the payment is unanswered. What another
process (or we, before a restart) left unanswered shows on the chain: a spent nonce is never a refusal by itself.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol
from weakref import WeakValueDictionary

import httpx
import msgspec
from spawn_schemas.x402 import Reason

from spawn.payments import breaker
from spawn.payments.breaker import Breaker
from spawn.payments.exact import ExactPayment, Terms
from spawn.payments.facilitator import Rejected, Settled, SettlementUnclear
from spawn.payments.facilitator_api import (
    Bearer,
    FacilitatorApi,
    NoAnswer,
    NotDone,
    SettleAnswer,
    request_body,
)
from spawn.payments.remote_reasons import Meaning, meaning, nothing_sent, word
from spawn.payments.standings import Standing

log = logging.getLogger(__name__)

LOOK_S: Final = 5.0
"""The longest wait for what moves nothing: `/verify` and `/supported`. Whoever takes longer is passed over."""
SUPPORTED_FOR_S: Final = 600
"""How long the answer of `/supported` counts."""
FORGET_S: Final = 600
"""How long after its `validBefore` a payment may still be under way, clocks and blocks being what they are."""

_THIS_CALL: Final = frozenset({400, 413, 422})
"""Statuses that find fault with what was sent, not with who sends it or with the server (RFC 9110, 15.5)."""
_TRANSACTION: Final = re.compile(r"0x[0-9a-fA-F]{64}")


class OnChain(Protocol):
    """What the chain shows of an authorization; see `spawn.payments.onchain`."""

    async def find(self, payment: ExactPayment) -> Settled | Rejected | None:
        """What became of its nonce, as deep as we ask for, or None while it is unspent. Raises SettlementUnclear."""
        ...

    async def is_over(self, payment: ExactPayment) -> bool:
        """Whether the chain's time has passed the authorization's. Raises SettlementUnclear."""
        ...


@dataclass(kw_only=True)
class _Remote:
    """One facilitator, and what we know of it."""

    api: FacilitatorApi
    breaker: Breaker = field(default_factory=Breaker)
    unsupported: bool = False
    supported_until: int = 0
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    settled: int = 0
    refused: int = 0
    disagreed: int = 0
    unproven: int = 0
    failed: int = 0

    def standing(self) -> Standing:
        return Standing(
            name=self.api.name,
            open_until=self.breaker.open_until,
            unsupported=self.unsupported,
            settled=self.settled,
            refused=self.refused,
            disagreed=self.disagreed,
            unproven=self.unproven,
            failed=self.failed,
        )


_Nonce = tuple[str, str]
"""Payer and nonce: what the token lets move money once."""


class _Call(msgspec.Struct, frozen=True, kw_only=True):
    """One call of `settle`: what is asked, and until when (on the loop's clock) it waits for the chain."""

    payment: ExactPayment
    body: bytes
    until: float


class _UnderWay(msgspec.Struct, frozen=True, kw_only=True):
    """A payment that a facilitator may be bringing to the chain; `transaction` if it named one."""

    valid_before: int
    transaction: str | None = None


class RemoteFacilitators:
    """A `Facilitator` that asks others. Nothing is asked before the first payment."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        urls: tuple[str, ...],
        terms: Terms,
        on_chain: OnChain,
        *,
        now: Callable[[], int],
        cdp: Bearer | None = None,
        timeout_s: float = 15.0,
        wait_s: float = 20.0,
        look_every_s: float = 0.5,
    ) -> None:
        """`urls` in order of preference; `now` is unix time in seconds; `cdp` signs calls to whom it is meant for.

        `timeout_s` bounds one `/settle`. Where a settlement was reported, a call waits until `wait_s` after its start
        for the chain to show it, looking every `look_every_s`.
        """
        self._remotes = tuple(_Remote(api=FacilitatorApi(client, url, bearer=cdp)) for url in urls)
        self._terms = terms
        self._on_chain = on_chain
        self._now = now
        self._timeout_s = timeout_s
        self._look_timeout_s = min(timeout_s, LOOK_S)
        self._wait_s = wait_s
        self._look_every_s = look_every_s
        self._under_way: dict[_Nonce, _UnderWay] = {}
        self._turns: WeakValueDictionary[_Nonce, asyncio.Lock] = WeakValueDictionary()

    def standings(self) -> tuple[Standing, ...]:
        """How each facilitator has fared, in order of preference."""
        return tuple(remote.standing() for remote in self._remotes)

    async def settle(self, payment: ExactPayment) -> Settled | Rejected:
        """See `Facilitator.settle`. Where the chain cannot be asked, nobody is: what is sent could not be credited."""
        turn = self._turns.setdefault(_nonce(payment), asyncio.Lock())
        until = asyncio.get_running_loop().time() + self._wait_s
        call = _Call(payment=payment, body=request_body(payment, self._terms), until=until)
        async with turn:
            try:
                known = await self._on_chain.find(payment)
            except SettlementUnclear as error:
                if error.transaction is None:
                    raise self._unclear(payment, str(error)) from error
                known = await self._wait_for(call, error.transaction)
            if known is None:
                known = await self._hand_over(call)
            self._under_way.pop(_nonce(payment), None)
            return known

    async def find(self, payment: ExactPayment) -> Settled | None:
        """See `Facilitator.find`."""
        known = await self._on_chain.find(payment)
        return known if isinstance(known, Settled) else None

    async def is_over(self, payment: ExactPayment) -> bool:
        """See `Facilitator.is_over`."""
        return await self._on_chain.is_over(payment)

    # --- whom to ask ------------------------------------------------------------------------------------------

    async def _hand_over(self, call: _Call) -> Settled | Rejected:
        """Give the payment to the first facilitator that takes it."""
        refusal: str | None = None
        for remote in self._remotes:
            try:
                if not await self._is_ready(remote):
                    continue
                reason = await self._verify(remote, call)
            except NoAnswer as error:
                self._note_failure(remote, error)
                continue
            if reason is None:
                outcome = await self._settle(remote, call)
                if outcome is not None:
                    return outcome
            elif self._meaning(reason, call.payment) is Meaning.DISAGREES:
                refusal = reason
            else:
                return await self._refuse(call.payment, reason)
        if refusal is not None:
            return await self._refuse(call.payment, refusal)
        raise self._unclear(call.payment, "No facilitator takes payments right now.")

    async def _is_ready(self, remote: _Remote) -> bool:
        """Whether to ask it at all. Raises NoAnswer."""
        async with remote.asking:  # so that a hundred first payments ask once what it supports
            admitted = breaker.admit(remote.breaker, self._now())
            if admitted is None:
                return False
            remote.breaker = admitted
            if self._now() >= remote.supported_until:
                remote.unsupported = not await self._supports_ours(remote)
                remote.supported_until = self._now() + SUPPORTED_FOR_S
                if remote.unsupported:
                    log.error(
                        "incident: %s does not settle exact payments on %s, and is skipped",
                        remote.api.name,
                        self._terms.network,
                    )
            return not remote.unsupported

    async def _supports_ours(self, remote: _Remote) -> bool:
        try:
            return (await remote.api.supported(timeout_s=self._look_timeout_s)).has(self._terms.network)
        except NotDone as error:
            if error.status in {None, 429}:
                raise
            return True  # It keeps that to itself; `/verify` will tell.

    async def _verify(self, remote: _Remote, call: _Call) -> str | None:
        """The reason for which it refuses the payment, or None if it takes it. Raises NoAnswer."""
        answer = await remote.api.verify(call.body, timeout_s=self._look_timeout_s)
        if answer.is_valid:
            return None
        reason = word(answer.invalid_reason, otherwise="unexpected_verify_error")
        if self._meaning(reason, call.payment) is Meaning.BROKEN:
            raise NoAnswer(f"{remote.api.name} cannot verify payments ({reason})")
        self._note_refusal(remote, call.payment, reason)
        return reason

    async def _settle(self, remote: _Remote, call: _Call) -> Settled | Rejected | None:
        """What came of handing it over; None if nothing was, and another may be asked. Raises SettlementUnclear."""
        nonce = _nonce(call.payment)
        is_first = nonce not in self._under_way
        # Before it is sent: a call that is cancelled leaves this behind.
        self._remember(call.payment, None)
        try:
            answer = await remote.api.settle(call.body, timeout_s=self._timeout_s)
        except NotDone as error:
            self._note_failure(remote, error)
            if is_first:
                self._under_way.pop(nonce, None)
            return None
        except NoAnswer as error:
            self._note_failure(remote, error)
            return await self._look(call.payment, None)
        if answer.success:
            return await self._prove(remote, call, answer)
        reason = word(answer.error_reason, otherwise="unexpected_settle_error")
        transaction = self._transaction(answer, call.payment)
        if transaction is None and nothing_sent(reason):
            self._note_refusal(remote, call.payment, reason)
            if is_first:
                self._under_way.pop(nonce, None)
            return await self._refuse(call.payment, reason)
        if self._meaning(reason, call.payment) is Meaning.BROKEN:
            self._note_failure(remote, NoAnswer(f"{remote.api.name} cannot settle payments ({reason})"))
        else:
            remote.breaker = breaker.answered()
        if transaction is not None and reason == Reason.SETTLEMENT_PENDING:
            return await self._wait_for(call, transaction)
        return await self._look(call.payment, transaction)

    # --- what it comes to -------------------------------------------------------------------------------------

    async def _prove(self, remote: _Remote, call: _Call, answer: SettleAnswer) -> Settled | Rejected:
        """It says that the money moved: see whether it did. Raises SettlementUnclear."""
        transaction = self._transaction(answer, call.payment)
        try:
            if transaction is None:
                self._note_failure(
                    remote, NoAnswer(f"{remote.api.name} reports a settlement of something else")
                )
                outcome = await self._look(call.payment, None)
            else:
                remote.breaker = breaker.answered()
                outcome = await self._wait_for(call, transaction)
        except SettlementUnclear:
            remote.unproven += 1
            log.warning("%s reports a settlement that the chain does not show yet", remote.api.name)
            raise
        remote.settled += isinstance(outcome, Settled)
        return outcome

    async def _wait_for(self, call: _Call, transaction: str) -> Settled | Rejected:
        """What the chain shows, given the time to show this transaction. Raises SettlementUnclear."""
        loop = asyncio.get_running_loop()
        while loop.time() + self._look_every_s < call.until:
            with contextlib.suppress(SettlementUnclear):
                return await self._look(call.payment, transaction)
            await asyncio.sleep(self._look_every_s)
        return await self._look(call.payment, transaction)

    async def _look(self, payment: ExactPayment, transaction: str | None) -> Settled | Rejected:
        """What the chain shows now of a payment that may be under way, in this transaction or another."""
        try:
            known = await self._on_chain.find(payment)
        except SettlementUnclear as error:
            known, transaction = None, error.transaction or transaction
        if known is not None:
            return known
        self._remember(payment, transaction)
        raise self._unclear(payment, "The chain does not show the transfer, or not deep enough yet.")

    async def _refuse(self, payment: ExactPayment, reason: str) -> Settled | Rejected:
        """The refusal, unless the chain knows better: a stranger may have submitted it meanwhile."""
        known = await self._on_chain.find(payment)
        if known is not None:
            return known
        if _nonce(payment) in self._under_way or reason == Reason.NONCE_USED:
            # Somebody's transaction may be what they see and our node does not yet.
            raise self._unclear(payment, f"The facilitator answers {reason}, with a settlement under way.")
        return Rejected(
            reason=reason, message=f"The facilitator that settles payments does not take it ({reason})."
        )

    def _unclear(self, payment: ExactPayment, message: str) -> SettlementUnclear:
        sent = self._under_way.get(_nonce(payment))
        return SettlementUnclear(message, transaction=None if sent is None else sent.transaction)

    def _transaction(self, answer: SettleAnswer, payment: ExactPayment) -> str | None:
        """The hash that an answer about this payment names; None for none, and for nonsense."""
        ours = (
            answer.network == self._terms.network and (answer.payer or payment.payer).lower() == payment.payer
        )
        hash_ = answer.transaction or ""
        return hash_.lower() if ours and _TRANSACTION.fullmatch(hash_) else None

    def _remember(self, payment: ExactPayment, transaction: str | None) -> None:
        now = self._now()
        for nonce, sent in list(self._under_way.items()):
            if sent.valid_before + FORGET_S > now:
                break  # They expire about in the order in which they came.
            del self._under_way[nonce]
        earlier = self._under_way.get(_nonce(payment))
        self._under_way[_nonce(payment)] = _UnderWay(
            valid_before=payment.valid_before,
            transaction=transaction or (None if earlier is None else earlier.transaction),
        )

    # --- how they fare ----------------------------------------------------------------------------------------

    def _meaning(self, reason: str, payment: ExactPayment) -> Meaning:
        return meaning(reason, payment, self._now())

    def _note_refusal(self, remote: _Remote, payment: ExactPayment, reason: str) -> None:
        remote.breaker = breaker.answered()
        if self._meaning(reason, payment) is Meaning.DISAGREES:
            remote.disagreed += 1
            log.error("incident: %s refuses a payment that we verified (%s)", remote.api.name, reason)
        else:
            remote.refused += 1
            log.info("%s refuses a payment (%s)", remote.api.name, reason)

    def _note_failure(self, remote: _Remote, error: NoAnswer) -> None:
        remote.failed += 1
        log.warning("%s", error)
        if isinstance(error, NotDone) and error.status in _THIS_CALL:
            # It finds fault with one payment; the others shall not be kept from it by whoever found out how.
            remote.breaker = breaker.answered()
            return
        retry_after_s = error.retry_after_s if isinstance(error, NotDone) else None
        remote.breaker = breaker.failed(remote.breaker, self._now(), retry_after_s=retry_after_s)


def _nonce(payment: ExactPayment) -> _Nonce:
    return payment.payer, payment.nonce
