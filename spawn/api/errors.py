"""The one place where a reason becomes an HTTP status and a body.

Invariant: every `Code` has a status here (a test says so), and no answer ever shows an internal message.
"""

import logging
import re
from typing import Any, Final

import msgspec
from litestar import Request
from litestar.exceptions import HTTPException, ValidationException
from spawn_schemas import refusals
from spawn_schemas.errors import Code, SpawnError

from spawn.api.replies import JSON, Reply

Http = Request[Any, Any, Any]

log = logging.getLogger(__name__)

STATUS: Final[dict[Code, int]] = {
    Code.INVALID_REQUEST: 400,
    Code.INVALID_PAYMENT: 400,
    Code.PAYMENT_REQUIRED: 402,
    Code.SETTLEMENT_FAILED: 402,
    Code.SETTLEMENT_PENDING: 503,
    Code.INVALID_SIGNATURE: 401,
    Code.FORBIDDEN: 403,
    Code.SUSPENDED: 403,
    Code.NOT_FOUND: 404,
    Code.METHOD_NOT_ALLOWED: 405,
    Code.CONFLICT: 409,
    Code.IDEMPOTENCY_CONFLICT: 409,
    Code.IN_PROGRESS: 503,
    Code.INSUFFICIENT_DEPOSIT: 422,
    Code.DEPOSIT_LIMIT: 422,
    Code.REQUEST_TIMEOUT: 408,
    Code.REQUEST_TOO_LARGE: 413,
    Code.UNSUPPORTED_MEDIA_TYPE: 415,
    Code.RATE_LIMITED: 429,
    Code.OUT_OF_CAPACITY: 503,
    Code.HETZNER_UNAVAILABLE: 503,
    Code.PROVIDER_FAILED: 503,
    Code.OVERLOADED: 503,
    Code.INTERNAL: 500,
}
"""A new status is chosen by who must react: the caller's code (4xx) or time (503)."""

_PATTERN: Final = re.compile(r"Expected `str` matching regex '.*?'(?= - at |$)")
_encoder: Final = msgspec.json.Encoder()
_RETRYABLE: Final = frozenset({408, 429, 500, 503})

_OF_STATUS: Final = {
    400: Code.INVALID_REQUEST,
    404: Code.NOT_FOUND,
    405: Code.METHOD_NOT_ALLOWED,
    413: Code.REQUEST_TOO_LARGE,
    415: Code.UNSUPPORTED_MEDIA_TYPE,
}


def refusal(request_id: str, error: SpawnError, *, headers: list[tuple[bytes, bytes]] | None = None) -> Reply:
    """The envelope every refusal comes in."""
    status = STATUS[error.code]
    body = refusals.ErrorAnswer(
        error=refusals.ErrorBody(
            code=error.code.value,
            message=error.message,
            status=status,
            retryable=status in _RETRYABLE,
            retry_after=error.retry_after_s,
            details=error.details,
            next=error.next,
            request_id=request_id,
        )
    )
    all_headers = [JSON, (b"cache-control", b"no-store"), (b"x-request-id", request_id.encode())]
    if error.retry_after_s is not None:
        all_headers.append((b"retry-after", b"%d" % error.retry_after_s))
    return Reply(status, _encoder.encode(body), all_headers + (headers or []))


def defect(request_id: str, error: Exception) -> Reply:
    """A defect of ours: logged in full, shown as nothing but its id."""
    log.error("request %s failed", request_id, exc_info=error)
    return refusal(
        request_id,
        SpawnError(
            Code.INTERNAL,
            "Something broke on our side. Nothing is lost: repeat the request with the same payment or key.",
            next="If it stays, report the request id.",
        ),
    )


def plain(problem: str) -> str:
    """The decoder's words without the regular expression that was not matched."""
    return _PATTERN.sub("does not have the right form", problem)


def _id(request: Http) -> str:
    return str(request.scope["state"]["request_id"])


def on_spawn_error(request: Http, error: SpawnError) -> Reply:
    return refusal(_id(request), error)


def on_validation_error(request: Http, error: ValidationException) -> Reply:
    """The framework's words for a bad body or parameter, in our envelope."""
    problems = [
        {"field": str(item.get("key", "")), "problem": str(item.get("message", ""))}
        for item in (error.extra if isinstance(error.extra, list) else [])
        if isinstance(item, dict)
    ]
    for problem in problems:
        problem["problem"] = plain(problem["problem"])
        problem["field"] = "body" if problem["field"] == "data" else problem["field"]
    sentence = "; ".join(f"{p['field']}: {p['problem']}" if p["field"] else p["problem"] for p in problems)
    return refusal(
        _id(request),
        SpawnError(
            Code.INVALID_REQUEST,
            sentence or error.detail,
            details={"problems": problems} if problems else None,
            next="GET /openapi.json describes every field.",
        ),
    )


def on_http_error(request: Http, error: HTTPException) -> Reply:
    """What the framework refuses by itself: no such route, wrong method, too large, not JSON."""
    code = _OF_STATUS.get(error.status_code)
    if code is None:
        return on_unexpected(request, error)
    messages = {
        Code.NOT_FOUND: f"There is nothing at {request.scope['path']}.",
        Code.METHOD_NOT_ALLOWED: f"{request.method} is not offered at {request.scope['path']}.",
        Code.REQUEST_TOO_LARGE: "The body is larger than this service takes.",
        Code.UNSUPPORTED_MEDIA_TYPE: "Send the body as application/json.",
    }
    allow = error.headers.get("allow") if error.headers else None
    return refusal(
        _id(request),
        SpawnError(
            code,
            messages.get(code, error.detail),
            next="GET / lists what can be called." if code in messages else None,
        ),
        headers=None if allow is None else [(b"allow", allow.encode())],
    )


def on_unexpected(request: Http, error: Exception) -> Reply:
    return defect(_id(request), error)


EXCEPTION_HANDLERS: Final[dict[Any, Any]] = {
    SpawnError: on_spawn_error,
    ValidationException: on_validation_error,
    HTTPException: on_http_error,
    Exception: on_unexpected,
}
