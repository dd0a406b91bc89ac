"""An x402 facilitator over HTTP, on the development chain, that does what a test wants of it.

Left alone it is honest: it checks a payment as the token would, and settles it. `say` puts words into its mouth.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from spawn_schemas.ids import Address
from spawn_schemas.x402 import PaymentPayload, PaymentRequirements, Reason

from spawn.payments.devnet import DevChain
from spawn.payments.exact import ExactPayment, PaymentInvalid, Terms, require_signature
from spawn.payments.facilitator import Rejected, Settled, SettlementUnclear

SELECT_NONCE = "SELECT 1 FROM authorization_state WHERE payer = :payer AND nonce = :nonce"


class Asked(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The body of `/verify` and `/settle`."""

    x402_version: int
    payment_payload: PaymentPayload
    payment_requirements: PaymentRequirements


class Call(msgspec.Struct, frozen=True, kw_only=True):
    method: str
    path: str
    headers: dict[str, str]


class Saying(msgspec.Struct, frozen=True, kw_only=True):
    """What is answered once; `after` the honest deed, or instead of it."""

    body: bytes
    status: int
    headers: dict[str, str]
    after: bool


@dataclass
class FakeFacilitator:
    """An ASGI app. Without a chain it takes no payment by itself."""

    chain: DevChain
    terms: Terms
    now: Callable[[], int]
    calls: list[Call] = field(default_factory=list)
    hangs_at: set[str] = field(default_factory=set)
    """Paths that never answer."""
    before_answer: Callable[[str], Any] | None = None
    """Awaited with the path, after the deed."""
    _sayings: dict[str, list[Saying]] = field(default_factory=dict)

    def say(
        self,
        path: str,
        body: object = b"",
        *,
        status: int = 200,
        after: bool = False,
        times: int = 1,
        **headers: str,
    ) -> None:
        """Answer the next calls of this path so: `body` in bytes, or to be encoded."""
        saying = Saying(
            body=body if isinstance(body, bytes) else msgspec.json.encode(body),
            status=status,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
            after=after,
        )
        self._sayings.setdefault(path, []).extend([saying] * times)

    def asked(self, path: str) -> int:
        """How often."""
        return sum(call.path == path for call in self.calls)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        path = scope["path"]
        self.calls.append(Call(method=scope["method"], path=path, headers=headers))
        if path in self.hangs_at:
            await asyncio.Event().wait()
        said = self._sayings.get(path, [])
        saying = said.pop(0) if said else None
        honest = b"" if saying is not None and not saying.after else await self._do(path, body)
        if self.before_answer is not None:
            await self.before_answer(path)
        saying = saying or Saying(body=honest, status=200, headers={}, after=True)
        extra = [(name.encode(), value.encode()) for name, value in saying.headers.items()]
        await send({"type": "http.response.start", "status": saying.status, "headers": extra})
        await send({"type": "http.response.body", "body": saying.body})

    async def _do(self, path: str, body: bytes) -> bytes:
        if path == "/supported":
            kinds = [{"x402Version": 2, "scheme": "exact", "network": self.terms.network}]
            return msgspec.json.encode({"kinds": kinds, "extensions": [], "signers": {}})
        payment = _payment(msgspec.json.decode(body, type=Asked))
        if path == "/verify":
            reason = await self._reason(payment)
            return msgspec.json.encode(
                {"isValid": reason is None, "invalidReason": reason, "payer": payment.payer}
            )
        return msgspec.json.encode(self._answer(payment, await self.chain.settle(payment)))

    def _answer(self, payment: ExactPayment, outcome: Settled | Rejected) -> dict[str, Any]:
        said: dict[str, Any] = {"network": self.terms.network, "payer": payment.payer}
        if isinstance(outcome, Settled):
            return said | {"success": True, "transaction": outcome.transaction}
        return said | {"success": False, "transaction": "", "errorReason": outcome.reason}

    async def _reason(self, payment: ExactPayment) -> str | None:
        now = self.now()
        if payment.valid_after >= now:
            return Reason.VALID_AFTER.value
        if payment.valid_before <= now:
            return Reason.VALID_BEFORE.value
        try:
            require_signature(payment, self.terms)
        except PaymentInvalid as error:
            return error.reason.value
        short = await self.chain.balance_of(payment.payer) < payment.value
        return Reason.INSUFFICIENT_FUNDS.value if short else None


class DevOnChain:
    """The development chain as our own node would show it."""

    def __init__(self, chain: DevChain, path: Path) -> None:
        self._chain = chain
        self._path = path
        self.down = False
        self.lag = 0
        """So many looks at a spent nonce show it unspent."""
        self.shallow = 0
        """So many looks at a transfer show it not deep enough."""

    async def is_over(self, payment: ExactPayment) -> bool:
        return await self._chain.is_over(payment)

    async def find(self, payment: ExactPayment) -> Settled | Rejected | None:
        if self.down:
            raise SettlementUnclear("The chain cannot be asked right now.")
        with closing(sqlite3.connect(self._path)) as db:
            params = {"payer": payment.payer, "nonce": payment.nonce}
            if db.execute(SELECT_NONCE, params).fetchone() is None:
                return None
        if self.lag > 0:
            self.lag -= 1
            return None
        settled = await self._chain.find(payment)
        if settled is not None and self.shallow > 0:
            self.shallow -= 1
            raise SettlementUnclear("Not deep enough.", transaction=settled.transaction)
        return settled or Rejected(reason=Reason.NONCE_USED.value, message="Cancelled, or spent otherwise.")


def _payment(asked: Asked) -> ExactPayment:
    """What was signed, if it is what is asked for."""
    signed, wanted = asked.payment_payload.payload, asked.payment_requirements
    authorization = signed.authorization
    assert asked.x402_version == asked.payment_payload.x402_version == 2
    assert asked.payment_payload.accepted == wanted
    assert (authorization.to, authorization.value) == (wanted.pay_to, wanted.amount)
    return ExactPayment(
        payer=Address(authorization.from_.lower()),
        pay_to=Address(authorization.to.lower()),
        value=int(authorization.value),
        valid_after=int(authorization.valid_after),
        valid_before=int(authorization.valid_before),
        nonce=authorization.nonce,
        signature=signed.signature,
    )
