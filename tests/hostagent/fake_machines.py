"""Containers that are entries of a table: a faithful `Machines` with faults, for whatever is tested above Docker.

Invariant: it keeps the promises of the protocol (every call may be repeated), and what it holds outlives the daemon, as
Docker's containers do. What must never happen is counted, not prevented: `made`, `deleted`, `ran`, `overlaps`.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator

import msgspec
from spawn_hostagent.keeping.leases import Key
from spawn_hostagent.machines import Capacity, ExecResult, MachineError, Progress
from spawn_schemas.ids import RentalId
from spawn_schemas.inventory import Inventory, Isolation
from spawn_schemas.orders import EndedBy, Problem, RentalReport, RentalState, StartInstance


class Box(msgspec.Struct, kw_only=True):
    """A container."""

    order: StartInstance
    state: RentalState = "running"
    since: int = 0
    lease: int = 0
    ended_by: EndedBy | None = None
    exit_code: int | None = None


class FakeMachines:
    """`now_s` is the clock of what it reports. `before` and `after` are called around each change, and may raise."""

    def __init__(self, now_s: Callable[[], int] = lambda: 0) -> None:
        self._now_s = now_s
        self.boxes: dict[Key, Box] = {}
        self.made: Counter[Key] = Counter()
        self.deleted: Counter[Key] = Counter()
        self.ran: list[tuple[str, ...]] = []
        self.overlaps: list[RentalId] = []
        """Rentals that were changed by two calls at once."""
        self.doubles: list[RentalId] = []
        """Rentals of which two generations ran at once."""
        self.failures: dict[str, Problem] = {}
        """What a call of this name says next instead of doing anything."""
        self.breaks: dict[str, Exception] = {}
        """What a call of this name raises next, after its work is done."""
        self.gates: dict[str, asyncio.Event] = {}
        """A call of this name waits here in the middle of its work."""
        self.entered: Counter[str] = Counter()
        self.listeners: dict[tuple[RentalId, int], tuple[str, int]] = {}
        self.tier = "runc"
        self.lent: Inventory | None = None
        self.left: set[Key] = set()
        """Disks whose containers somebody removed."""
        self.sweeps = 0
        self.is_down = False
        self.steps = ("pulling", 10), ("pulling", 60)
        self._changing: set[RentalId] = set()
        self._changes: list[asyncio.Event] = []

    # --- the protocol -----------------------------------------------------------------------------------------

    async def start(self, order: StartInstance, tell: Progress) -> RentalReport:
        with self._changing_of(order.rental_id):
            for what, percent in self.steps:
                await tell(percent, what)
            await self._enter("start")
            key = (order.rental_id, order.generation)
            box = self.boxes.get(key)
            if box is None:
                self.made[key] += 1
                self.boxes[key] = box = Box(order=order, since=self._now_s(), lease=order.lease_expires_at)
            elif box.state != "running":
                box.state, box.since = "running", self._now_s()
            self._changed("start")
            return self._report(key)

    async def resume(self, rental_id: RentalId, generation: int, lease_expires_at: int) -> RentalReport:
        with self._changing_of(rental_id):
            await self._enter("resume")
            box = self._box(rental_id, generation)
            box.lease = lease_expires_at
            if box.state != "running":
                box.state, box.since, box.ended_by = "running", self._now_s(), None
            self._changed("resume")
            return self._report((rental_id, generation))

    async def stop(self, rental_id: RentalId, generation: int, grace_s: int, ended_by: str) -> RentalReport:
        with self._changing_of(rental_id):
            await self._enter("stop")
            box = self._box(rental_id, generation)
            if box.state == "running":
                box.state, box.since = "stopped", self._now_s()
                box.ended_by = msgspec.convert(ended_by, EndedBy)
            self._changed("stop")
            return self._report((rental_id, generation))

    async def destroy(self, rental_id: RentalId, generation: int) -> None:
        with self._changing_of(rental_id):
            await self._enter("destroy")
            for key in [key for key in self.boxes if key[0] == rental_id and key[1] <= generation]:
                self.deleted[key] += 1
                del self.boxes[key]
            self.left = {key for key in self.left if key[0] != rental_id or key[1] > generation}
            self._changed("destroy")

    async def list_rentals(self) -> tuple[RentalReport, ...]:
        await self._enter("list_rentals")
        return tuple(map(self._report, sorted(self.boxes)))

    async def logs(self, rental_id: RentalId, generation: int, lines: int) -> str:
        await self._enter("logs")
        self._box(rental_id, generation)
        return "a line\n" * lines

    async def exec(
        self, rental_id: RentalId, generation: int, argv: tuple[str, ...], timeout_s: int
    ) -> ExecResult:
        await self._enter("exec")
        if self._box(rental_id, generation).state != "running":
            raise MachineError(Problem(code="not_running", message="It is stopped."))
        self.ran.append(argv)
        self._break("exec")
        return ExecResult(exit_code=0, stdout=" ".join(argv), stderr="")

    async def prepull(self, image: str, tell: Progress) -> None:
        await tell(50, "pulling")
        await self._enter("prepull")

    async def address_of(self, rental_id: RentalId, port: int) -> tuple[str, int]:
        await self._enter("address_of")
        newest = max((key for key in self.boxes if key[0] == rental_id), default=None)
        if newest is None:
            raise MachineError(Problem(code="unknown_rental", message="No such rental is here."))
        if self.boxes[newest].state != "running":
            raise MachineError(Problem(code="not_running", message="It does not run."))
        if (rental_id, port) not in self.listeners:
            raise MachineError(Problem(code="invalid", message=f"Port {port} is not among its ports."))
        return self.listeners[rental_id, port]

    async def traffic(self) -> dict[RentalId, tuple[int, int]]:
        return {key[0]: (1, 2) for key, box in self.boxes.items() if box.state == "running"}

    async def capacity(self) -> Capacity:
        return Capacity(cpus=4, memory_mib=4096, disk_mib=10_000, gpus=(), rentals=16 - len(self.boxes))

    async def isolation(self) -> Isolation:
        await self._enter("isolation")
        return msgspec.convert({"tier": self.tier}, Isolation)

    async def changes(self) -> AsyncIterator[None]:
        event = asyncio.Event()
        self._changes.append(event)
        try:
            while True:
                await event.wait()
                event.clear()
                yield
        finally:
            self._changes.remove(event)

    async def docker_version(self) -> str | None:
        return "28.3.0"

    def lend_as(self, told: Inventory) -> None:
        self.lent = told

    async def leftovers(self) -> tuple[Key, ...]:
        return tuple(sorted(self.left))

    async def sweep(self) -> None:
        await self._enter("sweep")
        self.sweeps += 1

    async def remember_lease(self, rental_id: RentalId, generation: int, lease_expires_at: int) -> None:
        await self._enter("remember_lease")
        self._box(rental_id, generation).lease = lease_expires_at

    # --- for tests --------------------------------------------------------------------------------------------

    def running(self) -> set[Key]:
        return {key for key, box in self.boxes.items() if box.state == "running"}

    def exit(self, rental_id: RentalId, generation: int, ended_by: EndedBy | None) -> None:
        """It ends by itself, or the machine was restarted."""
        box = self._box(rental_id, generation)
        box.state, box.ended_by, box.since = "stopped", ended_by, self._now_s()
        self._say()

    def put(self, order: StartInstance) -> None:
        """It is there, whoever started it."""
        self.boxes[order.rental_id, order.generation] = Box(order=order, lease=order.lease_expires_at)
        self._say()

    def forget_callers(self) -> None:
        """The daemon that was calling is dead."""
        self._changing.clear()
        self._changes.clear()

    def _box(self, rental_id: RentalId, generation: int) -> Box:
        box = self.boxes.get((rental_id, generation))
        if box is None:
            raise MachineError(Problem(code="unknown_rental", message="No such rental is here."))
        return box

    def _report(self, key: Key) -> RentalReport:
        box = self.boxes[key]
        return RentalReport(
            rental_id=key[0],
            generation=key[1],
            state=box.state,
            since=box.since,
            lease_expires_at=box.lease or None,
            ended_by=box.ended_by,
            exit_code=box.exit_code,
            image_digest=box.order.image.partition("@")[2] or None,
        )

    async def _enter(self, name: str) -> None:
        self.entered[name] += 1
        if self.is_down:
            raise MachineError(Problem(code="docker_failed", message="Docker does not answer."))
        if name in self.gates:
            await self.gates[name].wait()
        await asyncio.sleep(0)
        if name in self.failures:
            raise MachineError(self.failures.pop(name))

    def _break(self, name: str) -> None:
        if name in self.breaks:
            raise self.breaks.pop(name)

    @contextlib.contextmanager
    def _changing_of(self, rental_id: RentalId) -> Iterator[None]:
        if rental_id in self._changing:
            self.overlaps.append(rental_id)
        self._changing.add(rental_id)
        try:
            yield
        finally:
            self._changing.discard(rental_id)

    def _changed(self, name: str) -> None:
        running = Counter(key[0] for key in self.running())
        self.doubles += [rental_id for rental_id, count in running.items() if count > 1]
        self._say()
        self._break(name)

    def _say(self) -> None:
        for event in self._changes:
            event.set()
