"""Carries out the service's commands on whoever runs containers: each once, and to an end that is told.

Invariant: one change at a time for each rental. A command is journalled before it begins and its answer before it is
told; one that the daemon died in the middle of is repeated, since every call of `Machines` may be, and only `exec`,
which may not, ends as failed instead.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Literal

from spawn_schemas.ids import RentalId
from spawn_schemas.orders import (
    Ack,
    AckState,
    Command,
    DestroyInstance,
    Drain,
    Exec,
    Logs,
    Prepull,
    Problem,
    RentalReport,
    ResumeInstance,
    RotateKey,
    StartInstance,
    StopInstance,
    Undrain,
)

from spawn_hostagent.clock import Clock, ServiceClock
from spawn_hostagent.commands.journal import Journal, Stage
from spawn_hostagent.commands.journal_file import JournalError
from spawn_hostagent.commands.orders import changes_something, generation_of, rental_of
from spawn_hostagent.keeping.leases import Action, Clear, Halt
from spawn_hostagent.keeping.rules import Rules
from spawn_hostagent.machines import MachineError, Machines, Progress

HEAVY_AT_ONCE: Final = 3
"""How many images are fetched at once."""
ASKED_AT_ONCE: Final = 8
"""How many answers are fetched at once. A stop waits neither for these nor for somebody's image."""
PROGRESS_EVERY_S: Final = 1.0
HALT_GRACE_S: Final = 30
"""How long a container that the host itself stops has to end by itself."""
STOP_GRACE_MAX_S: Final = 300
"""The longest that the service may ask a container to be waited for."""
TEXT_MAX: Final = 64 * 1024
"""The longest text of a result."""
MESSAGE_MAX: Final = 2000

Code = Literal["expired", "stale_generation", "below_floor", "internal"]
Result = dict[str, str | int | None]

_log: Final = logging.getLogger(__name__)


