"""A rented server: its states, and which verbs each state allows.

Invariant: `charged_until` is set exactly while the server costs money, and an ended server has no meter. One that runs
without a meter is frozen: nothing charges it, warns of it or ends it.
"""

from enum import StrEnum
from typing import Final

import msgspec
from spawn_ledger.accrual import Meter
from spawn_providers.base import InstanceStatus
from spawn_providers.catalog import Offer
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.ids import Address, HostId, ServerId
from spawn_schemas.money import Usdc

from spawn.domain.pins import Owed, Pin


class Status(StrEnum):
    """What callers see. `destroyed` and `failed` are final."""

    INITIALIZING = "initializing"
    RUNNING = "running"
    STOPPING = "stopping"
    OFF = "off"
    REBUILDING = "rebuilding"
    MIGRATING = "migrating"
    DESTROYING = "destroying"
    FAILED = "failed"
    DESTROYED = "destroyed"
    UNKNOWN = "unknown"


FINAL: Final = frozenset({Status.DESTROYED, Status.FAILED})


class Reason(StrEnum):
    """Why a server is failed, destroying or destroyed."""

    REQUESTED = "requested"
    DEPOSIT_EXHAUSTED = "deposit_exhausted"
    PROVIDER_REFUSED = "provider_refused"
    VANISHED = "vanished"


class Command(StrEnum):
    """What an operation does, in the words the API shows."""

    CREATE = "create_server"
    START = "start_server"
    STOP = "stop_server"
    POWEROFF = "poweroff_server"
    REBOOT = "reboot_server"
    RESIZE = "resize_server"
    REBUILD = "rebuild_server"
    DESTROY = "destroy_server"


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """One rented server. Times are unix seconds; `charged_until` is None before acceptance and after the end.

    What may be left out is what happens to a server later: nothing of it has, when it is ordered. `traffic_owed_usdc`
    is what it sent and nobody could pay for yet. `host_id` is the lent machine that it is on, and whose
    its share is.
    """

    id: ServerId
    wallet: Address
    name: str
    type: str
    image: str
    location: str
    network: str
    ssh_keys: tuple[str, ...]
    provider: str
    provider_type: str
    provider_ref: str | None
    architecture: str
    cores: int
    memory_gb: int
    disk_gb: int
    status: Status
    reason: Reason | None = None
    ipv4: str | None = None
    ipv6: str | None = None
    auto_renew: bool
    created_at: int
    ended_at: int | None = None
    missing_since: int | None = None
    missing_month_s: int = 0
    daily_usdc: Usdc
    remainder: int = 0
    charged_until: int | None = None
    charged_usdc: Usdc = Usdc(0)
    minimum_usdc: Usdc = Usdc(0)
    due_at: int | None = None
    capped_s: int
    month_s: int = 0
    metered_from: int | None = None
    priced_at: int
    reprice_at: int | None = None
    reprice_usdc: Usdc | None = None
    cost_daily_usdc: Usdc | None
    cost_capped_s: int
    cost_step_s: int
    cost_remainder: int = 0
    cost_until: int | None = None
    cost_usdc: Usdc = Usdc(0)
    epoch: int = 0
    warned_s: int | None = None
    last_warned_at: int | None = None
    exhausted_at: int | None = None
    owed: tuple[Owed, ...] = ()
    included_bytes: int = 0
    tb_usdc: Usdc | None = None
    cost_tb_usdc: Usdc | None = None
    traffic_owed_usdc: Usdc = Usdc(0)
    host_id: HostId | None = None

    @property
    def pin(self) -> Pin:
        """What it costs now."""
        return Pin(
            daily_usdc=self.daily_usdc,
            capped_s=self.capped_s,
            cost_daily_usdc=self.cost_daily_usdc,
            cost_capped_s=self.cost_capped_s,
            cost_step_s=self.cost_step_s,
            included_bytes=self.included_bytes,
            tb_usdc=self.tb_usdc,
            cost_tb_usdc=self.cost_tb_usdc,
        )

    @property
    def due_pin(self) -> Pin:
        """What the second after the watermark costs: its price at that time, if that is still owed."""
        return self.owed[0].pin if self.owed else self.pin

    @property
    def frozen(self) -> bool:
        """Its machine is there, and it costs nothing until an operator starts its meter: its books were lost."""
        ended = self.status in FINAL or self.status is Status.DESTROYING
        return self.charged_until is None and self.provider_ref is not None and not ended

    @property
    def meter(self) -> Meter | None:
        """The burn's state, or None while the server costs nothing. It holds up to the end of what `due_pin` is for."""
        if self.charged_until is None:
            return None
        return Meter(
            daily_usdc=self.due_pin.daily_usdc,
            remainder=self.remainder,
            charged_until=self.charged_until,
            capped_s=self.due_pin.capped_s,
            month_s=self.month_s,
        )


