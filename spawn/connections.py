"""How large, how slow and how many: the bounds of a connection, before a request of it exists.

uvicorn bounds none of these. Invariant: whatever a client sends or leaves out, its connection holds a bounded number
of bytes and one running task, and ends within a bounded time; where somebody can still read it, the answer is our
envelope, in its turn. Nothing that was received is ever logged here.
"""

import asyncio
from enum import Enum, auto
from itertools import chain
from typing import Any, ClassVar, Final

import httptools
from spawn_schemas.errors import Code, SpawnError
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from spawn.api.errors import STATUS, refusal
from spawn.door import Bounds, Door

TARGET_MAX_BYTES: Final = 8192
"""Longest request target; RFC 9112 section 3 asks for at least 8000 octets."""
PIPELINE_MAX: Final = 16
"""Requests that may wait on a connection for the answers before theirs."""
LINE_BYTES: Final = 32
"""What a header line counts beside its name and value (as in RFC 9113 section 6.5.2), so that lines are bounded too."""
LINGER_S: Final = 2.0
"""How long we still read what a refused client sends: closing at once would reset what it has not read yet."""

_CLOSE: Final = b"access-control-allow-origin: *\r\nconnection: close\r\n"
_NEW_CONNECTION: Final = "Use a new connection."


class Phase(Enum):
    """What we wait for from the client."""

    IDLE = auto()
    """A request, or nothing more."""
    HEAD = auto()
    """The rest of a request's head."""
    BODY = auto()
    """The rest of its body."""
    LEAVING = auto()
    """Nothing: what it sends is thrown away."""


_IDLE, _HEAD, _BODY, _LEAVING = Phase
# As names of the module, because looking a member up in its class is slow, and is done several times a request.


Headers = list[tuple[bytes, bytes]]


class _Trailers(Headers):
    """Where uvicorn would add what follows a body to the headers that the application was told."""

    def append(self, _: tuple[bytes, bytes]) -> None:
        raise SpawnError(
            Code.INVALID_REQUEST, "Header lines after the body are not taken.", next="Send them before it."
        )


_NO_MORE: Final = _Trailers()


class Connection(HttpToolsProtocol):
    """uvicorn's connection with bounds. Its own keep-alive timer is not used: `Door` keeps the time."""

    door: ClassVar[Door]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.left_s = self.door.bounds.head_s
        """How long the client may still keep us waiting. `Door` counts it down: reading a clock costs too much."""
        self._phase: Phase = _IDLE
        self._bounds = self.door.bounds
        self._read_bytes = 0
        self._refusal: SpawnError | None = None
        self._overtaken: RequestResponseCycle | None = None
        """The request that is answered, when another came after it."""
        self._stalled = False
        self._gone = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        refused = self.door.admit(self, self.client[0] if self.client else None)
        if refused is None:
            return
        self.connections.discard(self)
        if self.door.may_explain():
            self._say(refused)
        else:
            self._phase = _LEAVING
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.door.leave(self)
        self._stop_answering()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        self._stop_answering()

    def data_received(self, data: bytes) -> None:
        if self._phase is _LEAVING:
            return
        if self._phase is _IDLE:
            self._phase = _HEAD
            self._read_bytes = 0
            self.left_s = self._bounds.head_s
        self._read_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # What follows is in another protocol, or smuggled: it must not be read as the next request.
            self._phase = _LEAVING
        except httptools.HttpParserError as error:
            # A refusal of ours reaches us through the parser, as the context of its own error.
            ours = error.__context__
            self._refuse(ours if isinstance(ours, SpawnError) else _not_http())
        else:
            if self._phase is not _IDLE:
                self._check_size()

    def _check_size(self) -> None:
        if self._phase is _HEAD and self._read_bytes > self._bounds.head_max_bytes:
            self._refuse(_head_too_large(self._bounds))
        elif self._phase is _BODY and self._read_bytes > self._bounds.raw_body_max_bytes:
            self._refuse(_body_too_large(self._bounds))

    def on_headers_complete(self) -> None:
        if _size(self.headers) > self._bounds.head_max_bytes:
            raise _head_too_large(self._bounds)
        if len(self.url) > TARGET_MAX_BYTES:
            raise _target_too_long()
        if len(self.pipeline) >= PIPELINE_MAX:
            raise _too_many_waiting()
        upgrading = self.parser.should_upgrade()
        if upgrading and any(name in {b"content-length", b"transfer-encoding"} for name, _ in self.headers):
            # The parser does not frame such a body: it would be read as the next request.
            raise _upgrade_with_body()
        earlier = self.cycle
        super().on_headers_complete()
        if len(self.pipeline) == 1:
            self._overtaken = earlier
        self.headers = _NO_MORE
        if upgrading:
            self.cycle.keep_alive = False
        self._phase = _BODY
        self._read_bytes = 0
        self.left_s = self._bounds.body_s

    def _stop_answering(self) -> None:
        """Tell the application that nobody listens any more; uvicorn tells only the request that came last."""
        for cycle in (self._overtaken, self.cycle):
            if cycle is not None:
                cycle.disconnected = True
                cycle.message_event.set()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._phase = _IDLE

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self.left_s = self._bounds.answer_s
            return
        if self._phase is not _BODY and not self._stalled:
            wait_s = self._bounds.head_s if self._phase is _HEAD else self._bounds.idle_s
            self.left_s = wait_s
        self.flow.resume_reading()
        if self.pipeline:
            self._overtaken, app = self.pipeline.pop()
            self._start_asgi_task(self._overtaken, app)
        elif self._refusal is not None:
            self._say(self._refusal)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = True
        self.left_s = self._bounds.answer_s

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stalled = False

    def expire(self) -> None:
        """Time is up: end what the client keeps us waiting for. While it waits for us, look again later."""
        if self._stalled or self._gone or self.transport.is_closing():
            self.transport.abort()
        elif self.flow.read_paused if self._phase is _BODY else self._answering:
            self.left_s = self._bounds.answer_s
        elif self._phase is _IDLE:
            self.left_s = LINGER_S
            self.transport.close()
        else:
            self._refuse(_too_slow(self._phase))

    @property
    def _answering(self) -> bool:
        """Whether a request that came in whole is without its answer."""
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, error: SpawnError) -> None:
        """Answer what is being received with an error, after the answers that are due before it, and read no more."""
        unfinished = self._phase is _BODY
        self._phase = _LEAVING
        if unfinished and self.pipeline:
            self.pipeline.popleft()
            self._refusal = error
        elif not unfinished and self._answering:
            self._refusal = error
        elif unfinished and self.cycle.response_started:
            self._go()
        else:
            if unfinished:
                self._stop_answering()
            self._say(error)

    def _say(self, error: SpawnError) -> None:
        """Write the error and go."""
        reply = refusal(self.door.new_request_id(), error)
        headers = [*self.server_state.default_headers, *reply.raw_headers]
        head = [STATUS_LINE[STATUS[error.code]], *(b"%b: %b\r\n" % header for header in headers), _CLOSE]
        self.transport.write(
            b"%bcontent-length: %d\r\n\r\n%b" % (b"".join(head), len(reply.body), reply.body)
        )
        self._go()

    def _go(self) -> None:
        """Say that no more comes from us, and wait a little for the client to see it."""
        self._phase = _LEAVING
        self._gone = True
        self.left_s = LINGER_S
        self.flow.resume_reading()
        self.transport.write_eof()


