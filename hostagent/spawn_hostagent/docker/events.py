"""Docker's events about our containers, as they come.

Invariant: one that is lost costs nothing, since whoever listens asks for everything again after each; a stream that
breaks is one more event, because anything may have happened meanwhile.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from spawn_hostagent.docker.engine import NO_ANSWER, Engine
from spawn_hostagent.docker.rentals import LABEL

RETRY_S: Final = 2.0
FOREVER_S: Final = 10 * 365 * 86400
"""Docker says nothing while nothing happens; a socket takes no longer time limit than some 20 years."""
_ACTIONS: Final = ("start", "die", "oom", "destroy", "stop", "kill", "create", "pause", "unpause")


class Events:
    """Listens for one consumer, in a thread of its own, until `close`. `broke` is called where the stream ended."""

    def __init__(self, engine: Engine, broke: Callable[[], None]) -> None:
        self._engine, self._broke = engine, broke
        self._loop = asyncio.get_running_loop()
        self._happened = asyncio.Event()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._stream: Any = None
        self._thread = threading.Thread(target=self._listen, name="docker-events", daemon=True)

    async def __aiter__(self) -> AsyncIterator[None]:
        self._thread.start()
        try:
            while True:
                await self._happened.wait()
                self._happened.clear()
                yield
        finally:
            await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._closed.set()
        with self._lock:
            if self._stream is not None:
                self._stream.close()
        self._thread.join()

    def _tell(self) -> None:
        if not self._closed.is_set():
            self._loop.call_soon_threadsafe(self._happened.set)

    def _listen(self) -> None:
        while not self._closed.is_set():
            try:
                self._read()
            except (*NO_ANSWER, ValueError):
                # Docker is away or was restarted, or `close` shut the stream under us: looked at again below.
                pass
            if not self._closed.is_set():
                self._loop.call_soon_threadsafe(self._broke)
                self._tell()
                self._closed.wait(RETRY_S)

    def _read(self) -> None:
        client = self._engine.dial(FOREVER_S)
        try:
            stream = client.events(filters={"label": LABEL, "event": list(_ACTIONS)})
            with self._lock:
                if self._closed.is_set():
                    stream.close()
                    return
                self._stream = stream
            self._tell()
            for _ in stream:
                self._tell()
        finally:
            with self._lock:
                self._stream = None
            client.close()
