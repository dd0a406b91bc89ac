"""The emulator behind a socket of loopback, in a thread of its own: the test's thread is free to block in a client.

Invariant: when it ends, no answer had to be withheld for not matching the description.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from tests.emulators.hetzner.app import HANG_UP, Emulator, Receive, Scope, Send
from tests.emulators.hetzner.description import DescriptionViolated


class Cuttable(HttpToolsProtocol):
    """A connection that the application can close: ASGI has no word for that."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own does
        super().connection_made(transport)
        app = self.app

        async def knowing(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, HANG_UP: transport.abort}, receive, send)

        self.app = knowing


def config(emulator: Emulator) -> uvicorn.Config:
    return uvicorn.Config(
        emulator, http=Cuttable, ws="none", loop="none", lifespan="off", log_config=None, access_log=False
    )


def listening(port: int) -> socket.socket:
    """A port of loopback, a free one for 0. Answers are sent at once: asyncio turns no delay off on such sockets."""
    listener = socket.create_server(("127.0.0.1", port))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


class _Thread(threading.Thread):
    """uvicorn's connections on a loop of their own, without its server, which wakes up only ten times a second."""

    def __init__(self, emulator: Emulator, listener: socket.socket) -> None:
        super().__init__(name="hetzner", daemon=True)
        self.ready = threading.Event()
        self._config = config(emulator)
        self._listener = listener
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()

    def run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._config.load()
        state = ServerState()
        server = await self._loop.create_server(
            lambda: Cuttable(config=self._config, server_state=state, app_state={}), sock=self._listener
        )
        self.ready.set()
        await self._over.wait()
        server.close()
        for connection in [*state.connections]:
            connection.transport.abort()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self.join(10)
        assert not self.is_alive(), "the emulator did not end"


@contextlib.contextmanager
def serving(emulator: Emulator) -> Iterator[str]:
    """The endpoint for a client. Raises DescriptionViolated at the end if the emulator did."""
    with listening(0) as listener:
        thread = _Thread(emulator, listener)
        thread.start()
        assert thread.ready.wait(10), "the emulator did not start"
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            thread.stop()
    if emulator.violations:
        raise DescriptionViolated("; ".join(emulator.violations))
