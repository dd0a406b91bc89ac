"""What the rest of the daemon asks of whoever runs containers: Docker, or a fake in tests.

Invariant: every call may be repeated. A call ends in its answer or in `MachineError`; after a crash in the middle of
one, `list_rentals` tells what is there, and the same call made again ends where the first would have.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

import msgspec
from spawn_schemas.ids import RentalId
from spawn_schemas.inventory import Inventory, Isolation
from spawn_schemas.orders import Problem, RentalReport, StartInstance

Progress = Callable[[int, str], Awaitable[None]]
"""Told the percentage done and what is done now."""


class MachineError(Exception):
    """What was asked was not done; `problem` is what the service is told."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class ExecResult(msgspec.Struct, frozen=True, kw_only=True):
    exit_code: int
    stdout: str
    stderr: str


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What is lent and not taken. `gpus` are UUIDs of healthy ones that nobody has."""

    cpus: float
    memory_mib: int
    disk_mib: int
    gpus: tuple[str, ...]
    rentals: int


class Machines(Protocol):
    """Whoever runs containers; none of the calls blocks the event loop."""

    async def start(self, order: StartInstance, tell: Progress) -> RentalReport:
        """Run it; answers when it runs. An order of a generation that runs already is a success."""
        ...

    async def resume(self, rental_id: RentalId, generation: int, lease_expires_at: int) -> RentalReport:
        """Start a stopped one as it was; answers when it runs. One that runs gets the lease."""
        ...

    async def stop(self, rental_id: RentalId, generation: int, grace_s: int, ended_by: str) -> RentalReport:
        """Stop it and keep its disk; `ended_by` is one of `EndedBy`, killed after `grace_s`."""
        ...

    async def destroy(self, rental_id: RentalId, generation: int) -> None:
        """Remove container, disk and network of all generations up to this one."""
        ...

    async def list_rentals(self) -> tuple[RentalReport, ...]:
        """All containers with our label, of all generations, as they are now."""
        ...

    async def logs(self, rental_id: RentalId, generation: int, lines: int) -> str:
        """The last lines that it wrote."""
        ...

    async def exec(
        self, rental_id: RentalId, generation: int, argv: tuple[str, ...], timeout_s: int
    ) -> ExecResult:
        """Run `argv` inside; MachineError `timed_out` after `timeout_s`."""
        ...

    async def prepull(self, image: str, tell: Progress) -> None:
        """Fetch an image, by digest."""
        ...

    async def address_of(self, rental_id: RentalId, port: int) -> tuple[str, int]:
        """Where on this machine the container's TCP port is reached; MachineError `not_running` or `unknown_rental`."""
        ...

    async def traffic(self) -> dict[RentalId, tuple[int, int]]:
        """Bytes in and out of each rental since its container began."""
        ...

    async def capacity(self) -> Capacity:
        """What is left of what is lent."""
        ...

    async def isolation(self) -> Isolation:
        """What the canaries found; measured once for each start of Docker."""
        ...

    def changes(self) -> AsyncIterator[None]:
        """One item for each time that something of ours changed; several changes at once may be one."""
        ...

    async def docker_version(self) -> str | None:
        """Of the engine that runs them."""
        ...

    def lend_as(self, told: Inventory) -> None:
        """From now on as much as the inventory says that is lent; whoever has more keeps it."""
        ...

    async def leftovers(self) -> tuple[tuple[RentalId, int], ...]:
        """Rentals and generations of which something is left that held data, and no container: somebody removed it."""
        ...

    async def sweep(self) -> None:
        """Housekeeping, each minute: disks polled, images evicted, what a crash left half-made removed."""
        ...

    async def remember_lease(self, rental_id: RentalId, generation: int, lease_expires_at: int) -> None:
        """Keep until when it may run, so that a restart knows without asking anybody."""
        ...
