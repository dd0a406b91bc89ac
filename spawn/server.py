"""Runs the built app under uvicorn: one process, one event loop. `supervisor` runs several of them."""

import asyncio
import errno
import gc
import logging
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final, NoReturn

import uvicorn
import uvloop
from msgspec.structs import replace

from spawn import logs
from spawn.api.front import new_request_id
from spawn.app import Service, build
from spawn.clock import SystemClock
from spawn.connections import behind
from spawn.door import Bounds, Door, bounds_of, in_front
from spawn.fast_forward import AheadClock, obey
from spawn.parts import Parts, open_parts
from spawn.quick import Answers, asking_first
from spawn.services.economics import warn_of_loss
from spawn.settings import Settings
from spawn.supervisor import UP

log = logging.getLogger(__name__)

_YOUNG_OBJECTS: Final = 5_000
"""Objects made before the collector looks through them: a few calls' worth."""
BACKLOG: Final = 2048
"""Connections that may wait to be accepted."""
OTHER_FILES: Final = 256
"""Descriptors kept for all that is not a connection: databases, providers, logs."""


class CannotListen(Exception):
    """The address is taken or not ours; the message says what to do."""


def serve(
    settings: Settings,
    listener: socket.socket,
    *,
    log_requests: bool = False,
    fast_forward: bool = False,
    line: socket.socket | None = None,
) -> None:
    """Serve on what `listen` gave until told to stop. Raises whatever `open_parts` refuses with.

    With `fast_forward`, durations on standard input let the time of the books pass: for development. `line` leads to
    the supervisor, whose end is ours.
    """
    logs.start(sys.stderr)
    signal.signal(signal.SIGTERM, _terminated)
    ahead = AheadClock() if fast_forward else None
    try:
        uvloop.run(_serve(settings, listener, log_requests, ahead, line))
    except KeyboardInterrupt:
        return
    finally:
        listener.close()


def _terminated(*_: object) -> NoReturn:
    """End in order. Uvicorn drains on the signal, then raises it again: by default that kills us before we close."""
    raise SystemExit(0)


def listen(settings: Settings) -> socket.socket:
    """Take the port before anything is opened, so that a clash is one sentence and not half a start.

    Who calls from now on waits until the service is up. Raises CannotListen.
    """
    host, port = settings.listen_address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        taken = error.errno == errno.EADDRINUSE
        why = "in use by another process" if taken else f"not ours to listen on ({error.strerror})"
        raise CannotListen(
            f"{settings.listen} is {why}: choose another address with --listen or SPAWN_LISTEN."
        ) from error
    listener.set_inheritable(True)
    return listener


def _within_open_files(bounds: Bounds) -> Bounds:
    """Raise this process's limit of open files for the connections; take fewer where that is not allowed.

    Out of descriptors, the database and the providers would fail with the connections.
    """
    wanted = bounds.open_max + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return bounds
    possible = max(soft - OTHER_FILES, soft // 2)
    log.warning(
        "this process may open %d files: it takes %d connections, not the %d of SPAWN_CONNECTIONS_MAX",
        soft,
        possible,
        bounds.open_max,
    )
    return replace(bounds, open_max=possible)


def configured(
    app: Any,
    answers: Answers,
    settings: Settings,
    new_request_id: Callable[[], str],
    *,
    log_requests: bool,
) -> uvicorn.Config:
    """How uvicorn is to run the app: everything said, so that no variable of the environment decides it."""
    bounds = _within_open_files(bounds_of(settings))
    door = Door(bounds, exempt=in_front(settings.trusted_networks), new_request_id=new_request_id)
    return uvicorn.Config(
        app,
        loop="none",
        http=asking_first(answers, behind(door)),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=log_requests,
        server_header=False,
        date_header=True,
        workers=1,
        proxy_headers=False,
        timeout_graceful_shutdown=10,
        backlog=BACKLOG,
    )


def _spare_the_collector() -> None:
    """What was built at start lives as long as we do: the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS)


async def _let_go(parts: Parts, service: Service) -> None:
    """Whoever follows events is let go, and whoever waits for the chain is told that it is unclear, with the
    transaction where it is ours.
    """
    service.services.streams.watch.stop()
    if parts.rail.relayer is not None:
        await parts.rail.relayer.stop()
    service.paid_calls.stop_waiting()


class _Server(uvicorn.Server):
    """Lets go of who waits for the chain before it waits for calls to end, which it does not do for long."""

    def __init__(
        self, config: uvicorn.Config, let_go: Callable[[], Awaitable[None]], line: socket.socket | None
    ) -> None:
        super().__init__(config)
        self._let_go = let_go
        self._line = line

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._line is not None and self.started:
            asyncio.get_running_loop().add_reader(self._line, self._orphaned, self._line)
            self._line.send(UP)

    def _orphaned(self, line: socket.socket) -> None:
        """The supervisor says nothing: what there is to read is its end."""
        asyncio.get_running_loop().remove_reader(line)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._let_go()
        await super().shutdown(sockets)


async def _serve(
    settings: Settings,
    listener: socket.socket,
    log_requests: bool,
    ahead: AheadClock | None,
    line: socket.socket | None,
) -> None:
    parts = await open_parts(settings, clock=ahead, wall=None if ahead is None else SystemClock())
    try:
        service = await build(settings, parts)
        config = configured(
            service.app,
            service.app,
            settings,
            lambda: new_request_id(parts.entropy),
            log_requests=log_requests,
        )
        warn_of_loss(settings)
        _spare_the_collector()
        log.info("event loop: %s", type(asyncio.get_running_loop()).__module__)
        obeying = None if ahead is None else asyncio.create_task(obey(ahead, service.jobs))
        await _Server(config, lambda: _let_go(parts, service), line).serve(sockets=[listener])
        if obeying is not None:
            obeying.cancel()
    finally:
        await parts.close()
