"""What the service and a host agent say to each other over the link, one frame a message.

Invariant: desired state lives with the service, and a lost, repeated or late frame costs nothing: a command carries its
id, the generation of its rental and the moment from which it must not begin, and its answer may be asked for again.

A frame is one text message of JSON, `type` first. The agent dials `wss://…/v1/hosts/link`; the service sends
`challenge`, the agent `hello`, the service `welcome`, and from there on both as they need. Public streams do not run
here: for each, `dial` asks the agent for a socket of its own at `…/v1/hosts/data/{stream_id}`.
"""

from typing import Annotated, Final, Literal, Union

import msgspec

from spawn_schemas.ids import CommandId, HostId, RentalId

VERSION: Final = 1
"""The only version of this protocol there is; another one is refused at `hello` with `CLOSE_UPGRADE`."""

LINK_PATH: Final = "/v1/hosts/link"
DATA_PATH: Final = "/v1/hosts/data/"
"""Where the agent brings the socket of one stream: this, the stream's id, and `Authorization: Bearer <token>`."""
END_OF_STREAM: Final = "end"
"""The text message on a data socket that says that this side will send no more bytes; binary messages are the bytes."""
FRAME_BYTES_MAX: Final = 1024 * 1024
"""The longest frame that either side takes."""
DATA_BYTES_MAX: Final = 256 * 1024
"""The longest binary message on a data socket."""

# Why the service closed the link, as WebSocket close codes (RFC 6455 section 7.4.2: 4000 to 4999 are private).
CLOSE_REFUSED: Final = 4401
"""Unknown host, wrong signature, or revoked: dialling again does not help."""
CLOSE_SUPERSEDED: Final = 4409
"""A newer session of the same host is connected."""
CLOSE_UPGRADE: Final = 4426
"""The agent speaks another version."""

