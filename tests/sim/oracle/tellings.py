"""What answers tell, and to whom: nobody hears of another's things, and a secret is told once.

Invariant: a good answer on a route that has a price goes to a wallet that proved to be who it is, by our own reading
of its proof; and nothing in it is another wallet's. A refusal repeats at most what the request itself named.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, Final, NoReturn

from tests.sim.client_types import Answer, Request
from tests.sim.oracle.callers import Callers, from_base64
from tests.sim.oracle.ownership import NOBODY, Owners

_THING: Final = re.compile(rb"(?:srv|act|sk|wh)_[a-z2-7]{26}")
_ADDRESS: Final = re.compile(rb"0x[0-9a-fA-F]{40}(?![0-9a-fA-F])")
_TOKEN: Final = re.compile(rb"spawn_session_[A-Za-z0-9_-]+")
_ONCE: Final = re.compile(rb'"root_password":"[^"]+"|whsec_[A-Za-z0-9+/=]+|spawn_session_[A-Za-z0-9_-]+')
"""What is handed out once and is in no stored answer."""
_OPEN: Final = ("/v1/catalog", "/v1/actions/", "/v1/boots/")
"""Routes below /v1/ that ask nobody who they are; an action's id, and a boot's token, is itself the right."""


class Tellings:
    """Judges every answer."""

    def __init__(self, owners: Owners, callers: Callers, broken: Callable[[str], NoReturn]) -> None:
        self._owners = owners
        self._broken = broken
        self._callers = callers
        self._told: dict[bytes, None] = {}

    def forget(self) -> None:
        """The books were taken back to before some secret was told: it may be told again."""
        self._told.clear()

    def judge(self, request: Request, answer: Answer) -> None:
        """Raises a violation for an answer that tells somebody what is not theirs."""
        if not request.path.startswith("/v1/") or request.path.startswith(_OPEN):
            return
        is_good = answer.status < 300
        found = list(self._others(answer.body, is_good, request))
        if not is_good and not found:
            return
        caller = self._callers.who(request)
        if is_good and caller is None:
            self._broken(f"{_line(request, answer)} to a caller who proved nothing: {dict(request.headers)}")
        for thing, owner in found:
            if owner != caller:
                self._broken(f"{_line(request, answer)} told {caller or NOBODY} of {thing}, of {owner}")
        if is_good and caller is not None:
            self._good(request, answer, caller)

    def _good(self, request: Request, answer: Answer, caller: str) -> None:
        for secret in _ONCE.findall(answer.body):
            if secret in self._told:
                self._broken(f"{_line(request, answer)} told {secret!r}, which was told before")
            self._told[secret] = None
        for token in _TOKEN.findall(answer.body):
            self._callers.tokens[token.decode()] = caller
        if request.path == "/v1/events":
            self._events(request, answer, caller, (event["id"] for event in answer.json()["events"]))
        elif request.path.endswith("/deliveries"):
            self._events(request, answer, caller, (sent["event"] for sent in answer.json()["deliveries"]))

    def _events(self, request: Request, answer: Answer, caller: str, told: Iterator[Any]) -> None:
        for event in told:
            owner = self._owners.of(event)
            if owner != caller:
                self._broken(f"{_line(request, answer)} told {caller} of {event}, of {owner or NOBODY}")

    def _others(self, body: bytes, is_good: bool, request: Request) -> Iterator[tuple[str, str]]:
        """Everything in the body that is somebody's, with whose; of a refusal, what the request did not name."""
        named = b"" if is_good else said(request)
        for text in dict.fromkeys(_THING.findall(body)):
            thing = text.decode()
            if text.lower() not in named and (owner := self._owners.of(thing)):
                yield thing, owner
        for text in dict.fromkeys(_ADDRESS.findall(body)):
            address = text.decode().lower()
            if text.lower() not in named and address in self._owners.wallets:
                yield address, address


def said(request: Request) -> bytes:
    """All that the request itself says, its proofs opened, in lower case."""
    parts = [f"{request.path}?{request.query}".encode(), request.body]
    for text in request.headers.values():
        parts += [text.encode("latin-1"), from_base64(text)]
    return b"\n".join(parts).lower()


def _line(request: Request, answer: Answer) -> str:
    return f"{answer.status} to {request.method} {request.path}"
