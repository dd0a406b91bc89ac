"""How the API says no: an error has a code, and the code has a status.

The description names codes and leaves their statuses open; `STATUSES` is what has been seen. A client has to go by
the code, and a test may give a code another status to prove it.
"""

from typing import Any, Final

STATUSES: Final[dict[str, int]] = {
    "json_error": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "protected": 403,
    "resource_limit_exceeded": 403,
    "token_readonly": 403,
    "not_found": 404,
    "conflict": 409,
    "uniqueness_error": 409,
    "deprecated_api_endpoint": 410,
    "placement_error": 412,
    "resource_unavailable": 412,
    "invalid_input": 422,
    "invalid_server_type": 422,
    "must_be_unassigned": 422,
    "primary_ip_assigned": 422,
    "primary_ip_datacenter_mismatch": 422,
    "primary_ip_version_mismatch": 422,
    "server_not_stopped": 422,
    "unsupported_error": 422,
    "locked": 423,
    "resource_locked": 423,
    "rate_limit_exceeded": 429,
    "server_error": 500,
    "service_error": 500,
    "bad_gateway": 502,
    "maintenance": 503,
    "unavailable": 503,
    "timeout": 504,
}


class ApiError(Exception):
    """The call is answered with this error, and changed nothing."""

    def __init__(self, code: str, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.details = details


def invalid(field: str, message: str) -> ApiError:
    """A field of the request is wrong."""
    details = {"fields": [{"name": field, "messages": [message]}]}
    return ApiError("invalid_input", f"invalid input in field '{field}': {message}", details)
