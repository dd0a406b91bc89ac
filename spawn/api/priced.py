"""How a route says what it costs, next to its path.

Invariant: every route declares a charge; `tests/arch` fails for one that does not.
"""

from typing import Any, Final, cast

from litestar.openapi.datastructures import ResponseSpec
from spawn_schemas import refusals
from spawn_schemas.money import format_usdc

from spawn.domain.charges import Charge, Kind

_REFUSALS: Final[dict[int, str]] = {
    400: "A field is missing, malformed or not for sale; nothing was charged.",
    401: "The signature, the sign-in or the session does not hold; nothing was charged.",
    403: "It belongs to another wallet; nothing was charged.",
    404: "There is no such thing; nothing was charged.",
    409: "Its state does not allow this now, or the key, payment or nonce already served another request; nothing was "
    "charged.",
    413: "More body or headers than anybody needs; nothing was charged.",
    422: "The balance is too low, or the payment exceeds what a wallet may pay in; nothing was charged.",
    429: "Too many calls; nothing was charged. Repeat the same request after `Retry-After`.",
    503: "Not now; repeat the same request after `Retry-After`.",
}

_ANY_PAID_CALL: Final = (400, 401, 409, 413, 422, 429, 503)
"""What can become of a call on its way through the gate, whichever route it asks for."""

_DONE: Final = (
    "Done. `Spawn-Fee` says what it cost, `Spawn-Balance` what is left, `PAYMENT-RESPONSE` what was paid."
)
_DONE_FREE: Final = "The answer."


def priced(charge: Charge, summary: str, *refused: int) -> dict[str, Any]:
    """Keyword arguments for a route decorator: its charge, its summary, and the errors worth documenting."""
    responses: dict[int, ResponseSpec] = {
        status: ResponseSpec(
            data_container=refusals.ErrorAnswer, description=_REFUSALS[status], generate_examples=False
        )
        for status in sorted({*refused, *(() if charge.kind is Kind.FREE else _ANY_PAID_CALL)})
    }
    if charge.kind is not Kind.FREE:
        responses[402] = ResponseSpec(
            data_container=cast("type[Any]", refusals.PaymentRequiredBody | refusals.ErrorAnswer),
            description="What to pay, for x402 v2 in the `PAYMENT-REQUIRED` header, for v1 in the body: the price, but "
            "never less than `payment.minimum` of `GET /v1/catalog`, and what is above the price becomes balance. Or "
            "the chain's refusal of a payment, an error with the reason in the receipt.",
            generate_examples=False,
        )
    return {
        "opt": {"charge": charge, "summary": summary},
        "summary": summary,
        "description": f"**{price_text(charge)}**",
        "response_description": _DONE_FREE if charge.kind is Kind.FREE else _DONE,
        "responses": responses,
    }


def price_tag(charge: Charge) -> str:
    """The price of a route in a word."""
    match charge.kind:
        case Kind.FREE | Kind.IDENTIFIED:
            return "free"
        case Kind.FEE | Kind.FUNDED:
            return f"${format_usdc(charge.fee_usdc)}"
        case Kind.DEPOSIT:
            return "the amount"


def price_text(charge: Charge) -> str:
    """The price of a route in a sentence."""
    fee = format_usdc(charge.fee_usdc)
    match charge.kind:
        case Kind.FREE:
            return "Free; no identity needed."
        case Kind.IDENTIFIED:
            return "Free for whoever signs; an x402 payment names its wallet too and is credited in full."
        case Kind.FEE:
            return f"${fee} per call, by x402 payment or from the balance."
        case Kind.FUNDED:
            return f"${fee} per call, plus what `fund` adds to the balance."
        case Kind.DEPOSIT:
            return "The amount itself, by x402 payment; all of it becomes balance."