class Executor:
    """`tell` is given each answer, and must not block; `rotate` makes another key and registers it."""

    def __init__(
        self,
        journal: Journal,
        machines: Machines,
        rules: Rules,
        *,
        clock: Clock,
        service_clock: ServiceClock,
        tell: Callable[[Ack], None],
        rotate: Callable[[], Awaitable[None]],
        known_only: bool = True,
    ) -> None:
        self._journal = journal
        self._machines = machines
        self._rules = rules
        self._clock = clock
        self._service_clock = service_clock
        self._tell = tell
        self._rotate = rotate
        self._known_only = known_only
        self._lanes: dict[object, asyncio.Lock] = {}
        self._waiting: Counter[object] = Counter()
        self._heavy = asyncio.Semaphore(HEAVY_AT_ONCE)
        self._asked = asyncio.Semaphore(ASKED_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self.broken: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        """Done where an answer could not be kept: the daemon has to end, and the next one repeats the command."""

    def submit(self, command: Command) -> None:
        """Take a command; what was taken before is answered again with what came of it, or how far it is."""
        entry = self._journal.receive(command, self._service_clock.now_s())
        if entry.ack is not None:
            self._tell(entry.ack)
        elif entry.is_new:
            self._tell_state(command, "received")
            self._spawn(command, has_begun=False)
        else:
            self._tell_state(command, "received" if entry.stage is Stage.RECEIVED else "accepted")

    def recover(self) -> None:
        """Take up what an earlier daemon left."""
        for command, stage in self._journal.unfinished():
            self._spawn(command, has_begun=stage is Stage.RUNNING)

    def busy(self) -> frozenset[RentalId]:
        """Rentals that a command is about to change."""
        return frozenset(
            RentalId(lane[1]) for lane in self._lanes if isinstance(lane, tuple) and lane[0] == "change"
        )

    def apply(self, actions: Iterable[Action]) -> None:
        """Begin what was decided just now, about rentals that no command is about to change."""
        for action in actions:
            if action.rental_id not in self.busy():
                lane = ("change", action.rental_id)
                self._launch(self._apply(action, lane), lane)

    async def idle(self) -> None:
        """Return once nothing is being carried out."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self, grace_s: float) -> None:
        """Let what is being carried out come to its end, for so long; the next daemon takes up the rest."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- one command ------------------------------------------------------------------------------------------

    def _spawn(self, command: Command, *, has_begun: bool) -> None:
        order = command.order
        lane: object = type(order)
        if isinstance(order, Drain | Undrain):
            lane = "drain"
        elif (rental_id := rental_of(order)) is not None:
            lane = ("change" if changes_something(order) else "look", rental_id)
        self._launch(self._run(command, lane, has_begun=has_begun), lane)

    def _launch(self, work: Coroutine[Any, Any, None], lane: object) -> None:
        # The lane is taken at once: what is decided meanwhile sees that the rental is busy.
        self._waiting[lane] += 1
        self._lanes.setdefault(lane, asyncio.Lock())
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended(lane))

    def _ended(self, lane: object) -> Callable[[asyncio.Task[None]], None]:
        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._leave(lane)
            error = None if task.cancelled() else task.exception()
            if error is not None and not self.broken.done():
                self.broken.set_result(error)

        return ended

    def _leave(self, lane: object) -> None:
        self._waiting[lane] -= 1
        if not self._waiting[lane]:
            del self._waiting[lane], self._lanes[lane]

    async def _run(self, command: Command, lane: object, *, has_begun: bool) -> None:
        async with self._lanes[lane], self._slots(command):
            ack = await self._outcome(command, has_begun=has_begun)
            self._journal.finish(command, ack, self._service_clock.now_s())
        self._tell(ack)

    def _slots(self, command: Command) -> AbstractAsyncContextManager[Any]:
        """What takes long takes turns. What changes a rental does not: its lane is one at a time already."""
        match command.order:
            case StartInstance() | Prepull():
                return self._heavy
            case Exec() | Logs():
                return self._asked
            case _:
                return contextlib.nullcontext()

    async def _outcome(self, command: Command, *, has_begun: bool) -> Ack:
        try:
            await self._check(command, has_begun=has_begun)
            self._journal.begin(command.command_id, self._service_clock.now_s())
            self._tell_state(command, "accepted")
            result = await self._act(command)
        except MachineError as error:
            return _failed(command, error.problem)
        except JournalError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it was, the command ends and the service hears of it
            _log.exception("Command %s failed.", command.command_id)
            message = f"The daemon failed at it ({type(error).__name__}); its log says where."
            return _failed(command, Problem(code="internal", message=message))
        return Ack(command_id=command.command_id, state="succeeded", result=result)

    async def _check(self, command: Command, *, has_begun: bool) -> None:
        """Raise MachineError where the command must not be carried out."""
        order, now_s = command.order, self._service_clock.now_s()
        self._check_generation(command)
        if isinstance(order, StartInstance | ResumeInstance) and now_s >= order.lease_expires_at:
            raise _refused("expired", "Its lease is over. Extend the lease, then send another command.")
        if has_begun:
            if isinstance(order, Exec):
                raise _refused(
                    "internal", "The daemon ended while it ran; it may have done its work. Look first."
                )
            return
        if now_s >= command.expires_at:
            raise _refused(
                "expired", "It came too late to begin. Send another command if it is still wanted."
            )
        if (problem := self._rules.refusal(order)) is not None:
            raise MachineError(problem)
        if isinstance(order, StartInstance) and self._known_only:
            isolation = await self._machines.isolation()
            if isolation.tier == "none":
                raise _refused(
                    "below_floor", "This host cannot keep a tenant apart; `spawn-host check` says why."
                )

    def _check_generation(self, command: Command) -> None:
        order = command.order
        rental_id = rental_of(order)
        if rental_id is None or isinstance(order, StopInstance | DestroyInstance):
            return
        known = self._journal.generations(rental_id, self._service_clock.now_s())
        if known.destroyed >= generation_of(order) or known.seen > generation_of(order):
            raise _refused(
                "stale_generation", "A later command was about a newer generation, or destroyed this one."
            )

    async def _act(self, command: Command) -> Result:
        order = command.order
        match order:
            case StartInstance():
                return await self._start(command, order)
            case ResumeInstance():
                report = await self._machines.resume(
                    order.rental_id, order.generation, order.lease_expires_at
                )
                return _told(report)
            case StopInstance():
                grace_s = max(0, min(order.grace_s, STOP_GRACE_MAX_S))
                report = await self._machines.stop(order.rental_id, order.generation, grace_s, "command")
                return _told(report)
            case DestroyInstance():
                await self._machines.destroy(order.rental_id, order.generation)
                return {"state": "gone"}
            case Logs():
                text = await self._machines.logs(order.rental_id, order.generation, order.lines)
                return {"text": _clean(text)[-TEXT_MAX:]}
            case Exec():
                done = await self._machines.exec(
                    order.rental_id, order.generation, order.argv, order.timeout_s
                )
                return {
                    "exit_code": done.exit_code,
                    "stdout": _clean(done.stdout)[:TEXT_MAX],
                    "stderr": _clean(done.stderr)[:TEXT_MAX],
                }
            case Prepull():
                await self._machines.prepull(order.image, self._progress(command))
                return {"image": order.image}
            case Drain() | Undrain():
                self._rules.drain("service", is_drained=isinstance(order, Drain))
                return {"drained_by": ", ".join(self._rules.drained_by()) or None}
            case RotateKey():
                await self._rotate()
                return {}

    async def _start(self, command: Command, order: StartInstance) -> Result:
        # One rental is paid once: what an older generation still runs makes room. Its disk stays, for a command to end.
        for report in await self._machines.list_rentals():
            is_older = report.rental_id == order.rental_id and report.generation < order.generation
            if is_older and report.state == "running":
                await self._machines.stop(report.rental_id, report.generation, HALT_GRACE_S, "command")
        return _told(await self._machines.start(order, self._progress(command)))

    def _progress(self, command: Command) -> Progress:
        """Passes on how far it is, once a second at most; ends what a destroy that has arrived since makes useless."""
        told_at = float("-inf")

        async def tell(percent: int, what: str) -> None:
            nonlocal told_at
            self._check_generation(command)
            now = self._clock.elapsed_s()
            if now >= told_at + PROGRESS_EVERY_S:
                told_at = now
                self._tell(
                    Ack(
                        command_id=command.command_id,
                        state="progress",
                        progress_percent=max(0, min(percent, 100)),
                        progress=_clean(what)[:200],
                    )
                )

        return tell

    # --- what was decided here --------------------------------------------------------------------------------

    async def _apply(self, action: Action, lane: object) -> None:
        try:
            async with self._lanes[lane]:
                await self._carry_out(action)
        except MachineError as error:
            _log.error("%s (generation %d): %s", action.rental_id, action.generation, error)

    async def _carry_out(self, action: Action) -> None:
        rental_id, number = action.rental_id, action.generation
        if isinstance(action, Halt):
            _log.warning("Stopping %s (generation %d): %s.", rental_id, number, action.why)
            await self._machines.stop(rental_id, number, HALT_GRACE_S, action.ended_by)
        elif isinstance(action, Clear):
            _log.warning("Removing what is left of %s (generation %d): nobody wants it.", rental_id, number)
            await self._machines.destroy(rental_id, number)
        else:
            _log.warning("Starting %s (generation %d) again.", rental_id, number)
            await self._machines.resume(rental_id, number, action.lease_expires_at)

    def _tell_state(self, command: Command, state: AckState) -> None:
        self._tell(Ack(command_id=command.command_id, state=state))


def _refused(code: Code, message: str) -> MachineError:
    return MachineError(Problem(code=code, message=message))


def _failed(command: Command, problem: Problem) -> Ack:
    told = Problem(code=problem.code, message=_clean(problem.message)[:MESSAGE_MAX])
    return Ack(command_id=command.command_id, state="failed", problem=told)


def _clean(text: str) -> str:
    """What a tenant wrote, as text that JSON can carry: a lone surrogate must not end the daemon."""
    return text.encode("utf-8", "replace").decode()


def _told(report: RentalReport) -> Result:
    return {
        "state": report.state,
        "since": report.since,
        "image_digest": report.image_digest,
        "gpus": ",".join(report.gpus) or None,
    }
