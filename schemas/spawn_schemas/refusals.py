"""What a caller is told instead of an answer: one envelope for every error, and the body of a 402.

Invariant: `code` is a word that never changes, and `next` says what to do.
"""

from typing import Any

import msgspec

from spawn_schemas.money import UsdcText
from spawn_schemas.x402_v1 import PaymentRequirementsV1


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """Why a call was refused. `next` says what to do; `retryable` whether the same call may work later."""

    code: str
    message: str
    status: int
    retryable: bool
    retry_after: int | None
    details: dict[str, Any] | None
    next: str | None
    request_id: str


class ErrorAnswer(msgspec.Struct, frozen=True, kw_only=True):
    error: ErrorBody


class PaymentRequiredBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a 402. `x402Version`, `accepts` and `error` are an x402 version 1 challenge, in its own words;
    the terms of version 2 are in the `PAYMENT-REQUIRED` header. `code` is ours and says more than `error` can.
    """

    x402Version: int  # noqa: N815 - the protocol's own name
    accepts: tuple[PaymentRequirementsV1, ...]
    error: str
    code: str
    message: str
    status: int
    price: UsdcText
    next: str
    request_id: str
