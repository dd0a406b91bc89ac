"""The door of every priced route: how much, may this caller, and what an unpaid one is told.

Invariant: nothing behind the gate runs for a caller who has not proven a wallet, and a 402 that asks for money is
answered only when no money can be on its way.
"""

from collections.abc import Callable
from functools import cache
from typing import Final, TypeVar

import msgspec
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.money import Usdc, format_usdc
from spawn_schemas.x402_v1 import X402_VERSION_1

from spawn.api.arrivals import Arrival
from spawn.api.asking import Asking
from spawn.api.errors import plain, refusal
from spawn.api.limits import Limits
from spawn.api.replies import JSON, Reply
from spawn.api.routing import Route
from spawn.domain.charges import Charge, Kind, Price, quote
from spawn.payments import version1
from spawn.payments.challenge import settle_response
from spawn.payments.curve import checksummed
from spawn.payments.exact import PaymentInvalid, Terms
from spawn.services.calls import Answer, Identity, PaidCall, Proof, UseCase
from spawn.services.calls import Request as PaidRequest
from spawn.services.paid_calls import PaidCalls
from spawn.settings import Settings

B = TypeVar("B", bound=msgspec.Struct)

_PRIVATE: Final = (b"cache-control", b"no-store, private")


class Gate:
    """Turns an arrival into a paid call, and its outcome into an answer."""

    def __init__(
        self, paid_calls: PaidCalls, settings: Settings, terms: Terms, asking: Asking, limits: Limits
    ) -> None:
        self._paid_calls = paid_calls
        self._terms = terms
        self._asking = asking
        self._limits = limits
        self._minimum_usdc = settings.deposit_minimum_usdc
        self._cap_usdc = settings.deposit_daily_cap_usdc
        self._default_deposit_usdc = settings.deposit_default_usdc
        self._minimum_charge_usdc = settings.minimum_charge_usdc

    async def run(
        self, arrival: Arrival, use_case: Callable[[], UseCase] | None, *, fund: str | None = None
    ) -> Reply:
        """Answer a priced route. `fund` is what the body adds to the price.

        Without a `use_case` the body is missing: a crawler that sends nothing is told the price, a caller who
        pays for nothing is refused.
        """
        charge = arrival.route.charge
        price = quote(
            charge,
            fund=fund,
            default_deposit_usdc=self._default_deposit_usdc,
            minimum_usdc=self._minimum_charge_usdc,
        )
        if price.fund_usdc > 0 or charge.kind is Kind.DEPOSIT:
            self._check_limits(charge, price)
        case = None if use_case is None else use_case()
        identity = arrival.identity
        proven = identity is not None and _may(identity, arrival.route)
        if case is not None and case.refusal is not None and not proven:
            raise case.refusal
        try:
            if arrival.invalid is not None:
                raise arrival.invalid
            if identity is None or not proven:
                return self._asking.price(arrival, price)
            if case is None:
                raise SpawnError(
                    Code.INVALID_REQUEST,
                    "This call needs a JSON body.",
                    next="GET /openapi.json describes it.",
                )
            call = self._paid_call(arrival, identity, price, fund)
            answer = await self._paid_calls.run(call, case)
        except PaymentInvalid as error:
            return self._asking.mend(arrival, price, error)
        except SpawnError as error:
            return self._refusal(arrival, price, error)
        return self._answer(arrival, answer)

    async def run_with_body(
        self,
        arrival: Arrival,
        body: B | None,
        use_case: Callable[[B], UseCase],
        *,
        fund: Callable[[B], str | None] = lambda _: None,
    ) -> Reply:
        """Answer a priced route that takes a body; `fund` reads from it what it adds to the price."""
        if body is None:
            return await self.run(arrival, None)
        exact_body = strict(arrival.body, type(body))
        return await self.run(arrival, lambda: use_case(exact_body), fund=fund(exact_body))

    def _check_limits(self, charge: Charge, price: Price) -> None:
        if charge.kind is Kind.DEPOSIT and price.fund_usdc < self._minimum_usdc:
            least = format_usdc(self._minimum_usdc)
            raise SpawnError(
                Code.INVALID_REQUEST,
                f"The smallest deposit is {least} USDC.",
                next=f'POST /v1/balance/deposit {{"amount": "{least}"}}',
            )
        if price.fund_usdc > self._cap_usdc:
            raise SpawnError(
                Code.DEPOSIT_LIMIT,
                f"A wallet may pay in {format_usdc(self._cap_usdc)} USDC within 24 hours.",
                details={"cap": format_usdc(self._cap_usdc)},
                next="Pay in less at once.",
            )

    def _paid_call(self, arrival: Arrival, identity: Identity, price: Price, fund: str | None) -> PaidCall:
        if identity.payment is None:
            price = _from_balance(arrival.route.charge, price, fund)
        return PaidCall(
            request=PaidRequest(
                method=arrival.method,
                path=arrival.path,
                query=arrival.query,
                body=arrival.body,
                idempotency_key=arrival.idempotency_key,
            ),
            price=price,
            identity=identity,
            rate_limited=arrival.route.is_rate_limited,
        )

    def _refusal(self, arrival: Arrival, price: Price, error: SpawnError) -> Reply:
        """A refusal after identification; only a plain lack of money is answered with a new challenge."""
        details = error.details or {}
        match error.code:
            case Code.PAYMENT_REQUIRED:
                return self._unpaid(arrival, price, error)
            case Code.SETTLEMENT_FAILED:
                self._limits.note_address(arrival.address)
                reason = str(details.get("reason", error.code.value))
            case Code.SETTLEMENT_PENDING:
                reason = error.code.value
            case Code.IDEMPOTENCY_CONFLICT:
                self._limits.note_address(arrival.address)
                return refusal(arrival.request_id, error)
            case _:
                return refusal(arrival.request_id, error)
        transaction = str(details.get("transaction", ""))
        receipt = self._receipt(arrival, transaction=transaction, error_reason=reason)
        return refusal(arrival.request_id, error, headers=[receipt])

    def _unpaid(self, arrival: Arrival, price: Price, short: SpawnError) -> Reply:
        """A wallet that cannot pay is as good as none: anybody can make another. It counts against the address."""
        try:
            if arrival.route.is_rate_limited:
                self._limits.take_address(arrival.address)
        except SpawnError as limited:
            return refusal(arrival.request_id, limited)
        return self._asking.more(arrival, price, short)

    def _answer(self, arrival: Arrival, answer: Answer) -> Reply:
        headers = [
            JSON,
            _PRIVATE,
            (b"x-request-id", arrival.request_id.encode()),
            (b"spawn-fee", format_usdc(answer.fee_usdc).encode()),
            (b"spawn-balance", format_usdc(answer.left.available_usdc).encode()),
        ]
        if answer.left.runway_s is not None:
            headers.append((b"spawn-runway", b"%d" % answer.left.runway_s))
        if answer.replayed:
            self._limits.note_address(arrival.address)
            headers.append((b"idempotent-replayed", b"true"))
        if answer.settlement is not None and answer.paid_usdc is not None:
            headers.append(self._receipt(arrival, transaction=answer.settlement, paid_usdc=answer.paid_usdc))
        return Reply(arrival.route.success_status, answer.body, headers)

    def _receipt(
        self,
        arrival: Arrival,
        *,
        transaction: str = "",
        paid_usdc: Usdc | None = None,
        error_reason: str | None = None,
    ) -> tuple[bytes, bytes]:
        """What became of the payment, in the version that it was made in."""
        if arrival.identity is None:
            raise RuntimeError("there is no receipt for a call that nobody paid")
        payer = arrival.identity.wallet
        if arrival.version == X402_VERSION_1:
            return b"x-payment-response", version1.settle_response(
                self._terms,
                success=error_reason is None,
                payer=payer,
                transaction=transaction,
                error_reason=error_reason,
            )
        return b"payment-response", settle_response(
            success=error_reason is None,
            network=self._terms.network,
            transaction=transaction,
            payer=checksummed(payer),
            error_reason=error_reason,
            amount=None if paid_usdc is None else str(paid_usdc),
        )