_STATUS_OF: Final = {
    InstanceStatus.INITIALIZING: Status.INITIALIZING,
    InstanceStatus.STARTING: Status.INITIALIZING,
    InstanceStatus.RUNNING: Status.RUNNING,
    InstanceStatus.STOPPING: Status.STOPPING,
    InstanceStatus.OFF: Status.OFF,
    # We did not order it, or it would not be asked: what comes of it shows when it is gone.
    InstanceStatus.DELETING: Status.UNKNOWN,
    InstanceStatus.MIGRATING: Status.MIGRATING,
    InstanceStatus.REBUILDING: Status.REBUILDING,
    InstanceStatus.UNKNOWN: Status.UNKNOWN,
}


def status_of(instance: InstanceStatus) -> Status:
    """The caller's word for what a provider reports."""
    return _STATUS_OF[instance]


_ALLOWED: Final = {
    Command.START: frozenset({Status.OFF, Status.RUNNING}),
    Command.STOP: frozenset({Status.RUNNING}),
    Command.POWEROFF: frozenset({Status.RUNNING, Status.STOPPING}),
    Command.REBOOT: frozenset({Status.RUNNING}),
    Command.RESIZE: frozenset({Status.RUNNING, Status.OFF}),
    Command.REBUILD: frozenset({Status.RUNNING, Status.OFF}),
}


_NEXT: Final = {
    Status.RUNNING: "It is running: stop it first.",
    Status.OFF: "It is off: start it first.",
    Status.DESTROYING: "It is being destroyed: rent another.",
    Status.DESTROYED: "It is gone: rent another.",
    Status.FAILED: "It never came to be: rent another.",
}


def check_allowed(server: Server, command: Command) -> None:
    """Raise `conflict` unless the server's state allows the command."""
    if server.status in _ALLOWED[command]:
        return
    allowed = " or ".join(sorted(_ALLOWED[command]))
    raise SpawnError(
        Code.CONFLICT,
        f"{command} needs a server that is {allowed}; {server.id} is {server.status}.",
        details={"status": server.status.value},
        next=_NEXT.get(server.status, f"GET /v1/servers/{server.id}?wait=30 waits until it has settled."),
    )


def check_funded(server: Server) -> None:
    """Raise `insufficient_deposit` for a server that only waits for its end, or for money."""
    if server.exhausted_at is not None:
        raise SpawnError(
            Code.INSUFFICIENT_DEPOSIT,
            f"The money of {server.id} has ended.",
            next=f"POST /v1/servers/{server.id}/deposit, or pay into the balance that it renews from.",
        )


def check_metered(server: Server) -> None:
    """Raise `conflict` for a server whose price nobody pays yet: another one would have to begin."""
    if server.frozen:
        raise SpawnError(
            Code.CONFLICT,
            f"{server.id} costs nothing at present: its books were lost, and are being restored.",
            next="Resize it when GET /v1/servers/{id} shows until when its money lasts.",
        )


def check_resize(server: Server, offer: Offer) -> None:
    """Raise `conflict` where a machine cannot become the offered one: another architecture, a smaller disk."""
    if offer.provider_type == server.provider_type:
        raise SpawnError(
            Code.CONFLICT,
            f"{server.id} already is a {server.type}.",
            next="GET /v1/catalog lists other types.",
        )
    if offer.architecture != server.architecture:
        raise SpawnError(
            Code.CONFLICT,
            f"A server cannot move from {server.architecture} to {offer.architecture}: "
            f"create a new {offer.type} and destroy this one.",
            next="POST /v1/servers",
        )
    if offer.disk_gb < server.disk_gb:
        raise SpawnError(
            Code.CONFLICT,
            f"A disk never shrinks: {server.id} has {server.disk_gb} GB, {offer.type} has {offer.disk_gb} GB.",
            next="Choose a type with a disk as large.",
        )
