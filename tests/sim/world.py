"""One life of the service in a world made of one seed: played move by move, checked at every step.

Invariant: a life is a function of seed, number and the moves that are played. Nothing else gets in; so a failing life
is replayed exactly, and shrunk by leaving moves out.
"""

import asyncio
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, Final, NoReturn, TypeVar

from spawn_schemas.errors import Code, SpawnError

from spawn.settings import Settings
from tests.harness import settings_in
from tests.sim.books import OF_FILES, Books
from tests.sim.chain import SimChain
from tests.sim.client_types import Answer, ConnectionLost, Request
from tests.sim.cloud import SimCloud
from tests.sim.disk import FileBooks
from tests.sim.life import Life, Violation, listening, told_in_full, uncollected
from tests.sim.loop import Busy, SimClock, SimLoop
from tests.sim.moves import Kind, kinds
from tests.sim.oracle.part import Changes, Part
from tests.sim.oracle.parts import part_types
from tests.sim.owners import Town
from tests.sim.process import Process
from tests.sim.rails import settings_for
from tests.sim.receivers import Receivers
from tests.sim.trace import Trace
from tests.sim.weather import OF_PROCESS, Climate, Weather, draw_climate

T = TypeVar("T")

MOVES: Final = 600
"""Moves of one life."""
CALM_S: Final = 10 * 86_400
"""Once faults stop everything settles within this: webhooks are tried for three days."""
SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a disk that forgets, not a place to share


