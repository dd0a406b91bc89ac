"""How the world reaches a tenant's ports: whatever the tunnel, it leads to rentals that run here and nowhere else.

Invariant: every connection is checked here, whatever the service asks: a rental of ours that runs, a port of its own,
and no more connections or bytes than its share. A driver sees addresses that were checked, and never picks one.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import msgspec
from spawn_schemas.ids import RentalId
from spawn_schemas.link import Dial

from spawn_hostagent.clock import Clock
from spawn_hostagent.link.duties import Refusal
from spawn_hostagent.machines import MachineError, Machines
from spawn_hostagent.streams.bandwidth import Bucket

DIAL_S: Final = 10.0
"""Within which a stream is connected at both ends: the service waits no longer."""
PER_RENTAL_MAX: Final = 256
TOTAL_MAX: Final = 2048

_log: Final = logging.getLogger(__name__)


class Usage(msgspec.Struct, kw_only=True):
    """What went through the tunnel for a rental, in bytes: in to the tenant, and out; `open` streams at present."""

    bytes_in: int = 0
    bytes_out: int = 0
    open: int = 0
    streams: int = 0


class Stream(Protocol):
    """A connection at both ends, ready to be carried."""

    async def carry(self, usage: Usage, buckets: tuple[Bucket, ...]) -> None:
        """Pass bytes both ways until the end, count them, and close both ends whatever happens."""
        ...

    def abort(self) -> None:
        """Break what is still open of both ends, at once."""
        ...


class Tunnel(Protocol):
    """A way into this machine. The relay is asked for each stream; frp or a direct address would publish ports once."""

    async def publish(self, rental_id: RentalId) -> None:
        """This rental runs: its ports may be reached from now on."""
        ...

    async def withdraw(self, rental_id: RentalId) -> None:
        """This rental does not run any more: nothing of it may be reached."""
        ...

    async def connect(self, dial: Dial, address: tuple[str, int]) -> Stream:
        """Connect a stream that the service asks for with this address of a container. Raises Refusal."""
        ...


class TunnelManager:
    """Decides who is let in, and counts. `limit_of` is a rental's own Mbit/s; `up_mbit` the owner's, for all."""

    def __init__(
        self,
        machines: Machines,
        driver: Tunnel,
        clock: Clock,
        *,
        up_mbit: int | None = None,
        limit_of: Callable[[RentalId], int | None] = lambda _: None,
        per_rental_max: int = PER_RENTAL_MAX,
        total_max: int = TOTAL_MAX,
    ) -> None:
        self._machines = machines
        self._driver = driver
        self._clock = clock
        self._shared = Bucket(up_mbit, clock) if up_mbit else None
        self._limit_of = limit_of
        self._per_rental_max = per_rental_max
        self._total_max = total_max
        self._own: dict[RentalId, tuple[int, Bucket]] = {}
        self._usage: dict[RentalId, Usage] = {}
        self._tasks: dict[asyncio.Task[None], RentalId] = {}
        self._dialling: Counter[RentalId] = Counter()
        self._published: frozenset[RentalId] = frozenset()

    def usage(self) -> Mapping[RentalId, Usage]:
        return self._usage

    async def follow(self, running: frozenset[RentalId]) -> None:
        """These rentals run now: the ports of others are shut, and their streams cut."""
        for rental_id in running - self._published:
            await self._driver.publish(rental_id)
        for rental_id in self._published - running:
            await self._driver.withdraw(rental_id)
            self._cut(rental_id)
        self._published = running
        # What a rental that does not run has carried is nobody's question any more.
        for rental_id in [
            name for name, usage in self._usage.items() if name not in running and not usage.open
        ]:
            del self._usage[rental_id]

    async def dial(self, dial: Dial) -> None:
        """Connect a stream at both ends and carry it from here on. Raises Refusal."""
        rental_id = dial.rental_id
        self._check_room(rental_id)
        self._dialling[rental_id] += 1
        try:
            stream = await asyncio.wait_for(self._connect(dial), DIAL_S)
        except asyncio.TimeoutError as error:
            raise Refusal(f"Nothing answered within {DIAL_S:.0f} s.") from error
        finally:
            self._dialling -= Counter((rental_id,))
        usage = self._usage.setdefault(rental_id, Usage())
        usage.open += 1
        usage.streams += 1
        task = asyncio.create_task(self._carry(rental_id, stream, usage))
        self._tasks[task] = rental_id
        task.add_done_callback(self._ended(stream, usage))

    async def close(self) -> None:
        """Cut all streams."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _check_room(self, rental_id: RentalId) -> None:
        of_rental = sum(owner == rental_id for owner in self._tasks.values()) + self._dialling[rental_id]
        if of_rental >= self._per_rental_max:
            raise Refusal(f"The rental has {self._per_rental_max} connections open, which is all it may.")
        if len(self._tasks) + self._dialling.total() >= self._total_max:
            raise Refusal(f"The host carries {self._total_max} connections, which is all it takes.")

    async def _connect(self, dial: Dial) -> Stream:
        try:
            address = await self._machines.address_of(dial.rental_id, dial.port)
        except MachineError as error:
            raise Refusal(error.problem.message) from error
        return await self._driver.connect(dial, address)

    async def _carry(self, rental_id: RentalId, stream: Stream, usage: Usage) -> None:
        try:
            await stream.carry(usage, self._buckets(rental_id))
        except OSError as error:
            _log.debug("A stream of %s broke off: %s", rental_id, error)

    def _ended(self, stream: Stream, usage: Usage) -> Callable[[asyncio.Task[None]], None]:
        def ended(task: asyncio.Task[None]) -> None:
            del self._tasks[task]
            usage.open -= 1
            # One that was cut before its first turn has closed nothing.
            stream.abort()

        return ended

    def _buckets(self, rental_id: RentalId) -> tuple[Bucket, ...]:
        limit = self._limit_of(rental_id)
        if limit is not None and self._own.get(rental_id, (None,))[0] != limit:
            self._own[rental_id] = (limit, Bucket(limit, self._clock))
        own = (self._own[rental_id][1],) if limit is not None else ()
        return own if self._shared is None else (*own, self._shared)

    def _cut(self, rental_id: RentalId) -> None:
        for task, owner in self._tasks.items():
            if owner == rental_id:
                task.cancel()
        self._own.pop(rental_id, None)
