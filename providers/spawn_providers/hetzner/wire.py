"""Hetzner's objects, as far as we read them, and what they are as ours.

Invariant: pure. A field that Hetzner may leave out or set to null has a type that says so; what cannot be read as these
structs is an unreadable answer.
"""

from collections.abc import Mapping
from datetime import datetime
from ipaddress import ip_network
from typing import Final

import msgspec

from spawn_providers.base import Instance, InstanceStatus, Op, OpState, OpStatus, RefusedCode, Traffic
from spawn_providers.hetzner.errors import op_error
from spawn_providers.hetzner.names import owner_of, size_of

_STATUSES: Final = frozenset(status.value for status in InstanceStatus)


class Named(msgspec.Struct, frozen=True, kw_only=True):
    name: str


class Amount(msgspec.Struct, frozen=True, kw_only=True):
    """A price as a decimal string, without tax."""

    net: str


class Price(msgspec.Struct, frozen=True, kw_only=True):
    location: str
    price_hourly: Amount
    price_monthly: Amount


class MachinePrice(Price, frozen=True, kw_only=True):
    """`price_per_tb_traffic` is for what a machine sends beyond the `included_traffic` bytes of a month."""

    included_traffic: int
    price_per_tb_traffic: Amount


class Deprecation(msgspec.Struct, frozen=True, kw_only=True):
    unavailable_after: str


class TypeLocation(msgspec.Struct, frozen=True, kw_only=True):
    """`available` is whether there is room for the type now; before 2026 nobody said."""

    name: str
    deprecation: Deprecation | None = None
    available: bool = True


