"""The emulated Hetzner Cloud as an ASGI application, and the hands of the test that owns it.

Invariant: each answer that a handler gave is held against the description before anybody sees it; one that does not
match is never sent, and stays in `violations`.
"""

import asyncio
import json
import threading
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec

from tests.emulators.hetzner import resources, server_actions, servers
from tests.emulators.hetzner.calls import Answer, Call, Handler, Json
from tests.emulators.hetzner.description import DescriptionViolated, Operation, patched
from tests.emulators.hetzner.errors import STATUSES, ApiError, invalid
from tests.emulators.hetzner.faults import (
    ActionFails,
    ActionSticks,
    Drained,
    Fault,
    Faults,
    Gateway,
    LostAnswer,
    LostRequest,
    Refuse,
    Slow,
    StaleList,
    Truncated,
    Vanish,
)
from tests.emulators.hetzner.limits import Bucket
from tests.emulators.hetzner.world import Flaw, World

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

TOKEN: Final = "emulated-read-and-write-" + "x" * 40
READ_ONLY_TOKEN: Final = "emulated-read-only-" + "x" * 45
HANG_UP: Final = "hang_up"
"""Where a server says how the connection of a call is closed: a key of its scope."""
_BASE: Final = "/v1"
_HTML: Final = b"<html><head><title>Bad gateway</title></head><body>nginx</body></html>"
_ROUTES: Final[dict[str, Handler]] = {**servers.ROUTES, **server_actions.ROUTES, **resources.ROUTES}
_LOG_LENGTH: Final = 100_000


class ConnectionLost(Exception):
    """The call gets no answer: what a client in this process sees of a closed connection."""


class Entry(msgspec.Struct, kw_only=True):
    """One call as it came in. `status` and `code` are what it was answered, None as long as, or if, it was not."""

    at_ms: int
    operation: str
    method: str
    path: str
    query: list[tuple[str, str]]
    body: Json
    status: int | None = None
    code: str | None = None
    fault: Fault | None = None

    @property
    def labels(self) -> dict[str, str]:
        labels: dict[str, str] = self.body.get("labels", {})
        return labels


class _Request(msgspec.Struct, kw_only=True):
    method: str
    path: str
    query: list[tuple[str, str]]
    token: str
    body: bytes


class Emulator:
    """One project. `lock` is held while anything changes: a test in another thread takes it before it reaches in."""

    def __init__(
        self, now_ms: Callable[[], int], *, seed: int = 0, statuses: dict[str, int] | None = None
    ) -> None:
        self.world = World(now_ms, seed=seed)
        self.faults = Faults(seed=seed)
        self.bucket = Bucket(now_ms)
        self.description = patched()
        self.lock = threading.RLock()
        self.log: deque[Entry] = deque(maxlen=_LOG_LENGTH)
        self.violations: list[str] = []
        self.may_write = {TOKEN: True, READ_ONLY_TOKEN: False}
        """The project's tokens."""
        self.stale_ms = 0
        """How old every list of servers is."""
        self.totals = True
        """Whether pages say how many there are; if not, it is null."""
        self._statuses = STATUSES | (statuses or {})

    def calls(self, operation: str) -> list[Entry]:
        """The calls of one operation, in order."""
        return [entry for entry in self.log if entry.operation == operation]

    def vanish(self, server_id: int) -> None:
        """A server is gone, and nobody deleted it."""
        with self.lock:
            self.world.catch_up()
            self.world.remove(self.world.server(server_id))

    def unstick(self) -> None:
        """Actions that get nowhere fail now."""
        with self.lock:
            self.world.catch_up()
            self.world.unstick()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "serve it without lifespan"
        request = await _read(scope, receive)
        with self.lock:
            self.world.catch_up()
            entry, operation, ids = self._arrived(request)
            refusal = self._refusal(request)
            if refusal is None and operation is not None:
                entry.fault = self.faults.draw(operation.name)
        fault = entry.fault
        if isinstance(fault, LostRequest):
            await _hang_up(scope, receive)
            return
        if isinstance(fault, Slow) and fault.late:
            await asyncio.sleep(fault.seconds)
        with self.lock:
            self.world.catch_up()
            answer = self._answer(request, entry, operation, ids, refusal)
            headers = self.bucket.headers()
        if isinstance(fault, LostAnswer):
            await _hang_up(scope, receive)
            return
        if isinstance(fault, Slow) and not fault.late:
            await asyncio.sleep(fault.seconds)
        status, type_, body = _encoded(answer, fault)
        entry.status = status
        entry.code = (answer.body or {}).get("error", {}).get("code")
        await _send(send, status, type_, body, headers)

    def _arrived(self, request: _Request) -> tuple[Entry, Operation | None, dict[str, str]]:
        path = request.path.removeprefix(_BASE)
        described = self.description.find(request.method, path) if path != request.path else None
        operation, ids = described or (None, {})
        try:
            body = json.loads(request.body or b"{}")
        except ValueError:
            body = {}
        entry = Entry(
            at_ms=self.world.at_ms,
            operation=operation.name if operation else f"{request.method} {path}",
            method=request.method,
            path=path,
            query=request.query,
            body=body if isinstance(body, dict) else {},
        )
        self.log.append(entry)
        return entry, operation, ids

    def _refusal(self, request: _Request) -> ApiError | None:
        """Why this caller may not call now, whatever is asked."""
        if request.token not in self.may_write:
            return ApiError("unauthorized", "the token is unknown")
        if not self.bucket.take():
            return _too_many(request)
        if request.method != "GET" and not self.may_write[request.token]:
            return ApiError("token_readonly", "the token may only read")
        return None

    def _answer(
        self,
        request: _Request,
        entry: Entry,
        operation: Operation | None,
        ids: dict[str, str],
        refusal: ApiError | None,
    ) -> Answer:
        try:
            if refusal is not None:
                raise refusal
            if operation is None:
                raise ApiError("not_found", f"there is no {entry.operation}")
            answer = self._handled(request, operation, ids, entry.fault)
        except ApiError as error:
            answer = self._error(error)
        except Exception as error:
            self.violations.append(f"{entry.operation}: {error!r}")
            raise
        if operation is not None:
            self._check(operation, answer)
        return answer

    def _error(self, error: ApiError) -> Answer:
        told = {"code": error.code, "message": error.message, "details": error.details}
        return Answer(self._statuses[error.code], {"error": told})

    def _check(self, operation: Operation, answer: Answer) -> None:
        try:
            operation.check_answer(answer.status, answer.body)
        except DescriptionViolated as violation:
            self.violations.append(str(violation))
            raise

    def _handled(
        self, request: _Request, operation: Operation, ids: dict[str, str], fault: Fault | None
    ) -> Answer:
        match fault:
            case Drained(left=left):
                self.bucket.drain(left=left)
                raise _too_many(request)
            case Refuse(code=code, after_effect=False):
                raise ApiError(code, "the emulator was told to refuse this")
            case Gateway(after_effect=False):
                raise ApiError("bad_gateway", "the call did not come through")
            case ActionFails(code=code, message=message):
                self.world.flaw = Flaw(error=(code, message))
            case ActionSticks(seconds=seconds):
                self.world.flaw = Flaw(error=None, stuck_s=seconds)
            case _:
                pass
        try:
            answer = self._call(request, operation, ids, fault)
        finally:
            self.world.flaw = None
        match fault:
            case Vanish():
                self.vanish(_server_of(answer, ids))
            case Refuse(code=code):
                raise ApiError(code, "the emulator was told to refuse this, too late")
            case Gateway():
                raise ApiError("bad_gateway", "the answer did not come back")
            case _:
                pass
        return answer

    def _call(
        self, request: _Request, operation: Operation, ids: dict[str, str], fault: Fault | None
    ) -> Answer:
        if operation.name not in _ROUTES:
            raise DescriptionViolated(f"{operation.name} is described and not emulated")
        _check_query(operation, request.query)
        call = Call(
            world=self.world,
            ids=ids,
            query=request.query,
            body=_check_body(operation, request.body),
            stale_ms=fault.seconds * 1_000 if isinstance(fault, StaleList) else self.stale_ms,
            totals=self.totals,
        )
        return _ROUTES[operation.name](call)


