"""How a server's life ends in our books: on request, when its money is gone, when its provider lost it.

Invariant: the refund is fixed in the transaction that decides the end, whatever the provider does afterwards.
"""

from msgspec.structs import replace
from spawn_ledger.tx import Tx
from spawn_schemas.ids import ActionId
from spawn_schemas.money import Usdc

from spawn.domain.operations import (
    Create,
    Operation,
    OperationStatus,
    Phase,
    destroy_plan,
    new_operation,
)
from spawn.domain.rentals import owes_hour
from spawn.domain.servers import Command, Reason, Server, Status
from spawn.services import boots, funds, meters
from spawn.services.changes import save, tell_ended
from spawn.store import hosts, operations, rentals

SUPERSEDED = "superseded"


def begin(
    tx: Tx, server: Server, *, reason: Reason, action_id: ActionId, billing_ends_at: int, now: int
) -> tuple[Operation, Usdc]:
    """End billing, supersede what runs, and order the destruction; answers its operation and the refund.

    The server is settled to `billing_ends_at` already. A deposit that was only held comes back as well.
    """
    not_before, released = _supersede(tx, server, action_id, now)
    owes_hour = server.charged_until is not None or _owes_hour(tx, server, now)
    closed, refund = meters.close(tx, server, billing_ends_at, owes_hour=owes_hour)
    save(tx, server, replace(closed, status=Status.DESTROYING, reason=reason), now)
    operation = new_operation(action_id, server, Command.DESTROY, destroy_plan(not_before=not_before), now)
    operations.insert_operation(tx, operation)
    return operation, Usdc(released + refund)


def _owes_hour(tx: Tx, server: Server, now: int) -> bool:
    """Whether the first hour is due of a lent machine that nobody pays for at present."""
    rental = rentals.find(tx, server.id) if server.host_id is not None and server.frozen else None
    host = None if rental is None else hosts.find(tx, rental.host_id)
    return rental is not None and host is not None and owes_hour(rental, host.state, now)


def _supersede(tx: Tx, server: Server, by: ActionId, now: int) -> tuple[int, Usdc]:
    """End the running operation, if any.

    Answers until when a machine it ordered may still appear, and the deposit it had set aside.
    """
    running = operations.find_running(tx, server.id)
    if running is None:
        return 0, Usdc(0)
    released = funds.release_holds(tx, running.id, now)
    ended = replace(
        running,
        status=OperationStatus.ERROR,
        error_code=SUPERSEDED,
        error_message=f"Superseded by {by}.",
        finished_at=now,
    )
    operations.end_operation(tx, ended)
    tell_ended(tx, ended, now)
    on_its_way = isinstance(running.current, Create) and running.phase is Phase.SENT
    return (max(running.claim_until, now) if on_its_way else 0), released


def vanish(tx: Tx, server: Server, missed_at: int, now: int) -> None:
    """The provider has no such machine any more: its billing ends where it was first missed, and its secrets go.

    The server is settled to `missed_at` at least.
    """
    _supersede(tx, server, ActionId("the provider's loss"), now)
    rental = rentals.find(tx, server.id) if server.host_id is not None else None
    if rental is not None and rental.gone_at is not None:
        missed_at = min(missed_at, rental.gone_at)
    left = meters.unburnt(tx, server, missed_at, now)
    # A host that loses what it lends has its share of the time that it lent, and of no hour that it cut short.
    closed, _ = meters.close(tx, left, now, owes_hour=left.charged_until is not None and rental is None)
    lost = replace(
        closed,
        status=Status.DESTROYED,
        reason=Reason.VANISHED,
        ended_at=now,
        ipv4=None,
        ipv6=None,
        cost_until=None,
        owed=(),
    )
    save(tx, server, lost, now)
    boots.forget(tx, server.id)
