"""A machine that the books do not know becomes a server in them again: what its labels and its cloud tell of it.

Invariant: whose a machine is, is never made up: one that does not say so is not adopted, and somebody is told what to
do about it. One that is not sold costs what is sold nearest to it, and that is told. A server that was adopted without
a meter costs nothing, and cannot end for want of money, until an operator starts its meter.
"""

from collections.abc import Callable
from typing import Final

import msgspec
from msgspec.structs import asdict
from spawn_ledger.accounts import server_account
from spawn_ledger.transfers import open_account
from spawn_ledger.tx import Tx
from spawn_providers.base import Instance
from spawn_providers.catalog import Catalog, Offer
from spawn_schemas.api import Hostname
from spawn_schemas.events import EventType
from spawn_schemas.ids import Address, ServerId
from spawn_schemas.money import Usdc, format_usdc

from spawn.domain.pins import Pin, pin_of
from spawn.domain.servers import Server, status_of
from spawn.services import meters, traffic
from spawn.services.changes import tell
from spawn.store import servers

# The numbers of events that the lost books gave out must not come again: their readers have seen them.
INSERT_PLACEHOLDER: Final = """
INSERT INTO event (seq, wallet, type, resource, at, data) VALUES (:seq, '', '', '', :at, '')
"""
DELETE_PLACEHOLDER: Final = "DELETE FROM event WHERE seq = :seq"


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A machine of which everything is known that a server needs. `note` is for somebody to read."""

    provider: str
    instance: Instance
    key: ServerId
    owner: Address
    type: str
    architecture: str
    pin: Pin
    note: str | None


def find(provider: str, instance: Instance, catalog: Catalog, eur_usdc: Usdc) -> Found | str:
    """What is known of a machine; or what is missing, as a sentence without its end that says what to do."""
    if instance.key is None or instance.owner is None:
        return (
            f"machine {instance.ref} of {provider} ({instance.key}) does not say whose it is: put its owner's label "
            "back, or delete it there"
        )
    if not catalog.offers:
        return f"{provider} sells nothing, so that nothing says what machine {instance.ref} costs: wait until it does"
    exact = offer_of(instance, catalog)
    offer = exact or _nearest(instance, catalog)
    note = None
    if exact is None:
        note = (
            f"{instance.key} is a {instance.provider_type} in {instance.location}, which is not sold: it costs "
            f"{format_usdc(offer.daily_usdc)} USDC a day, as {offer.type} ({offer.provider_type}) does in "
            f"{offer.location}."
        )
    return Found(
        provider=provider,
        instance=instance,
        key=instance.key,
        owner=instance.owner,
        type=offer.type if exact is not None else _size_of(instance, catalog) or instance.provider_type,
        architecture=offer.architecture,
        pin=pin_of(offer, eur_usdc=eur_usdc),
        note=note,
    )


def offer_of(instance: Instance, catalog: Catalog) -> Offer | None:
    machine = (instance.provider_type, instance.location)
    return next((o for o in catalog.offers if (o.provider_type, o.location) == machine), None)


def _size_of(instance: Instance, catalog: Catalog) -> str | None:
    """What it was sold as, by its provider or by what is sold elsewhere."""
    elsewhere = (o.type for o in catalog.offers if o.provider_type == instance.provider_type)
    return instance.type or next(elsewhere, None)


def _nearest(instance: Instance, catalog: Catalog) -> Offer:
    """What is sold that is most like it: of its size here, of its type or size elsewhere, or at least as large.

    The cheapest of these, since nobody agreed to more; the dearest of all for what is larger than everything.
    """
    size = _size_of(instance, catalog)
    likenesses: tuple[Callable[[Offer], bool], ...] = (
        lambda o: (o.type, o.location) == (size, instance.location),
        lambda o: o.provider_type == instance.provider_type,
        lambda o: o.type == size,
        lambda o: o.cores >= instance.cores and o.memory_gb >= instance.memory_gb,
    )
    for is_alike in likenesses:
        alike = [offer for offer in catalog.offers if is_alike(offer)]
        if alike:
            return min(alike, key=lambda offer: offer.daily_usdc)
    return max(catalog.offers, key=lambda offer: offer.daily_usdc)


def adopt(tx: Tx, found: Found, now: int, *, metered: bool) -> Server:
    """Write the server down; `metered`, it costs what it costs since it was ordered."""
    created_at = found.instance.created_at
    since = now if created_at is None else min(created_at, now)
    server = _server(tx, found, since)
    if metered:
        server = meters.started(server, since)
    open_account(tx, server_account(server.id))
    servers.insert_server(tx, server)
    if not metered:
        traffic.began(tx, server, found.instance, now)
    tell(tx, EventType.SERVER_CREATED, server, now)
    return server


def skip_event_numbers(tx: Tx, now: int) -> None:
    """Go on beyond every number given out so far, unless there were a thousand events in each second since 1970."""
    tx.execute(INSERT_PLACEHOLDER, {"seq": now * 1_000, "at": now})
    tx.execute(DELETE_PLACEHOLDER, {"seq": now * 1_000})


def _free_name(tx: Tx, instance: Instance, owner: Address, server_id: ServerId) -> str:
    """The machine's name, unless it is no name of ours or the owner has another server of that name."""
    try:
        name = msgspec.convert(instance.hostname, Hostname)
    except msgspec.ValidationError:
        name = None
    if name is None or tx.one(servers.SELECT_NAME_TAKEN, {"wallet": owner, "name": name}) is not None:
        return f"restored-{server_id.removeprefix('srv_')}"
    return name


def _server(tx: Tx, found: Found, since: int) -> Server:
    """The row of a server that the machine is all there is left of. Its keys are on it, and not known to us."""
    instance, pin = found.instance, found.pin
    return Server(
        id=found.key,
        wallet=found.owner,
        name=_free_name(tx, instance, found.owner, found.key),
        type=found.type,
        image=instance.image,
        location=instance.location,
        network="ipv6" if instance.ipv4 is None and instance.ipv6 is not None else "dual",
        ssh_keys=(),
        provider=found.provider,
        provider_type=instance.provider_type,
        provider_ref=instance.ref,
        architecture=found.architecture,
        cores=instance.cores,
        memory_gb=instance.memory_gb,
        disk_gb=instance.disk_gb,
        status=status_of(instance.status),
        ipv4=instance.ipv4,
        ipv6=instance.ipv6,
        auto_renew=True,
        created_at=since,
        priced_at=since,
        **asdict(pin),
    )
