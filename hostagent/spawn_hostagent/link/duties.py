"""What the two transports of the link, WebSocket and plain HTTP, ask of the rest of the daemon.

Invariant: the same duties for both, so that a host that cannot hold a socket is the same host.
"""

from typing import Literal, Protocol

import msgspec
from spawn_schemas.ids import CommandId, RentalId
from spawn_schemas.inventory import Inventory, Metrics
from spawn_schemas.link import Dial
from spawn_schemas.orders import Ack, Command, Desired, RentalReport

Status = Literal["online", "draining", "drained"]


class Pulse(msgspec.Struct, frozen=True, kw_only=True):
    """How the host is: what a heartbeat says. `rentals` is how many run."""

    status: Status
    metrics: Metrics
    rentals: int
    traffic: dict[RentalId, tuple[int, int]] = {}


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """What the host has: what a state sync says. `inventory` where it is new, or was asked for."""

    rentals: tuple[RentalReport, ...]
    inventory: Inventory | None = None
    draining: bool = False


class Refusal(Exception):
    """A stream cannot be brought; the message is what the service is told."""


class Duties(Protocol):
    """The daemon, as the link sees it. Nothing here raises, but `dial` a Refusal."""

    async def pulse(self) -> Pulse:
        """The figures of now."""
        ...

    async def picture(self, *, whole: bool) -> Picture:
        """All that is here; with the inventory where a `whole` one is asked for or it has changed."""
        ...

    def obey(self, command: Command) -> None:
        """Take a command, whether it was there before or not; what comes of it is told through `say` of the link."""
        ...

    async def want(self, desired: tuple[Desired, ...]) -> None:
        """Keep what the service wants, and see to it soon; reading the link waits for this."""
        ...

    async def dial(self, dial: Dial) -> None:
        """Bring a stream's socket; return when it is connected at both ends. Raises Refusal."""
        ...

    def untold(self) -> tuple[Ack, ...]:
        """Results that the service has not been sent yet."""
        ...

    def underway(self) -> tuple[Ack, ...]:
        """How far each command is that has not ended."""
        ...

    def told(self, command_ids: tuple[CommandId, ...]) -> None:
        """These results were sent."""
        ...