def _size(headers: Headers) -> int:
    return len(b"".join(chain.from_iterable(headers))) + LINE_BYTES * len(headers)


def behind(door: Door) -> type[Connection]:
    """The protocol class for `uvicorn.Config(http=...)` whose connections come through this door."""
    return type("ConnectionBehindDoor", (Connection,), {"door": door})


def _not_http() -> SpawnError:
    return SpawnError(
        Code.INVALID_REQUEST,
        "This is not a well-formed HTTP/1.1 request.",
        next="Send it with an HTTP library. TLS ends in front of this service.",
    )


def _head_too_large(bounds: Bounds) -> SpawnError:
    return SpawnError(
        Code.REQUEST_TOO_LARGE,
        f"The head of a request has at most {bounds.head_max_bytes} bytes, {LINE_BYTES} for each line included.",
        details={"limit_bytes": bounds.head_max_bytes},
        next="Send fewer and shorter headers.",
    )


def _body_too_large(bounds: Bounds) -> SpawnError:
    return SpawnError(
        Code.REQUEST_TOO_LARGE,
        "The body is larger than this service takes.",
        details={"limit_bytes": bounds.body_max_bytes},
        next="Send less.",
    )


def _target_too_long() -> SpawnError:
    return SpawnError(
        Code.REQUEST_TOO_LARGE,
        f"A path with its query has at most {TARGET_MAX_BYTES} bytes.",
        details={"limit_bytes": TARGET_MAX_BYTES},
        next="GET / lists what can be called.",
    )


def _upgrade_with_body() -> SpawnError:
    return SpawnError(
        Code.INVALID_REQUEST, "Only HTTP/1.1 is spoken here.", next="Send the request without `Upgrade`."
    )


def _too_many_waiting() -> SpawnError:
    return SpawnError(
        Code.RATE_LIMITED,
        f"At most {PIPELINE_MAX} requests may wait on a connection.",
        next=f"Read the answers first. {_NEW_CONNECTION}",
        retry_after_s=1,
    )


def _too_slow(phase: Phase) -> SpawnError:
    part = "head" if phase is _HEAD else "body"
    return SpawnError(
        Code.REQUEST_TIMEOUT, f"The {part} of the request did not arrive in time.", next=_NEW_CONNECTION
    )
