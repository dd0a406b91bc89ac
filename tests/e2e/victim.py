"""The service as a process of its own, served over HTTP on real files, that dies where it is told to.

Run as `python -m tests.e2e.victim FD`, it is a nursery: it imports everything once and forks one victim for each
`Order` that comes through the socket FD, because several hundred lives at the price of an import each would take
too long. A victim's time stands still and its jobs rest until its control socket says otherwise.
Invariant: one victim at a time, and nobody is left behind: a victim ends when its control socket closes, the
nursery when its own does.
"""

import asyncio
import gc
import os
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NoReturn

import msgspec
import uvicorn
from litestar import Litestar
from litestar.di import Provide

from spawn.api.front import Front
from spawn.api.routes import HANDLERS
from spawn.app import Service, build
from spawn.parts import Parts, open_parts
from spawn.settings import Settings
from tests import databases
from tests.e2e.crashing import Points, crashing, die
from tests.harness import VirtualClock, settings_in

SPEED: Final = 6.0
"""How much faster than a real cloud the simulated one is: enough that a machine boots in a few polls."""
ANSWER_S: Final = 20.0
"""How long a call waits for the provider's first word: real time, so enough for the slowest machine."""
MESSAGE_MAX: Final = 65_536
LAST_WORDS: Final = "last-words"
"""The file in its folder where a victim says at which point it died."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One life. `die_at` counts points from the very start of the process."""

    folder: str
    url: str
    now_s: int
    die_at: int | None


class Advance(msgspec.Struct, frozen=True, kw_only=True, tag="advance"):
    """Let time pass and every job that is then due do its work. Answered with `Told`."""

    seconds: int


class Arm(msgspec.Struct, frozen=True, kw_only=True, tag="arm"):
    """Count points from here, and die at this one. Answered with `Told`."""

    die_at: int | None


class Stop(msgspec.Struct, frozen=True, kw_only=True, tag="stop"):
    """End in an orderly way."""


class Drop(msgspec.Struct, frozen=True, kw_only=True, tag="drop"):
    """End this instant."""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """Done; these points were passed since the count began."""

    passed: list[str]


Command = Advance | Arm | Stop | Drop


def settings_of(folder: Path, url: str) -> Settings:
    """The settings of a victim, which its judge needs as well."""
    return settings_in(
        folder,
        public_url=url,
        simulated_speed=SPEED,
        first_answer_s=ANSWER_S,
        in_flight_wait_s=5.0 if databases.ALONE else 0.05,
        database_connections=2,
    )


class _Server(uvicorn.Server):
    """Says when it can be called: an order to connect that came earlier could outlive a death at start-up."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


class _Jobs:
    """Ticks each job as often as the service's own ticker would."""

    def __init__(self, service: Service, clock: VirtualClock) -> None:
        self._service = service
        self._clock = clock
        self._last_s = dict.fromkeys(service.jobs, clock.now_s())

    async def advance(self, seconds: int) -> None:
        self._clock.advance(seconds)
        now = self._clock.now_s()
        for name, job in self._service.jobs.items():
            if now - self._last_s[name] >= job.every_s:
                self._last_s[name] = now
                await job.tick(now)
                await self._service.operator.idle()


def _config(app: Front | Litestar) -> uvicorn.Config:
    return uvicorn.Config(app, loop="none", http="httptools", ws="none", log_config=None, access_log=False)


Opening = Callable[[Order, VirtualClock, Points], Awaitable[tuple[Settings, Parts]]]
"""Builds what a victim consists of, between its points."""


async def devnet_parts(order: Order, clock: VirtualClock, points: Points) -> tuple[Settings, Parts]:
    """A victim on the embedded chain."""
    settings = settings_of(Path(order.folder), order.url)
    return settings, crashing(await open_parts(settings, clock=clock), points)


async def _live(order: Order, listener: socket.socket, control: socket.socket, opening: Opening) -> None:
    clock = VirtualClock(order.now_s)
    points = Points(order.die_at, Path(order.folder) / LAST_WORDS)
    settings, parts = await opening(order, clock, points)
    try:
        service = await build(settings, parts, ticking=False)
        server = _Server(_config(service.app))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await server.ready.wait()
        await _obey(control, _Jobs(service, clock), points)
        server.should_exit = True
        await serving
    finally:
        await parts.close()


async def _obey(control: socket.socket, jobs: _Jobs, points: Points) -> None:
    """Do what the control socket says until it says stop, or closes."""
    loop = asyncio.get_running_loop()
    control.setblocking(False)
    while True:
        await loop.sock_sendall(control, msgspec.json.encode(Told(passed=points.passed)))
        message = await loop.sock_recv(control, MESSAGE_MAX)
        if not message:
            return
        command: Command = msgspec.json.decode(message, type=Command)
        match command:
            case Advance(seconds=seconds):
                await jobs.advance(seconds)
            case Arm(die_at=die_at):
                points.arm(die_at)
            case Stop():
                return
            case Drop():
                die()


def _be_victim(order: Order, listener: socket.socket, control: socket.socket, opening: Opening) -> NoReturn:
    status = 1
    try:
        asyncio.run(_live(order, listener, control, opening))
        status = 0
    except BaseException:  # noqa: BLE001  whatever ended it, a fork must not return into the nursery's code
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _no_services() -> NoReturn:
    raise RuntimeError("a rehearsal serves no request")


def _no_arrival() -> NoReturn:
    raise RuntimeError("at a rehearsal nobody arrives")


def _warm_up() -> None:
    """Do once what is slow the first time: the framework learns its handlers, the server imports its protocol."""
    app = Litestar(
        route_handlers=[*HANDLERS],
        dependencies={
            "services": Provide(_no_services, sync_to_thread=False),
            "arrival": Provide(_no_arrival, sync_to_thread=False),
        },
        openapi_config=None,
        logging_config=None,
    )
    _config(app).load()
    gc.collect()
    gc.freeze()


def nursery(orders: socket.socket, opening: Opening = devnet_parts) -> None:
    """Fork a victim for each order: answer its process id, and when it has ended its wait status."""
    _warm_up()
    while True:
        message, descriptors, _, _ = socket.recv_fds(orders, MESSAGE_MAX, 2)
        if not message:
            return
        order = msgspec.json.decode(message, type=Order)
        listener, control = (socket.socket(fileno=descriptor) for descriptor in descriptors)
        pid = os.fork()
        if pid == 0:
            orders.close()
            _be_victim(order, listener, control, opening)
        listener.close()
        control.close()
        orders.send(msgspec.json.encode(pid))
        _, status = os.waitpid(pid, 0)
        orders.send(msgspec.json.encode(status))


if __name__ == "__main__":
    nursery(socket.socket(fileno=int(sys.argv[1])))
