"""What every source of machines must do, whoever runs it.

Invariant: a call ends in one of four ways: it answers, or raises `Refused` (nothing was changed),
`Unavailable` (nothing was changed, try later) or `OutcomeUnknown` (it may have been changed: look before
you act). `key` is our server id, and creation is idempotent by it.
"""

from collections.abc import AsyncIterator, Sequence
from enum import StrEnum
from typing import Literal, Protocol

import msgspec
from spawn_schemas.ids import Address, ServerId

from spawn_providers.catalog import Catalog


class Verb(StrEnum):
    """What can be done to a machine that exists."""

    START = "start"
    SHUTDOWN = "shutdown"
    POWEROFF = "poweroff"
    REBOOT = "reboot"
    RESIZE = "resize"
    REBUILD = "rebuild"
    RESET_PASSWORD = "reset_password"  # noqa: S105 - the name of a verb, not a password


class InstanceStatus(StrEnum):
    """The state a provider reports for a machine."""

    INITIALIZING = "initializing"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    OFF = "off"
    DELETING = "deleting"
    MIGRATING = "migrating"
    REBUILDING = "rebuilding"
    UNKNOWN = "unknown"


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What this provider can do; asked for, never guessed from its type.

    `user_data_bytes` is how much of it a machine takes, at its creation and at a rebuild; 0 where none. `host_key`: it
    gets the host key that we make without user data.
    """

    verbs: frozenset[Verb]
    ipv6_only: bool
    user_data_bytes: int
    root_password: bool
    host_key: bool = False


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """The machine to create, in the provider's own type name."""

    hostname: str
    provider_type: str
    image: str
    location: str
    owner: Address
    public_keys: tuple[str, ...] = ()
    user_data: str | None = None
    ipv6_only: bool = False


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of `act`; only those of the verb are read.

    A rebuilt machine has the `user_data` of before unless it gets other, and these `public_keys` alone.
    """

    provider_type: str | None = None
    upgrade_disk: bool = False
    image: str | None = None
    public_keys: tuple[str, ...] = ()
    user_data: str | None = None


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes as the provider counts them in its own billing period: less than before means that a new one began.

    `included_bytes` of what goes out cost nothing in that period.
    """

    ingoing_bytes: int
    outgoing_bytes: int
    included_bytes: int


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where a port of a machine without an address of its own is reached: `host` and `public_port` lead to `port`."""

    port: int
    host: str
    public_port: int
    kind: Literal["tcp", "http"] = "tcp"


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """A machine as its provider sees it. `key` is None for one we did not label.

    `owner` and `hostname` are those of the `Spec` it was ordered with, kept with the machine: what is left of a rental
    if our books lose it. `created_at` is when it was ordered, in unix seconds. `traffic` comes with every look, so that
    metering costs no call. `type` is what it is sold as, also where it is not sold any more. None where the provider
    does not say. `endpoints` are where it is reached if it has no address of its own.
    """

    ref: str
    key: ServerId | None
    owner: Address | None
    hostname: str | None
    created_at: int | None
    status: InstanceStatus
    provider_type: str
    image: str
    location: str
    ipv4: str | None
    ipv6: str | None
    cores: int
    memory_gb: int
    disk_gb: int
    traffic: Traffic | None = None
    type: str | None = None
    endpoints: tuple[Endpoint, ...] = ()


class OpStatus(StrEnum):
    RUNNING = "running"
    SUCCESS = "success"
    ERROR = "error"


class Op(msgspec.Struct, frozen=True, kw_only=True):
    """The provider's promise to do something. `handle` survives our restart; poll with it.

    `root_password` is set only in the answer to a create or rebuild without keys, and to a reset of it. The last one
    told is the one that counts. None there means that it was lost, and `Verb.RESET_PASSWORD` gives another.
    `last_seen` is the machine that a delete destroys, or that a create found there, where the provider knows it without
    another call.
    """

    handle: str
    ref: str
    root_password: str | None = None
    last_seen: Instance | None = None


class OpState(msgspec.Struct, frozen=True, kw_only=True):
    """Where an op has come to. `error_code` is one of the codes of `Refused` when status is error."""

    handle: str
    status: OpStatus
    error_code: str | None = None
    error_message: str | None = None


class RefusedCode(StrEnum):
    """Why a provider says no; the same words for all of them."""

    OUT_OF_CAPACITY = "out_of_capacity"
    INVALID = "invalid"
    CONFLICT = "conflict"
    QUOTA = "quota"
    NOT_FOUND = "not_found"


class ProviderError(Exception):
    """Base of the ways a provider call fails."""


class Refused(ProviderError):
    """The provider said no. Nothing was changed and repeating the call will not help by itself."""

    def __init__(self, code: RefusedCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Unavailable(ProviderError):
    """The provider did not take the call. Nothing was changed; try again after `retry_after_s` seconds."""

    def __init__(self, message: str, *, retry_after_s: int = 5) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class OutcomeUnknown(ProviderError):
    """The answer was lost. The call may have taken effect: `find` before anything else."""


class Provider(Protocol):
    """A source of machines. Every method may raise any `ProviderError`; none blocks the event loop."""

    name: str
    capabilities: Capabilities

    async def catalog(self) -> Catalog:
        """What is for sale now. Never cached by the caller for longer than a day."""
        ...

    async def create(self, key: ServerId, spec: Spec) -> Op:
        """Order a machine. A second call with the same key returns the first machine's op, and no machine.

        Where that one is gone, the key may be ordered again as another type, or in another location.
        """
        ...

    async def find(self, key: ServerId, *, to_destroy: bool = False) -> Instance | None:
        """The machine made for `key`, or None when there surely is none. `to_destroy`, it is as urgent as `delete`."""
        ...

    async def get(self, ref: str) -> Instance | None:
        """The machine `ref`, or None when it is gone."""
        ...

    def list_owned(self) -> AsyncIterator[Instance]:
        """Every machine that carries our label, in no order."""
        ...

    async def act(self, ref: str, verb: Verb, change: Change) -> Op:
        """Start doing `verb`. Starting what runs and stopping what is off succeed: both can be repeated.

        So can resetting the password of a machine that runs, which replaces it by a new one each time.

        `Refused(conflict)` when the machine's state does not allow it or another op runs on it, `not_found`
        when it is gone, `invalid` for a verb that the capabilities lack.
        """
        ...

    async def delete(self, ref: str) -> Op:
        """Destroy the machine. Deleting what is gone, or is being deleted, succeeds. It waits for no other call.

        `Refused(conflict)` while another op runs on it: try again when that has ended.
        """
        ...

    async def poll(self, handles: Sequence[str]) -> list[OpState]:
        """Where these ops have come to, in the order asked. An unknown handle is a `not_found` error."""
        ...