@dataclass(kw_only=True)
class World:
    """Everything there is. The service is `process`; all else survives it."""

    seed: str
    """Of this world: the run's seed and the world's number."""
    settings: Settings
    books: Books
    climate: Climate
    loop: SimLoop
    clock: SimClock
    trace: Trace
    folder: Path
    steps_max: int | None = None
    on_step: Callable[["World"], None] | None = None
    random: Random = field(default_factory=lambda: Random(0))
    steps: int = 0
    moves_played: int = 0
    calm: bool = False
    """Faults have stopped: no weather, no attacks, everything settles."""
    failed: Violation | None = None
    counts: Counter[str] = field(default_factory=Counter)
    marks: dict[str, int] = field(default_factory=dict)
    process: Process | None = None
    twin: Process | None = None
    parts: list[Part] = field(default_factory=list)
    _agents: dict[asyncio.Task[Any], None] = field(default_factory=dict)
    _incarnations: int = 0
    _reviving: bool = True

    weather: Weather = field(init=False)
    chain: SimChain = field(init=False)
    cloud: SimCloud = field(init=False)
    receivers: Receivers = field(init=False)
    town: Town = field(init=False)

    def __post_init__(self) -> None:
        self.random = Random(f"{self.seed}|birth")
        self.loop.stopping = lambda: self.failed is not None
        self.loop.set_task_factory(_task)
        self.loop.set_exception_handler(lambda _, context: self._unhandled(context))
        self.weather = Weather(self)
        self.chain = SimChain(self)
        self.cloud = SimCloud(self)
        self.receivers = Receivers(self)
        self.town = Town(self)
        self.books.open(self)
        self.parts = [part(self) for part in part_types()]

    # --- time and randomness ------------------------------------------------------------------------------------

    def true_s(self) -> int:
        """What time it really is, in unix seconds."""
        return self.climate.start_s + int(self.loop.time())

    def true_ms(self) -> int:
        return self.climate.start_s * 1000 + int(self.loop.time() * 1000)

    # --- what happens -------------------------------------------------------------------------------------------

    def count(self, what: str) -> None:
        """For the summary."""
        self.counts[what] += 1

    def step(self, text: str) -> None:
        """Something happened: counted, traced, and looked at."""
        self.steps += 1
        self.trace.add(f"{int(self.loop.time()):>9} {text}")
        for part in self.parts:
            part.stepped()
        if self.on_step is not None:
            self.on_step(self)

    def violation(self, promise: str, text: str) -> NoReturn:
        """A promise is broken: the life ends here."""
        broken = Violation(promise, text, move=self.moves_played, step=self.steps)
        if self.failed is None:
            self.failed = broken
        raise broken

    def committed(self, process: Process, changes: Changes) -> None:
        """A commit of this process is durable, whether or not it lives to hear of it."""
        if not (changes.rows or changes.transfers or changes.events):
            return
        self.count("commits")
        for part in self.parts:
            part.committed(changes)
        if self.books.has_replicas and changes.of("price_change"):
            for replica in (self.process, self.twin):
                if replica is not None:
                    replica.hear_of_prices()
        self.step(f"commit by {process.number}: {_summary(changes)}")

    def rows(self, sql: str, **params: Any) -> list[dict[str, Any]]:
        """What the database says, past the service."""
        return self.books.rows(sql, params)

    def restored(self) -> None:
        """The database file was exchanged for an older one, while no process has it."""
        self.books.restored()
        (row,) = self.rows("SELECT (SELECT MAX(seq) FROM transfer) AS t, (SELECT MAX(seq) FROM event) AS e")
        self.marks.update(transfer=row["t"] or 0, event=row["e"] or 0)
        for part in self.parts:
            part.restored()

    # --- agents -------------------------------------------------------------------------------------------------

    def spawn(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """A task of somebody outside, who survives every crash. A lost connection may end it, nothing else."""
        task = self.loop.create_task(self._agent(coroutine), name=name)
        self._agents[task] = None
        task.add_done_callback(lambda done: self._agents.pop(done, None))
        # Cancelled before it began, it would complain that nobody awaited it.
        task.add_done_callback(lambda _: coroutine.close())
        return task

    async def _agent(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        try:
            return await coroutine
        except ConnectionLost:
            return None

    async def http(self, request: Request) -> Answer:
        """Send one request. Raises ConnectionLost. Whoever is cancelled meanwhile has hung up; the call goes on."""
        self.count("calls")
        asked_ms = self.true_ms()
        await asyncio.sleep(self.random.uniform(0.0, 0.05))
        process = self._asked()
        lost = not self.calm and self.random.random() < self.climate.network
        if process is None or not process.is_ready or (lost and self.random.random() < 0.5):
            await asyncio.sleep(self.random.uniform(0.0, 2.0))
            raise ConnectionLost
        answer = replace(await self._answered(process, request), asked_ms=asked_ms)
        await asyncio.sleep(self.random.uniform(0.0, 0.02))
        if lost:
            raise ConnectionLost
        self.step(f"{answer.status} to {request.method} {request.path}")
        if answer.status == 500:
            self.violation("answers", f"500 to {request.method} {request.path}: {answer.body[:300]!r}")
        for part in self.parts:
            part.answered(request, answer)
        return answer

    def _asked(self) -> Process | None:
        """Who is connected to: with replicas either of two, as what stands before them decides."""
        if not self.books.has_replicas or self.twin is None:
            return self.process
        ready = [one for one in (self.process, self.twin) if one is not None and one.is_ready]
        return self.random.choice(ready) if ready else None

    async def _answered(self, process: Process, request: Request) -> Answer:
        heard: asyncio.Future[Answer | None] = self.loop.create_future()

        def hear(task: asyncio.Task[Answer]) -> None:
            if heard.done():
                if not task.cancelled():
                    task.exception()
            elif task.cancelled():
                heard.set_result(None)
            elif (error := task.exception()) is not None:
                heard.set_exception(error)
            else:
                heard.set_result(task.result())

        process.serve(request).add_done_callback(hear)
        answer = await heard
        if answer is None:
            raise ConnectionLost
        return answer

    # --- life and death of the process ---------------------------------------------------------------------------

    def crash(self, why: str) -> None:
        """kill -9, now. It comes back some time later."""
        if self.process is not None:
            self.kill(self.process, why)

    def kill(self, process: Process, why: str) -> None:
        """The same for either of two."""
        if process.is_dead:
            return
        self.count("crashes")
        process.kill()
        if process.ticks_only:
            self.twin = None
        else:
            self.process = None
        self.step(f"process {process.number} died ({why})")
        if self._reviving:
            self.loop.call_later(self._downtime_s(), self.revive, process.ticks_only)

    def revive(self, ticks_only: bool = False) -> None:
        """Start it again on what is there, unless it lives."""
        if not self._reviving or (self.twin if ticks_only else self.process) is not None:
            return
        self._incarnations += 1
        process = Process(self, self._incarnations, ticks_only=ticks_only)
        if ticks_only:
            self.twin = process
        else:
            self.process = process
        process.begin()

    def keep_down(self, down: bool) -> None:
        """While this is so, a process that dies stays dead: somebody works on its files."""
        self._reviving = not down

    def _downtime_s(self) -> float:
        if self.calm or self.random.random() < 0.8:
            return self.random.uniform(0.1, 5.0)
        return float(2 ** self.random.uniform(3, 17))

    # --- the life -------------------------------------------------------------------------------------------------

    def live(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """Play these moves, then let everything settle, and look. Answers the moves that were played."""
        self.begin()
        played = []
        for number in numbers:
            if self.failed or (self.steps_max is not None and self.steps >= self.steps_max):
                break
            played.append(number)
            self.play(number)
        if not self.failed:
            self.settle()
        return tuple(played)

    def begin(self) -> None:
        """The first start."""
        self.revive()
        if self.climate.twin:
            self.revive(ticks_only=True)
        self.loop.run_for(1.0)

    def play(self, number: int, kind: Kind | None = None) -> None:
        """Play the move of this number: of this kind, or of whichever its number draws."""
        self.random = Random(f"{self.seed}|move {number}")
        self.moves_played = number
        if kind is None:
            choices = [one for one in kinds() if one.name not in self.climate.muted]
            kind = self.random.choices(choices, [one.weight for one in choices])[0]
        self.count(f"move {kind.name}")
        self.step(f"-- move {number}: {kind.name}")
        with self.loop.inside():
            kind.play(self)
        throw = self.random.random()
        if throw < 0.35:
            self.loop.run_callbacks(self.random.randint(0, 40))
        elif throw < 0.75:
            self.loop.run_for(self.random.uniform(0.0, 3.0))
        elif throw < 0.97:
            self.loop.run_for(self.random.uniform(0.0, 120.0))
        else:
            self.loop.run_for(self.random.uniform(0.0, min(self.climate.leap_s, 3_600)))

    def settle(self) -> None:
        """Faults stop: within bounded time nothing is open any more; then every part says what must be so."""
        self.random = Random(f"{self.seed}|calm")
        self.calm = True
        self.clock.set_wrong_by(0)
        self.weather.outages.clear()
        self.books.calm()
        self.step("-- calm")
        for process in (self.process, self.twin):
            if process is not None:
                process.stalled_until = process.frozen_until = 0.0
        self.revive()
        if self.climate.twin and self.books.has_replicas:
            self.revive(ticks_only=True)
        end = self.loop.time() + CALM_S
        pause_s = 60.0
        while not self.failed:
            self.loop.run_for(pause_s)
            open_ = [f"{len(self._agents)} agents are busy"] if self._agents else []
            open_ += [text for part in self.parts for text in part.unsettled()]
            if not open_ or self.failed:
                break
            if self.loop.time() > end:
                self.violation("live", f"{CALM_S // 86_400} days of calm, and still: {'; '.join(open_[:10])}")
            pause_s = min(pause_s * 1.5, 6 * 3_600)
        if not self.failed:
            for part in self.parts:
                part.at_rest()

    def close(self) -> None:
        """Drop all that is still under way, without a word."""
        self.loop.set_exception_handler(lambda _, __: None)
        self.loop.stopping = lambda: False
        self._reviving = False
        for process in (self.process, self.twin):
            if process is not None:
                process.kill()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_callbacks(100_000)
        self.books.close()
        self.loop.close()

    def logged(self, record: logging.LogRecord) -> None:
        """The service logged an error: a defect, unless it tells what the world did to it."""
        cause = None if record.exc_info is None else record.exc_info[1]
        is_busy = isinstance(cause, SpawnError) and cause.code is Code.OVERLOADED
        told_its_operator = record.getMessage().startswith("incident:")
        if record.levelno < logging.CRITICAL and not (is_busy or told_its_operator):
            self._defect(f"logged as an error: {record.getMessage()}", cause)

    def broke_off(self, error: Exception) -> None:
        """Somebody outside of the process failed, where nobody waits for it."""
        self._defect(f"the life broke off: {error!r}", error)

    def _unhandled(self, context: dict[str, Any]) -> None:
        self._defect(f"{context.get('message')}: {context.get('exception')!r}", context.get("exception"))

    def _defect(self, text: str, cause: BaseException | None) -> None:
        if self.failed is None and not isinstance(cause, Violation):
            self.failed = Violation("crash", text, move=self.moves_played, step=self.steps)
            self.failed.__cause__ = cause


@contextmanager
def opened(
    seed: str,
    number: int,
    *,
    engine: str = "sqlite",
    steps_max: int | None = None,
    on_step: Callable[[World], None] | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Iterator[World]:
    """The world of this seed and number, before anything happens in it. What is violated inside is its `failed`."""
    name = f"{seed}|{number}"
    climate = draw_climate(Random(f"{name}|climate"), tuple(kind.name for kind in kinds() if not kind.vital))
    with ExitStack() as stack:
        stack.enter_context(uncollected())
        # What our libraries raise it to would let a body of brackets crash the process.
        stack.callback(sys.setrecursionlimit, sys.getrecursionlimit())
        sys.setrecursionlimit(1_000)
        disk = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spawn-sim-", dir=disk)))
        books: Books = FileBooks(folder) if engine == "sqlite" else _server_books(folder.name)
        if books.has_replicas:
            twin = Random(f"{name}|replicas").random() < 0.75
            leap_s = min(climate.leap_s, 6 * 3_600) if climate.rail == "self" else climate.leap_s
            climate = replace(climate, twin=twin, leap_s=leap_s, muted=climate.muted | OF_FILES)
        settings = settings_in(
            folder,
            database_url=books.url,
            webhook_networks="",  # the harness trusts loopback; names that lead there are refused here
            events_keep_s=climate.events_keep_s,
            warnings=climate.warnings,
            grace_s=climate.grace_s,
            **settings_for(climate.rail, Random(f"{name}|rail")),
        )
        loop = SimLoop()
        world = World(
            seed=name,
            settings=settings,
            books=books,
            climate=climate,
            loop=loop,
            clock=SimClock(loop, climate.start_s),
            trace=Trace(on_line),
            folder=folder,
            steps_max=steps_max,
            on_step=on_step,
        )
        stack.callback(world.close)
        stack.enter_context(listening(world.logged))
        try:
            yield world
        except Violation as broken:
            world.failed = world.failed or broken
        except Busy:
            world.failed = Violation(
                "live", "something wakes itself without end", move=world.moves_played, step=world.steps
            )


def live(
    seed: str,
    number: int,
    *,
    engine: str = "sqlite",
    moves: Sequence[int] | None = None,
    steps_max: int | None = None,
    on_step: Callable[[World], None] | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Life:
    """Live one life: all its moves, or only these. The same arguments give the same life."""
    played: tuple[int, ...] = ()
    numbers = range(1, MOVES + 1) if moves is None else moves
    with opened(seed, number, engine=engine, steps_max=steps_max, on_step=on_step, on_line=on_line) as world:
        try:
            played = world.live(numbers)
        except Busy:
            raise
        except Exception as error:  # noqa: BLE001 - a life has an end, and this is how it came to it
            world.broke_off(error)
    if world.failed is not None:
        played = tuple(one for one in numbers if one <= world.moves_played)
    return Life(
        seed=seed,
        number=number,
        steps=world.steps,
        moves=played,
        violation=world.failed,
        cause=told_in_full(world.failed and world.failed.__cause__),
        trace_hash=world.trace.hash,
        tail=tuple(world.trace.tail),
        lived_s=int(world.loop.time()),
        counts=dict(world.counts),
    )


def _server_books(name: str) -> Books:
    # Late: a file needs neither the driver nor a server.
    from tests.sim.server import ServerBooks  # noqa: PLC0415 - see above

    return ServerBooks(name)


def _task(loop: asyncio.AbstractEventLoop, coroutine: Any, *, context: Any = None) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, context=context)
    process = OF_PROCESS.get() if context is None else context.get(OF_PROCESS)
    if process is not None:
        process.owns(task)
    return task


def _summary(changes: Changes) -> str:
    texts = [f"{len(keys)} {table}" for table, keys in changes.rows.items()]
    texts += [f"{row['code']} {row['amount']}" for row in changes.transfers]
    texts += [row["type"] for row in changes.events]
    return ", ".join(texts)
