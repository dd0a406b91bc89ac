"""One life of the service's process: started on whatever is on disk, killed at any instant.

Invariant: what belongs to a process runs in tasks that know it, so that nothing of it goes on after its death; all
that outlives it is the database file, the chain and the cloud.
"""

import asyncio
import contextvars
import hashlib
import math
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import unquote

from spawn_schemas.errors import Code, SpawnError

from spawn.api.replies import Reply
from spawn.app import Service, build
from spawn.jobs.ticker import Ticker
from spawn.parts import Parts, recover
from tests.sim.client_types import Answer, Request
from tests.sim.disk import JOB
from tests.sim.rails import sim_rail
from tests.sim.weather import OF_PROCESS

if TYPE_CHECKING:
    from tests.sim.world import World

T = TypeVar("T")

IDLE_S: Final = 6 * 3_600
"""How long the ticker sleeps at most while nothing is due: real ones never do, and it must change nothing."""
THAWED_S: Final = 10
"""How long what waited while a process was paused may take until it is answered."""
LOOKS: Final = 10
"""At the prices that another replica has announced: the server may be away meanwhile."""
ANYWAY: Final = 0.06
"""How likely a job ticks although nothing that it looks for is due."""
SELECT_DUE: Final = """
SELECT (SELECT MIN(due_at) FROM server WHERE due_at IS NOT NULL) AS burn,
    (SELECT MIN(next_at) FROM operation WHERE status = 'running') AS operations,
    (SELECT MIN(next_at) FROM delivery WHERE state = 'pending') AS deliveries,
    (SELECT MIN(created_ms) / 1000 FROM reservation WHERE state = 'reserved') AS settlements,
    (SELECT MIN(announced_at) FROM price_change WHERE told_to IS NOT NULL) AS prices,
    (SELECT MIN(at) + 300 FROM (SELECT MIN(first_seen_at) AS at FROM stray
        UNION ALL SELECT MIN(missing_since) FROM server WHERE ended_at IS NULL) AS odd) AS reconcile,
    (SELECT MIN(effective_at) FROM price_change WHERE effective_at > :now) AS listing"""


class Entropy:
    """Random bytes of one process, the same in every run."""

    def __init__(self, seed: str) -> None:
        self._seed = seed.encode()
        self._count = 0

    def bytes(self, count: int, /) -> bytes:
        self._count += 1
        return hashlib.shake_128(b"%s|%d" % (self._seed, self._count)).digest(count)


