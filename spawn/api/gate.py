"""The door of every priced route: who pays, how much, and what an unpaid caller is told.

Invariant: nothing behind the gate runs for a caller who has not proven a wallet, and a 402 that asks for money is
answered only when no money can be on its way.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec
from litestar import Request, Response
from msgspec.structs import replace
from spawn_schemas import api
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.money import Usdc, format_usdc

from spawn.api.errors import error_response, plain, request_id
from spawn.clock import Clock
from spawn.domain.charges import Charge, Kind, Price, quote
from spawn.payments import exact, signed
from spawn.payments.challenge import Challenges, settle_response
from spawn.payments.curve import checksummed
from spawn.payments.exact import PaymentInvalid, Terms
from spawn.services import standing
from spawn.services.calls import Answer, Identity, PaidCall, UseCase
from spawn.services.calls import Request as PaidRequest
from spawn.services.paid_calls import PaidCalls
from spawn.settings import Settings
from spawn.store.database import Database

B = TypeVar("B", bound=msgspec.Struct)

PAYMENT_SIGNATURE: Final = "payment-signature"
_KEY_MAX: Final = 255
_HEADERS_MAX: Final = 100
_HEADER_BYTES_MAX: Final = 65_536
_PAY: Final = "Pay with any x402 v2 client (PAYMENT-SIGNATURE)"
_SIGN: Final = "sign the request with your wallet (RFC 9421, ERC-8128)"
_ASKED: Final = {
    Kind.IDENTIFIED: (
        "Say which wallet asks; the answer itself is free.",
        f"Either {_SIGN}, or pay with any x402 v2 client: all of that payment becomes balance.",
    ),
    Kind.DEPOSIT: (
        "Pay in by x402: all of the payment becomes balance.",
        f"{_PAY}; a signature moves no money on chain.",
    ),
}
"""Message and next step of a 402 to a caller who proved nothing, where they are not those of a priced call."""
_ASKED_PRICED: Final = ("This call costs money.", f"{_PAY}, or {_SIGN} to pay from your balance.")
_BROKE: Final = f"{_PAY}, or pay into your balance first: POST /v1/balance/deposit."


class Gate:
    """Turns an HTTP request into a paid call, and its outcome into an HTTP answer."""

    def __init__(
        self,
        paid_calls: PaidCalls,
        db: Database,
        clock: Clock,
        settings: Settings,
        terms: Terms,
        challenges: Challenges,
    ) -> None:
        self._paid_calls = paid_calls
        self._db = db
        self._clock = clock
        self._settings = settings
        self._terms = terms
        self._challenges = challenges

    async def run(
        self,
        request: Request[Any, Any, Any],
        use_case: Callable[[], UseCase] | None,
        *,
        fund: str | None = None,
    ) -> Response[Any]:
        """Answer a priced route. `fund` is what the body adds to the price.

        Without a `use_case` the body is missing: a crawler that sends nothing is told the price, a caller who
        pays for nothing is refused.
        """
        charge: Charge = request.route_handler.opt["charge"]
        price = quote(charge, fund=fund, default_deposit_usdc=self._settings.deposit_default_usdc)
        self._check_limits(charge, price)
        case = None if use_case is None else use_case()
        try:
            call = await self._identify(request, charge, price, fund)
            if call is None:
                message, next_step = _ASKED.get(charge.kind, _ASKED_PRICED)
                return self._challenge(request, price, "payment_required", message, next_step)
            if case is None:
                raise SpawnError(
                    Code.INVALID_REQUEST,
                    "This call needs a JSON body.",
                    next="GET /openapi.json describes it.",
                )
            answer = await self._paid_calls.run(call, case)
        except PaymentInvalid as error:
            return self._challenge(request, price, error.reason, error.message, f"Mend that. {_PAY}.")
        except SpawnError as error:
            return self._refusal(request, price, error)
        return await self._answer(request, answer)

    async def run_with_body(
        self,
        request: Request[Any, Any, Any],
        body: B | None,
        use_case: Callable[[B], UseCase],
        *,
        fund: Callable[[B], str | None] = lambda _: None,
    ) -> Response[Any]:
        """Answer a priced route that takes a body; `fund` reads from it what it adds to the price."""
        if body is None:
            return await self.run(request, None)
        exact_body = _strict(await request.body(), type(body))
        return await self.run(request, lambda: use_case(exact_body), fund=fund(exact_body))

    def _check_limits(self, charge: Charge, price: Price) -> None:
        minimum = self._settings.deposit_minimum_usdc
        if charge.kind is Kind.DEPOSIT and price.fund_usdc < minimum:
            raise SpawnError(
                Code.INVALID_REQUEST,
                f"The smallest deposit is {format_usdc(minimum)} USDC.",
                next=f'POST /v1/balance/deposit {{"amount": "{format_usdc(minimum)}"}}',
            )
        cap = self._settings.deposit_daily_cap_usdc
        if price.fund_usdc > cap:
            raise SpawnError(
                Code.DEPOSIT_LIMIT,
                f"A wallet may pay in {format_usdc(cap)} USDC within 24 hours.",
                details={"cap": format_usdc(cap)},
                next="Pay in less at once.",
            )

    async def _identify(
        self, request: Request[Any, Any, Any], charge: Charge, price: Price, fund: str | None
    ) -> PaidCall | None:
        """Who calls, or None for a caller who proves nothing."""
        headers = _combined_headers(request)
        paid_request = PaidRequest(
            method=request.method,
            path=request.scope["raw_path"].decode("latin-1"),
            query=request.scope["query_string"].decode("latin-1"),
            body=await request.body(),
            idempotency_key=_idempotency_key(headers.get("idempotency-key")),
        )
        if PAYMENT_SIGNATURE in headers:
            payload = exact.decode_payment(headers[PAYMENT_SIGNATURE])
            payment = exact.identify(payload, self._terms)
            key = paid_request.idempotency_key or exact.payment_identifier(payload)
            identity = Identity(
                wallet=payment.payer,
                nonce_key=payment.nonce_key(self._terms.chain_id, self._terms.asset),
                valid_before=payment.valid_before,
                payment=payment,
            )
            return PaidCall(
                request=replace(paid_request, idempotency_key=key), price=price, identity=identity
            )
        if signed.present(headers):
            return self._signed_call(paid_request, headers, charge, price, fund)
        return None

    def _signed_call(
        self,
        paid_request: PaidRequest,
        headers: dict[str, str],
        charge: Charge,
        price: Price,
        fund: str | None,
    ) -> PaidCall:
        proof = signed.verify(
            method=paid_request.method,
            path=paid_request.path,
            query=f"?{paid_request.query}" if paid_request.query else "",
            headers=headers,
            body=paid_request.body,
            authority=self._settings.authority,
            chain_id=self._terms.chain_id,
            now=self._clock.now_s(),
        )
        if charge.kind is Kind.DEPOSIT:
            raise SpawnError(
                Code.PAYMENT_REQUIRED, "A deposit is paid by x402.", next=_ASKED[Kind.DEPOSIT][1]
            )
        if charge.kind is Kind.FUNDED and fund is not None:
            raise SpawnError(
                Code.INVALID_REQUEST,
                "fund is paid by x402; a signed request pays from the balance.",
                next="Leave fund out, or pay this call by x402 instead of signing it.",
            )
        return PaidCall(
            request=paid_request,
            price=Price(fee_usdc=price.fee_usdc, fund_usdc=Usdc(0)),
            identity=Identity(
                wallet=proof.wallet, nonce_key=proof.nonce_key, valid_before=proof.expires, payment=None
            ),
        )

    def _challenge(
        self, request: Request[Any, Any, Any], price: Price, error: str, message: str, next_step: str
    ) -> Response[Any]:
        """402: the price in the `PAYMENT-REQUIRED` header, and a body that people and older clients can read."""
        resource = f"{self._settings.public_url.rstrip('/')}{request.scope['raw_path'].decode('latin-1')}"
        summary = str(request.route_handler.opt["summary"])
        header = self._challenges.header(price.payment_usdc, resource, summary, error=error)
        body = api.PaymentRequiredBody(
            x402Version=1,
            accepts=(),
            error=error,
            code=Code.PAYMENT_REQUIRED.value,
            message=message,
            status=402,
            price=format_usdc(price.payment_usdc),
            next=next_step,
            request_id=request_id(request),
        )
        return Response(
            msgspec.json.encode(body),
            status_code=402,
            media_type="application/json",
            headers={
                "PAYMENT-REQUIRED": header.decode(),
                "Cache-Control": "no-store",
                "X-Request-Id": request_id(request),
            },
        )

    def _refusal(self, request: Request[Any, Any, Any], price: Price, error: SpawnError) -> Response[Any]:
        """A refusal after identification; only a plain lack of money is answered with a new challenge."""
        match error.code:
            case Code.PAYMENT_REQUIRED:
                code = Code.PAYMENT_REQUIRED.value
                return self._challenge(request, price, code, error.message, error.next or _BROKE)
            case Code.SETTLEMENT_FAILED:
                reason = str((error.details or {}).get("reason", error.code.value))
            case Code.SETTLEMENT_PENDING:
                reason = error.code.value
            case _:
                return error_response(request, error)
        failed = settle_response(success=False, network=self._terms.network, error_reason=reason)
        return error_response(request, error, headers={"PAYMENT-RESPONSE": failed.decode()})

    async def _answer(self, request: Request[Any, Any, Any], answer: Answer) -> Response[Any]:
        now = self._clock.now_s()
        now_standing = await standing.read(self._db, answer.wallet, now)
        headers = {
            "Cache-Control": "no-store, private",
            "X-Request-Id": request_id(request),
            "Spawn-Fee": format_usdc(answer.fee_usdc),
            "Spawn-Balance": format_usdc(now_standing.available_usdc),
        }
        runway_s = now_standing.runway_s(now)
        if runway_s is not None:
            headers["Spawn-Runway"] = str(runway_s)
        if answer.replayed:
            headers["Idempotent-Replayed"] = "true"
        if answer.settlement is not None and answer.paid_usdc is not None:
            headers["PAYMENT-RESPONSE"] = settle_response(
                success=True,
                network=self._terms.network,
                transaction=answer.settlement,
                payer=checksummed(answer.wallet),
                amount=str(answer.paid_usdc),
            ).decode()
        return Response(answer.body, media_type="application/json", headers=headers)


def _strict(body: bytes, form: type[B]) -> B:
    """Read the body again, exactly: the framework takes `"true"` for true, and we would guess what was meant."""
    try:
        return msgspec.json.decode(body, type=form)
    except msgspec.ValidationError as error:
        raise SpawnError(
            Code.INVALID_REQUEST, f"{plain(str(error))}.", next="GET /openapi.json describes every field."
        ) from error


def _combined_headers(request: Request[Any, Any, Any]) -> dict[str, str]:
    """Header values by lower-case name; repeated ones joined as RFC 9110 section 5.3 has it."""
    raw = tuple(request.scope["headers"])
    if len(raw) > _HEADERS_MAX or sum(len(name) + len(value) for name, value in raw) > _HEADER_BYTES_MAX:
        raise SpawnError(
            Code.REQUEST_TOO_LARGE,
            f"A request has at most {_HEADERS_MAX} header lines and {_HEADER_BYTES_MAX} bytes of them.",
            next="Send fewer headers.",
        )
    combined: dict[str, str] = {}
    for raw_name, raw_value in raw:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        combined[name] = f"{combined[name]}, {value}" if name in combined else value
    return combined


def _idempotency_key(text: str | None) -> str | None:
    if text is None:
        return None
    if not 0 < len(text) <= _KEY_MAX or not text.isascii() or not text.isprintable():
        raise SpawnError(
            Code.INVALID_REQUEST,
            f"An Idempotency-Key is 1 to {_KEY_MAX} printable ASCII characters.",
            next="Use a UUID.",
        )
    return text
