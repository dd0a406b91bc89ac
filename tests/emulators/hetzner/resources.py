"""Everything but servers: keys, addresses, networks, firewalls, and what is for sale."""

import base64
import binascii
import hashlib
import math
import random
from datetime import datetime
from typing import Any, Final

from tests.emulators.hetzner import catalog, views
from tests.emulators.hetzner.calls import Answer, Call, Handler, Json, found, listing, number, require_unique
from tests.emulators.hetzner.errors import ApiError, invalid
from tests.emulators.hetzner.labels import check_labels
from tests.emulators.hetzner.world import SshKey

# --- SSH keys -----------------------------------------------------------------------------------------------------

_KEY_TYPES: Final = (
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
)


def fingerprint(public_key: str) -> str:
    """MD5 of the key itself, in pairs of hexadecimal digits; raises `invalid_input` where there is no key."""
    type_, _, rest = public_key.strip().partition(" ")
    try:
        blob = base64.b64decode(rest.partition(" ")[0], validate=True)
    except binascii.Error as error:
        raise invalid("public_key", "is not an SSH key") from error
    named = blob[4 : 4 + int.from_bytes(blob[:4], "big")]
    if type_ not in _KEY_TYPES or named != type_.encode():
        raise invalid("public_key", "is not an SSH key")
    digest = hashlib.md5(blob, usedforsecurity=False).hexdigest()
    return ":".join(digest[place : place + 2] for place in range(0, 32, 2))


def create_key(call: Call) -> Answer:
    world, body = call.world, call.body
    check_labels(body.get("labels", {}))
    if not body["name"]:
        raise invalid("name", "must not be empty")
    made = SshKey(
        id=world.new_id(),
        name=body["name"],
        fingerprint=fingerprint(body["public_key"]),
        public_key=body["public_key"],
        labels=body.get("labels", {}),
        created_ms=world.at_ms,
    )
    require_unique(world.ssh_keys.values(), made.name, but=0, word="SSH key")
    if any(key.fingerprint == made.fingerprint for key in world.ssh_keys.values()):
        fields = {"fields": [{"name": "public_key"}]}
        raise ApiError("uniqueness_error", "SSH key with the same fingerprint already exists", fields)
    world.ssh_keys[made.id] = made
    return Answer(201, {"ssh_key": views.ssh_key(made)})


def list_keys(call: Call) -> Answer:
    wanted = call.one("fingerprint")
    keys = [key for key in call.world.ssh_keys.values() if wanted is None or key.fingerprint == wanted]
    return listing(call, "ssh_keys", keys, views.ssh_key)


def read_key(call: Call) -> Answer:
    return Answer(200, {"ssh_key": views.ssh_key(found(call.world.ssh_keys, call.id(), "SSH key"))})


def update_key(call: Call) -> Answer:
    key = found(call.world.ssh_keys, call.id(), "SSH key")
    name, labels = call.body.get("name", key.name), call.body.get("labels", key.labels)
    check_labels(labels)
    require_unique(call.world.ssh_keys.values(), name, but=key.id, word="SSH key")
    key.name, key.labels = name, labels
    return Answer(200, {"ssh_key": views.ssh_key(key)})


def delete_key(call: Call) -> Answer:
    """Servers keep what they were given of it."""
    del call.world.ssh_keys[found(call.world.ssh_keys, call.id(), "SSH key").id]
    return Answer(204)


# --- primary IPs --------------------------------------------------------------------------------------------------


def create_ip(call: Call) -> Answer:
    world, body = call.world, call.body
    check_labels(body.get("labels", {}))
    require_unique(world.primary_ips.values(), body["name"], but=0, word="primary IP")
    if body.get("assignee_id") is not None:
        raise invalid(
            "assignee_id", "assigning at creation is not emulated: name the IP when creating the server"
        )
    location = next((place for place in catalog.LOCATIONS if place.name == body.get("location")), None)
    if location is None:
        raise invalid("location", "not found")
    made = world.add_primary_ip(body["type"], location)
    made.name, made.labels = body["name"], body.get("labels", {})
    made.auto_delete = body.get("auto_delete", False)
    return Answer(201, {"primary_ip": views.primary_ip(made)})


