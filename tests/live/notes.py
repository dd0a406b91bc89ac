"""What was assumed of the real thing, and what it did.

Invariant: nothing is taken for granted: each answer is held against the public description, each error against the
status that we have seen with its code, and what differs is told once, in the words of what was assumed.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import requests

from tests.emulators.hetzner.description import DescriptionViolated, patched
from tests.emulators.hetzner.errors import STATUSES

_LIMITS = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")


@dataclass
class Notes:
    """`different` is what did not come as assumed, in the order of its finding; `answers` how many were heard."""

    assumed: int = 0
    answers: int = 0
    different: list[str] = field(default_factory=list)

    def check(self, assumption: str, holds: bool, found: object) -> None:
        """Hold one assumption against what was found, and say how it came out."""
        self.assumed += 1
        if holds:
            print(f"  as assumed  {assumption}")
        else:
            self._differs(f"{assumption}: found {found}")

    def heard(self, method: str, path: str, response: requests.Response) -> None:
        """An answer, as it came."""
        self.answers += 1
        operation = f"{method} {path}"
        missing = [name for name in _LIMITS if name not in response.headers]
        if missing:
            self._differs(
                f"each answer says what is left of the limit: {operation} lacks {', '.join(missing)}"
            )
        body = _json(response)
        error = body.get("error") if isinstance(body, dict) and response.status_code >= 400 else None
        if isinstance(error, dict):
            self._heard_error(str(error.get("code")), response.status_code)
        described = patched().find(method, path)
        if described is None:
            self._differs(f"what we call is described: {operation} is not")
            return
        try:
            described[0].check_answer(response.status_code, body)
        except DescriptionViolated as violation:
            self._differs(f"an answer is as described: {violation}")

    def _heard_error(self, code: str, status: int) -> None:
        if STATUSES.get(code) != status:
            self._differs(
                f"error {code} has status {STATUSES.get(code, 'none that we know')}: found {status}"
            )

    def _differs(self, text: str) -> None:
        if text not in self.different:
            self.different.append(text)
            print(f"  DIFFERENT   {text}")


@contextmanager
def listening(notes: Notes, endpoint: str) -> Iterator[None]:
    """While it lasts, every answer that comes from `endpoint` by `requests` is noted."""
    base, lock, send = urlsplit(endpoint).path.rstrip("/"), threading.Lock(), requests.Session.send

    def noting(session: requests.Session, request: requests.PreparedRequest, **how: Any) -> requests.Response:
        response = send(session, request, **how)
        path = urlsplit(request.url or "").path.removeprefix(base)
        with lock:
            notes.heard(request.method or "", path, response)
        return response

    # hcloud opens its sessions where we cannot reach them.
    with patch.object(requests.Session, "send", noting):
        yield


def _json(response: requests.Response) -> Any:
    if not response.content:
        return None
    try:
        return response.json()
    except requests.exceptions.JSONDecodeError:
        return None
