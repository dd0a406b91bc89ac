"""One HTTP request and its answer, as they cross the border between an agent and the service."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Request:
    """`path` as it is on the wire, with escapes; headers in any case."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    address: str = "203.0.113.7"


@dataclass(frozen=True)
class Answer:
    """Header names are in lower case. `asked_ms` is when the request was sent, by true time."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    asked_ms: int = 0

    def json(self) -> Any:
        return json.loads(self.body)


class ConnectionLost(Exception):
    """Nobody answers: the process is down, or died, or the network lost something. Nobody knows what was done."""