def _too_many(request: _Request) -> ApiError:
    # The real one tells the beginning of the token too: a reason to redact what is passed on.
    shown = request.token[:8]
    return ApiError("rate_limit_exceeded", f"limit of calls per hour reached for token '{shown}…'")


def _server_of(answer: Answer, ids: dict[str, str]) -> int:
    return int(ids["id"]) if "id" in ids else (answer.body or {})["server"]["id"]


def _check_query(operation: Operation, query: list[tuple[str, str]]) -> None:
    """Raise `invalid_input` for a parameter that is missing, or has a value that it cannot have."""
    given = {name for name, _ in query}
    for name, parameter in operation.query.items():
        schema = parameter["schema"].get("items", parameter["schema"])
        if parameter["required"] and name not in given:
            raise invalid(name, "is required")
        for value in (part for key, text in query if key == name for part in text.split(",")):
            if "enum" in schema and value not in schema["enum"]:
                raise invalid(name, f"'{value}' is none of {', '.join(schema['enum'])}")
            if schema.get("type") == "integer" and not value.isdecimal():
                raise invalid(name, f"'{value}' is not a number")


def _check_body(operation: Operation, raw: bytes) -> Json:
    """The body, if the description allows it; raises `json_error` or `invalid_input`."""
    try:
        body = json.loads(raw or b"{}")
    except ValueError as error:
        raise ApiError("json_error", "the body is not JSON") from error
    if operation.request is None:
        return {}
    for fault in operation.request.iter_errors(body):
        raise invalid(".".join(str(part) for part in fault.instance_path), fault.message)
    checked: Json = body
    return checked


async def _read(scope: Scope, receive: Receive) -> _Request:
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    headers = dict(scope["headers"])
    return _Request(
        method=scope["method"],
        path=scope["path"],
        query=parse_qsl(scope["query_string"].decode(), keep_blank_values=True),
        token=headers.get(b"authorization", b"").decode("latin-1").removeprefix("Bearer "),
        body=body,
    )


async def _hang_up(scope: Scope, receive: Receive) -> None:
    """Close the connection, and let the server see that before it could answer for us."""
    if HANG_UP not in scope:
        raise ConnectionLost
    scope[HANG_UP]()
    while (await receive())["type"] != "http.disconnect":
        pass


def _encoded(answer: Answer, fault: Fault | None) -> tuple[int, bytes, bytes]:
    """Status, type and body, broken as the fault has it."""
    if isinstance(fault, Gateway):
        return fault.status, b"text/html", _HTML
    body = b"" if answer.body is None else json.dumps(answer.body).encode()
    if isinstance(fault, Truncated):
        body = body[: len(body) // 2]
    return answer.status, b"application/json", body


async def _send(send: Send, status: int, type_: bytes, body: bytes, limits: list[tuple[str, str]]) -> None:
    headers = [(name.lower().encode(), value.encode()) for name, value in limits]
    if status != 204:
        headers += [(b"content-type", type_), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