def _may(identity: Identity, route: Route) -> bool:
    """Whether this proof is enough for this route. A session opens no other, or it would never end."""
    if identity.binds_request:
        return True
    return route.takes_sign_in and not (route.opens_session and identity.proof is Proof.SESSION)


def _from_balance(charge: Charge, price: Price, fund: str | None) -> Price:
    """What a caller who sends no payment pays from the balance. Raises SpawnError where only a payment will do."""
    if charge.kind is Kind.DEPOSIT:
        raise SpawnError(
            Code.PAYMENT_REQUIRED,
            "A deposit is paid by x402.",
            next="Pay with any x402 client; a signature moves no money on chain.",
        )
    if charge.kind is Kind.FUNDED and fund is not None:
        raise SpawnError(
            Code.INVALID_REQUEST,
            "fund is paid by x402; a signed request pays from the balance.",
            next="Leave fund out, or pay this call by x402 instead of signing it.",
        )
    return Price(fee_usdc=price.fee_usdc, fund_usdc=Usdc(0))


@cache
def _decoder(form: type[B]) -> msgspec.json.Decoder[B]:
    return msgspec.json.Decoder(form)


def strict(body: bytes, form: type[B]) -> B:
    """Read the body again, exactly: the framework takes `"true"` for true, and we would guess what was meant."""
    try:
        read: B = _decoder(form).decode(body)
    except msgspec.ValidationError as error:
        raise SpawnError(
            Code.INVALID_REQUEST, f"{plain(str(error))}.", next="GET /openapi.json describes every field."
        ) from error
    return read
