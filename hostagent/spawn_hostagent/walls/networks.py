"""A bridge for each rental, with addresses of our own choosing.

Invariant: a rental's network has its name, one container and an interface `spw-…`, which is how the firewall knows it.
Docker's own pool ends after some thirty networks and may be what the owner's LAN uses.
"""

import ipaddress
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import docker.errors
from docker import APIClient
from docker.types import IPAMConfig, IPAMPool

from spawn_hostagent.docker.rentals import LABEL, Facts, bridge_name, facts_in, labels_of
from spawn_hostagent.walls.admission import refuse

POOL: Final = ipaddress.IPv4Network("10.213.0.0/16")
PREFIX: Final = 29
_TRIES: Final = 8
_ROUTES: Final = Path("/proc/net/route")


def free_subnets(used: Iterable[ipaddress.IPv4Network]) -> Iterator[ipaddress.IPv4Network]:
    """Subnets of the pool that overlap none of these, in order."""
    taken = tuple(used)
    return (
        subnet
        for subnet in POOL.subnets(new_prefix=PREFIX)
        if not any(subnet.overlaps(other) for other in taken)
    )


def routes(text: str) -> Iterator[ipaddress.IPv4Network]:
    """What this machine reaches by a route of its own, from Linux's table; the default route is none of it."""
    for line in text.splitlines()[1:]:
        words = line.split()
        address, mask = (int.from_bytes(bytes.fromhex(words[at]), "little") for at in (1, 7))
        if mask:
            yield ipaddress.IPv4Network((address, bin(mask).count("1")))


def make(client: APIClient, facts: Facts) -> None:
    """Make the rental's network; one that is there already is used. Raises MachineError `docker_failed`."""
    make_named(client, facts.name, labels_of(facts), bridge_name(facts.name))


def make_named(client: APIClient, name: str, labels: dict[str, str], bridge: str) -> None:
    """Make a network as tenants get it, with this interface. Raises MachineError `docker_failed`."""
    if any(network["Name"] == name for network in client.networks(names=[name])):
        return
    used = [*_used_by_docker(client), *(routes(_ROUTES.read_text()) if _ROUTES.exists() else ())]
    subnets = free_subnets(used)
    for _ in range(_TRIES):
        subnet = next(subnets, None)
        if subnet is None:
            break
        try:
            _make(client, name, labels, subnet, bridge)
        except docker.errors.APIError as error:
            # Somebody else took it between our look and now; anything else is no reason to try the next one.
            if "overlap" not in str(error).lower():
                raise
        else:
            return
    raise refuse("docker_failed", f"no subnet of {POOL} is free for a rental's network.")


def _make(
    client: APIClient, name: str, labels: dict[str, str], subnet: ipaddress.IPv4Network, bridge: str
) -> None:
    client.create_network(
        name,
        driver="bridge",
        options={
            "com.docker.network.bridge.name": bridge,
            "com.docker.network.bridge.enable_icc": "false",
            "com.docker.network.bridge.host_binding_ipv4": "127.0.0.1",
        },
        ipam=IPAMConfig(pool_configs=[IPAMPool(subnet=str(subnet))]),
        check_duplicate=True,
        enable_ipv6=False,
        labels=labels,
    )


def bridges(client: APIClient) -> dict[str, int | None]:
    """The interfaces of all rentals' networks, with each one's own limit of Mbit/s upwards."""
    listed = client.networks(filters={"label": LABEL})
    rentals = (facts_in(network["Name"], network.get("Labels")) for network in listed)
    return {bridge_name(facts.name): facts.up_mbit for facts in rentals if facts is not None}


def _used_by_docker(client: APIClient) -> Iterator[ipaddress.IPv4Network]:
    for network in client.networks():
        for config in (network.get("IPAM") or {}).get("Config") or ():
            subnet = ipaddress.ip_network(config["Subnet"], strict=False)
            if isinstance(subnet, ipaddress.IPv4Network):
                yield subnet


def remove(client: APIClient, name: str) -> None:
    """Remove the network of this name. What is gone already is no error."""
    for network in client.networks(names=[name]):
        # Docker's filter matches a part of the name.
        if network["Name"] == name:
            try:
                client.remove_network(network["Id"])
            except docker.errors.NotFound:
                continue
