"""One address, one folder, and the service living and dying there: what a test holds in its hand.

Invariant: chain, cloud and database lie in the folder and outlive every process; time never goes back; a process
that ends in any way but the one the test planned fails the test.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
import msgspec

from tests import databases
from tests.e2e.victim import LAST_WORDS, MESSAGE_MAX, Advance, Arm, Command, Drop, Order, Stop, Told
from tests.engines import ROOT

T = TypeVar("T")

PATIENCE_S: Final = 30.0
"""No step of a victim takes seconds; whatever takes this long hangs."""
STRIDE_S: Final = 3600 if databases.ALONE else 30
"""How long the service may rest at most: less than it takes to see that a lease does not move."""
RESTART_S: Final = 1
"""How long a restart takes, in the service's own time."""


class Died(Exception):
    """The service ended while it was doing what it was asked to."""


class Nursery:
    """The process that forks victims, and the address at which all of them listen, one after the other."""

    def __init__(self, orders: socket.socket, listener: socket.socket) -> None:
        self._orders = orders
        self._listener = listener
        host, port = listener.getsockname()
        self.url = f"http://{host}:{port}"
        self.http = httpx.Client(
            base_url=self.url,
            limits=httpx.Limits(max_keepalive_connections=0),
            timeout=PATIENCE_S,
            trust_env=False,
        )

    def bear(self, folder: Path, now_s: int, die_at: int | None) -> "Victim":
        """Start a life. Raises `Died` when it was over before it could be called."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(PATIENCE_S)
        order = Order(folder=str(folder), url=self.url, now_s=now_s, die_at=die_at)
        with theirs:
            socket.send_fds(
                self._orders, [msgspec.json.encode(order)], [self._listener.fileno(), theirs.fileno()]
            )
        victim = Victim(self.message(), ours, self)
        try:
            victim.listen()
        except Died:
            ours.close()
            raise
        return victim

    def message(self) -> int:
        return msgspec.json.decode(self._orders.recv(MESSAGE_MAX), type=int)


class Victim:
    """One process. `status` is its wait status once it has ended."""

    def __init__(self, pid: int, control: socket.socket, nursery: Nursery) -> None:
        self._pid = pid
        self._control = control
        self._nursery = nursery

    def tell(self, command: Command) -> list[str]:
        """Have a command carried out; answers the points passed so far. Raises `Died`."""
        try:
            self._control.send(msgspec.json.encode(command))
        except BrokenPipeError as error:
            raise Died from error
        return self.listen()

    def listen(self) -> list[str]:
        message = self._control.recv(MESSAGE_MAX)
        if not message:
            raise Died
        return msgspec.json.decode(message, type=Told).passed

    def wait(self) -> int:
        """How it ended: the status as `waitpid` has it."""
        status = self._nursery.message()
        self._control.close()
        return status

    def end(self) -> None:
        """End it at once, in whatever state it is."""
        with contextlib.suppress(BrokenPipeError):
            self._control.send(msgspec.json.encode(Drop()))
        try:
            self.wait()
        except TimeoutError:
            # It is not reaped yet, or its status would have come: the id is still its own.
            os.kill(self._pid, signal.SIGKILL)
            self.wait()

    def stop(self) -> None:
        """End it in good order."""
        self._control.send(msgspec.json.encode(Stop()))
        status = self.wait()
        assert status == 0, f"the service ended with status {status}"


@contextlib.contextmanager
def open_nursery(program: str = "tests.e2e.victim") -> Iterator[Nursery]:
    """`program` is the module that bears the victims."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(PATIENCE_S)
    paths = [str(ROOT), str(ROOT / "examples"), os.environ.get("PYTHONPATH", "")]
    with ours, socket.create_server(("127.0.0.1", 0), backlog=16) as listener:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", program, str(theirs.fileno())],
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
                env=dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
            )
        nursery = Nursery(ours, listener)
        try:
            yield nursery
        finally:
            nursery.http.close()
            ours.close()
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class House:
    """The service as its callers know it: it may be down for a moment, and then it is there again.

    `deaths` says at which point each life in turn is to end, counted from the moment it starts; the first one's
    count begins with `arm`. `killed` names the points at which they did.
    """

    def __init__(self, nursery: Nursery, folder: Path, now_s: int, deaths: Sequence[int] = ()) -> None:
        self.folder = folder
        self.url = nursery.url
        self.now_s = now_s
        self.killed: list[str] = []
        self._nursery = nursery
        self._deaths = deque(deaths)
        self._planned = len(deaths)
        self._victim: Victim | None = nursery.bear(folder, now_s, None)

    def arm(self) -> None:
        """From here on the first death of the plan is due."""
        self._running.tell(Arm(die_at=self._deaths.popleft() if self._deaths else None))

    @property
    def _running(self) -> Victim:
        assert self._victim is not None
        return self._victim

    @property
    def doomed(self) -> bool:
        """Whether a planned death is still to come."""
        return len(self.killed) < self._planned

    def passed(self) -> list[str]:
        """The points passed since the count began."""
        return self._running.tell(Advance(seconds=0))

    def advance(self, seconds: int) -> None:
        """Let time pass. Raises `Died`."""
        self.now_s += seconds
        self._running.tell(Advance(seconds=seconds))

    def pass_time(self, seconds: int) -> None:
        """Let time pass, through deaths if need be."""
        while seconds > 0:
            stride = min(seconds, STRIDE_S)
            self.outlive(lambda: self.advance(stride))  # noqa: B023 - run before the next round
            seconds -= stride

    def request(self, method: str, path: str, **how: Any) -> httpx.Response:
        """One HTTP request. Raises `Died` when the service does not live to answer it."""
        try:
            return self._nursery.http.request(method, path, **how)
        except httpx.TimeoutException:
            raise
        except httpx.TransportError as error:
            raise Died from error

    def outlive(self, step: Callable[[], T]) -> T:
        """Take a step, from the start again after each death."""
        while True:
            try:
                return step()
            except Died:
                self.restart()

    def restart(self) -> None:
        """Bury the dead and start anew. Raises AssertionError for a death by anything but the plan."""
        self._bury(self._running.wait())
        self.now_s += RESTART_S
        while self._victim is None:
            die_at = self._deaths.popleft() if self._deaths else None
            try:
                self._victim = self._nursery.bear(self.folder, self.now_s, die_at)
            except Died:
                self._bury(self._nursery.message())

    def _bury(self, status: int) -> None:
        self._victim = None
        assert os.WIFSIGNALED(status), f"the service ended by itself, with wait status {status}"
        assert os.WTERMSIG(status) == signal.SIGKILL, f"signal {os.WTERMSIG(status)} ended the service"
        self.killed.append((self.folder / LAST_WORDS).read_text())

    def stop(self) -> None:
        victim, self._victim = self._running, None
        victim.stop()

    def close(self) -> None:
        """End what still lives; nothing needs an orderly end."""
        if self._victim is not None:
            victim, self._victim = self._victim, None
            victim.end()


@contextlib.contextmanager
def open_house(
    nursery: Nursery, folder: Path, now_s: int, deaths: Sequence[int] = (), *, like: Path | None = None
) -> Iterator[House]:
    """The service on the files in `folder`, copied from the folder `like` if that is given."""
    if like is not None:
        databases.copy(like, folder)
    house = House(nursery, folder, now_s, deaths)
    try:
        yield house
    finally:
        house.close()
