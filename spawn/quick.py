"""Answers that go out in one piece, and requests that are answered without the way through ASGI.

uvicorn checks every header with regular expressions and writes head and body apart; for answers whose every byte is
ours that costs more than making them. Invariant: what is written here is what uvicorn would have written; where it
would do more than that (a log line, a client that reads slowly, HEAD), it does it.
"""

import asyncio
from collections.abc import Coroutine
from functools import partial
from itertools import chain
from typing import Any, ClassVar, Protocol, cast

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from spawn.api.replies import AT_ONCE, Reply
from spawn.connections import PIPELINE_MAX, Connection


class Answers(Protocol):
    """Who is asked for an answer before the application is."""

    def answer_now(self, scope: Any, /) -> Reply | None:
        """The answer to a request for which nothing has to be waited."""
        ...

    def answer_soon(self, scope: Any, /) -> Coroutine[Any, Any, Reply] | None:
        """What finds the answer to a request that the application need not see; it never raises."""
        ...


class QuickConnection(Connection):
    """A connection that asks the application for an answer first, and starts a task only where there is none yet."""

    answers: ClassVar[Answers]
    _ready: tuple[RequestResponseCycle, Reply] | None = None
    """An answer that waits for the end of its request."""

    _turns_left = PIPELINE_MAX
    """Requests of one read that are still answered at once: the other connections have their turn after that."""

    def data_received(self, data: bytes) -> None:
        self._turns_left = PIPELINE_MAX
        super().data_received(data)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        reply = self.answers.answer_now(cycle.scope) if self._turns_left else None
        if cycle.waiting_for_100_continue:
            # Whoever asks first whether to send a body may never send it: this answer cannot wait for its end.
            self._start_app(cycle, app)
        elif reply is None:
            soon = self.answers.answer_soon(cycle.scope) if self._turns_left else None
            if soon is None:
                self._start_app(cycle, app)
            else:
                self.tasks.add(self.loop.create_task(self._answer_later(cycle, soon)))
        elif cycle.more_body:
            self._ready = cycle, reply
        else:
            self._turns_left -= 1
            self._answer(cycle, reply)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self._ready is not None:
            cycle, reply = self._ready
            self._ready = None
            self._turns_left -= 1
            self._answer(cycle, reply)

    def _start_app(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        scope: Any = cycle.scope
        scope["extensions"] = {AT_ONCE: partial(self._write_whole, cycle)}
        super()._start_asgi_task(cycle, app)

    async def _answer_later(self, cycle: RequestResponseCycle, answer: Coroutine[Any, Any, Reply]) -> None:
        try:
            self._answer(cycle, await answer)
        finally:
            # Here and not in a callback of the task, which would be one more turn of the loop for each call.
            self.tasks.discard(asyncio.current_task())

    def _answer(self, cycle: RequestResponseCycle, reply: Reply) -> None:
        if not reply.is_whole or not self._write_whole(cycle, reply.status, reply.raw_headers, reply.body):
            super()._start_asgi_task(cycle, cast("ASGI3Application", reply))

    def _write_whole(
        self, cycle: RequestResponseCycle, status: int, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> bool:
        """Write an answer of ours in one piece. False, and nothing written, where uvicorn has more to do than that."""
        if (
            cycle.disconnected
            or self.flow.write_paused
            or cycle.access_log
            or cycle.scope["method"] == "HEAD"
        ):
            return False
        lines = [STATUS_LINE[status]]
        for name, value in chain(cycle.default_headers, headers):
            lines += (name, b": ", value, b"\r\n")
        if not cycle.keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"content-length: %d\r\n\r\n" % len(body))
        lines.append(body)
        cycle.response_started = cycle.response_complete = True
        self.transport.write(b"".join(lines))
        cycle.message_event.set()
        if not cycle.keep_alive and not cycle.more_body:
            self.transport.close()
        cycle.on_response()
        if not cycle.keep_alive and cycle.more_body:
            # The rest of the body is still on its way: closing on it would break the connection before this is read.
            self._go()
        return True


def asking_first(answers: Answers, protocol: type[Connection]) -> type[Connection]:
    """The protocol class `protocol` (from `connections.behind`), asking `answers` before the application."""
    attributes = {"answers": answers, "door": protocol.door}
    return type("QuickConnectionBehindDoor", (QuickConnection,), attributes)
