"""What can go wrong, in the caller's words: one class, one code per reason, no HTTP.

`message` is public and says what to do next; the door that answers maps `code` to a status.
"""

from enum import Enum
from typing import Any


class Code(str, Enum):
    """Every reason a caller can be refused; `spawn.api.errors` gives each its HTTP status."""

    INVALID_REQUEST = "invalid_request"
    INVALID_PAYMENT = "invalid_payment"
    PAYMENT_REQUIRED = "payment_required"
    SETTLEMENT_FAILED = "settlement_failed"
    SETTLEMENT_PENDING = "settlement_pending"
    INVALID_SIGNATURE = "invalid_signature"
    FORBIDDEN = "forbidden"
    SUSPENDED = "suspended"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    CONFLICT = "conflict"
    IDEMPOTENCY_CONFLICT = "idempotency_conflict"
    IN_PROGRESS = "in_progress"
    INSUFFICIENT_DEPOSIT = "insufficient_deposit"
    REQUEST_TIMEOUT = "request_timeout"
    REQUEST_TOO_LARGE = "request_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    RATE_LIMITED = "rate_limited"
    OUT_OF_CAPACITY = "out_of_capacity"
    HETZNER_UNAVAILABLE = "hetzner_unavailable"
    PROVIDER_FAILED = "provider_failed"
    DEPOSIT_LIMIT = "deposit_limit"
    OVERLOADED = "overloaded"
    INTERNAL = "internal"


class SpawnError(Exception):
    """A refusal with a public message. `details` is public and JSON-able; the cause, if any, is chained.

    `next` says what to do about it; None only where whoever answers knows that better.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        details: dict[str, Any] | None = None,
        next: str | None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details
        self.next = next
        self.retry_after_s = retry_after_s