class Process:
    """The service, from its start to its death."""

    service: Service

    def __init__(self, world: "World", number: int, *, ticks_only: bool) -> None:
        self.world = world
        self.number = number
        self.ticks_only = ticks_only
        self.is_dead = False
        self.is_ready = False
        self.stalled_until = 0.0
        """Until when (loop's time) its jobs do not tick."""
        self.frozen_until = -math.inf
        """Until when it is paused: whatever it was about to read or write waits."""
        self.ticked: dict[str, float] = {}
        """When (loop's time) each of its jobs last began to tick."""
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._context = contextvars.copy_context()
        self._context.run(OF_PROCESS.set, self)
        self.db = world.books.of_process(self)

    def spawn(self, coroutine: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """A task that dies with the process; so do the tasks that it starts."""
        return self.world.loop.create_task(coroutine, name=name, context=self._context.copy())

    def owns(self, task: asyncio.Task[Any]) -> None:
        self._tasks[task] = None
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)

    def begin(self) -> None:
        """Start in the background."""
        self._starting = self.spawn(self._start(), name="start")
        self._starting.add_done_callback(self._ended)

    async def _start(self) -> None:
        """What `spawn serve` does; a death on the way is one like any other."""
        world = self.world
        parts = Parts(
            db=self.db,
            rail=sim_rail(world, self.db, self),
            providers={world.cloud.name: world.cloud.provider()},
            outbound=world.receivers.outbound(),
            clock=world.clock,
            entropy=Entropy(f"{world.seed}|process {self.number}"),
        )
        self.service = await build(world.settings, parts, ticking=False)
        await recover(parts)
        if parts.rail.relayer is not None:
            await parts.rail.relayer.start()
        self.is_ready = True
        self._ticking = self.spawn(self._tick(), name="ticker")
        self._ticking.add_done_callback(self._ended)
        world.step(f"process {self.number} is up")

    def _ended(self, task: asyncio.Task[None]) -> None:
        """What goes on by itself has ended: with the process, or because the database could not be reached."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, SpawnError) and error.code is Code.OVERLOADED:
            self.world.kill(self, "it could not start")
        elif isinstance(error, Exception):
            self.world.broke_off(error)

    def freeze(self, seconds: float) -> None:
        """Pause it as a whole: its claims and its lease may be another's when it wakes."""
        now = self.world.loop.time()
        self.frozen_until = max(self.frozen_until, now + seconds)
        self.stalled_until = max(self.stalled_until, self.frozen_until)
        self.world.step(f"process {self.number} is paused for {seconds:.0f} s")

    @property
    def has_just_thawed(self) -> bool:
        """Whether what it says now may come from before a pause."""
        return self.world.loop.time() - self.frozen_until < THAWED_S

    async def thawed(self) -> None:
        """Wait while it is paused."""
        left_s = self.frozen_until - self.world.loop.time()
        if left_s > 0:
            await asyncio.sleep(left_s)

    def kill(self) -> None:
        """From here on none of its code has any effect."""
        self.is_dead = True
        self.db.drop()
        for task in list(self._tasks):
            task.cancel()

    # --- the ticker --------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        """Each job when something is due for it, and now and then anyway."""
        world = self.world
        ticker = Ticker((), world.clock)
        running: dict[str, asyncio.Task[None]] = {}
        while True:
            now = world.loop.time()
            if now < self.stalled_until:
                # It may end sooner: with the faults.
                await asyncio.sleep(min(self.stalled_until - now, IDLE_S))
                continue
            due = self._due()
            waits: list[float] = []
            for name, job in self.service.jobs.items():
                task = running.get(name)
                rested_s = now - self.ticked.get(name, -IDLE_S)
                if name in due:
                    waits.append(max(1.0, due[name], job.every_s - rested_s))
                if (task is not None and not task.done()) or rested_s < job.every_s:
                    continue
                is_due = due.get(name, IDLE_S) <= 0 or rested_s >= IDLE_S
                if is_due or world.random.random() < ANYWAY:
                    self.ticked[name] = now
                    world.step(f"tick of {name} in {self.number}")
                    running[name] = self.spawn(ticker.run(job), name=f"{JOB}{name}")
            await asyncio.sleep(
                min([*waits, world.random.uniform(60.0, IDLE_S)]) * world.random.choice((1, 1, 4))
            )

    def hear_of_prices(self) -> None:
        """Another replica has announced one: its own list is read anew every few seconds, for which nothing is due."""
        if self.is_ready:
            _ = self.spawn(self._list_anew(), name="listing")

    async def _list_anew(self) -> None:
        ticker, job = Ticker((), self.world.clock), self.service.jobs["listing"]
        for _ in range(LOOKS):
            await asyncio.sleep(self.world.random.uniform(0.0, job.every_s))
            await ticker.run(job)

    def _due(self) -> dict[str, int]:
        """In how many seconds something is due for a job, by the clock that the jobs go by."""
        now = self.world.clock.now_s()
        (row,) = self.world.rows(SELECT_DUE, now=now)
        return {name: at - now for name, at in row.items() if at is not None}

    # --- calls --------------------------------------------------------------------------------------------------

    def serve(self, request: Request) -> asyncio.Task[Answer]:
        """One request, on a task of its own as behind a socket. The task is cancelled when the process dies."""
        return self.spawn(self._serve(request), name=f"{request.method} {request.path}")

    async def _serve(self, request: Request) -> Answer:
        scope = _scope(request)
        front = self.service.app
        reply = front.answer_now(scope)
        if reply is None:
            soon = front.answer_soon(scope)
            reply = None if soon is None else await soon
        if reply is not None and reply.is_whole:
            return _answer(reply.status, reply.raw_headers, reply.body)
        exchange = _Exchange(request.body)
        app: Any = reply if isinstance(reply, Reply) else front
        await app(scope, exchange.receive, exchange.send)
        return exchange.answer()


class _Exchange:
    """ASGI's messages of one request, without a connection."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []

    async def receive(self) -> Any:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError("nobody hangs up")

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], list(message["headers"])
        elif message["type"] == "http.response.body":
            self._parts.append(message.get("body", b""))

    def answer(self) -> Answer:
        return _answer(self._status, self._headers, b"".join(self._parts))


def _answer(status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> Answer:
    return Answer(status, {name.decode().lower(): value.decode("latin-1") for name, value in headers}, body)


def _scope(request: Request) -> dict[str, Any]:
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in request.headers.items()]
    headers.append((b"host", b"spawn.test"))
    if request.body:
        headers.append((b"content-length", b"%d" % len(request.body)))
        if not any(name == b"content-type" for name, _ in headers):
            headers.append((b"content-type", b"application/json"))
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": unquote(request.path),
        "raw_path": request.path.encode("latin-1"),
        "query_string": request.query.encode("latin-1"),
        "root_path": "",
        "headers": headers,
        "client": (request.address, 50_000),
        "server": ("spawn.test", 80),
        "state": {},
        "extensions": {},
    }
