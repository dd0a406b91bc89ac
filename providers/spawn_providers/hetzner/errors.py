"""What Hetzner's errors mean for us, by their code and never by their status; and what must not be repeated of them.

One is told by its words, because its code is that of every mistake: a type that its location does not have any more.

Invariant: pure. An answer that does not plainly say that nothing was changed is unknown where something was to be
changed; no message carries the token or the beginning of it.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from spawn_providers.base import OutcomeUnknown, ProviderError, Refused, RefusedCode, Unavailable

RATE_LIMITED: Final = "rate_limit_exceeded"
UNIQUENESS: Final = "uniqueness_error"
PROTECTED: Final = "protected"
CONFLICT: Final = "conflict"
"""Something else changed it meanwhile: ask again."""

_NOT_HERE: Final = ("invalid_input", "unsupported location for server type")
_REFUSED: Final[Mapping[str, RefusedCode]] = {
    "invalid_input": RefusedCode.INVALID,
    "json_error": RefusedCode.INVALID,
    "unsupported_error": RefusedCode.INVALID,
    "invalid_server_type": RefusedCode.INVALID,
    "not_found": RefusedCode.NOT_FOUND,
    UNIQUENESS: RefusedCode.CONFLICT,
    CONFLICT: RefusedCode.CONFLICT,
    "locked": RefusedCode.CONFLICT,
    "resource_locked": RefusedCode.CONFLICT,
    PROTECTED: RefusedCode.CONFLICT,
    "server_not_stopped": RefusedCode.CONFLICT,
    "primary_ip_assigned": RefusedCode.CONFLICT,
    "resource_unavailable": RefusedCode.OUT_OF_CAPACITY,
    "placement_error": RefusedCode.OUT_OF_CAPACITY,
    "resource_limit_exceeded": RefusedCode.QUOTA,
}
_NOT_TAKEN: Final[Mapping[str, int]] = {
    RATE_LIMITED: 1,
    "maintenance": 60,
    "deprecated_api_endpoint": 300,
}
"""Errors that are no answer to the order, and leave everything as it was; with the seconds after which to try again."""
TOKEN_CODES: Final = frozenset({"unauthorized", "forbidden", "token_readonly"})
"""Errors that only another token ends; nothing was changed either."""
_TOKEN_S: Final = 60
_REDACTED_MIN: Final = 4
"""So many of the token's first characters, and it is taken for the token."""


class Denied(Refused):
    """A refusal that remembers Hetzner's own word for it, where ours does not tell enough apart."""

    def __init__(self, reason: str, message: str) -> None:
        code, words = _NOT_HERE
        not_here = reason == code and words in message.lower()
        super().__init__(RefusedCode.OUT_OF_CAPACITY if not_here else _REFUSED[reason], message)
        self.reason = reason


class TokenRefused(Unavailable):
    """No outage: it stays so until somebody sets another token."""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Why there is no answer. `code` is Hetzner's; a number if the body was not theirs, None if nothing came back.

    `sent` is whether the request may have reached them.
    """

    code: str | int | None
    message: str
    sent: bool = True


def redacted(text: str, token: str) -> str:
    """`text` without the token, and without its beginning where at least four characters of it appear."""
    if len(token) < _REDACTED_MIN:
        return text.replace(token, "[token]") if token else text
    head, parts, at = token[:_REDACTED_MIN], [], 0
    while (found := text.find(head, at)) >= 0:
        end = found + _REDACTED_MIN
        while end < len(text) and text[found : end + 1] == token[: end + 1 - found]:
            end += 1
        parts += [text[at:found], "[token]"]
        at = end
    return "".join(parts) + text[at:]


def error_of(problem: Problem, *, changes: bool) -> ProviderError:
    """The problem as the caller of a provider knows it; `changes` is whether the call was to change anything."""
    code = problem.code
    if isinstance(code, str) and code in _REFUSED:
        return Denied(code, f"Hetzner refuses: {problem.message}")
    if isinstance(code, str) and code in _NOT_TAKEN:
        said = f"Hetzner does not take the call ({code}): {problem.message}"
        return Unavailable(said, retry_after_s=_NOT_TAKEN[code])
    if code in TOKEN_CODES:
        said = f"Hetzner does not take the call ({code}): {problem.message}"
        return TokenRefused(said, retry_after_s=_TOKEN_S)
    if not problem.sent:
        return Unavailable(f"Hetzner cannot be reached: {problem.message}")
    if changes:
        return OutcomeUnknown(f"Hetzner did not say what became of the call: {problem.message}")
    return Unavailable(f"Hetzner does not answer: {problem.message}")


def op_error(code: str) -> RefusedCode:
    """Our word for why an action failed. Never `not_found`, which says that nobody knows the op."""
    known = _REFUSED.get(code, RefusedCode.CONFLICT)
    return RefusedCode.CONFLICT if known is RefusedCode.NOT_FOUND else known