def list_ips(call: Call) -> Answer:
    wanted = call.one("ip")
    shown = [ip for ip in call.world.primary_ips.values() if wanted is None or ip.ip == wanted]
    return listing(call, "primary_ips", shown, views.primary_ip)


def read_ip(call: Call) -> Answer:
    return Answer(
        200, {"primary_ip": views.primary_ip(found(call.world.primary_ips, call.id(), "primary IP"))}
    )


def update_ip(call: Call) -> Answer:
    address = found(call.world.primary_ips, call.id(), "primary IP")
    name, labels = call.body.get("name", address.name), call.body.get("labels", address.labels)
    check_labels(labels)
    require_unique(call.world.primary_ips.values(), name, but=address.id, word="primary IP")
    address.name, address.labels = name, labels
    address.auto_delete = call.body.get("auto_delete", address.auto_delete)
    return Answer(200, {"primary_ip": views.primary_ip(address)})


def delete_ip(call: Call) -> Answer:
    address = found(call.world.primary_ips, call.id(), "primary IP")
    if address.protected:
        raise ApiError("protected", "primary IP deletion is protected")
    if address.server is not None:
        raise ApiError("must_be_unassigned", "primary IP must be unassigned")
    del call.world.primary_ips[address.id]
    return Answer(204)


# --- networks and firewalls, which others have made -----------------------------------------------------------------


def list_networks(call: Call) -> Answer:
    networks = call.world.networks.values()
    return listing(call, "networks", networks, lambda network: views.network(call.world, network))


def read_network(call: Call) -> Answer:
    network = found(call.world.networks, call.id(), "network")
    return Answer(200, {"network": views.network(call.world, network)})


def list_firewalls(call: Call) -> Answer:
    firewalls = call.world.firewalls.values()
    return listing(call, "firewalls", firewalls, lambda firewall: views.firewall(call.world, firewall))


def read_firewall(call: Call) -> Answer:
    firewall = found(call.world.firewalls, call.id(), "firewall")
    return Answer(200, {"firewall": views.firewall(call.world, firewall)})


# --- what is for sale ---------------------------------------------------------------------------------------------


def list_types(call: Call) -> Answer:
    return listing(
        call, "server_types", catalog.SERVER_TYPES, lambda shown: views.server_type(call.world, shown)
    )


def read_type(call: Call) -> Answer:
    known = {one.id: one for one in catalog.SERVER_TYPES}
    return Answer(200, {"server_type": views.server_type(call.world, found(known, call.id(), "server type"))})


def list_locations(call: Call) -> Answer:
    return listing(call, "locations", catalog.LOCATIONS, views.location)


def read_location(call: Call) -> Answer:
    known = {one.id: one for one in catalog.LOCATIONS}
    return Answer(200, {"location": views.location(found(known, call.id(), "location"))})


def list_images(call: Call) -> Answer:
    """Deprecated ones only for who asks for them."""
    types, architectures = set(call.many("type")), set(call.many("architecture"))
    deprecated = (call.one("include_deprecated") or "").lower() == "true"
    statuses, bound = set(call.many("status")), call.one("bound_to")
    images = [
        image
        for image in catalog.IMAGES
        if (not types or image.type in types)
        and (not architectures or image.architecture in architectures)
        and (deprecated or not image.deprecated)
        and (not statuses or "available" in statuses)
        and bound is None
    ]
    return listing(call, "images", images, views.image)


def read_image(call: Call) -> Answer:
    known = {one.id: one for one in catalog.IMAGES}
    return Answer(200, {"image": views.image(found(known, call.id(), "image"))})


def _everywhere(net_hourly: str, net_monthly: str) -> list[Json]:
    return [
        {
            "location": place.name,
            "price_hourly": catalog.price(net_hourly),
            "price_monthly": catalog.price(net_monthly),
        }
        for place in catalog.LOCATIONS
    ]