Seconds = int
"""Unix seconds."""
Word = Annotated[str, msgspec.Meta(max_length=200)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^sha256:[0-9a-f]{64}$(?!\n)")]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]


# --- hardware, as the agent sees it; never trusted, only shown and compared -------------------------------------


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU. Each field that NVML would not tell is None; `problem` says what it said instead."""

    uuid: str
    index: int
    name: str | None = None
    serial: str | None = None
    memory_mib: int | None = None
    memory_free_mib: int | None = None
    memory_is_system: bool = False
    temperature_c: int | None = None
    utilization_percent: int | None = None
    power_w: int | None = None
    pci_bus_id: str | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None
    pcie_generation_max: int | None = None
    pcie_width_max: int | None = None
    compute_capability: str | None = None
    mig_enabled: bool | None = None
    mig_devices: tuple[str, ...] = ()
    ecc_errors: int | None = None
    remapped_rows: int | None = None
    vbios: str | None = None
    processes: int | None = None
    is_lost: bool = False
    problem: str | None = None


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """Measured against the service's own relay; None where it was not."""

    down_mbit: float | None = None
    up_mbit: float | None = None
    latency_ms: float | None = None


class Feature(msgspec.Struct, frozen=True, kw_only=True):
    """What the host's Docker was asked to do, by a canary container, and whether it did."""

    name: str
    works: bool
    says: str = ""
    remedy: str = ""


Tier = Literal["none", "runc", "runc+userns+quota", "gvisor"]
"""How well tenants are kept apart; `none` is below the floor: no tenant that is not known to the owner."""
DiskLimit = Literal["quota", "loop", "poll"]


class Isolation(msgspec.Struct, frozen=True, kw_only=True):
    tier: Tier = "none"
    disk_limit: DiskLimit = "poll"
    features: tuple[Feature, ...] = ()


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """The machine, and what of it its owner lends (`cpus`, `memory_mib`, `disk_mib`, GPUs of `lent_gpus`)."""

    hostname: str
    os: str
    kernel: str
    architecture: Literal["x86", "arm"]
    cpu_model: str
    cpu_cores: int
    cpu_threads: int
    total_memory_mib: int
    total_disk_mib: int
    cpus: float
    memory_mib: int
    disk_mib: int
    gpus: tuple[Gpu, ...] = ()
    lent_gpus: tuple[str, ...] = ()
    nvidia_driver: str | None = None
    cuda: str | None = None
    nvidia_problem: str | None = None
    docker_version: str | None = None
    network: Network = Network()
    isolation: Isolation = Isolation()


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """A heartbeat's figures; None where the machine does not tell."""

    cpu_percent: float | None = None
    cpu_temp_c: float | None = None
    memory_used_mib: int | None = None
    memory_percent: float | None = None
    disk_used_mib: int | None = None
    disk_percent: float | None = None
    gpu_temp_c: tuple[int | None, ...] = ()
    gpu_utilization_percent: tuple[int | None, ...] = ()


# --- rentals ------------------------------------------------------------------------------------------------------

RentalState = Literal["pulling", "creating", "running", "stopped", "failed", "gone"]
"""`gone` is said once of what was destroyed, and of what the service asks for and the host never had."""
EndedBy = Literal["exit", "out_of_memory", "disk_full", "lease", "owner", "command"]


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


# --- commands -----------------------------------------------------------------------------------------------------


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
    """One order, to be carried out once. After `expires_at` it must not begin; its stored result is told for ever."""

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


# --- frames -------------------------------------------------------------------------------------------------------


class Frame(msgspec.Struct, kw_only=True, tag_field="type"):
    """What every frame carries. `seq` counts each side's frames of one session from 1; a repeated one is dropped.

    `session_epoch` is the service's number of the session, 0 before `welcome`: frames of another are dropped. `ts` is
    the sender's clock in unix milliseconds, so that each side knows how far the other's is off.
    """

    v: int = VERSION
    host_id: HostId
    session_epoch: int
    seq: int
    ts: int


class Challenge(Frame, tag="challenge"):
    """The first frame, by the service; `nonce` is 32 random bytes in hex. `seq` is 0 for all three of the login."""

    nonce: str


class Hello(Frame, tag="hello"):
    """The agent's answer. `signature` is Ed25519 over `login_text`, in base64."""

    signature: str
    agent_version: str


class Welcome(Frame, tag="welcome"):
    """The session is open; `session_epoch` is its number. `silence_s`: a link that is silent for so long is dead."""

    heartbeat_interval_s: int
    silence_s: int
    desired_generation: int


class Heartbeat(Frame, tag="heartbeat"):
    """`rentals` is how many run, `traffic` the bytes in and out of each since its container began."""

    status: Literal["online", "draining", "drained"]
    metrics: Metrics
    rentals: int
    traffic: dict[RentalId, tuple[int, int]] = {}


class HeartbeatAck(Frame, tag="heartbeat_ack"):
    """The service heard it; from now on `heartbeat_interval_s`."""

    heartbeat_interval_s: int


class CommandFrame(Frame, tag="command"):
    command: Command


class AckFrame(Frame, tag="ack"):
    ack: Ack


class StateSync(Frame, tag="state_sync"):
    """All that the host has with our label; on connect, every minute, and when Docker says that something changed."""

    rentals: tuple[RentalReport, ...]
    inventory: Inventory | None = None
    draining: bool = False


class DesiredFrame(Frame, tag="desired"):
    """All that the service wants of this host; the answer to `state_sync`, and whenever it changes.

    A labelled container that is not in it may run for five minutes more, then it is stopped, and stays.
    """

    generation: int
    rentals: tuple[Desired, ...]


class Dial(Frame, tag="dial"):
    """Somebody connected to a public port of a rental: bring a data socket within ten seconds."""

    stream_id: str
    token: str
    rental_id: RentalId
    port: Port


class DialFailed(Frame, tag="dial_failed"):
    """There is nothing to bring a socket for: not rented here, port not open, or nobody listens."""

    stream_id: str
    message: str


ToAgent = Union[Challenge, Welcome, HeartbeatAck, CommandFrame, DesiredFrame, Dial]  # noqa: UP007 - see Order
ToService = Union[Hello, Heartbeat, AckFrame, StateSync, DialFailed]  # noqa: UP007 - see Order


def login_text(*, host_id: HostId, nonce: str, authority: str) -> bytes:
    """What the agent signs at `hello`. `authority` is the host and port it dialled, so that nobody relays a login."""
    return f"spawn-link-1\n{authority}\n{host_id}\n{nonce}".encode()
