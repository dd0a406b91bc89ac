"""Every answer has the form that is documented: what cannot be done is refused in words that a program can follow.

Invariant: a refusal has a known code under its own status, says whether and when to try again, and names the request;
nothing is answered by a 5xx but "not now", and that says until when.
"""

from typing import Any, Final, NoReturn

from tests.sim.client_types import Answer, Request
from tests.sim.oracle.part import Part

STATUS: Final = {
    "invalid_request": 400,
    "invalid_payment": 400,
    "invalid_signature": 401,
    "payment_required": 402,
    "settlement_failed": 402,
    "forbidden": 403,
    "suspended": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "conflict": 409,
    "idempotency_conflict": 409,
    "request_too_large": 413,
    "unsupported_media_type": 415,
    "insufficient_deposit": 422,
    "deposit_limit": 422,
    "rate_limited": 429,
    "settlement_pending": 503,
    "in_progress": 503,
    "out_of_capacity": 503,
    "hetzner_unavailable": 503,
    "provider_failed": 503,
    "overloaded": 503,
}
"""Every code that may be answered, with its status. There is none for a defect."""
RETRYABLE: Final = frozenset({408, 429, 503})
_ERROR: Final = ("code", "message", "status", "retryable", "retry_after", "details", "next", "request_id")
_CHALLENGE: Final = (
    "x402Version",
    "accepts",
    "error",
    "code",
    "message",
    "status",
    "price",
    "next",
    "request_id",
)


class Forms(Part):
    """Looks at each answer by itself."""

    def answered(self, request: Request, answer: Answer) -> None:
        if request.method != "HEAD":
            self._check_form(request, answer)

    def _check_form(self, request: Request, answer: Answer) -> None:
        """A refusal says what is wrong and what to do, in one of two forms, under a status that fits."""
        if answer.status < 400:
            return
        told = self._json(request, answer)
        if "payment-required" in answer.headers:
            if answer.status != 402 or set(told) != set(_CHALLENGE) or told["status"] != 402:
                self._wrong(f"a challenge of another form: {answer.status} {told}")
            return
        error = told.get("error")
        if not isinstance(error, dict) or set(error) != set(_ERROR):
            self._wrong(f"{request.method} {request.path} is refused in another form: {told}")
        code, status = error["code"], answer.status
        if STATUS.get(code) != status or error["status"] != status:
            self._wrong(f"{request.method} {request.path}: {status} {code}: {error['message']}")
        if error["retryable"] != (status in RETRYABLE) or not error["message"]:
            self._wrong(f"{request.method} {request.path} is refused with {error}")
        after = answer.headers.get("retry-after")
        if (None if after is None else int(after)) != error["retry_after"] or (
            after is None and status in {429, 503}
        ):
            self._wrong(f"{request.method} {request.path}: {code} is to be retried after {after}: {error}")

    def _json(self, request: Request, answer: Answer) -> dict[str, Any]:
        try:
            told: dict[str, Any] = answer.json()
        except ValueError:
            self._wrong(
                f"{request.method} {request.path}: {answer.status} without JSON: {answer.body[:200]!r}"
            )
        return told

    def _wrong(self, text: str) -> NoReturn:
        self.world.violation("answers", text)
