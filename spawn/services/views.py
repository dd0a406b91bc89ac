"""Rows and domain values as the wire shows them."""

import msgspec
from spawn_ledger.tx import Row
from spawn_providers.base import Endpoint
from spawn_schemas import api, lent
from spawn_schemas.money import Usdc, format_usdc

from spawn.domain.community import SSH_PORT
from spawn.domain.host_keys import known_host_at, known_hosts
from spawn.domain.operations import Operation
from spawn.domain.readiness import Readiness
from spawn.domain.rentals import Rental, stopped_by
from spawn.domain.servers import Server
from spawn.services.moments import moment
from spawn.services.standing import Standing
from spawn.store.ssh_keys import SshKey

encode = msgspec.json.encode


def hetzner_id(provider: str, ref: str | None) -> int | None:
    """The provider's number for the machine, where the provider is Hetzner (or plays it)."""
    return int(ref) if ref is not None and provider in {"hetzner", "simulated"} else None


def server_line(row: Row) -> api.ServerSummary:
    """A server in a list, from a row of one of the pages."""
    return api.ServerSummary(
        id=row["id"],
        hetzner_id=hetzner_id(row["provider"], row["provider_ref"]),
        name=row["name"],
        type=row["type"],
        status=row["status"],
        image=row["image"],
        location=row["location"],
        public_net=api.PublicNet(ipv4=row["ipv4"], ipv6=row["ipv6"]),
        created_at=moment(row["created_at"]),
        owner_wallet=row["wallet"],
    )


def server_summary(server: Server) -> api.ServerSummary:
    return api.ServerSummary(
        id=server.id,
        hetzner_id=hetzner_id(server.provider, server.provider_ref),
        name=server.name,
        type=server.type,
        status=server.status.value,
        image=server.image,
        location=server.location,
        public_net=api.PublicNet(ipv4=server.ipv4, ipv6=server.ipv6),
        created_at=moment(server.created_at),
        owner_wallet=server.wallet,
    )


def server_view(
    server: Server,
    standing: Standing,
    running: Operation | None,
    readiness: Readiness | None,
    traffic: api.TrafficView | None,
    rental: Rental | None = None,
) -> api.ServerView:
    """A server in full, its deposit accrued to now.

    Without `readiness` nothing is known of its machine's keys: it has ended, or its books were lost.
    """
    host_key = None if readiness is None else readiness.host_key
    ends_at = standing.ends_at.get(server.id)
    return api.ServerView(
        id=server.id,
        hetzner_id=hetzner_id(server.provider, server.provider_ref),
        name=server.name,
        type=server.type,
        status=server.status.value,
        image=server.image,
        location=server.location,
        public_net=api.PublicNet(ipv4=server.ipv4, ipv6=server.ipv6),
        created_at=moment(server.created_at),
        owner_wallet=server.wallet,
        cores=server.cores,
        memory_gb=server.memory_gb,
        disk_gb=server.disk_gb,
        network=server.network,
        ssh_keys=server.ssh_keys,
        auto_renew=server.auto_renew,
        daily_burn=format_usdc(server.daily_usdc),
        deposit_remaining=format_usdc(standing.reserves_usdc.get(server.id, Usdc(0))),
        deposit_expires_at=None if ends_at is None else moment(ends_at),
        traffic=traffic,
        reason=None if server.reason is None else server.reason.value,
        action=None if running is None else running.id,
        root_password=None,
        ssh_host_keys=() if host_key is None else (host_key,),
        known_hosts=None if host_key is None else _known_hosts(host_key, server, rental),
        ready=None if readiness is None or rental is not None else ready_view(readiness),
        ssh=None if rental is None else ssh_view(rental),
        ports=() if rental is None else tuple(map(_port_view, rental.endpoints)),
        container=None if rental is None else container_view(rental),
    )


def _known_hosts(host_key: str, server: Server, rental: Rental | None) -> str | None:
    if rental is None:
        return known_hosts(host_key, ipv4=server.ipv4, ipv6=server.ipv6)
    ssh = ssh_view(rental)
    return None if ssh is None else known_host_at(host_key, host=ssh.host, port=ssh.port)


def ssh_view(rental: Rental) -> lent.SshView | None:
    """Where its sshd is reached."""
    found = next((each for each in rental.endpoints if each.port == SSH_PORT and each.kind == "tcp"), None)
    return None if found is None else lent.SshView(host=found.host, port=found.public_port)


def container_view(rental: Rental) -> lent.ContainerView:
    """How its host says that it is."""
    why = stopped_by(rental)
    return lent.ContainerView(
        stopped_by=why,
        exit_code=None if why is None else rental.exit_code,
        out_of_memory_kills=rental.out_of_memory_kills,
    )


def _port_view(endpoint: Endpoint) -> lent.PortView:
    return lent.PortView(
        port=endpoint.port, kind=endpoint.kind, host=endpoint.host, public_port=endpoint.public_port
    )


def ready_view(readiness: Readiness, *, with_log: bool = False) -> api.ReadyView:
    """How far the machine says that it has come. Its log may hold secrets: no stored answer has it."""
    return api.ReadyView(
        ssh=None if readiness.ssh_at is None else moment(readiness.ssh_at),
        cloud_init="pending" if readiness.cloud_init is None else readiness.cloud_init.value,
        reported_at=None if readiness.reported_at is None else moment(readiness.reported_at),
        log=readiness.log if with_log else None,
    )


def action_summary(operation: Operation) -> api.ActionSummary:
    return api.ActionSummary(
        id=operation.id,
        status=operation.status.value,
        command=operation.command.value,
        started=moment(operation.created_at),
    )


def action_view(operation: Operation) -> api.ActionView:
    error = None
    if operation.error_code is not None and operation.finished_at is not None:
        error = api.ActionError(code=operation.error_code, message=operation.error_message or "")
    return api.ActionView(
        id=operation.id,
        status=operation.status.value,
        command=operation.command.value,
        started=moment(operation.created_at),
        finished=None if operation.finished_at is None else moment(operation.finished_at),
        error=error,
        server_id=operation.server_id,
    )


def ssh_key_view(key: SshKey) -> api.SshKeyView:
    return api.SshKeyView(
        id=key.id,
        name=key.name,
        fingerprint=key.fingerprint,
        created_at=moment(key.created_at),
        owner_wallet=key.wallet,
    )


def balance_view(standing: Standing) -> api.BalanceView:
    return api.BalanceView(
        balance=format_usdc(standing.balance_usdc),
        reserved=format_usdc(standing.reserved_usdc),
        available=format_usdc(standing.available_usdc),
    )
