"""The cloud of a simulated world: real behaviour, every bad day of it, and a memory of what really happened.

The machines are those of `spawn_providers.simulated_world`, in its own file, so that a restore finds them as well.
Between them and the service is the weather: what is lost, late, refused, broken, or down. Invariant: the truth outlives
every process, and it is never denied: what the cloud does answer is so, however much goes missing on the way.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from msgspec.structs import replace
from spawn_providers.base import (
    Change,
    Instance,
    Op,
    OpState,
    OutcomeUnknown,
    Provider,
    Refused,
    RefusedCode,
    Spec,
    Unavailable,
    Verb,
)
from spawn_providers.catalog import DEFAULT_CATALOG, Catalog
from spawn_providers.simulated import SimulatedProvider
from spawn_providers.simulated_faults import Breakdown, Flaw
from spawn_providers.simulated_world import World as Machinery
from spawn_schemas.ids import Address, ServerId

from tests.sim.senders import Senders
from tests.sim.weather import OF_PROCESS, Fate

if TYPE_CHECKING:
    from tests.sim.world import World

T = TypeVar("T")
Deed = Callable[[Flaw | None], T]

_GONE_FROM: Final = "SELECT MAX(at_ms) FROM step WHERE ref = ? AND status IS NULL"
_SELECT_LIVING: Final = (
    "SELECT id FROM server WHERE provider_ref = :ref AND status NOT IN ('destroying', 'destroyed', 'failed')"
)
REFUSALS: Final = {
    "create": (RefusedCode.OUT_OF_CAPACITY, RefusedCode.QUOTA, RefusedCode.INVALID),
    "delete": (RefusedCode.CONFLICT,),
    **{verb.value: (RefusedCode.CONFLICT,) for verb in Verb},
    Verb.RESIZE.value: (RefusedCode.CONFLICT, RefusedCode.OUT_OF_CAPACITY),
}
"""What a cloud may say no with at any time. That there is no such machine, it says only when that is so."""
_TOO_MANY_CALLS: Final = (RefusedCode.QUOTA,)


@dataclass(kw_only=True)
class Machine:
    """What is true of one machine; times in milliseconds of true unix time. `key` is None without our label."""

    ref: str
    key: ServerId | None
    owner: Address
    ordered_ms: int
    gone_ms: int | None = None
    """From when on it is gone; that may be soon."""
    planted: bool = False
    """Nobody ordered it here."""
    late: bool = False
    """Its order arrived after its caller was told that the connection was lost."""
    vanished: bool = False
    """It was lost, and not deleted."""

    def exists_at(self, at_ms: int) -> bool:
        return self.ordered_ms <= at_ms and (self.gone_ms is None or at_ms < self.gone_ms)


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the service had done to a machine: accepted by the cloud. `sent_ms` is when the call was made.

    `verb` is None for its destruction; what `broke_down` left the machine, disk and all, as it was.
    """

    machine: Machine
    verb: Verb | None
    sent_ms: int
    broke_down: bool


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """A list of our machines that reached the service; `at_ms` is when it was true."""

    at_ms: int
    instances: tuple[Instance, ...]


@dataclass(frozen=True, kw_only=True)
class Trick:
    """What the next call of one of these methods meets."""

    methods: tuple[str, ...]
    """As in `Provider`; what acts on a machine goes by its verb."""
    fate: Fate = Fate.ARRIVES
    code: RefusedCode | None = None
    """With what it is refused."""
    flaw: Flaw | None = None
    is_forgotten: bool = False
    """Nobody knows afterwards of the op that it started."""
    is_deadly: bool = False
    """The process that asked dies before it hears what was done."""
    down_s: int = 0
    """For how long the cloud takes no calls after it."""
    late_s: float = 0.0
    """The request is on its way for so long, while its caller is told that the connection was lost."""


_NO_TRICK: Final = Trick(methods=())


