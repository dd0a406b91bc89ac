"""Who has what of the machine: containers that are here, those being made, and disks that lost their container.

Invariant: an order that was found to fit keeps its place until its container has it; two starts never get the same.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
from docker import APIClient
from spawn_schemas.orders import RentalReport, RentalState, StartInstance

from spawn_hostagent.docker import containers
from spawn_hostagent.docker.engine import Engine
from spawn_hostagent.docker.rentals import container_name
from spawn_hostagent.machines import Capacity
from spawn_hostagent.walls.admission import Lent, Taken, check_room, free
from spawn_hostagent.walls.disks import Disks


class Starting(msgspec.Struct, frozen=True):
    """A rental that has its place and no container yet, or one that never ran. `since` is unix seconds."""

    order: StartInstance
    state: RentalState
    since: int

    def report(self) -> RentalReport:
        return RentalReport(
            rental_id=self.order.rental_id,
            generation=self.order.generation,
            state=self.state,
            since=self.since,
            lease_expires_at=self.order.lease_expires_at,
            gpus=self.order.gpus,
        )


class Room:
    """Of `lent`, on this engine and among these disks. `starting` is by name, and may be read in any thread."""

    def __init__(self, engine: Engine, disks: Disks, lent: Lent, now: Callable[[], float]) -> None:
        self._engine, self._disks, self._now = engine, disks, now
        self.lent = lent
        self.starting: dict[str, Starting] = {}
        self.ended = 0
        """How many left `starting`, whatever became of them."""
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def reserved(self, order: StartInstance) -> AsyncIterator[str]:
        """Room for it among all the others, from here on; its name. Raises MachineError as `check_room` does."""
        name = container_name(order.rental_id, order.generation)
        async with self._turn:
            check_room(order, self.lent, (await self._taken()).values())
            self.now_is(name, order, "pulling")
        try:
            yield name
        finally:
            del self.starting[name]
            self.ended += 1

    def now_is(self, name: str, order: StartInstance, state: RentalState) -> None:
        self.starting[name] = Starting(order, state, int(self._now()))

    def wanted_images(self) -> tuple[str, ...]:
        """Those that somebody is being started from."""
        return tuple(starting.order.image for starting in tuple(self.starting.values()))

    async def capacity(self) -> Capacity:
        """What is lent and not taken."""
        return free(self.lent, (await self._taken()).values())

    async def _taken(self) -> dict[str, Taken]:
        taken = {
            name: Taken(
                cpus=starting.order.cpus,
                memory_mib=starting.order.memory_mib,
                disk_mib=starting.order.disk_mib,
                gpus=starting.order.gpus,
            )
            for name, starting in self.starting.items()
        }

        def look(client: APIClient) -> dict[str, Taken]:
            # A disk whose container somebody removed is as large as before.
            disks = {
                name: Taken(cpus=0, memory_mib=0, disk_mib=mib, is_rental=False)
                for name, mib in self._disks.sizes_mib().items()
            }
            here = {found.facts.name: found.facts.taken for found in containers.find_all(client)}
            return {**disks, **here}

        return {**await self._engine.call(look), **taken}