class ServerType(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    cores: int
    memory: float
    disk: float
    architecture: str
    prices: tuple[MachinePrice, ...] = ()
    locations: tuple[TypeLocation, ...] = ()


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image. Only those of the system have a name."""

    id: int
    name: str | None
    description: str
    architecture: str


class Location(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    city: str
    country: str


class PrimaryIp(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    assignee_id: int | None
    auto_delete: bool


class IpPrices(msgspec.Struct, frozen=True, kw_only=True):
    type: str
    prices: tuple[Price, ...]


class Pricing(msgspec.Struct, frozen=True, kw_only=True):
    currency: str
    primary_ips: tuple[IpPrices, ...]


class Ip(msgspec.Struct, frozen=True, kw_only=True):
    ip: str


class PublicNet(msgspec.Struct, frozen=True, kw_only=True):
    ipv4: Ip | None
    ipv6: Ip | None


class ImageOfServer(msgspec.Struct, frozen=True, kw_only=True):
    name: str | None


class Server(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    name: str
    status: str
    created: str
    labels: dict[str, str]
    server_type: ServerType
    location: Named
    image: ImageOfServer | None
    public_net: PublicNet
    primary_disk_size: int
    ingoing_traffic: int | None
    outgoing_traffic: int | None
    included_traffic: int | None


class ActionError(msgspec.Struct, frozen=True, kw_only=True):
    code: str
    message: str


class Action(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    command: str
    status: OpStatus
    error: ActionError | None


class SshKey(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    name: str
    created: str
    labels: dict[str, str]


class Pagination(msgspec.Struct, frozen=True, kw_only=True):
    next_page: int | None


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    pagination: Pagination


class ServerPage(msgspec.Struct, frozen=True, kw_only=True):
    servers: tuple[Server, ...]
    meta: Meta


class TypePage(msgspec.Struct, frozen=True, kw_only=True):
    server_types: tuple[ServerType, ...]
    meta: Meta


class ImagePage(msgspec.Struct, frozen=True, kw_only=True):
    images: tuple[Image, ...]
    meta: Meta


class LocationPage(msgspec.Struct, frozen=True, kw_only=True):
    locations: tuple[Location, ...]
    meta: Meta


class KeyPage(msgspec.Struct, frozen=True, kw_only=True):
    ssh_keys: tuple[SshKey, ...]
    meta: Meta


class IpPage(msgspec.Struct, frozen=True, kw_only=True):
    primary_ips: tuple[PrimaryIp, ...]
    meta: Meta


class ActionList(msgspec.Struct, frozen=True, kw_only=True):
    actions: tuple[Action, ...]


class ActionPage(msgspec.Struct, frozen=True, kw_only=True):
    actions: tuple[Action, ...]
    meta: Meta


class OneServer(msgspec.Struct, frozen=True, kw_only=True):
    server: Server


class OneKey(msgspec.Struct, frozen=True, kw_only=True):
    ssh_key: SshKey


class PricingAnswer(msgspec.Struct, frozen=True, kw_only=True):
    pricing: Pricing


class Created(msgspec.Struct, frozen=True, kw_only=True):
    server: Server
    action: Action
    next_actions: tuple[Action, ...]
    root_password: str | None


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a verb: what Hetzner began, and the password if it drew a new one."""

    action: Action | None = None
    root_password: str | None = None


class Nothing(msgspec.Struct, frozen=True, kw_only=True):
    """An answer of which we need nothing."""


class Handle(msgspec.Struct, frozen=True, kw_only=True):
    """What follows an op across a restart: the actions that must all succeed, and the machine they are done to."""

    server: str
    actions: tuple[int, ...]


def promised(ref: str, *actions: Action | None, root_password: str | None = None) -> Op:
    """The op that has ended well once all of these actions have."""
    handle = Handle(server=ref, actions=tuple(action.id for action in actions if action is not None))
    return Op(handle=msgspec.json.encode(handle).decode(), ref=ref, root_password=root_password)


def handle_from(text: str) -> Handle | None:
    """What an op's handle says, or None for a text that is no handle of ours."""
    try:
        return msgspec.json.decode(text, type=Handle)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None


def op_state(handle: str, actions: Mapping[int, Action | None]) -> OpState:
    """Where the op has come to, by what is known of its actions; None is one that Hetzner does not know."""
    parsed = handle_from(handle)
    known = [] if parsed is None else [actions[id_] for id_ in parsed.actions]
    if parsed is None or None in known:
        return OpState(
            handle=handle,
            status=OpStatus.ERROR,
            error_code=RefusedCode.NOT_FOUND.value,
            error_message="Hetzner knows no such action",
        )
    failed = next((a for a in known if a is not None and a.status is OpStatus.ERROR), None)
    if failed is not None:
        error = failed.error or ActionError(code="unknown", message="no reason was given")
        return OpState(
            handle=handle,
            status=OpStatus.ERROR,
            error_code=op_error(error.code).value,
            error_message=f"{failed.command} failed: {error.message}",
        )
    running = any(a is not None and a.status is OpStatus.RUNNING for a in known)
    return OpState(handle=handle, status=OpStatus.RUNNING if running else OpStatus.SUCCESS)


def instance_of(server: Server) -> Instance:
    """The machine as every provider describes one."""
    key, owner, hostname = owner_of(server.labels)
    net = server.public_net
    return Instance(
        ref=str(server.id),
        key=key,
        owner=owner,
        hostname=hostname,
        created_at=unix(server.created),
        status=status_of(server.status),
        type=size_of(server.server_type.name),
        provider_type=server.server_type.name,
        image="" if server.image is None else server.image.name or "",
        location=server.location.name,
        ipv4=None if net.ipv4 is None else net.ipv4.ip,
        ipv6=None if net.ipv6 is None else _first_host(net.ipv6.ip),
        cores=server.server_type.cores,
        memory_gb=int(server.server_type.memory),
        disk_gb=server.primary_disk_size,
        traffic=_traffic(server),
    )


def _traffic(server: Server) -> Traffic | None:
    """Any of the three may be null; a machine that was not counted yet is no machine that sent nothing."""
    if server.ingoing_traffic is None or server.outgoing_traffic is None:
        return None
    return Traffic(
        ingoing_bytes=server.ingoing_traffic,
        outgoing_bytes=server.outgoing_traffic,
        included_bytes=server.included_traffic or 0,
    )


def status_of(text: str) -> InstanceStatus:
    """A word that Hetzner invents tomorrow is `unknown`, which is not death."""
    return InstanceStatus(text) if text in _STATUSES else InstanceStatus.UNKNOWN


def unix(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp())


def _first_host(network: str) -> str:
    """A machine is given a /64 and answers at its first address."""
    return str(ip_network(network, strict=False)[1])