class SimCloud:
    """The provider that every process is given, and beside it the truth."""

    name: str = SimulatedProvider.name
    capabilities = SimulatedProvider.capabilities

    def __init__(self, world: "World") -> None:
        path = Path(world.settings.simulated_path)
        self._world = world
        self._capacity: dict[str, int] = {}
        self._machinery = Machinery(
            path,
            now_ms=world.true_ms,
            seed=world.settings.simulated_seed,
            speed=1.0,
            capacity=self._capacity,
            quota=None,
        )
        self._file = sqlite3.connect(path, isolation_level=None)
        self._machines: dict[str, Machine] = {}
        self.told: dict[str, list[str]] = {}
        """By reference what a machine was told: at its creation, and at each rebuild that told it something."""
        self.tricks: list[Trick] = []
        self.sold_out: dict[str, int] = {}
        """Until when (true seconds) a location takes no more machines."""
        self.unlisted: dict[str, int] = {}
        """Until when (true seconds) lists leave out a machine that is there."""
        self.slow_until_s = 0
        self.senders = Senders(world.seed, world.count)
        self.orders: list[Order] = []
        self.inventories: list[Inventory] = []

    def provider(self) -> Provider:
        """What a process holds of the cloud: nothing that its death would change."""
        return self

    # --- the truth ----------------------------------------------------------------------------------------------

    def machines(self) -> list[Machine]:
        """Every machine there ever was, in the order in which they came."""
        return list(self._machines.values())

    def existing(self) -> list[Machine]:
        """The machines that there are now."""
        now_ms = self._world.true_ms()
        return [machine for machine in self._machines.values() if machine.exists_at(now_ms)]

    def machine(self, ref: str) -> Machine:
        """Raises KeyError where there never was one."""
        return self._machines[ref]

    def look(self, ref: str) -> Instance | None:
        """What the machine is like now; None when it is gone."""
        return self._machinery.get(ref)

    def _observe(self, ref: str) -> None:
        (self._machines[ref].gone_ms,) = self._file.execute(_GONE_FROM, (ref,)).fetchone()

    # --- what happens by itself ---------------------------------------------------------------------------------

    def plant(self, key: ServerId | None, spec: Spec) -> None:
        """A running machine that nobody ordered here: with a key an orphan that has our label, else a stranger's."""
        ref = self._machinery.plant(key, spec)
        ordered_ms = self._world.true_ms()
        self._machines[ref] = Machine(ref=ref, key=key, owner=spec.owner, ordered_ms=ordered_ms, planted=True)
        self._world.step(f"cloud: {ref} appears, {key or 'without our label'}")

    def vanish(self, ref: str) -> None:
        """Lose the machine."""
        self._machinery.vanish(ref)
        self._machines[ref].vanished = True
        self._observe(ref)
        self._world.step(f"cloud: {ref} vanishes")

    def remove(self, ref: str) -> None:
        """Somebody deletes the machine past us, as in the cloud's console. Raises Refused while it is locked."""
        self._machinery.delete(ref, None)
        self._machines[ref].vanished = True
        self._observe(ref)
        self._world.step(f"cloud: {ref} is removed")

    def forget(self, handle: str) -> None:
        """From now on nobody knows this op. Raises LookupError where nobody ever did."""
        self._machinery.forget(handle)
        self._world.step(f"cloud: {handle} is forgotten")

    # --- calls of the service -------------------------------------------------------------------------------------

    async def catalog(self) -> Catalog:
        """Read when a process starts, and never wrong: a start that fails is only repeated."""
        return DEFAULT_CATALOG

    async def create(self, key: ServerId, spec: Spec) -> Op:
        def deed(flaw: Flaw | None) -> Op:
            self._sell_out()
            op = self._machinery.create(key, spec, flaw)
            if op.ref not in self._machines:
                ordered_ms = self._world.true_ms()
                self._machines[op.ref] = Machine(ref=op.ref, key=key, owner=spec.owner, ordered_ms=ordered_ms)
                self._tell(op.ref, spec.user_data)
            return op

        return await self._call("create", key, deed)

    async def find(self, key: ServerId, *, to_destroy: bool = False) -> Instance | None:
        return await self._call("find", key, lambda _: self._shown(self._machinery.find(key)))

    async def get(self, ref: str) -> Instance | None:
        return await self._call("get", ref, lambda _: self._shown(self._machinery.get(ref)))

    def _shown(self, instance: Instance | None) -> Instance | None:
        if instance is None:
            return None
        return self.senders.seen(instance, self._world.true_s(), is_honest=self._world.calm)

    async def list_owned(self) -> AsyncIterator[Instance]:
        def deed(_: Flaw | None) -> Inventory:
            at_s = self._world.true_s()
            owned = (one for one in self._machinery.owned() if not self._is_left_out(one.ref))
            there = tuple(self.senders.seen(one, at_s, is_honest=self._world.calm) for one in owned)
            return Inventory(at_ms=self._world.true_ms(), instances=there)

        inventory = await self._call("list_owned", "", deed)
        self.inventories.append(inventory)
        self._world.step(f"cloud: an inventory of {len(inventory.instances)} has arrived")
        for instance in inventory.instances:
            yield instance

    def _is_left_out(self, ref: str) -> bool:
        """Lists are behind, or lose what moves between their pages; asked for by itself, it is there."""
        world = self._world
        if world.calm or world.true_s() >= self.unlisted.get(ref, 0):
            return False
        return bool(world.rows(_SELECT_LIVING, ref=ref))

    async def act(self, ref: str, verb: Verb, change: Change) -> Op:
        sent_ms = self._world.true_ms()

        def deed(flaw: Flaw | None) -> Op:
            op = self._machinery.act(ref, verb, change, flaw)
            self._accept(ref, verb, sent_ms, flaw)
            if verb is Verb.REBUILD:
                self._tell(ref, change.user_data)
            return op

        return await self._call(verb.value, ref, deed)

    def _tell(self, ref: str, user_data: str | None) -> None:
        if user_data is not None:
            self.told.setdefault(ref, []).append(user_data)

    def _accept(self, ref: str, verb: Verb | None, sent_ms: int, flaw: Flaw | None) -> None:
        broke_down = isinstance(flaw, Breakdown)
        self.orders.append(
            Order(machine=self._machines[ref], verb=verb, sent_ms=sent_ms, broke_down=broke_down)
        )

    async def delete(self, ref: str) -> Op:
        sent_ms = self._world.true_ms()

        def deed(flaw: Flaw | None) -> Op:
            op = self._machinery.delete(ref, flaw)
            self._observe(ref)
            self._accept(ref, None, sent_ms, flaw)
            return replace(op, last_seen=self._shown(op.last_seen))

        return await self._call("delete", ref, deed)

    async def poll(self, handles: Sequence[str]) -> list[OpState]:
        return await self._call("poll", " ".join(handles), lambda _: self._machinery.poll(handles))

    async def _call(self, method: str, subject: str, deed: Deed[T]) -> T:
        """There, done or not, and back."""
        world = self._world
        fate = await world.weather.on_the_way("cloud", method)
        trick = self._take_trick(method) if fate is Fate.ARRIVES else _NO_TRICK
        if fate is Fate.ARRIVES:
            fate = trick.fate
        if trick.late_s:
            late = self._arrive_late(method, subject, deed, trick.late_s)
            # Not of the process that asked: its death stops no request that has left.
            _ = Context().run(world.spawn, late, name=f"late {method}")
            raise OutcomeUnknown(f"the connection was lost during {method}")
        if fate is Fate.LOST_REQUEST:
            raise OutcomeUnknown(f"the request to {method} was lost")
        if fate is Fate.DOWN:
            raise Unavailable("the cloud is down", retry_after_s=world.random.choice((1, 5, 60)))
        if fate is Fate.REFUSED:
            code = trick.code or world.random.choice(REFUSALS.get(method, _TOO_MANY_CALLS))
            raise Refused(code, f"{method} is refused: {code}")
        answer = self._done(method, subject, deed, trick.flaw)
        if trick.is_forgotten and isinstance(answer, Op):
            self.forget(answer.handle)
        if trick.down_s:
            world.weather.outages["cloud"] = world.true_s() + trick.down_s
        if trick.is_deadly and (process := OF_PROCESS.get()) is not None:
            world.kill(process, f"after cloud {method}")
        if not world.calm and world.true_s() < self.slow_until_s:
            await asyncio.sleep(world.random.uniform(5.0, 45.0))
        await world.weather.on_the_way_back("cloud", method)
        if fate is Fate.LOST_ANSWER:
            raise OutcomeUnknown(f"the answer to {method} was lost")
        if isinstance(answer, Refused):
            raise answer
        return answer

    def _done(self, method: str, subject: str, deed: Deed[T], flaw: Flaw | None) -> T | Refused:
        try:
            answer: T | Refused = deed(flaw)
        except Refused as no:
            answer = no
        said = f": {answer.code}" if isinstance(answer, Refused) else ""
        self._world.step(f"cloud: {method} {subject}{said}")
        return answer

    async def _arrive_late(self, method: str, subject: str, deed: Deed[object], late_s: float) -> None:
        await asyncio.sleep(late_s)
        known = len(self._machines)
        self._done(f"late {method}", subject, deed, None)
        for machine in self.machines()[known:]:
            machine.late = True

    def _take_trick(self, method: str) -> Trick:
        """The oldest that is meant for this method. In calm there are none."""
        if self._world.calm:
            return _NO_TRICK
        for number, trick in enumerate(self.tricks):
            if method in trick.methods:
                self._world.count(f"cloud: a trick on {method}")
                return self.tricks.pop(number)
        return _NO_TRICK

    def _sell_out(self) -> None:
        """The machinery reads these capacities at every create."""
        now = self._world.true_s()
        self._capacity.clear()
        if not self._world.calm:
            self._capacity.update({place: 0 for place, until in self.sold_out.items() if now < until})
