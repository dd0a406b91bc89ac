"""The Docker engine as the rest of the daemon may call it: from the event loop, without blocking it.

Invariant: the SDK runs only in threads of bounded pools, so that slow calls (pulls, `exec`) never hold up quick ones,
nor those that end something. Each thread has a client of its own. What Docker or its socket says against a call comes
out as `MachineError`.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import docker
import docker.errors
import requests
import urllib3.exceptions

from spawn_hostagent.ballast import is_full
from spawn_hostagent.machines import MachineError
from spawn_hostagent.walls.admission import refuse
from spawn_hostagent.walls.disks import DiskError
from spawn_hostagent.walls.firewall import WallError

QUICK_THREADS: Final = 4
SLOW_THREADS: Final = 8
ASKED_THREADS: Final = 8
CHANGE_THREADS: Final = 16
TIMEOUT_S: Final = 60
_REMOVING: Final = "is already in progress"
_MESSAGE_MAX: Final = 600

T = TypeVar("T")

NO_ANSWER: Final = (
    docker.errors.DockerException,
    requests.exceptions.RequestException,
    urllib3.exceptions.HTTPError,
    OSError,
)
"""What the SDK lets through where Docker is away, or goes away under a call."""


class Engine:
    """Docker at this address (`unix:///…`)."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._quick = ThreadPoolExecutor(QUICK_THREADS, thread_name_prefix="docker")
        self._slow = ThreadPoolExecutor(SLOW_THREADS, thread_name_prefix="docker-slow")
        self._asked = ThreadPoolExecutor(ASKED_THREADS, thread_name_prefix="docker-asked")
        self._changes = ThreadPoolExecutor(CHANGE_THREADS, thread_name_prefix="docker-change")
        self._own = threading.local()
        self._clients: list[docker.APIClient] = []
        self._lock = threading.Lock()

    async def call(self, work: Callable[[docker.APIClient], T]) -> T:
        """Do this quick work in a thread. Raises MachineError."""
        return await self._in(self._quick, work)

    async def call_slow(
        self, work: Callable[[docker.APIClient], T], cancelled: Callable[[], None] | None = None
    ) -> T:
        """Do this work, which may take minutes, in a thread; `cancelled` is called if its caller gives up.

        Raises MachineError.
        """
        return await self._in(self._slow, work, cancelled)

    async def call_asked(self, work: Callable[[docker.APIClient], T]) -> T:
        """Do what a tenant asked for, which lasts as long as he likes, in a thread. Raises MachineError."""
        return await self._in(self._asked, work)

    async def call_change(self, work: Callable[[docker.APIClient], T]) -> T:
        """Stop, resume or remove a rental in a thread, whatever tenants and registries keep waiting.

        Raises MachineError.
        """
        return await self._in(self._changes, work)

    async def _in(
        self,
        pool: ThreadPoolExecutor,
        work: Callable[[docker.APIClient], T],
        cancelled: Callable[[], None] | None = None,
    ) -> T:
        running = asyncio.get_running_loop().run_in_executor(pool, lambda: self._told(work))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            if cancelled is not None:
                cancelled()
            # A thread cannot be cancelled. Who holds a rental's lock keeps it until the thread has let go of Docker.
            await asyncio.wait([running])
            if not running.cancelled():
                running.exception()
            raise

    def _told(self, work: Callable[[docker.APIClient], T]) -> T:
        try:
            self._knock()
            return work(self.client())
        except MachineError:
            raise
        except docker.errors.APIError as error:
            raise refuse("docker_failed", f"Docker refused: {said(error)}") from error
        except NO_ANSWER as error:
            if is_full(error):
                raise refuse("no_room", "the disk of this machine is full: make room on it.") from error
            raise refuse(
                "docker_failed", f"Docker at {self._address} does not answer: {str(error)[:_MESSAGE_MAX]}"
            ) from error
        except (DiskError, WallError) as error:
            raise refuse("docker_failed", str(error)) from error

    def client(self) -> docker.APIClient:
        """This thread's client, dialled at its first use. Raises DockerException, OSError."""
        client: docker.APIClient | None = getattr(self._own, "client", None)
        if client is None:
            client = self.dial(TIMEOUT_S)
            self._own.client = client
            with self._lock:
                self._clients.append(client)
        return client

    def dial(self, timeout_s: int) -> docker.APIClient:
        """A client of one's own; whoever takes it closes it. Raises DockerException, OSError."""
        self._knock()
        return docker.APIClient(base_url=self._address, version="auto", timeout=timeout_s)

    def _knock(self) -> None:
        # Where nobody listens, the SDK would leave a socket to the garbage collector at each try.
        path = self._address.removeprefix("unix://")
        if path != self._address:
            with socket.socket(socket.AF_UNIX) as knock:
                knock.connect(path)

    def close(self) -> None:
        """End the threads, once what they do is done."""
        for pool in (self._quick, self._slow, self._asked, self._changes):
            pool.shutdown(cancel_futures=True)
        with self._lock:
            for client in self._clients:
                client.close()
            self._clients.clear()


def said(error: docker.errors.APIError) -> str:
    """What Docker itself said, without the address of the call."""
    words: Any = error.explanation or str(error)
    return str(words)[:_MESSAGE_MAX]


def take_away(client: docker.APIClient, which: str) -> None:
    """Remove a container, running or not, and return when it is gone. What is gone already is no error.

    Raises docker.errors.APIError.
    """
    with contextlib.suppress(docker.errors.NotFound):
        try:
            client.remove_container(which, force=True, v=True)
        except docker.errors.APIError as error:
            if _REMOVING not in said(error):
                raise
            # A daemon that died in the middle asked for it, and Docker is at it still.
            client.wait(which, condition="removed")