def read_prices(call: Call) -> Answer:
    pricing: dict[str, Any] = {
        "currency": "EUR",
        "vat_rate": f"{catalog.VAT}.000000",
        "image": {"price_per_gb_month": catalog.price("0.0110")},
        "volume": {"price_per_gb_month": catalog.price("0.0440")},
        "server_backup": {"percentage": "20.000000"},
        "floating_ip": {"price_monthly": catalog.price("3.0000")},
        "floating_ips": [],
        "load_balancer_types": [],
        "primary_ips": [
            {"type": "ipv4", "prices": _everywhere("0.0008", "0.5000")},
            {"type": "ipv6", "prices": _everywhere("0.0000", "0.0000")},
        ],
        "server_types": [
            {"id": one.id, "name": one.name, "prices": catalog.prices(one)} for one in catalog.SERVER_TYPES
        ],
    }
    return Answer(200, {"pricing": pricing})


def datacenters(call: Call) -> Answer:
    raise ApiError("deprecated_api_endpoint", "datacenters are gone: use locations")


# --- metrics ------------------------------------------------------------------------------------------------------

_SERIES: Final = {
    "cpu": ("cpu",),
    "disk": ("disk.0.iops.read", "disk.0.iops.write", "disk.0.bandwidth.read", "disk.0.bandwidth.write"),
    "network": ("network.0.pps.in", "network.0.pps.out", "network.0.bandwidth.in", "network.0.bandwidth.out"),
}
_SAMPLES: Final = 200
_MOST_SAMPLES: Final = 500
_DAYS: Final = 30


def _time(call: Call, name: str) -> float:
    try:
        return datetime.fromisoformat(call.one(name) or "").timestamp()
    except ValueError as error:
        raise invalid(name, "is not an RFC 3339 time") from error


def metrics(call: Call) -> Answer:
    """Samples of a made-up load, which is the same whenever it is asked for; values are text."""
    server = call.world.server(call.id())
    end = _time(call, "end")
    start = max(_time(call, "start"), call.world.at_ms / 1000 - _DAYS * 86_400)
    if end < start:
        raise invalid("end", "is before start")
    asked = number(call.one("step"), "step", max(1, math.ceil((end - start) / _SAMPLES)))
    step = max(asked, math.ceil((end - start) / _MOST_SAMPLES), 1)
    times = range(math.ceil(start), math.floor(end), step)
    series = {
        name: {
            "values": [
                [at, f"{random.Random(f'{server.id}/{name}/{at}').uniform(0, 100):.4f}"] for at in times
            ]
        }
        for type_ in call.many("type")
        for name in _SERIES[type_]
    }
    shown = {
        "start": views.moment(int(start * 1000)),
        "end": views.moment(int(end * 1000)),
        "step": step,
        "time_series": series,
    }
    return Answer(200, {"metrics": shown})


ROUTES: Final[dict[str, Handler]] = {
    "POST /ssh_keys": create_key,
    "GET /ssh_keys": list_keys,
    "GET /ssh_keys/{id}": read_key,
    "PUT /ssh_keys/{id}": update_key,
    "DELETE /ssh_keys/{id}": delete_key,
    "POST /primary_ips": create_ip,
    "GET /primary_ips": list_ips,
    "GET /primary_ips/{id}": read_ip,
    "PUT /primary_ips/{id}": update_ip,
    "DELETE /primary_ips/{id}": delete_ip,
    "GET /networks": list_networks,
    "GET /networks/{id}": read_network,
    "GET /firewalls": list_firewalls,
    "GET /firewalls/{id}": read_firewall,
    "GET /server_types": list_types,
    "GET /server_types/{id}": read_type,
    "GET /locations": list_locations,
    "GET /locations/{id}": read_location,
    "GET /images": list_images,
    "GET /images/{id}": read_image,
    "GET /pricing": read_prices,
    "GET /datacenters": datacenters,
    "GET /datacenters/{id}": datacenters,
    "GET /servers/{id}/metrics": metrics,
}
