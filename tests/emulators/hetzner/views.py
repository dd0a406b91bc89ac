"""What the API shows of things: one function for each kind of object that an answer can hold."""

from datetime import UTC, datetime
from typing import Any

from tests.emulators.hetzner import catalog
from tests.emulators.hetzner.world import Action, Firewall, Network, PrimaryIp, Server, SshKey, World

Json = dict[str, Any]

_LONG_AGO = "2025-09-01T00:00:00Z"
_GONE_AFTER = "2026-01-01T00:00:00Z"
_END_OF_LIFE = "2026-09-01T00:00:00Z"


def moment(ms: int) -> str:
    return datetime.fromtimestamp(ms // 1000, UTC).isoformat().replace("+00:00", "Z")


def location(shown: catalog.Location) -> Json:
    return {
        "id": shown.id,
        "name": shown.name,
        "description": shown.description,
        "country": shown.country,
        "city": shown.city,
        "latitude": shown.latitude,
        "longitude": shown.longitude,
        "network_zone": shown.network_zone,
    }


def _type_location(world: World, shown: catalog.ServerType, place: catalog.Location) -> Json:
    gone = place.name in shown.gone_from
    return {
        "id": place.id,
        "name": place.name,
        "deprecation": {"announced": _LONG_AGO, "unavailable_after": _GONE_AFTER} if gone else None,
        # A hint only: it does not know what is depleted, and neither does the real one.
        "available": not gone and (shown.name, place.name) not in world.said_full,
        "recommended": not gone,
    }


def server_type(world: World, shown: catalog.ServerType) -> Json:
    return {
        "id": shown.id,
        "name": shown.name,
        "description": shown.name.upper(),
        "category": "Dedicated" if shown.cpu_type == "dedicated" else "Shared",
        "cores": shown.cores,
        "memory": float(shown.memory_gb),
        "disk": shown.disk_gb,
        "storage_type": "local",
        "cpu_type": shown.cpu_type,
        "architecture": shown.architecture,
        "deprecated": False,
        "deprecation": None,
        "prices": catalog.prices(shown),
        "locations": [
            _type_location(world, shown, place)
            for place in catalog.LOCATIONS
            if place.name in shown.listed_in
        ],
    }


def image(shown: catalog.Image) -> Json:
    return {
        "id": shown.id,
        "name": shown.name,
        "description": shown.description,
        "type": shown.type,
        "status": "available",
        "architecture": shown.architecture,
        "os_flavor": shown.flavor,
        "os_version": shown.version,
        "image_size": None,
        "disk_size": 5,
        "created": _LONG_AGO,
        "created_from": None,
        "bound_to": None,
        "deleted": None,
        "deprecated": _END_OF_LIFE if shown.deprecated else None,
        "labels": {},
        "protection": {"delete": False},
        "rapid_deploy": shown.type == "system",
    }


def action(world: World, shown: Action) -> Json:
    return {
        "id": shown.id,
        "command": shown.command,
        "status": shown.status,
        "progress": _progress(world, shown),
        "started": moment(shown.started_ms),
        "finished": None if shown.finished_ms is None else moment(shown.finished_ms),
        "resources": [{"id": id_, "type": type_} for type_, id_ in shown.resources],
        "error": {"code": shown.error[0], "message": shown.error[1]} if shown.error else None,
    }


def _progress(world: World, shown: Action) -> int:
    if shown.status != "running":
        return 100
    if shown.ends_ms is None:
        return 50
    return min(99, 100 * (world.at_ms - shown.started_ms) // max(1, shown.ends_ms - shown.started_ms))


def _public_net(world: World, shown: Server) -> Json:
    ipv4 = world.primary_ips.get(shown.ipv4 or 0)
    ipv6 = world.primary_ips.get(shown.ipv6 or 0)
    return {
        "ipv4": ipv4 and {"id": ipv4.id, "ip": ipv4.ip, "blocked": False, "dns_ptr": _reverse(ipv4)},
        "ipv6": ipv6 and {"id": ipv6.id, "ip": ipv6.ip, "blocked": False, "dns_ptr": []},
        "floating_ips": [],
        "firewalls": [{"id": firewall, "status": "applied"} for firewall in shown.firewalls],
    }


def _reverse(address: PrimaryIp) -> str:
    return f"static.{'.'.join(reversed(address.ip.split('.')))}.clients.example.net"


def server(world: World, shown: Server) -> Json:
    return {
        "id": shown.id,
        "name": shown.name,
        "status": shown.status,
        "created": moment(shown.created_ms),
        "server_type": server_type(world, shown.server_type),
        "location": location(shown.location),
        "image": shown.image and image(shown.image),
        "iso": None,
        "public_net": _public_net(world, shown),
        "private_net": [
            {"network": network, "ip": ip, "alias_ips": [], "mac_address": f"86:00:00:{shown.id % 2**24:06x}"}
            for network, ip in shown.networks.items()
        ],
        "rescue_enabled": False,
        "locked": bool(world.running(shown)),
        "backup_window": None,
        "outgoing_traffic": shown.outgoing_traffic,
        "ingoing_traffic": shown.ingoing_traffic,
        "included_traffic": catalog.included_traffic(shown.location.name),
        "protection": {"delete": shown.protected, "rebuild": shown.protected},
        "labels": shown.labels,
        "volumes": [],
        "load_balancers": [],
        "primary_disk_size": shown.disk_gb,
        "placement_group": None,
    }


def ssh_key(shown: SshKey) -> Json:
    return {
        "id": shown.id,
        "name": shown.name,
        "fingerprint": shown.fingerprint,
        "public_key": shown.public_key,
        "labels": shown.labels,
        "created": moment(shown.created_ms),
    }


def primary_ip(shown: PrimaryIp) -> Json:
    return {
        "id": shown.id,
        "name": shown.name,
        "type": shown.type,
        "ip": shown.ip,
        "location": location(shown.location),
        "labels": shown.labels,
        "auto_delete": shown.auto_delete,
        "assignee_id": shown.server,
        "assignee_type": "unassigned" if shown.server is None else "server",
        "blocked": False,
        "created": moment(shown.created_ms),
        "dns_ptr": [{"ip": shown.ip, "dns_ptr": _reverse(shown)}] if shown.type == "ipv4" else [],
        "protection": {"delete": shown.protected},
    }


def network(world: World, shown: Network) -> Json:
    subnet = {
        "type": "cloud",
        "ip_range": shown.ip_range,
        "network_zone": shown.network_zone,
        "gateway": shown.ip_range.split("/")[0].rpartition(".")[0] + ".1",
        "vswitch_id": None,
    }
    return {
        "id": shown.id,
        "name": shown.name,
        "ip_range": shown.ip_range,
        "created": moment(shown.created_ms),
        "labels": shown.labels,
        "servers": [server.id for server in world.servers.values() if shown.id in server.networks],
        "load_balancers": [],
        "subnets": [subnet],
        "routes": [],
        "protection": {"delete": False},
        "expose_routes_to_vswitch": False,
    }


def firewall(world: World, shown: Firewall) -> Json:
    return {
        "id": shown.id,
        "name": shown.name,
        "created": moment(shown.created_ms),
        "labels": shown.labels,
        "rules": [],
        "applied_to": [
            {"type": "server", "server": {"id": server.id}}
            for server in world.servers.values()
            if shown.id in server.firewalls
        ],
    }
