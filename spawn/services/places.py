"""Another place for an order: where there was no room, where its machine broke half-way, or where it was found.

Invariant: a server has one machine at a time, and costs what its place did at the moment of the order. What a machine
that never came has cost comes back before the next is ordered.
"""

from msgspec.structs import replace
from spawn_ledger.tx import Tx
from spawn_providers.base import Instance
from spawn_schemas.events import EventType

from spawn.domain.operations import (
    Create,
    Operation,
    Phase,
    found_where_it_was_left,
    ordered_instead,
    unclear_until,
)
from spawn.domain.servers import Server, Status
from spawn.services import meters
from spawn.services.changes import save, tell
from spawn.store import secrets, servers
from spawn.store.secrets import Vault


def elsewhere(tx: Tx, vault: Vault, operation: Operation, server: Server, now: int) -> Operation | None:
    """The order that has no room where it is, as it goes on; None where its buyer named no other place.

    Behind a lost answer the first copy may be on its way: it goes on in the same place until that is clear.
    """
    moving = ordered_instead(operation, server, now)
    if moving is None:
        return None
    clear_at = unclear_until(operation, now)
    if clear_at > now:
        plan = replace(operation.plan, lost_at=operation.plan.lost_at or now)
        return replace(operation, plan=plan, next_at=clear_at)
    if operation.phase is Phase.ACCEPTED:
        vault.erase_one(tx, server.id, secrets.ROOT_PASSWORD)
        server = _unmade(tx, operation, server, now)
        moving = ordered_instead(operation, server, now)
        if moving is None:
            raise RuntimeError(f"{operation.id} lost its other places within one transaction")
    moved, ordered = moving
    servers.move_server(tx, server, ordered)
    tell(tx, EventType.SERVER_UPDATED, ordered, now)
    return moved


def _unmade(tx: Tx, operation: Operation, server: Server, now: int) -> Server:
    """The server without its half-made machine, which its provider is paid for, and its owner gets everything back."""
    unmade = meters.unmade(tx, server, str(len(operation.plan.left)), now)
    unmade = replace(unmade, provider_ref=None, status=Status.INITIALIZING, ipv4=None, ipv6=None)
    save(tx, server, unmade, now)
    return unmade


def found(tx: Tx, operation: Operation, server: Server, machine: Instance | None, now: int) -> Server:
    """The server where an earlier copy of its order has made its machine."""
    if machine is None or not isinstance(operation.current, Create):
        return server
    there = found_where_it_was_left(operation, server, machine.provider_type, machine.location)
    if there is not server:
        servers.move_server(tx, server, there)
        tell(tx, EventType.SERVER_UPDATED, there, now)
    return there
