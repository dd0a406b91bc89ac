"""Runs the built app under uvicorn: one process, one event loop."""

import errno
import logging
import signal
import socket
import sys
from typing import Final, NoReturn

import uvicorn
import uvloop

from spawn.app import build, open_parts
from spawn.settings import Settings

BACKLOG: Final = 2048
"""Connections that may wait to be accepted."""


class CannotListen(Exception):
    """The address is taken or not ours; the message says what to do."""


def serve(settings: Settings, listener: socket.socket, *, log_requests: bool = False) -> None:
    """Serve on what `listen` gave until told to stop. Raises whatever `open_parts` refuses with."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("apscheduler").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        uvloop.run(_serve(settings, listener, log_requests))
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


async def _serve(settings: Settings, listener: socket.socket, log_requests: bool) -> None:
    parts = await open_parts(settings)
    try:
        service = await build(settings, parts)
        config = uvicorn.Config(
            service.app,
            loop="none",
            http="httptools",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=log_requests,
            server_header=False,
            date_header=True,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=10,
            backlog=BACKLOG,
        )
        await uvicorn.Server(config).serve(sockets=[listener])
    finally:
        await parts.close()
