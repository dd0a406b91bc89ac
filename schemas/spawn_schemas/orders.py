"""What a host agent is ordered to do, what it says came of it, and what it has.

Invariant: an order is carried out once: it has an id, its rental a generation, and a last moment to begin.
"""

from typing import Annotated, Literal, Union

import msgspec

from spawn_schemas.ids import CommandId, RentalId

Seconds = int
"""Unix seconds."""
Word = Annotated[str, msgspec.Meta(max_length=200)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]

RentalState = Literal["pulling", "creating", "running", "stopped", "failed", "gone"]
"""`gone` is said once of what was destroyed, and of what the service asks for and the host never had."""
EndedBy = Literal["exit", "out_of_memory", "disk_full", "lease", "owner", "command"]
"""Who ended what is `stopped`. None where neither the service nor the tenant did: the machine or its Docker went down,
or its owner stopped it by hand. `owner` is his hours, or that he paused it. The host starts both again when it may."""


class RentalReport(msgspec.Struct, frozen=True, kw_only=True):
    """One labelled container, as Docker shows it now. `since` is when it came to be in this state."""

    rental_id: RentalId
    generation: int
    state: RentalState
    since: Seconds
    lease_expires_at: Seconds | None = None
    exit_code: int | None = None
    ended_by: EndedBy | None = None
    out_of_memory_kills: int = 0
    disk_used_mib: int | None = None
    gpus: tuple[str, ...] = ()
    image_digest: str | None = None


class Desired(msgspec.Struct, frozen=True, kw_only=True):
    """What the service wants of one rental. It destroys nothing by itself: that takes a command."""

    rental_id: RentalId
    generation: int
    state: Literal["running", "stopped"]
    lease_expires_at: Seconds


# --- commands ----------------------------------------------------------------------------------------------------


class StartInstance(msgspec.Struct, frozen=True, kw_only=True, tag="start_instance"):
    """Run a tenant's container. `image` is `name@sha256:…`; `gpus` are UUIDs; `ports` are the container's, by TCP.

    `host_key` is the private Ed25519 key of its sshd in OpenSSH's form and `ssh_keys` who may log in: both only for
    images that say so by the label `sh.spawn.sshd`.
    """

    rental_id: RentalId
    generation: int
    image: str
    hostname: str
    cpus: float
    memory_mib: int
    disk_mib: int
    lease_expires_at: Seconds
    gpus: tuple[str, ...] = ()
    ports: tuple[Port, ...] = ()
    env: dict[str, str] = {}
    command: tuple[str, ...] = ()
    ssh_keys: tuple[str, ...] = ()
    host_key: str | None = None
    up_mbit: int | None = None


class ResumeInstance(msgspec.Struct, frozen=True, kw_only=True, tag="resume_instance"):
    """Start a stopped container again, as it was. What runs already is a success."""

    rental_id: RentalId
    generation: int
    lease_expires_at: Seconds


class StopInstance(msgspec.Struct, frozen=True, kw_only=True, tag="stop_instance"):
    """Stop it and keep what is on its disk; killed after `grace_s`. What is stopped already is a success."""

    rental_id: RentalId
    generation: int
    grace_s: int = 10


class DestroyInstance(msgspec.Struct, frozen=True, kw_only=True, tag="destroy_instance"):
    """Remove container, disk and network of every generation up to this one. What is gone already is a success."""

    rental_id: RentalId
    generation: int


class Drain(msgspec.Struct, frozen=True, kw_only=True, tag="drain_node"):
    """Start nothing new; what runs goes on."""


class Undrain(msgspec.Struct, frozen=True, kw_only=True, tag="undrain"):
    """Take rentals again."""


class Logs(msgspec.Struct, frozen=True, kw_only=True, tag="logs"):
    """The last lines that the container wrote; the result is `{"text": …}`, 64 KiB at most."""

    rental_id: RentalId
    generation: int
    lines: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100


class Exec(msgspec.Struct, frozen=True, kw_only=True, tag="exec"):
    """Run `argv` inside; the result is `{"exit_code": …, "stdout": …, "stderr": …}`, 64 KiB each at most."""

    rental_id: RentalId
    generation: int
    argv: tuple[str, ...]
    timeout_s: Annotated[int, msgspec.Meta(ge=1, le=300)] = 30


class Prepull(msgspec.Struct, frozen=True, kw_only=True, tag="prepull"):
    """Fetch an image, `name@sha256:…`, that the owner's list allows."""

    image: str


class RotateKey(msgspec.Struct, frozen=True, kw_only=True, tag="rotate_key"):
    """Make a new key and register it (`POST /v1/hosts/key`), signed by the old one."""


Order = Union[  # noqa: UP007 - read by Python 3.10 at run time, where a union of tagged structs needs this form
    StartInstance,
    ResumeInstance,
    StopInstance,
    DestroyInstance,
    Drain,
    Undrain,
    Logs,
    Exec,
    Prepull,
    RotateKey,
]


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """One order, to be carried out once. After `expires_at` it must not begin.

    Its stored result is told whenever it is sent again, for days; that of `logs` and `exec` for an hour.
    """

    command_id: CommandId
    expires_at: Seconds
    order: Order


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Why a command failed: a code for programs, and a sentence for people."""

    code: Literal[
        "expired",
        "stale_generation",
        "unknown_rental",
        "exists",
        "over_limits",
        "no_room",
        "draining",
        "outside_hours",
        "below_floor",
        "image_refused",
        "image_unavailable",
        "gpu_unavailable",
        "docker_failed",
        "not_running",
        "timed_out",
        "invalid",
        "internal",
    ]
    message: str


AckState = Literal["received", "accepted", "progress", "succeeded", "failed"]


class Ack(msgspec.Struct, frozen=True, kw_only=True):
    """How far a command has come. `progress_percent` beside `progress`; `result` beside `succeeded`."""

    command_id: CommandId
    state: AckState
    progress_percent: int | None = None
    progress: Word | None = None
    problem: Problem | None = None
    result: dict[str, str | int | None] | None = None
